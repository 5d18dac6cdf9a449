//! `Event`: a point in a stream.

use std::fmt;
use std::sync::Arc;

use headrace_cuda::CudaError;
use pyo3::prelude::*;

use super::leasing::wait_on_thread;
use super::pending::{Pending, done, ends};
use super::pool::{Pool, refuse_on_loop};
use super::release::Released;
use crate::errors::cuda_error;
use crate::runtime::is_forked;

/// A point in a stream, which is awaited, asked about, and waited for by other streams.
#[pyclass(frozen, weakref, name = "Event", module = "headrace.cuda")]
pub(crate) struct Event {
    parts: Released<(headrace_cuda::Event, Arc<Pool>)>,
}

impl Event {
    pub(super) fn new(pool: Arc<Pool>, native: headrace_cuda::Event) -> Self {
        Self { parts: Released::new((native, pool)) }
    }

    pub(super) fn native(&self, py: Python<'_>) -> PyResult<headrace_cuda::Event> {
        match self.parts.get() {
            Some((native, _)) if !is_forked() => Ok(native.clone()),
            _ => Err(cuda_error(py, &CudaError::Forked)),
        }
    }

    fn call<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(headrace_cuda::Event) -> Result<T, CudaError> + Send,
    ) -> PyResult<T> {
        let native = self.native(py)?;
        py.detach(move || call(native)).map_err(|error| cuda_error(py, &error))
    }
}

#[pymethods]
impl Event {
    /// Whether its stream has come to it.
    fn query(&self, py: Python<'_>) -> PyResult<bool> {
        self.call(py, |event| event.query())
    }

    /// Done when its stream has come to it.
    fn __await__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let completion = self.call(py, |event| Ok(event.completion()))?;
        if completion.result() == Some(Ok(())) {
            return done(py);
        }
        let Some((_, pool)) = self.parts.get() else { return done(py) };
        Ok(Py::new(py, Pending::new(py, &pool.place, "this wait", ends(completion))?)?.into_any())
    }

    /// Blocks the calling thread until its stream has come to it.
    fn synchronize(&self, py: Python<'_>) -> PyResult<()> {
        refuse_on_loop(py, "synchronize", "the event")?;
        let completion = self.call(py, |event| Ok(event.completion()))?;
        wait_on_thread(py, completion)
    }

    /// Seconds from this point to a later one, both recorded with `timing=True` and reached.
    fn elapsed(&self, py: Python<'_>, later: &Self) -> PyResult<f64> {
        let later = later.native(py)?;
        let ms = self.call(py, move |event| event.elapsed_ms(&later))?;
        Ok(f64::from(ms) / 1e3)
    }

    /// The driver's handle.
    #[getter]
    fn handle(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.native(py)?.handle())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let state = if self.query(py)? { "reached" } else { "not reached" };
        Ok(format!("<headrace.cuda.Event, {state}>"))
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").finish_non_exhaustive()
    }
}
