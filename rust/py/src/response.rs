//! `Call` and `ResponseStream`: what `router.generate` and `router.call` return. A ready item is handed over
//! without the loop, a task or a future: the stream is its own awaitable and raises `StopIteration` with it.

use std::sync::Arc;
use std::task::{Context, Poll};

use headrace::{Call as CoreCall, CallError, Item, Ready, ResponseStream as CoreStream};
use parking_lot::Mutex;
use pyo3::exceptions::{PyBaseException, PyStopAsyncIteration};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::bridge::hub::Hub;
use crate::bridge::parking::Parking;
use crate::bridge::waiter::already_awaited;
use crate::errors::call_error;
use crate::ffi::{ForkSafe, raise_stop_iteration};
use crate::payload::Codec;
use crate::router::RouterHandle;
use crate::runtime::{check_fork, is_forked};

/// Ready items handed over before the loop gets a turn, so that a fast producer starves nobody.
const READY_RUN_MAX: u32 = 64;

#[derive(Debug)]
enum State {
    Opening(Box<CoreCall>),
    Open(CoreStream),
    /// The call failed: what it failed with, to be raised again.
    Failed(CallError),
    /// Closed before it was open.
    Closed,
}

#[derive(Debug)]
struct Inner {
    state: State,
    parking: Option<Parking>,
    ready_run: u32,
}

/// What one step of an awaitable leads to.
enum Step {
    /// Wait for this.
    Wait(Py<PyAny>),
    /// Give the loop a turn.
    Turn,
    Item(Item),
    End,
    Failed(CallError),
    /// Opened.
    Opened,
}

/// A stream of the items that an engine yields. Made by `Router.generate`.
#[pyclass(frozen, weakref, module = "headrace")]
#[derive(Debug)]
pub(crate) struct ResponseStream {
    hub: Arc<Hub>,
    codec: Py<Codec>,
    request_id: String,
    inner: ForkSafe<Mutex<Inner>>,
    /// The router, which must not close while a stream of it is read.
    _router: Arc<RouterHandle>,
}

impl ResponseStream {
    fn new(
        hub: Arc<Hub>,
        codec: Py<Codec>,
        request_id: String,
        call: CoreCall,
        router: Arc<RouterHandle>,
    ) -> Self {
        let inner = Inner { state: State::Opening(Box::new(call)), parking: None, ready_run: 0 };
        Self { hub, codec, request_id, inner: ForkSafe::new(Mutex::new(inner)), _router: router }
    }

    /// Runs one step of whatever is awaited. `what` is polled with the stream once it is open.
    fn step(&self, py: Python<'_>, what: impl Fn(&CoreStream, &Context<'_>) -> Poll<Step>) -> PyResult<Step> {
        self.hub.check(py)?;
        let mut inner = self.inner.lock();
        let Inner { state, parking, .. } = &mut *inner;
        let place = match parking {
            Some(place) => place,
            none => none.insert(self.hub.parking(py)?),
        };
        if place.is_awaited() {
            return Err(already_awaited("this response"));
        }
        let mut cx = Context::from_waker(place.waker());
        if let State::Opening(call) = state {
            match std::pin::Pin::new(&mut **call).poll(&mut cx) {
                Poll::Pending => return Ok(Step::Wait(place.arm(py))),
                Poll::Ready(Ok(stream)) => *state = State::Open(stream),
                Poll::Ready(Err(error)) => *state = State::Failed(error),
            }
        }
        Ok(match state {
            State::Open(stream) => match what(stream, &cx) {
                Poll::Ready(step) => step,
                Poll::Pending => Step::Wait(place.arm(py)),
            },
            State::Failed(error) => Step::Failed(error.clone()),
            State::Opening(_) | State::Closed => Step::End,
        })
    }

    /// The fast path of `__next__`: what is there already.
    fn take_ready(&self) -> Option<Step> {
        let mut inner = self.inner.lock();
        let Inner { state: State::Open(stream), ready_run, .. } = &mut *inner else { return None };
        if *ready_run >= READY_RUN_MAX {
            *ready_run = 0;
            return Some(Step::Turn);
        }
        *ready_run += 1;
        match stream.try_next() {
            Ready::Item(item) => Some(Step::Item(item)),
            Ready::End => Some(Step::End),
            Ready::Failed(error) => Some(Step::Failed(error)),
            Ready::Pending => {
                *ready_run = 0;
                None
            }
        }
    }

    fn kill_now(&self) {
        if is_forked() {
            return;
        }
        let previous = {
            let mut inner = self.inner.lock();
            match &inner.state {
                State::Open(stream) => {
                    stream.kill();
                    None
                }
                State::Opening(_) => Some(std::mem::replace(&mut inner.state, State::Closed)),
                State::Failed(_) | State::Closed => None,
            }
        };
        drop(previous);
    }

    fn with_open<T>(&self, look: impl FnOnce(&CoreStream) -> T) -> Option<T> {
        match &self.inner.lock().state {
            State::Open(stream) => Some(look(stream)),
            _ => None,
        }
    }
}

