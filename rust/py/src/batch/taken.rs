//! `BatchTaken`: a batch in a function's hands.

use std::collections::HashSet;
use std::sync::Arc;

use headrace::batch::{Batch, Finished};
use parking_lot::Mutex;
use pyo3::exceptions::{PyException, PyRuntimeError, PyStopIteration, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PySet, PyString};

use super::core::{Core, Duty};
use super::reply::{Failure, Reply, Thing};
use super::stream::Yielded;
use crate::runtime::{check_fork, is_forked};

type Taken = Batch<Thing, Reply>;

/// Items that were taken together, until the function has answered. Dropped before, it fails them.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct BatchTaken {
    core: Arc<Core>,
    batch: Mutex<Option<Taken>>,
    items: Py<PyList>,
    /// Who reads what is yielded for each item, where that is wanted.
    streams: Vec<Option<Arc<Yielded>>>,
    key: Option<Py<PyAny>>,
    /// Until it has been answered; halves of a batch that was split share it.
    duty: Mutex<Option<Arc<Duty>>>,
}

impl BatchTaken {
    pub(super) fn of(core: &Arc<Core>, mut batch: Taken, duty: Option<Arc<Duty>>) -> Built {
        let things = batch.take_items();
        Built { core: Arc::clone(core), batch, things, duty }
    }

    /// Looks at the batch.
    ///
    /// # Errors
    /// It has been answered, or is the parent's of this forked child.
    fn with<T>(&self, py: Python<'_>, look: impl FnOnce(&mut Taken) -> T) -> PyResult<T> {
        check_fork(py)?;
        self.batch.lock().as_mut().map(look).ok_or_else(answered)
    }

    fn take(&self, py: Python<'_>) -> PyResult<Taken> {
        check_fork(py)?;
        self.batch.lock().take().ok_or_else(answered)
    }

    /// After the last of its items was told: another batch may be run, and the loop wakes whoever waits.
    fn over(&self, py: Python<'_>) -> PyResult<()> {
        drop(self.duty.lock().take());
        // Whoever looks for batches wakes them in the same callback.
        if self.core.is_looking() { Ok(()) } else { self.core.hub.settle(py) }
    }
}

/// The answer of one item, or its failure if it is an exception. Exceptions that were `seen` at another item of
/// the batch are not shared: a traceback belongs to one caller.
fn answer(value: Bound<'_, PyAny>, seen: &mut HashSet<usize>) -> Result<Py<PyAny>, Failure> {
    if !value.is_instance_of::<PyException>() {
        return Ok(value.unbind());
    }
    let is_again = !seen.insert(value.as_ptr().addr());
    // It would end the awaiting coroutine's wait with its value.
    let is_shared = is_again || value.is_instance_of::<PyStopIteration>();
    let error = value.unbind();
    Err(if is_shared { Failure::Shared { cause: error, size: 1 } } else { Failure::Own(error) })
}

/// A batch that is about to become a Python object.
pub(crate) struct Built {
    core: Arc<Core>,
    batch: Taken,
    things: Vec<Thing>,
    duty: Option<Arc<Duty>>,
}

impl Built {
    pub(super) fn bind(self, py: Python<'_>) -> PyResult<Bound<'_, BatchTaken>> {
        let Self { core, batch, mut things, duty } = self;
        let key = things.first_mut().and_then(|thing| thing.key.take());
        let (objects, streams): (Vec<_>, Vec<_>) =
            things.into_iter().map(|thing| (thing.object, thing.stream)).unzip();
        let items = PyList::new(py, objects)?.unbind();
        let (batch, duty) = (Mutex::new(Some(batch)), Mutex::new(duty));
        Bound::new(py, BatchTaken { core, batch, items, streams, key, duty })
    }
}

fn answered() -> PyErr {
    PyRuntimeError::new_err("this batch has been answered")
}

impl Drop for BatchTaken {
    fn drop(&mut self) {
        let batch = self.batch.get_mut().take();
        if is_forked() {
            // The parent answers it; here its lock may be held by a thread that does not exist.
            std::mem::forget(batch);
            return;
        }
        drop(batch);
        drop(self.duty.get_mut().take());
        self.core.hub.flush_later();
    }
}

#[pymethods]
impl BatchTaken {
    /// Its items, in the order in which results are expected.
    #[getter]
    fn items(&self, py: Python<'_>) -> Py<PyList> {
        self.items.clone_ref(py)
    }

    #[getter]
    fn tickets(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        self.with(py, |batch| batch.tickets().iter().map(|ticket| ticket.as_u64()).collect())
    }

    #[getter]
    fn key(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.key.as_ref().map(|key| key.clone_ref(py))
    }

    #[getter]
    fn worker(&self, py: Python<'_>) -> PyResult<u32> {
        self.with(py, |batch| batch.worker())
    }

