//! The hub as its event loop and the Python side see it: the callbacks that the loop is given, and the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use headrace::metrics::{EventLoop, Look, watch_loop};
use pyo3::prelude::*;

use super::hub::{Event, Hub, LoopSide};
use crate::audit::entered_python;
use crate::batch::blocking::Inside;
use crate::runtime::{is_exiting, is_forked};

/// The hub as its event loop sees it.
#[pyclass(frozen, weakref, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct LoopHub {
    hub: Arc<Hub>,
}

impl LoopHub {
    pub(crate) const fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    fn loop_is_closed(&self, py: Python<'_>) -> bool {
        let closed = self.hub.event_loop.call_method0(py, "is_closed");
        closed.and_then(|closed| closed.is_truthy(py)).unwrap_or(false)
    }
}

impl EventLoop for Hub {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn ask(&self, turn: Box<dyn FnOnce() + Send>) {
        self.put(Event::Run(turn));
    }

    fn look(&self) -> Look {
        let event_loop = Arc::clone(&self.event_loop);
        Box::new(move || is_running(event_loop))
    }
}

/// Called on a thread of its own, none of tokio's.
fn is_running(event_loop: Arc<Py<PyAny>>) -> bool {
    // From here on the interpreter's exit waits for this thread, or this thread finds that it exits.
    let _inside = Inside::enter();
    if is_exiting() {
        return true;
    }
    #[expect(clippy::disallowed_methods, reason = "this thread does nothing else")]
    let running = Python::try_attach(move |py| {
        entered_python();
        // Let go of in here: this may be the last of the loop.
        let event_loop = event_loop;
        event_loop.call_method0(py, "is_running")?.is_truthy(py)
    });
    // A loop that cannot say so is taken to run: a frozen one must be found.
    running.and_then(PyResult::ok).unwrap_or(true)
}

/// What an operator knows the loop of this thread by.
pub(super) fn name_of_loop(py: Python<'_>) -> PyResult<String> {
    let thread = py.import("threading")?.call_method0("current_thread")?.getattr("name")?;
    Ok(format!("the event loop of thread {thread}"))
}

#[pymethods]
impl LoopHub {
    /// A hub for the loop that runs on this thread; the loop watches it from here on.
    #[staticmethod]
    fn start(py: Python<'_>, event_loop: Py<PyAny>) -> PyResult<Py<Self>> {
        crate::runtime::handle(py)?;
        let hub = Arc::new(Hub::new(py, event_loop)?);
        let this = Py::new(py, Self { hub })?;
        let hub = &this.get().hub;
        let known = Arc::downgrade(hub);
        watch_loop(known);
        let drain = this.getattr(py, "drain")?;
        hub.event_loop.call_method1(py, "add_reader", (hub.wake.as_raw_fd(), drain))?;
        *hub.loop_side.lock() = Some(LoopSide {
            this: this.clone_ref(py),
            flush: this.getattr(py, "flush")?,
            call_soon: hub.event_loop.getattr(py, "call_soon")?,
        });
        Ok(this)
    }

    /// Called by the loop when another thread woke it.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        if self.hub.is_abandoned() {
            return Ok(());
        }
        self.hub.wake.clear();
        self.hub.enter();
        self.hub.leave(py)
    }

    /// Called by the loop at the end of a turn in which something gathered.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        if self.hub.is_abandoned() {
            return Ok(());
        }
        self.hub.flush_scheduled.store(false, Ordering::Relaxed);
        self.hub.enter();
        self.hub.flush_dirty();
        self.hub.leave(py)
    }

    /// Called when the loop is about to end: closes what belongs to it.
    fn close(&self, py: Python<'_>) {
        if is_forked() {
            // The loop shares its selector with the parent's, which would stop watching.
            return;
        }
        if !self.hub.is_loop_thread() {
            self.hub.abandon(py);
            self.hub.close();
            if self.loop_is_closed(py) {
                // It calls nobody back any more, and this would keep the hub for good.
                let loop_side = self.hub.loop_side.lock().take();
                drop(loop_side);
            }
            return;
        }
        self.hub.close();
        let loop_side = self.hub.loop_side.lock().take();
        drop(loop_side);
        // The loop may be closed already, and then watches nothing.
        if let Ok(event_loop) = self.hub.event_loop(py) {
            let _ = event_loop.call_method1("remove_reader", (self.hub.wake.as_raw_fd(),));
        }
    }

    #[getter]
    fn closed(&self) -> bool {
        self.hub.is_closed()
    }
}
