//! A waker for the core and a waiter for asyncio as one place to wait, made at the first wait and kept.

use std::sync::Arc;
use std::task::{Wake, Waker};

use pyo3::prelude::*;

use super::hub::{Event, Hub, Slot, Target};
use super::waiter::{Waiter, already_awaited};
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
    waiter: Arc<Waiter>,
    waker: Waker,
    _slot: Parked,
}

impl Parking {
    pub(crate) fn new(py: Python<'_>, hub: &Arc<Hub>) -> PyResult<Self> {
        let waiter = Arc::new(Waiter::new(py, Arc::clone(hub))?);
        let slot = hub.add_target(Target::Waiter(Arc::clone(&waiter)));
        let waker = Waker::from(Arc::new(SlotWaker { hub: Arc::clone(hub), slot }));
        Ok(Self { waiter, waker, _slot: Parked { hub: Arc::clone(hub), slot } })
    }

    pub(crate) const fn waker(&self) -> &Waker {
        &self.waker
    }

    pub(crate) fn waiter(&self) -> Arc<Waiter> {
        Arc::clone(&self.waiter)
    }

    /// Whether somebody was given what to await here who has not been told.
    pub(crate) fn is_given(&self) -> bool {
        self.waiter.is_given()
    }

    /// The place that is kept in `place`, for who looks whether to wait; at the `end` of what is waited for,
    /// only if nobody waits there who is yet to be woken.
    pub(crate) fn take(place: &mut Option<Self>, end: bool) -> Option<Self> {
        place.take_if(|parking| !(end && parking.is_given()))
    }

    /// Whether it can be waited at as it is.
    pub(crate) fn is_free(&self) -> bool {
        self.waiter.is_free()
    }

    /// Makes it free. False if somebody waits here. Runs Python, so no lock may be held.
    pub(crate) fn prepare(&self, py: Python<'_>) -> PyResult<bool> {
        self.waiter.prepare(py)
    }

    /// What to await, of a place that is free. Runs no Python.
    pub(crate) fn give(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.waiter.give(py)
    }

    /// Runs what waits here. False if nothing does. Not for callers inside a task.
    pub(crate) fn complete(&self, py: Python<'_>) -> PyResult<bool> {
        self.waiter.complete(py)
    }
}

/// Places to wait kept for reuse: as many as a busy loop has calls in flight.
const SPARE_PARKINGS_MAX: usize = 1024;

impl Hub {
    /// A place to wait, used before if there is one. Runs Python, so no lock may be held.
    pub(crate) fn parking(self: &Arc<Self>, py: Python<'_>) -> PyResult<Parking> {
        let parking = self.spare_parking().map_or_else(|| Parking::new(py, self), Ok)?;
        parking.prepare(py)?;
        Ok(parking)
    }

    /// What to await for `what`, and where: at the place that was `kept` from the last time, if there was one.
    /// Two cannot wait at one. Runs Python, so no lock may be held.
    pub(crate) fn wait(
        self: &Arc<Self>,
        py: Python<'_>,
        kept: Option<Parking>,
        what: &str,
    ) -> (Option<Parking>, PyResult<Py<PyAny>>) {
        let parking = match kept.map_or_else(|| self.parking(py), Ok) {
            Ok(parking) => parking,
            Err(error) => return (None, Err(error)),
        };
        let waits = match parking.prepare(py) {
            Ok(true) => parking.give(py),
            Ok(false) => Err(already_awaited(what)),
            Err(error) => Err(error),
        };
        (Some(parking), waits)
    }

    /// One that was used before, perhaps not free; this runs no Python. A wake-up of its former user may still
    /// come: whoever waits looks again.
    pub(crate) fn spare_parking(&self) -> Option<Parking> {
        self.at_hand.parking().or_else(|| self.spare_parkings.lock().pop())
    }

    /// Takes back a place to wait that nobody awaits.
    pub(crate) fn recycle(&self, parking: Parking) {
        if parking.is_given() {
            return;
        }
        if let Some(parking) = self.at_hand.keep_parking(parking) {
            self.spare(parking);
        }
    }

    /// The same, for whoever wants one next, in a callback or not.
    pub(super) fn spare(&self, parking: Parking) {
        let mut spare = self.spare_parkings.lock();
        if spare.len() < SPARE_PARKINGS_MAX && !self.is_closed() {
            spare.push(parking);
        }
    }
}