    #[getter]
    fn reason(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.with(py, |batch| batch.reason().as_str())
    }

    #[getter]
    fn padded_size(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |batch| batch.padded_size())
    }

    #[getter]
    fn cost(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |batch| batch.cost())
    }

    fn __len__(&self) -> usize {
        self.streams.len()
    }

    /// Seconds for which somebody will wait for an item; `None` without a bound, 0 if nobody does any more.
    fn remaining(&self, py: Python<'_>, index: usize) -> PyResult<Option<f64>> {
        self.with(py, |batch| batch.remaining(index).map(|left| left.as_secs_f64()))
    }

    /// Whether nobody waits for an item any more.
    fn cancelled(&self, py: Python<'_>, index: usize) -> PyResult<bool> {
        self.with(py, |batch| batch.is_cancelled(index))
    }

    /// Answers one item ahead of the others; an exception fails it. False if it had been answered.
    fn resolve(&self, py: Python<'_>, index: usize, value: Bound<'_, PyAny>) -> PyResult<bool> {
        let answer = answer(value, &mut HashSet::new());
        let resolved = self.with(py, |batch| batch.resolve(index, answer))?;
        self.core.hub.settle(py)?;
        Ok(resolved)
    }

    /// One more item for whoever streams what is yielded for an item. False if nobody reads it any more.
    fn push(&self, py: Python<'_>, index: usize, value: Py<PyAny>) -> PyResult<bool> {
        let Some(Some(stream)) = self.streams.get(index) else { return Ok(false) };
        let taken = stream.push(value);
        self.core.hub.settle(py)?;
        Ok(taken)
    }

    /// Answers all items. Returns how many were still waited for, how many were not, and whether the batch had
    /// been taken away from its worker.
    fn complete(&self, py: Python<'_>, results: &Bound<'_, PyAny>) -> PyResult<(usize, usize, bool)> {
        if results.is_instance_of::<PyString>()
            || results.is_instance_of::<PyBytes>()
            || results.is_instance_of::<PyDict>()
            || results.is_instance_of::<PySet>()
        {
            let kind = results.get_type().name()?.to_string();
            return Err(PyTypeError::new_err(format!(
                "results are a sequence, one for each item, not {kind}"
            )));
        }
        let (mut answers, mut seen) = (Vec::with_capacity(self.streams.len()), HashSet::new());
        if let Ok(list) = results.cast::<PyList>() {
            answers.extend(list.iter().map(|value| answer(value, &mut seen)));
        } else {
            for value in results.try_iter()? {
                answers.push(answer(value?, &mut seen));
            }
        }
        let Finished { resolved, late, lost } = self.take(py)?.complete(answers);
        self.over(py)?;
        Ok((resolved, late, lost))
    }

    /// Fails all items that are left; each caller gets an exception of its own with `error` as its cause.
    fn fail(&self, py: Python<'_>, error: Py<PyAny>) -> PyResult<()> {
        let size = self.streams.len();
        self.take(py)?.fail(|_| Failure::Shared { cause: error.clone_ref(py), size });
        self.over(py)
    }

    /// Ends it: streams end here; what waits for one answer and has none fails.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let mut batch = self.take(py)?;
        for (index, stream) in self.streams.iter().enumerate() {
            if stream.is_some() {
                batch.resolve(index, Ok(py.None()));
            }
        }
        batch.finish();
        self.over(py)
    }

    /// Splits it in the middle, for a second run of each half; `None` if it cannot be split any more.
    fn split<'py>(&self, py: Python<'py>) -> PyResult<Option<(Bound<'py, Self>, Bound<'py, Self>)>> {
        let halves = match self.take(py)?.split() {
            Ok(halves) => halves,
            Err(batch) => {
                *self.batch.lock() = Some(batch);
                return Ok(None);
            }
        };
        let objects = self.items.bind(py);
        let mut things = objects.iter().map(Bound::unbind).zip(&self.streams).map(|(object, stream)| Thing {
            object,
            key: self.key.as_ref().map(|key| key.clone_ref(py)),
            stream: stream.clone(),
        });
        let duty = self.duty.lock().take();
        let half = |batch: Taken, things: Vec<Thing>| {
            Built { core: Arc::clone(&self.core), batch, things, duty: duty.clone() }.bind(py)
        };
        let (first, second) = halves;
        let before: Vec<_> = things.by_ref().take(first.len()).collect();
        let after: Vec<_> = things.collect();
        Ok(Some((half(first, before)?, half(second, after)?)))
    }

    /// Whether a batch that fails as a whole is to be split.
    #[getter]
    fn isolates(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |batch| batch.isolates())
    }

    /// The function begins with it now: after `split`.
    fn rearm(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |batch| batch.rearm())?;
        self.core.hub.settle(py)
    }
}
