//! `BatchQueue`: one batcher's queue as Python sees it, and how what is submitted becomes an item.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headrace::batch::{DispatchReason, Histogram, Refused, RejectReason, Taken, Terms, Ticket, Timeout};
use pyo3::exceptions::{PyException, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyString};

use super::blocking::{Blocked, detached};
use super::core::{Callbacks, Core};
use super::flag::Flag;
use super::gathered::Gathered;
use super::reply::{Numbered, Reply, Thing, Waits, read};
use super::settings::BatchSettings;
use super::stream::{BatchStream, Yielded};
use super::submission::{Answering, Submission};
use super::taken::BatchTaken;
use crate::bridge::loop_hub::LoopHub;
use crate::errors::batch_error;
use crate::router::whole;
use crate::runtime::check_fork;
use crate::sink::Sink;

/// What a submitter says of its items.
#[derive(Debug, Default)]
pub(super) struct Asked {
    client: Option<Py<PyAny>>,
    key: Option<Py<PyAny>>,
    cost: Option<Py<PyAny>>,
    priority: usize,
    timeout: Timeout,
    response_timeout: Timeout,
}

impl Asked {
    /// The keywords of a submit: `client`, `key`, `cost`, `priority`, `timeout` and `deadline`, of which the
    /// earlier counts, and `response_timeout`. (Most submits have none, and then there is no dictionary.)
    fn of(terms: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let mut asked = Self::default();
        let Some(terms) = terms else { return Ok(asked) };
        let mut deadline = None;
        for (name, value) in terms {
            let some = || (!value.is_none()).then(|| value.clone().unbind());
            match name.cast::<PyString>()?.to_str()? {
                "client" => asked.client = some(),
                "key" => asked.key = some(),
                "cost" => asked.cost = some(),
                "priority" => asked.priority = whole("priority", &value)?,
                "timeout" => asked.timeout = limit(&value)?,
                "deadline" => deadline = value.extract::<Option<f64>>()?,
                "response_timeout" => asked.response_timeout = limit(&value)?,
                name => return Err(PyTypeError::new_err(format!("unexpected keyword argument {name:?}"))),
            }
        }
        if let Some(deadline) = deadline {
            asked.timeout = until(terms.py(), deadline, asked.timeout)?;
        }
        Ok(asked)
    }
}

/// An item, ready to be submitted.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) thing: Thing,
    pub(super) terms: Terms,
    pub(super) numbered: Numbered,
}

impl Core {
    /// Finds out an item's key and cost.
    ///
    /// # Errors
    /// `Rejected`, with what a function of the caller's raised, or why its answer is none, as its cause.
    pub(super) fn item(&self, object: Bound<'_, PyAny>, asked: &Asked) -> PyResult<Item> {
        let py = object.py();
        let mut terms = Terms {
            priority: asked.priority,
            timeout: asked.timeout,
            response_timeout: asked.response_timeout,
            ..Terms::default()
        };
        let (key, numbered) = self.look(&object, asked, &mut terms).map_err(|error| {
            if !error.is_instance_of::<PyException>(py) {
                return error;
            }
            self.coordinator.count_invalid();
            let message = format!("rejected (invalid): {error}");
            let rejected =
                batch_error(py, "Rejected", &message, |fields| fields.set_item("reason", "invalid"));
            rejected.set_cause(py, Some(error));
            rejected
        })?;
        let thing = Thing { object: object.unbind(), key, stream: None };
        Ok(Item { thing, terms, numbered })
    }

    /// An item's key, if it has one, and the numbers of its key and client.
    fn look(
        &self,
        object: &Bound<'_, PyAny>,
        asked: &Asked,
        terms: &mut Terms,
    ) -> PyResult<(Option<Py<PyAny>>, Numbered)> {
        let py = object.py();
        let copy = |callback: &Option<Py<PyAny>>| callback.as_ref().map(|callback| callback.clone_ref(py));
        let (key, cost) = {
            let callbacks = self.callbacks.lock();
            (copy(&callbacks.key), copy(&callbacks.cost))
        };
        let by = |function: Option<Py<PyAny>>, given: &Option<Py<PyAny>>| match (given, function) {
            (Some(given), _) => Ok(Some(given.bind(py).clone())),
            (None, Some(function)) => function.bind(py).call1((object,)).map(Some),
            (None, None) => Ok(None),
        };
        if let Some(cost) = by(cost, &asked.cost)? {
            terms.cost = whole_cost(&cost)?;
        }
        let key = by(key, &asked.key)?;
        let client = asked.client.as_ref().map(|client| client.bind(py));
        if key.is_none() && client.is_none() {
            return Ok((None, Numbered::default()));
        }
        let numbered = self.number(key.as_ref(), client, terms)?;
        Ok((key.map(Bound::unbind), numbered))
    }

