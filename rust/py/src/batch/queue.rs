//! `BatchQueue`: one batcher's queue as Python sees it.

use std::sync::Arc;

use headrace::batch::{DispatchReason, Histogram, Taken};
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::asked::{Asked, Item};
use super::blocking::{Blocked, detached};
use super::core::{Callbacks, Core};
use super::flag::Flag;
use super::gathered::Gathered;
use super::reply::{Waits, read};
use super::seat::Seat;
use super::settings::BatchSettings;
use super::stream::{BatchStream, Yielded};
use super::submission::{Answer, Answering, Submission};
use super::taken::BatchTaken;
use super::within::Within;
use crate::bridge::loop_hub::LoopHub;
use crate::runtime::check_fork;
use crate::sink::Sink;

/// The queue of one batcher, on the loop that it was made on.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct BatchQueue(Arc<Core>);

impl BatchQueue {
    pub(super) const fn core(&self) -> &Arc<Core> {
        &self.0
    }

    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.0.hub.check(py)
    }

    fn admit(&self, py: Python<'_>, item: Item, answer: &Arc<Answer>) -> PyResult<()> {
        let submitted = self.0.submit_item(item, Waits::One(Arc::clone(answer)));
        answer.admitted(submitted.map_err(|refused| self.0.refusal(py, &refused))?);
        Ok(())
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
        slf: &Bound<'py, Self>,
        item: Bound<'py, PyAny>,
        terms: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Bound<'py, Submission>> {
        let (py, this) = (slf.py(), slf.get());
        this.check(py)?;
        let asked = Asked::of(terms)?;
        this.0.check_within(py, asked.timeout())?;
        let item = this.0.item(item, &asked)?;
        let submission = Bound::new(py, Submission::new(slf, None))?;
        this.admit(py, item, submission.get().answer())?;
        this.0.hub.settle(py)?;
        Ok(submission)
    }

    /// Submits a request as an item, whose answer answers it: no task, nobody awaits it. `failed(sink, error)`
    /// is called with what there is instead of an answer. Cancelling the request cancels the item.
    #[pyo3(signature = (request, sink, failed, **terms))]
    fn serve(
        slf: &Bound<'_, Self>,
        request: Bound<'_, PyAny>,
        sink: &Bound<'_, Sink>,
        failed: Py<PyAny>,
        terms: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.check(py)?;
        let item = this.0.item(request, &Asked::of(terms)?)?;
        let answering = Answering { sink: sink.clone().unbind(), failed };
        let submission = Bound::new(py, Submission::new(slf, Some(answering)))?;
        this.admit(py, item, submission.get().answer())?;
        Sink::bind(sink, submission.into_any().unbind())?;
        this.0.hub.settle(py)
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
        self.0.check_within(py, asked.timeout())?;
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
        self.0.check_within(py, asked.timeout())?;
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
        self.0.check_within(py, asked.timeout())?;
        let item = self.0.item(item, &asked)?;
        let yielded = Yielded::new(&self.0);
        let stream = Bound::new(py, BatchStream::new(Arc::clone(&yielded)))?;
        let submitted = self.0.submit_item(item, Waits::Stream(Arc::clone(&yielded)));
        let ticket = submitted.map_err(|refused| self.0.refusal(py, &refused))?;
        yielded.admitted(ticket);
        self.0.hub.settle(py)?;
        Ok(stream)
    }

    /// Marks the calling context as that of the function, which runs: of `task`, if it runs in one, or of a
    /// thread.
    #[pyo3(signature = (task=None))]
    fn enter<'py>(&self, py: Python<'py>, task: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, Within>> {
        check_fork(py)?;
        Within::mark(&self.0, py, task)
    }

    /// Where the task waits that runs the batches of this worker on the loop: from its first wait on they come
    /// there, and to `on_batch` while it does not wait.
    fn seat(&self, py: Python<'_>, worker: u32) -> PyResult<Py<Seat>> {
        self.check(py)?;
        self.0.seat(py, worker)
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