#[pymethods]
impl ResponseStream {
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
        check_fork(py)?;
        let step = match self.take_ready() {
            Some(step) => step,
            None => self.step(py, |stream, cx| stream.poll_next(cx).map(found))?,
        };
        self.hub.settle(py)?;
        match step {
            Step::Item(item) => raise_stop_iteration(self.codec.get().decode(py, &item)?),
            Step::Wait(waiter) => Ok(Some(waiter)),
            Step::Turn => Ok(Some(py.None())),
            Step::End | Step::Opened => Err(PyStopAsyncIteration::new_err(())),
            Step::Failed(error) => Err(call_error(py, &error)),
        }
    }

    /// An exception thrown in by a cancelled task: nobody reads on.
    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw(
        &self,
        py: Python<'_>,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        self.kill_now();
        self.hub.settle(py)?;
        Err(thrown(kind, value, traceback))
    }

    /// The coroutine that awaits is closed: nobody reads on.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.kill_now();
        self.hub.settle(py)
    }

    /// Appends the items that are ready, at most `limit`, without waiting. When one cannot be decoded, those
    /// before it have been appended.
    #[pyo3(signature = (into, limit=4096))]
    fn _take_ready(&self, into: &Bound<'_, PyList>, limit: usize) -> PyResult<()> {
        let py = into.py();
        check_fork(py)?;
        for _ in 0..limit {
            match self.with_open(CoreStream::try_next) {
                Some(Ready::Item(item)) => into.append(self.codec.get().decode(py, &item)?)?,
                _ => break,
            }
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

    /// Asks the engine to finish; what it still yields arrives, then the stream ends cleanly.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        check_fork(py)?;
        self.with_open(CoreStream::stop);
        self.hub.settle(py)
    }

    /// Ends the stream at once. The engine is cancelled, unread items are dropped.
    fn kill(&self, py: Python<'_>) -> PyResult<()> {
        check_fork(py)?;
        self.kill_now();
        self.hub.settle(py)
    }

    /// As `kill`, for `contextlib.aclosing` and by analogy with asynchronous generators.
    fn aclose(&self, py: Python<'_>) -> PyResult<Immediate> {
        self.kill(py)?;
        Ok(Immediate::new(py.None()))
    }

    fn __aenter__(slf: Py<Self>) -> Immediate {
        Immediate::new(slf.into_any())
    }

    #[pyo3(signature = (*_exception))]
    fn __aexit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<Immediate> {
        self.aclose(py)
    }

    /// The call's request id.
    #[getter]
    fn request_id(&self) -> String {
        self.with_open(|stream| stream.request_id().to_owned()).unwrap_or_else(|| self.request_id.clone())
    }

    /// The instance that answers; `None` before it is known.
    #[getter]
    fn instance_id(&self) -> Option<String> {
        self.with_open(|stream| stream.instance_id().to_owned())
    }

    /// Whether the engine ended because it was asked to stop.
    #[getter]
    fn stopped(&self) -> bool {
        self.with_open(CoreStream::stopped).unwrap_or(false)
    }

    /// How often the stream was continued on another instance.
    #[getter]
    const fn resumed(&self) -> u32 {
        0
    }

    fn __repr__(&self) -> String {
        let state = match &self.inner.lock().state {
            State::Opening(_) => "opening",
            State::Open(_) => "open",
            State::Failed(_) => "failed",
            State::Closed => "closed",
        };
        format!("<headrace.ResponseStream request_id={:?} {state}>", self.request_id())
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        if !is_forked() {
            // The KILL that this may send is flushed by the loop, which has to be told.
            self.kill_now();
            self.hub.flush_later();
            let parking = self.inner.lock().parking.take();
            if let Some(parking) = parking {
                self.hub.recycle(parking);
            }
        }
    }
}

