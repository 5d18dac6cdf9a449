//! A waker for the core and a waiter for asyncio as one place to wait, made at the first wait and kept.

use std::sync::Arc;
use std::task::{Wake, Waker};

use pyo3::prelude::*;

use super::hub::{Event, Hub, Slot, Target};
use super::waiter::Waiter;
use crate::runtime::is_forked;

struct SlotWaker {
    hub: Arc<Hub>,
    slot: Slot,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.hub.push(Event::Wake(self.slot));
    }
}

/// A waker that tells `target` on the loop's thread, until the returned guard is dropped.
pub(crate) fn telling(hub: &Arc<Hub>, target: Target) -> (Waker, Parked) {
    let slot = hub.add_target(target);
    let waker = Waker::from(Arc::new(SlotWaker { hub: Arc::clone(hub), slot }));
    (waker, Parked { hub: Arc::clone(hub), slot })
}

/// A slot of the hub; freed when dropped.
#[derive(Debug)]
pub(crate) struct Parked {
    hub: Arc<Hub>,
    slot: Slot,
}

impl Drop for Parked {
    fn drop(&mut self) {
        if !is_forked() {
            self.hub.remove_target(self.slot);
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Parking {
    waiter: Py<Waiter>,
    waker: Waker,
    _slot: Parked,
}

impl Parking {
    pub(crate) fn new(py: Python<'_>, hub: &Arc<Hub>) -> PyResult<Self> {
        let waiter = Py::new(py, Waiter::new(Arc::clone(hub)))?;
        let slot = hub.add_target(Target::Waiter(waiter.clone_ref(py)));
        let waker = Waker::from(Arc::new(SlotWaker { hub: Arc::clone(hub), slot }));
        Ok(Self { waiter, waker, _slot: Parked { hub: Arc::clone(hub), slot } })
    }

    pub(crate) const fn waker(&self) -> &Waker {
        &self.waker
    }

    pub(crate) fn waiter(&self, py: Python<'_>) -> Py<Waiter> {
        self.waiter.clone_ref(py)
    }

    pub(crate) fn is_awaited(&self) -> bool {
        self.waiter.get().is_awaited()
    }

    /// The place that is kept in `place`, for who looks whether to wait; at the `end` of what is waited for,
    /// only if nobody awaits it, who is yet to be woken.
    pub(crate) fn take(place: &mut Option<Self>, end: bool) -> Option<Self> {
        place.take_if(|parking| !(end && parking.is_awaited()))
    }

    /// The waiter, ready to be awaited.
    pub(crate) fn arm(&self, py: Python<'_>) -> Py<PyAny> {
        self.waiter.get().arm();
        self.waiter.clone_ref(py).into_any()
    }
}
