//! `Call`, `UnaryCall` and `ResponseStream`: what `router.generate` and `router.call` return. A ready item is
//! handed over without the loop, a task or a future: the stream is its own awaitable and raises
//! `StopIteration` with it.

use std::task::Poll;

use headrace::{Ready, ResponseStream as CoreStream};
use pyo3::exceptions::{PyBaseException, PyStopAsyncIteration};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::bridge::waiter::already_awaited;
use crate::ffi::raise_stop_iteration;
use crate::reading::{Reading, Step, found};
use crate::runtime::check_fork;

/// A stream of the items that an engine yields. Made by `Router.generate`.
#[pyclass(frozen, weakref, module = "headrace")]
#[derive(Debug)]
pub(crate) struct ResponseStream(Reading);

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
        loop {
            let step = match self.0.take_ready() {
                Some(step) => step,
                None => self.0.step(py, |stream, cx| stream.poll_next(cx).map(found))?,
            };
            self.0.hub.settle(py)?;
            return match step {
                Step::Item(item) => raise_stop_iteration(self.0.codec.get().decode(py, &item)?),
                Step::Wait(waiter) => Ok(Some(waiter)),
                Step::Turn => Ok(Some(py.None())),
                Step::End | Step::Opened | Step::Cut => Err(PyStopAsyncIteration::new_err(())),
                Step::Failed(error) => {
                    self.0.go_on(py, error)?;
                    continue;
                }
            };
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
        // The exception carries its traceback; the separate one is the old form's.
        drop(traceback);
        self.0.abandon(py)?;
        Err(thrown(kind, value))
    }

    /// The coroutine that awaits is closed: nobody reads on.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.0.abandon(py)
    }

    /// Appends the items that are ready, at most `limit`, without waiting. When one cannot be decoded, those
    /// before it have been appended.
    #[pyo3(signature = (into, limit=4096))]
    fn _take_ready(&self, into: &Bound<'_, PyList>, limit: usize) -> PyResult<()> {
        let py = into.py();
        check_fork(py)?;
        for _ in 0..limit {
            match self.0.with_open(CoreStream::try_next) {
                Some(Ready::Item(item)) => into.append(self.0.codec.get().decode(py, &item)?)?,
                _ => break,
            }
        }
        self.0.hub.settle(py)
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
        self.0.with_open(CoreStream::stop);
        self.0.hub.settle(py)
    }

    /// Ends the stream at once. The engine is cancelled, unread items are dropped.
    fn kill(&self, py: Python<'_>) -> PyResult<()> {
        check_fork(py)?;
        self.0.abandon(py)
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
        self.0.request_id()
    }

    /// The instance that answers; `None` before it is known.
    #[getter]
    fn instance_id(&self) -> Option<String> {
        self.0.with_open(|stream| stream.instance_id().to_owned())
    }

    /// Whether the engine ended because it was asked to stop.
    #[getter]
    fn stopped(&self) -> bool {
        self.0.with_open(CoreStream::stopped).unwrap_or(false)
    }

    /// How often the stream was continued on another instance.
    #[getter]
    fn resumed(&self) -> u32 {
        self.0.with_open(CoreStream::resumed).unwrap_or(0)
    }

    fn __repr__(&self) -> String {
        let state = self.0.state();
        format!("<headrace.ResponseStream request_id={:?} {state}>", self.0.request_id())
    }
}

/// The exception that `throw` was given in one of its three forms.
pub(crate) fn thrown(kind: Bound<'_, PyAny>, value: Option<Bound<'_, PyAny>>) -> PyErr {
    match value {
        Some(value) if value.is_instance_of::<PyBaseException>() => PyErr::from_value(value),
        _ if kind.is_instance_of::<PyBaseException>() => PyErr::from_value(kind),
        Some(value) => kind.call1((value,)).map_or_else(|error| error, PyErr::from_value),
        None => kind.call0().map_or_else(|error| error, PyErr::from_value),
    }
}

/// A call that has not begun until it is awaited: `await` gives the stream, `async for` and `async with` work
/// directly. Made by `Router.generate`.
#[pyclass(frozen, module = "headrace")]
#[derive(Debug)]
pub(crate) struct Call(Py<ResponseStream>);

impl Call {
    pub(crate) fn new(py: Python<'_>, reading: Reading) -> PyResult<Self> {
        Ok(Self(Py::new(py, ResponseStream(reading))?))
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
        let reading = &self.0.get().0;
        let step = reading.step(py, |_, _| Poll::Ready(Step::Opened))?;
        reading.hub.settle(py)?;
        match step {
            Step::Opened => raise_stop_iteration(self.0.bind(py).clone().into_any()),
            step => stepped(py, reading, step),
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
        self.0.get().throw(py, kind, value, traceback)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.0.get().close(py)
    }

    fn __aiter__(&self, py: Python<'_>) -> Py<ResponseStream> {
        self.0.clone_ref(py)
    }

    fn __aenter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __aexit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<Immediate> {
        self.0.get().aclose(py)
    }
}

/// A call of a unary engine that has not begun until it is awaited: `await` gives the item. Made by
/// `Router.call`.
#[pyclass(frozen, module = "headrace")]
#[derive(Debug)]
pub(crate) struct UnaryCall(Reading);

impl UnaryCall {
    pub(crate) const fn new(reading: Reading) -> Self {
        Self(reading)
    }
}

#[pymethods]
impl UnaryCall {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let step = self.0.step(py, |open, cx| {
            open.poll_single(cx).map(|result| result.map_or_else(Step::Failed, Step::Item))
        })?;
        self.0.hub.settle(py)?;
        stepped(py, &self.0, step)
    }

    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw(
        &self,
        py: Python<'_>,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        drop(traceback);
        self.0.abandon(py)?;
        Err(thrown(kind, value))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.0.abandon(py)
    }
}

/// What a step of a call means to whoever awaits it.
fn stepped(py: Python<'_>, reading: &Reading, step: Step) -> PyResult<Option<Py<PyAny>>> {
    match step {
        Step::Item(item) => raise_stop_iteration(reading.codec.get().decode(py, &item)?),
        Step::Wait(waiter) => Ok(Some(waiter)),
        Step::Turn => Ok(Some(py.None())),
        Step::Failed(error) => Err(reading.error(py, &error)),
        Step::End | Step::Opened | Step::Cut => Err(already_awaited("a call that was closed")),
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
