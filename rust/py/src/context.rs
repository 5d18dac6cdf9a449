//! What an engine may know of its request beside the request itself.

use std::sync::Arc;

use headrace::engine::Control;
use parking_lot::Mutex;
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::bridge::hub::Hub;
use crate::ffi::ForkSafe;
use crate::requests::RequestStream;

/// What an engine may know of its request.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) id: String,
    pub(crate) endpoint: Arc<str>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) traceparent: String,
    pub(crate) instance_id: Arc<str>,
    pub(crate) client_id: Arc<str>,
    /// The request's items, when it is a stream of them.
    pub(crate) requests: Option<Py<RequestStream>>,
}

/// The state that a sink and its context share.
#[derive(Debug)]
pub(crate) struct Shared {
    hub: Arc<Hub>,
    pub(crate) control: ForkSafe<Control>,
    facts: Facts,
    /// Those who await `ctx.stopped()`.
    stop_waiters: Mutex<Vec<Py<PyAny>>>,
}

/// What an engine is given beside the request.
#[pyclass(frozen, weakref, module = "headrace")]
#[derive(Debug)]
pub(crate) struct Context {
    shared: Arc<Shared>,
}

impl Context {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[pymethods]
impl Context {
    /// The caller's request id.
    #[getter]
    fn id(&self) -> &str {
        &self.shared.facts.id
    }

    /// The endpoint that the request came for.
    #[getter]
    fn endpoint(&self) -> &str {
        &self.shared.facts.endpoint
    }

    /// The worker's identity.
    #[getter]
    fn instance_id(&self) -> &str {
        &self.shared.facts.instance_id
    }

    /// The calling router's identity.
    #[getter]
    fn client_id(&self) -> &str {
        &self.shared.facts.client_id
    }

    /// W3C trace context, or `None`.
    #[getter]
    fn traceparent(&self) -> Option<&str> {
        Some(self.shared.facts.traceparent.as_str()).filter(|text| !text.is_empty())
    }

    /// The caller's metadata.
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (key, value) in &self.shared.facts.metadata {
            dict.set_item(key, value)?;
        }
        Ok(dict)
    }

    /// Whether the request is a stream of items, to be read from `requests`.
    #[getter]
    fn has_requests(&self) -> bool {
        self.shared.facts.requests.is_some()
    }

    /// The items of the request, when it is a stream of them.
    #[getter]
    fn requests(&self, py: Python<'_>) -> PyResult<Py<RequestStream>> {
        self.shared.facts.requests.as_ref().map(|requests| requests.clone_ref(py)).ok_or_else(|| {
            PyTypeError::new_err(
                "the request is a single one, not a stream: ctx.requests has items when the caller passes an \
                 asynchronous iterator; ctx.has_requests tells which it is",
            )
        })
    }

    /// Whether the caller, or the engine itself, asked to finish.
    #[getter]
    fn is_stopped(&self) -> bool {
        self.shared.control.is_stopped()
    }

    /// Whether nobody wants the answer any more.
    #[getter]
    fn is_killed(&self) -> bool {
        self.shared.control.is_killed()
    }

    /// Seconds until the caller's deadline; `None` without one.
    fn remaining(&self) -> Option<f64> {
        self.shared.control.remaining().map(|left| left.as_secs_f64())
    }

    /// The engine asks itself to finish: the stream ends as stopped.
    fn stop_generating(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.control.stop_generating();
        if self.shared.hub.is_loop_thread() { self.shared.wake_stopped(py) } else { Ok(()) }
    }

    /// An awaitable that is done when the stream is stopped or killed.
    fn stopped(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.shared.hub.check(py)?;
        let future = self.shared.hub.new_future(py)?;
        if self.shared.control.is_stopped() {
            set(py, &future)?;
            return Ok(future);
        }
        let waiting = std::mem::take(&mut *self.shared.stop_waiters.lock());
        let mut kept = vec![future.clone_ref(py)];
        for each in waiting {
            // An engine may race it against something else, again and again.
            if !is_done(py, &each)? {
                kept.push(each);
            }
        }
        self.shared.stop_waiters.lock().append(&mut kept);
        Ok(future)
    }

    fn __repr__(&self) -> String {
        format!("<headrace.Context id={:?} endpoint={:?}>", self.shared.facts.id, self.shared.facts.endpoint)
    }
}

impl Shared {
    pub(crate) fn new(hub: Arc<Hub>, control: Control, facts: Facts) -> Self {
        Self { hub, control: ForkSafe::new(control), facts, stop_waiters: Mutex::default() }
    }

    /// Those who await `ctx.stopped()` may go on.
    pub(crate) fn wake_stopped(&self, py: Python<'_>) -> PyResult<()> {
        let waiters = std::mem::take(&mut *self.stop_waiters.lock());
        for waiter in waiters {
            if !is_done(py, &waiter)? {
                set(py, &waiter)?;
            }
        }
        Ok(())
    }
}

fn is_done(py: Python<'_>, future: &Py<PyAny>) -> PyResult<bool> {
    future.call_method0(py, intern!(py, "done"))?.is_truthy(py)
}

fn set(py: Python<'_>, future: &Py<PyAny>) -> PyResult<()> {
    future.call_method1(py, intern!(py, "set_result"), (py.None(),)).map(drop)
}
