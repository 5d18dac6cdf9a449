//! The callback of a link's socket: the loop's own thread reads, decodes and wakes, in one callback.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use headrace::link::{Link, ReadOutcome};
use pyo3::prelude::*;

use super::hub::{Event, Hub};
use super::loop_hub::LoopHub;
use crate::ffi::ForkSafe;

/// Called by the loop when a link's socket has bytes.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct LinkReader {
    hub: Arc<Hub>,
    link: ForkSafe<Arc<Link>>,
}

impl LinkReader {
    /// Has the hub's loop watch the link's socket.
    pub(crate) fn attach(py: Python<'_>, hub: &Hub, link: Arc<Link>) -> PyResult<()> {
        let Some(shared) = hub.shared(py) else { return Ok(()) };
        let descriptor = link.as_raw_fd();
        let reader = Py::new(py, Self { hub: shared, link: ForkSafe::new(link) })?;
        let event_loop = hub.event_loop(py)?;
        // After a reset uvloop gives a reader up by itself and keeps its closed handle under the descriptor's
        // number, where it would refuse this one. The number is this socket's now, so what is there is stale.
        event_loop.call_method1("remove_reader", (descriptor,))?;
        event_loop.call_method1("add_reader", (descriptor, reader))?;
        Ok(())
    }
}

#[pymethods]
impl LinkReader {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        if self.hub.is_abandoned() {
            return Ok(());
        }
        self.hub.enter();
        let outcome = self.hub.with_scratch(|scratch| self.link.on_readable(scratch));
        let watched = if outcome == ReadOutcome::Closed {
            // Before the descriptor can be closed and used again: this reader holds the link until then.
            let event_loop = self.hub.event_loop.bind(py);
            event_loop.call_method1("remove_reader", (self.link.as_raw_fd(),)).map(drop)
        } else {
            // Level-triggered: what a budgeted read left is reported again.
            Ok(())
        };
        self.hub.leave(py).and(watched)
    }
}

/// When a socket has an error, uvloop calls its reader a last time and lets go of it. That call may have found
/// bytes that came before the error, and left the error; the link must be read on until it has found it too.
impl Drop for LinkReader {
    fn drop(&mut self) {
        if !self.hub.is_abandoned() && !self.hub.is_closed() && !self.link.is_closed() {
            self.hub.push(Event::Attach(Arc::clone(&self.link)));
        }
    }
}

impl Hub {
    /// The hub itself, shared; `None` once it has closed.
    fn shared(&self, py: Python<'_>) -> Option<Arc<Self>> {
        self.this(py).map(|this| Arc::clone(LoopHub::hub(this.get())))
    }
}
