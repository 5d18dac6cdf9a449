//! `Stream`: one that is lent, until it is released; or one of others, as long as they keep it.

use std::fmt;
use std::sync::Arc;

use headrace_cuda::{CudaError, Lease, StreamKind};
use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::buffer::{DeviceBuffer, Layout};
use super::copies;
use super::event::Event;
use super::leasing::wait_on_thread;
use super::pending::{Pending, done, ends};
use super::pool::{Pool, refuse_on_loop};
use super::release::let_go;
use super::taken::show;
use crate::errors::cuda_error;
use crate::runtime::is_forked;

/// A stream as long as it may be used.
pub(super) struct Held {
    pub(super) pool: Arc<Pool>,
    native: headrace_cuda::Stream,
    /// Gives the stream back when it is dropped.
    _lease: Option<Lease>,
}

/// Work for a device, in order. A lent one works until it is released.
#[pyclass(frozen, weakref, name = "Stream", module = "headrace.cuda")]
pub(crate) struct Stream {
    id: u32,
    ordinal: usize,
    priority: i32,
    kind: StreamKind,
    held: Mutex<Option<Held>>,
}

impl Stream {
    pub(super) fn lent(pool: &Arc<Pool>, lease: Lease) -> Self {
        let native = lease.stream();
        Self::new(pool, native, Some(lease))
    }

    pub(super) fn foreign(pool: &Arc<Pool>, native: headrace_cuda::Stream) -> Self {
        Self::new(pool, native, None)
    }

    fn new(pool: &Arc<Pool>, native: headrace_cuda::Stream, lease: Option<Lease>) -> Self {
        Self {
            id: native.id(),
            ordinal: native.device().info().ordinal,
            priority: native.priority(),
            kind: native.kind(),
            held: Mutex::new(Some(Held { pool: Arc::clone(pool), native, _lease: lease })),
        }
    }

    /// The stream and its pool.
    ///
    /// # Errors
    /// It was released.
    pub(super) fn parts(&self, py: Python<'_>) -> PyResult<(Arc<Pool>, headrace_cuda::Stream)> {
        if is_forked() {
            return Err(cuda_error(py, &CudaError::Forked));
        }
        let held = self.held.lock();
        let parts = held.as_ref().map(|held| (Arc::clone(&held.pool), held.native.clone()));
        parts.ok_or_else(|| cuda_error(py, &CudaError::LeaseEnded))
    }

    /// Calls the crate without the interpreter.
    pub(super) fn call<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&headrace_cuda::Stream) -> Result<T, CudaError> + Send,
    ) -> PyResult<T> {
        let (pool, native) = self.parts(py)?;
        let called = py.detach(move || {
            let called = call(&native);
            drop((native, pool));
            called
        });
        called.map_err(|error| cuda_error(py, &error))
    }

    /// Ends the lease, if it has not ended.
    pub(super) fn give_back(&self, py: Python<'_>) {
        let held = self.held.lock().take();
        if is_forked() {
            std::mem::forget(held);
        } else if held.is_some() {
            py.detach(|| drop(held));
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(held) = self.held.get_mut().take() {
            let_go(held);
        }
    }
}

#[pymethods]
impl Stream {
    /// Its number in the pool.
    #[getter]
    fn id(&self) -> u32 {
        self.id
    }

    /// The number of its device.
    #[getter]
    fn device(&self) -> usize {
        self.ordinal
    }

    #[getter]
    fn priority(&self) -> i32 {
        self.priority
    }