    /// Submits an item, or gives it back.
    pub(super) fn submit_item(
        self: &Arc<Self>,
        item: Item,
        waits: Waits,
    ) -> Result<Ticket, Box<Refused<Thing, Reply>>> {
        let Item { mut thing, terms, numbered } = item;
        thing.stream = match &waits {
            Waits::Stream(stream) => Some(Arc::clone(stream)),
            Waits::One(_) | Waits::Part(..) | Waits::Thread(_) => None,
        };
        // A map comes again when there is room.
        let comes_again = matches!(waits, Waits::Part(..));
        let reply = Reply { core: Arc::clone(self), waits, numbered };
        let submitted = if comes_again {
            self.coordinator.offer(thing, reply, terms)
        } else {
            self.coordinator.submit(thing, reply, terms)
        };
        submitted.map_err(Box::new)
    }

    /// What the caller of an item is told that was refused for good.
    pub(super) fn refusal(&self, py: Python<'_>, refused: &Refused<Thing, Reply>) -> PyErr {
        self.release(&refused.reply.numbered);
        let (reason, retry_after) = (&refused.reason, refused.retry_after.map(|after| after.as_secs_f64()));
        if *reason == RejectReason::Closed {
            return batch_error(py, "Closed", "rejected: the batcher is closed", |_| Ok(()));
        }
        let word = reason.as_str();
        batch_error(py, "Rejected", &format!("rejected ({word}): {reason}"), |fields| {
            fields.set_item("reason", word)?;
            fields.set_item("retry_after", retry_after)
        })
    }
}

fn whole_cost(cost: &Bound<'_, PyAny>) -> PyResult<u64> {
    if !cost.is_instance_of::<PyInt>() {
        let kind = cost.get_type().name()?.to_string();
        return Err(PyTypeError::new_err(format!("a cost is a whole number from 0 up, not {kind}")));
    }
    cost.extract()
        .map_err(|_| PyValueError::new_err(format!("a cost is a whole number from 0 up, not {cost}")))
}

/// How long something may take: `None` for ever, or seconds.
fn limit(value: &Bound<'_, PyAny>) -> PyResult<Timeout> {
    let Some(seconds) = value.extract::<Option<f64>>()? else { return Ok(Timeout::Never) };
    if seconds.is_nan() {
        return Err(PyValueError::new_err("a timeout must be a number of seconds, not nan"));
    }
    // What is over already is refused as expired, and what is out of reach is no bound.
    Ok(Duration::try_from_secs_f64(seconds.max(0.0)).map_or(Timeout::Never, Timeout::After))
}

/// The earlier one of a timeout and a `deadline` by `time.monotonic`.
fn until(py: Python<'_>, deadline: f64, timeout: Timeout) -> PyResult<Timeout> {
    let monotonic: f64 = py.import("time")?.call_method0("monotonic")?.extract()?;
    // What is over already is refused as expired; `max` would take what is no number for that.
    let left = (deadline - monotonic).clamp(0.0, f64::INFINITY);
    let left = Duration::try_from_secs_f64(left)
        .map_err(|_| PyValueError::new_err(format!("deadline must be a time.monotonic(), not {deadline}")))?;
    Ok(match timeout {
        Timeout::After(duration) if duration < left => timeout,
        _ => Instant::now().checked_add(left).map_or(Timeout::Never, Timeout::At),
    })
}

/// The queue of one batcher, on the loop that it was made on.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct BatchQueue(Arc<Core>);

impl BatchQueue {
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.0.hub.check(py)
    }
}

#[pymethods]
impl BatchQueue {
    /// A queue for the loop of `hub`. With `on_batch` that is called on the loop's thread with each batch, at
    /// the end of the turn that submitted it; without, threads take batches.
    #[staticmethod]
    fn start(
        py: Python<'_>,
        hub: &LoopHub,
        settings: &BatchSettings,
        key: Option<Py<PyAny>>,
        cost: Option<Py<PyAny>>,
        on_batch: Option<Py<PyAny>>,
        on_lost: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let hub = hub.hub();
        hub.check(py)?;
        let callbacks = Callbacks { key, cost, on_batch, on_lost };
        Core::start(hub, settings.config(), callbacks).map(Self)
    }