fn found(ready: Ready) -> Step {
    match ready {
        Ready::Item(item) => Step::Item(item),
        Ready::End | Ready::Pending => Step::End,
        Ready::Failed(error) => Step::Failed(error),
    }
}

/// The exception that `throw` was given in one of its three forms.
fn thrown(
    kind: Bound<'_, PyAny>,
    value: Option<Bound<'_, PyAny>>,
    _traceback: Option<Bound<'_, PyAny>>,
) -> PyErr {
    match value {
        Some(value) if value.is_instance_of::<PyBaseException>() => PyErr::from_value(value),
        _ if kind.is_instance_of::<PyBaseException>() => PyErr::from_value(kind),
        Some(value) => kind.call1((value,)).map_or_else(|error| error, PyErr::from_value),
        None => kind.call0().map_or_else(|error| error, PyErr::from_value),
    }
}

/// A call that has not begun until it is awaited: `await` gives the stream (or the single item),
/// `async for` and `async with` work directly.
#[pyclass(frozen, module = "headrace")]
#[derive(Debug)]
pub(crate) struct Call {
    stream: Py<ResponseStream>,
    single: bool,
}

impl Call {
    pub(crate) fn new(
        py: Python<'_>,
        hub: Arc<Hub>,
        codec: Py<Codec>,
        request_id: String,
        call: CoreCall,
        router: Arc<RouterHandle>,
        single: bool,
    ) -> PyResult<Self> {
        Ok(Self { stream: Py::new(py, ResponseStream::new(hub, codec, request_id, call, router))?, single })
    }
}

#[pymethods]
impl Call {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let stream = self.stream.get();
        let step = if self.single {
            stream.step(py, |open, cx| {
                open.poll_single(cx).map(|result| result.map_or_else(Step::Failed, Step::Item))
            })
        } else {
            stream.step(py, |_, _| Poll::Ready(Step::Opened))
        }?;
        stream.hub.settle(py)?;
        match step {
            Step::Opened => raise_stop_iteration(self.stream.bind(py).clone().into_any()),
            Step::Item(item) => raise_stop_iteration(stream.codec.get().decode(py, &item)?),
            Step::Wait(waiter) => Ok(Some(waiter)),
            Step::Turn => Ok(Some(py.None())),
            Step::Failed(error) => Err(call_error(py, &error)),
            Step::End => Err(already_awaited("a call that was closed")),
        }
    }

    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw(
        &self,
        py: Python<'_>,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        self.stream.get().throw(py, kind, value, traceback)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.stream.get().close(py)
    }

    fn __aiter__(&self, py: Python<'_>) -> Py<ResponseStream> {
        self.stream.clone_ref(py)
    }

    fn __aenter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __aexit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<Immediate> {
        self.stream.get().aclose(py)
    }
}

/// An awaitable that is done: `await` gives its value without a turn of the loop.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Immediate(Py<PyAny>);

impl Immediate {
    pub(crate) const fn new(value: Py<PyAny>) -> Self {
        Self(value)
    }
}

#[pymethods]
impl Immediate {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        raise_stop_iteration(self.0.bind(py).clone())
    }
}
