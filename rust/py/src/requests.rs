//! Requests that are streams: [`RequestSink`], where the items of a caller's asynchronous iterator go, and
//! [`RequestStream`], from which an engine reads them as `ctx.requests`. The task that runs the iterator is
//! in `headrace/_requests.py`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use headrace::requests::Received;
use headrace::{RequestSink as CoreSink, RequestStream as CoreRequests};
use parking_lot::Mutex;
use pyo3::exceptions::{PyException, PyStopAsyncIteration};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::bridge::hub::{Hub, Target};
use crate::bridge::parking::{Parked, telling};
use crate::errors::stream_killed;
use crate::ffi::{AsyncGenerator, ForkSafe, raise_stop_iteration};
use crate::payload::Codec;
use crate::pump::{Pump, PumpsInto};
use crate::pushing::{Pushing, Wait};
use crate::reading::{Place, Step};
use crate::response::{Immediate, thrown};
use crate::runtime::{check_fork, is_forked};

/// What a caller's iterator raised, until whoever reads the response gets it. Kept longer it would keep
/// alive, through its traceback, the stream that keeps it.
#[derive(Debug, Default)]
pub(crate) struct Failure(Mutex<Option<Py<PyAny>>>);

impl Failure {
    fn put(&self, error: Py<PyAny>) {
        *self.0.lock() = Some(error);
    }

    pub(crate) fn take(&self) -> Option<Py<PyAny>> {
        self.0.lock().take()
    }

    /// Nobody will read the response any more: what was raised and not seen goes to the loop's handler.
    pub(crate) fn report(&self, event_loop: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = event_loop.py();
        let Some(error) = self.take() else { return Ok(()) };
        if !error.bind(py).is_instance_of::<PyException>() {
            return Ok(());
        }
        let context = PyDict::new(py);
        context
            .set_item("message", "a request stream failed, and nobody read the response to learn of it")?;
        context.set_item("exception", error)?;
        event_loop.call_method1(pyo3::intern!(py, "call_exception_handler"), (context,)).map(drop)
    }
}

/// Where the items of one caller's request go, with the task that makes them.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct RequestSink {
    pushing: Pushing<CoreSink>,
    failure: Arc<Failure>,
    /// The waker that is told when nobody takes items any more, and its slot.
    watch: Mutex<Option<(Waker, Parked)>>,
    /// The task, kept alive until it is done, and whether it has had its first step.
    task: Mutex<Option<Py<PyAny>>>,
    begun: AtomicBool,
}

impl RequestSink {
    pub(crate) fn new(hub: Arc<Hub>, codec: Py<Codec>, sink: CoreSink, failure: Arc<Failure>) -> Self {
        Self {
            pushing: Pushing::new(hub, codec, sink),
            failure,
            watch: Mutex::new(None),
            task: Mutex::new(None),
            begun: AtomicBool::new(false),
        }
    }

    /// Has a task run the caller's iterator; it takes the first item when a worker has accepted the request.
    pub(crate) fn start(slf: &Bound<'_, Self>, requests: Py<PyAny>) -> PyResult<()> {
        let this = slf.get();
        let (waker, slot) = telling(&this.pushing.hub, Target::Requests(slf.clone().unbind()));
        this.pushing.with(|sink| sink.watch(waker.clone()));
        *this.watch.lock() = Some((waker, slot));
        let module = slf.py().import(pyo3::intern!(slf.py(), "headrace._requests"))?;
        module.getattr(pyo3::intern!(slf.py(), "start"))?.call1((requests, slf)).map(drop)
    }

    pub(crate) fn push_item(&self, object: &Bound<'_, PyAny>) -> PyResult<Wait> {
        self.pushing.push_item(object)
    }