    /// What the callbacks hold often holds the queue. While anything else has part in it (an item that
    /// waits, a batch that runs), it is not to be collected.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if Arc::strong_count(&self.0) > 1 {
            return Ok(());
        }
        let Some(callbacks) = self.0.callbacks.try_lock() else { return Ok(()) };
        let Callbacks { key, cost, on_batch, on_lost } = &*callbacks;
        [key, cost, on_batch, on_lost].into_iter().flatten().try_for_each(|callback| visit.call(callback))
    }

    fn __clear__(&self) {
        let callbacks = std::mem::take(&mut *self.0.callbacks.lock());
        drop(callbacks);
    }

    /// An item's answer, to be awaited.
    #[pyo3(signature = (item, **terms))]
    fn submit<'py>(
        &self,
        py: Python<'py>,
        item: Bound<'py, PyAny>,
        terms: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Bound<'py, Submission>> {
        self.check(py)?;
        let asked = Asked::of(terms)?;
        let item = self.0.item(item, &asked)?;
        let submission = Bound::new(py, Submission::new(&self.0))?;
        let submitted = self.0.submit_item(item, Waits::One(submission.clone().unbind()));
        let ticket = submitted.map_err(|refused| self.0.refusal(py, &refused))?;
        submission.get().admitted(ticket);
        self.0.hub.settle(py)?;
        Ok(submission)
    }

    /// Submits a request as an item, whose answer answers it: no task, nobody awaits it. `failed(sink, error)`
    /// is called with what there is instead of an answer. Cancelling the request cancels the item.
    #[pyo3(signature = (request, sink, failed, **terms))]
    fn serve(
        &self,
        py: Python<'_>,
        request: Bound<'_, PyAny>,
        sink: &Bound<'_, Sink>,
        failed: Py<PyAny>,
        terms: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        self.check(py)?;
        let item = self.0.item(request, &Asked::of(terms)?)?;
        let answering = Answering { sink: sink.clone().unbind(), failed };
        let submission = Bound::new(py, Submission::answering(&self.0, answering))?;
        let submitted = self.0.submit_item(item, Waits::One(submission.clone().unbind()));
        let ticket = submitted.map_err(|refused| self.0.refusal(py, &refused))?;
        submission.get().admitted(ticket);
        Sink::bind(sink, submission.into_any().unbind())?;
        self.0.hub.settle(py)
    }

    /// An item's answer, waited for on the calling thread, which is not the loop's.
    #[pyo3(signature = (item, **terms))]
    fn submit_sync<'py>(
        &self,
        py: Python<'py>,
        item: Bound<'py, PyAny>,
        terms: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        check_fork(py)?;
        if self.0.hub.is_loop_thread() {
            let message = "submit_sync on the batcher's own event loop would block it; await submit instead";
            return Err(PyRuntimeError::new_err(message));
        }
        let asked = Asked::of(terms)?;
        let item = self.0.item(item, &asked)?;
        let blocked = Arc::new(Blocked::default());
        let submitted = self.0.submit_item(item, Waits::Thread(Arc::clone(&blocked)));
        let ticket = submitted.map_err(|refused| self.0.refusal(py, &refused))?;
        match blocked.wait(py) {
            Ok(ended) => read(py, &ended),
            Err(error) => {
                self.0.coordinator.cancel(ticket);
                Err(error)
            }
        }
    }

    /// The answers of many items, in their order, to be awaited.
    #[pyo3(signature = (items, *, return_exceptions=false, **terms))]
    fn map<'py>(
        &self,
        py: Python<'py>,
        items: &Bound<'py, PyAny>,
        return_exceptions: bool,
        terms: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Bound<'py, Gathered>> {
        self.check(py)?;
        let asked = Asked::of(terms)?;
        Gathered::start(&self.0, items, asked, return_exceptions)
    }

    /// What is yielded for an item.
    #[pyo3(signature = (item, **terms))]
    fn stream<'py>(
        &self,
        py: Python<'py>,
        item: Bound<'py, PyAny>,
        terms: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Bound<'py, BatchStream>> {
        self.check(py)?;
        let asked = Asked::of(terms)?;
        let item = self.0.item(item, &asked)?;
        let yielded = Yielded::new(&self.0);
        let stream = Bound::new(py, BatchStream::new(Arc::clone(&yielded)))?;
        let submitted = self.0.submit_item(item, Waits::Stream(Arc::clone(&yielded)));
        let ticket = submitted.map_err(|refused| self.0.refusal(py, &refused))?;
        yielded.admitted(ticket);
        self.0.hub.settle(py)?;
        Ok(stream)
    }

    /// The next batch for a thread of one's own; `None` when there will be none any more.
    fn next_batch<'py>(&self, py: Python<'py>, worker: u32) -> PyResult<Option<Bound<'py, BatchTaken>>> {
        check_fork(py)?;
        let batch = detached(py, || self.0.coordinator.next_batch(worker));
        batch.map(|batch| BatchTaken::of(&self.0, batch, None).bind(py)).transpose()
    }

    /// A batch of at most `limit` items, if one can be taken now.
    fn try_take<'py>(
        &self,
        py: Python<'py>,
        worker: u32,
        limit: usize,
    ) -> PyResult<Option<Bound<'py, BatchTaken>>> {
        check_fork(py)?;
        let taken = self.0.coordinator.try_take_at_most(worker, limit);
        // There may be room now, and items may have expired.
        self.0.hub.settle(py)?;
        match taken {
            Taken::Batch(batch) => BatchTaken::of(&self.0, batch, None).bind(py).map(Some),
            Taken::Nothing | Taken::Closed => Ok(None),
        }
    }

    /// Waits on the calling thread until a batch can be taken; false when there will be none any more.
    fn wait_takable(&self, py: Python<'_>) -> PyResult<bool> {
        check_fork(py)?;
        Ok(detached(py, || self.0.coordinator.wait_ready()))
    }

    /// The same for a task of the loop.
    fn takable(&self, py: Python<'_>) -> PyResult<Py<Flag>> {
        self.check(py)?;
        let flag = self.0.takable(py)?;
        self.0.hub.settle(py)?;
        Ok(flag)
    }

    fn configure(&self, py: Python<'_>, settings: &BatchSettings) -> PyResult<()> {
        check_fork(py)?;
        self.0.configure(settings.config())?;
        self.0.hub.settle(py)
    }

    fn pause(&self, py: Python<'_>) -> PyResult<()> {
        check_fork(py)?;
        self.0.coordinator.pause();
        self.0.hub.settle(py)
    }

    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        check_fork(py)?;
        self.0.coordinator.resume();
        self.0.hub.settle(py)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        check_fork(py)?;
        self.0.coordinator.flush();
        self.0.hub.settle(py)
    }

    /// Takes nothing new; what waits still runs.
    fn begin_drain(&self, py: Python<'_>) -> PyResult<()> {
        check_fork(py)?;
        self.0.coordinator.begin_drain();
        self.0.hub.settle(py)
    }

    /// Takes nothing new; what waits is told `Closed`.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        check_fork(py)?;
        self.0.coordinator.close();
        self.0.hub.settle(py)
    }

    /// A thread that took batches has gone: what it has not answered fails.
    fn lose(&self, py: Python<'_>, worker: u32) -> PyResult<()> {
        check_fork(py)?;
        self.0.coordinator.lose(worker);
        self.0.hub.settle(py)
    }

    /// Done when it is closed, and nothing waits or runs any more.
    fn wait_quiet(&self, py: Python<'_>) -> PyResult<Py<Flag>> {
        self.check(py)?;
        self.0.wait_quiet(py)
    }

    #[getter]
    fn closed(&self) -> bool {
        self.0.coordinator.is_closed()
    }

    /// Counts, and histograms as `(bounds, counts up to each, sum)`.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        check_fork(py)?;
        let stats = self.0.coordinator.stats();
        let dict = PyDict::new(py);
        for (name, count) in [
            ("submitted", stats.submitted),
            ("completed", stats.completed),
            ("failed", stats.failed),
            ("expired", stats.expired),
            ("expired_early", stats.expired_early),
            ("cancelled", stats.cancelled),
            ("closed", stats.closed),
            ("timed_out", stats.timed_out),
            ("late_results", stats.late_results),
            ("consecutive_errors", stats.consecutive_errors),
            ("workers_lost", stats.workers_lost),
            ("queued", stats.queued as u64),
            ("queued_cost", stats.queued_cost),
            ("dispatched", stats.dispatched as u64),
            ("abandoned", stats.abandoned as u64),
            ("in_flight", stats.in_flight as u64),
            ("max_batch_size", stats.max_batch_size as u64),
            ("min_batch_size_seen", stats.min_batch_size_seen as u64),
            ("max_batch_size_seen", stats.max_batch_size_seen as u64),
        ] {
            dict.set_item(name, count)?;
        }
        let rejected = PyDict::new(py);
        for (reason, count) in stats.rejected.by_reason() {
            rejected.set_item(reason, count)?;
        }
        dict.set_item("rejected", rejected)?;
        let batches = PyDict::new(py);
        for (reason, count) in DispatchReason::ALL.iter().zip(stats.batches) {
            batches.set_item(reason.as_str(), count)?;
        }
        dict.set_item("batches", batches)?;
        for (name, histogram) in [
            ("batch_size", &stats.batch_size),
            ("fill", &stats.fill),
            ("batch_cost", &stats.batch_cost),
            ("queue_wait", &stats.queue_wait),
            ("formation", &stats.formation),
            ("execution", &stats.execution),
        ] {
            dict.set_item(name, counted(histogram))?;
        }
        Ok(dict)
    }
}

/// A histogram's bounds, how many values are up to each, and their sum.
fn counted(histogram: &Histogram) -> (Vec<f64>, Vec<u64>, f64) {
    let (bounds, counts) = histogram.cumulative().unzip();
    (bounds, counts, histogram.sum())
}