    /// Whose it is.
    #[getter]
    fn kind(&self) -> &'static str {
        match self.kind {
            StreamKind::Default => "default",
            StreamKind::Pooled => "pooled",
            StreamKind::External => "external",
        }
    }

    /// Whether it can still be used.
    #[getter]
    fn live(&self, py: Python<'_>) -> bool {
        let native = self.held.lock().as_ref().map(|held| held.native.clone());
        // The end of a lease waits for calls into the driver, and this for the end of a lease.
        native.is_some_and(|native| {
            py.detach(move || {
                let is_live = !is_forked() && native.is_live();
                drop(native);
                is_live
            })
        })
    }

    /// The driver's handle.
    #[getter]
    fn handle(&self, py: Python<'_>) -> PyResult<usize> {
        let (pool, native) = self.parts(py)?;
        Ok(show(&pool, &native))
    }

    fn __int__(&self, py: Python<'_>) -> PyResult<usize> {
        self.handle(py)
    }

    /// For other libraries: the version of the protocol, and the handle.
    fn __cuda_stream__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, [0, self.handle(py)?])
    }

    fn torch<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.of_library(py, "torch_stream")
    }

    fn cupy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.of_library(py, "cupy_stream")
    }

    /// Done when all that was put into the stream before is.
    fn __await__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let (pool, native) = self.parts(py)?;
        let (completion, ended) = py.detach(move || {
            let completion = native.completion();
            let ended = completion.result();
            (completion, ended)
        });
        match ended {
            Some(Ok(())) => done(py),
            _ => Ok(Py::new(py, Pending::new(py, &pool.place, "this wait", ends(completion))?)?.into_any()),
        }
    }

    /// Blocks the calling thread until all that was put into the stream before is done.
    fn synchronize(&self, py: Python<'_>) -> PyResult<()> {
        refuse_on_loop(py, "synchronize", "the stream")?;
        let completion = self.call(py, |stream| Ok(stream.completion()))?;
        wait_on_thread(py, completion)
    }

    /// Whether all that was put into the stream before is done.
    fn query(&self, py: Python<'_>) -> PyResult<bool> {
        self.call(py, headrace_cuda::Stream::query)
    }

    #[pyo3(signature = (*, timing=false))]
    fn record_event(&self, py: Python<'_>, timing: bool) -> PyResult<Event> {
        let (pool, _) = self.parts(py)?;
        let event =
            self.call(py, |stream| if timing { stream.record_timed_event() } else { stream.record_event() })?;
        Ok(Event::new(pool, event))
    }

    fn wait_event(&self, py: Python<'_>, event: &Event) -> PyResult<()> {
        let event = event.native(py)?;
        self.call(py, move |stream| {
            let waits = stream.wait_event(&event);
            drop(event);
            waits
        })
    }

    /// Memory of the device.
    #[pyo3(signature = (nbytes, *, shape=None, typestr="|u1"))]
    fn allocate(
        &self,
        py: Python<'_>,
        nbytes: usize,
        shape: Option<Vec<usize>>,
        typestr: &str,
    ) -> PyResult<DeviceBuffer> {
        let layout = Layout::of_array(nbytes, shape, typestr)?;
        let (pool, native) = self.parts(py)?;
        let buffer = self.call(py, move |stream| stream.allocate(nbytes))?;
        Ok(DeviceBuffer::new(pool, native, buffer, layout))
    }

    fn copy_to_device(slf: &Bound<'_, Self>, buffer: &Bound<'_, PyAny>) -> PyResult<Pending> {
        copies::to_device(slf, buffer)
    }

    #[pyo3(signature = (buffer, out=None))]
    fn copy_to_host(
        slf: &Bound<'_, Self>,
        buffer: &Bound<'_, DeviceBuffer>,
        out: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Pending> {
        copies::to_host(slf, buffer.get(), out)
    }

    /// Puts work into the stream that takes so long, and does nothing else.
    fn spin(&self, py: Python<'_>, microseconds: u64) -> PyResult<()> {
        let (pool, _) = self.parts(py)?;
        self.call(py, move |stream| pool.spin_kernel()?.launch(stream, microseconds))
    }

    /// Gives the stream back.
    fn release(&self, py: Python<'_>) {
        self.give_back(py);
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) {
        self.give_back(py);
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let state = if self.live(py) { "" } else { ", released" };
        format!("<headrace.cuda.Stream {} of device {}, {}{state}>", self.id, self.ordinal, self.kind())
    }
}

impl Stream {
    fn of_library<'py>(&self, py: Python<'py>, function: &str) -> PyResult<Bound<'py, PyAny>> {
        let (pool, native) = self.parts(py)?;
        if pool.is_simulated() {
            return Err(PyValueError::new_err("a simulated stream is no stream of another library"));
        }
        py.import("headrace._interop")?.getattr(function)?.call1((show(&pool, &native), self.ordinal))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}