    /// Nobody takes items any more: the iterator is interrupted where it waits.
    pub(crate) fn signalled(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        // A task that has not begun would be cancelled without a chance to close the iterator. It looks
        // itself.
        let interrupt = this.begun.load(Ordering::Relaxed) && this.is_closed();
        let task = this.task.lock().as_ref().map(|task| task.clone_ref(slf.py()));
        match task {
            Some(task) if interrupt => {
                task.call_method0(slf.py(), pyo3::intern!(slf.py(), "cancel")).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn release(&self) {
        let (watch, task) = (self.watch.lock().take(), self.task.lock().take());
        drop((watch, task));
        self.pushing.release();
    }
}

#[pymethods]
impl RequestSink {
    /// Takes the task that runs the iterator.
    fn bind(slf: &Bound<'_, Self>, task: Py<PyAny>) -> PyResult<()> {
        let py = slf.py();
        let done = slf.getattr(pyo3::intern!(py, "_task_done"))?;
        task.call_method1(py, pyo3::intern!(py, "add_done_callback"), (done,))?;
        *slf.get().task.lock() = Some(task);
        Ok(())
    }

    /// The task's first step. Returns something to await before the first item, or `None`.
    fn begin(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.begun.store(true, Ordering::Relaxed);
        self.pushing.wait_drained(py)?.awaitable(py)
    }

    /// Whether nobody takes items any more.
    #[getter]
    fn is_closed(&self) -> bool {
        // Once the request has ended or failed, nobody may interrupt what the task still does.
        self.pushing.with(CoreSink::is_closed).unwrap_or(false)
    }

    /// Pushes an item. Returns `None`, or something to await before the next: credit, or the loop's turn.
    fn push(&self, object: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
        self.push_item(object)?.awaitable(object.py())
    }

    /// Something to await that pushes all items of an asynchronous generator; `None` for any other object.
    fn pump(slf: Py<Self>, requests: Bound<'_, PyAny>) -> PyResult<Option<Pump>> {
        Ok(AsyncGenerator::new(requests)?.map(|generator| Pump::new(PumpsInto::Request(slf), generator)))
    }

    /// Ends the request; the response goes on.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(sink) = self.pushing.take() {
            sink.finish();
        }
        self.pushing.hub.settle(py)
    }

    /// Fails the call with what the iterator raised. False when nobody takes items any more: then the call
    /// has its own end.
    fn fail(&self, error: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Some(sink) = self.pushing.take() else { return Ok(false) };
        let kind = error.get_type().name()?;
        let reason = match error.str() {
            Ok(text) if !text.to_string().is_empty() => format!("{kind}: {text}"),
            _ => kind.to_string(),
        };
        // Before whoever waits for the response is woken.
        self.failure.put(error.clone().unbind());
        let failed = sink.fail(&reason);
        if !failed {
            drop(self.failure.take());
        }
        self.pushing.hub.settle(error.py())?;
        Ok(failed)
    }

    /// The task is done. One that was cancelled before its first step has run nothing that could have ended
    /// the request.
    fn _task_done(&self, py: Python<'_>, _task: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Some(sink) = self.pushing.take() {
            sink.fail("the task that makes its items was cancelled");
        }
        self.release();
        self.pushing.hub.settle(py)
    }
}

#[derive(Debug)]
struct Inner {
    /// `None` once the engine has closed it.
    requests: Option<CoreRequests>,
    place: Place,
}

/// The items of a request that is a stream, as its engine reads them.
#[pyclass(frozen, weakref, generic, module = "headrace")]
#[derive(Debug)]
pub(crate) struct RequestStream {
    hub: Arc<Hub>,
    codec: Py<Codec>,
    inner: ForkSafe<Mutex<Inner>>,
}

impl AsMut<Place> for Inner {
    fn as_mut(&mut self) -> &mut Place {
        &mut self.place
    }
}

impl RequestStream {
    pub(crate) fn new(hub: Arc<Hub>, codec: Py<Codec>, requests: CoreRequests) -> Self {
        let inner = Inner { requests: Some(requests), place: Place::default() };
        Self { hub, codec, inner: ForkSafe::new(Mutex::new(inner)) }
    }

    fn step(&self, py: Python<'_>) -> PyResult<Step> {
        check_fork(py)?;
        let mut inner = self.inner.lock();
        let Inner { requests: Some(requests), place } = &mut *inner else { return Ok(Step::End) };
        if let Some(step) = place.take_ready(|| found(requests.try_next())) {
            return Ok(step);
        }
        self.hub.check(py)?;
        let inner = &mut *Place::ready(py, &self.hub, inner, "this request")?;
        let Inner { requests: Some(requests), place } = inner else { return Ok(Step::End) };
        place.step(py, |cx| requests.poll_next(cx).map(|received| found(received).unwrap_or(Step::End)))
    }

    /// Wants no more items; the caller is told.
    fn close_now(&self) {
        let requests = self.inner.lock().requests.take();
        drop(requests);
    }
}

fn found(received: Received) -> Option<Step> {
    match received {
        Received::Item(item) => Some(Step::Item(item)),
        Received::Pending => None,
        Received::End => Some(Step::End),
        Received::Closed => Some(Step::Cut),
    }
}

#[pymethods]
impl RequestStream {
    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let step = self.step(py)?;
        self.hub.settle(py)?;
        match step {
            Step::Item(item) => raise_stop_iteration(self.codec.get().decode(py, &item)?),
            Step::Wait(waiter) => Ok(Some(waiter)),
            Step::Turn => Ok(Some(py.None())),
            Step::Cut | Step::Failed(_) => Err(stream_killed(py)),
            Step::End | Step::Opened => Err(PyStopAsyncIteration::new_err(())),
        }
    }

    /// An exception thrown in by a task that is cancelled or whose wait has timed out. No item is lost by it,
    /// and the stream can be read on.
    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw(
        &self,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        // The exception carries its traceback; the separate one is the old form's.
        drop(traceback);
        Err(thrown(kind, value))
    }

    /// The coroutine that awaits is closed.
    const fn close(&self) {}

    /// Appends the items that are ready, at most `limit`, without waiting. When one cannot be decoded, those
    /// before it have been appended.
    #[pyo3(signature = (into, limit=4096))]
    fn _take_ready(&self, into: &Bound<'_, PyList>, limit: usize) -> PyResult<()> {
        let py = into.py();
        check_fork(py)?;
        for _ in 0..limit {
            let received = self.inner.lock().requests.as_ref().map(CoreRequests::try_next);
            let Some(Received::Item(item)) = received else { break };
            into.append(self.codec.get().decode(py, &item)?)?;
        }
        self.hub.settle(py)
    }

    /// Lists of the items that are ready: one list for each wake-up instead of one item.
    fn chunks(slf: Bound<'_, Self>) -> PyResult<Bound<'_, PyAny>> {
        let py = slf.py();
        py.import("headrace._stream")?.getattr("chunks")?.call1((slf,))
    }

    /// All items of the stream, as a list.
    fn collect(slf: Bound<'_, Self>) -> PyResult<Bound<'_, PyAny>> {
        let py = slf.py();
        py.import("headrace._stream")?.getattr("collect")?.call1((slf,))
    }

    /// Wants no more items: the caller's iterator is closed, unread items are dropped, the response goes on.
    /// Immediate, also when not awaited.
    fn aclose(&self, py: Python<'_>) -> PyResult<Immediate> {
        self.hub.check(py)?;
        self.close_now();
        self.hub.settle(py)?;
        Ok(Immediate::new(py.None()))
    }

    fn __repr__(&self) -> &'static str {
        match &self.inner.lock().requests {
            Some(_) => "<headrace.RequestStream>",
            None => "<headrace.RequestStream closed>",
        }
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        if !is_forked() {
            // The STOP that this may send is flushed by the loop, which has to be told.
            self.close_now();
            self.hub.flush_later();
            self.inner.lock().place.give_back(&self.hub);
        }
    }
}
