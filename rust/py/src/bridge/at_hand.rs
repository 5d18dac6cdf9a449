//! What the loop's thread keeps at hand while it is inside one of the hub's callbacks, where nobody else looks and
//! nothing is locked: events that it causes itself, and places to wait that are free again and mostly wanted at
//! once. Whoever leaves the callback leaves nothing here, since another thread may close the hub then.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;

use super::event::Event;
use super::hub::Hub;
use super::parking::Parking;
use crate::ffi::LoopCell;
use crate::runtime::this_thread;

/// See the module's text. On which thread one is takes longer to see than either flag.
pub(super) struct AtHand {
    /// The loop's thread is in one of the callbacks, below which Python may run.
    pub(super) is_inside: AtomicBool,
    holds_some: AtomicBool,
    kept: LoopCell<Kept>,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<Event>,
    parkings: Vec<Parking>,
}

impl AtHand {
    /// For the loop of this thread.
    pub(super) fn new() -> Self {
        let kept = LoopCell::new(this_thread(), Kept::default());
        Self { is_inside: AtomicBool::new(false), holds_some: AtomicBool::new(false), kept }
    }

    /// Keeps something until the end of the callback that this thread is in, or gives it back.
    fn keep<T>(&self, thing: T, put: impl FnOnce(&mut Kept, T)) -> Option<T> {
        if !self.is_inside.load(Ordering::Relaxed) {
            return Some(thing);
        }
        let mut thing = Some(thing);
        self.kept.with(|kept| {
            if let Some(thing) = thing.take() {
                put(kept, thing);
                self.holds_some.store(true, Ordering::Relaxed);
            }
        });
        thing
    }

    pub(super) fn keep_event(&self, event: Event) -> Option<Event> {
        self.keep(event, |kept, event| kept.events.push_back(event))
    }

    pub(super) fn keep_parking(&self, parking: Parking) -> Option<Parking> {
        self.keep(parking, |kept, parking| kept.parkings.push(parking))
    }

    pub(super) fn parking(&self) -> Option<Parking> {
        let holds_some = self.holds_some.load(Ordering::Relaxed);
        holds_some.then(|| self.kept.with(|kept| kept.parkings.pop())).flatten().flatten()
    }

    /// Adds what was kept to `events`.
    pub(super) fn take_events(&self, events: &mut VecDeque<Event>) {
        if !self.holds_some.load(Ordering::Relaxed) {
            return;
        }
        self.kept.with(|kept| {
            if events.is_empty() {
                std::mem::swap(events, &mut kept.events);
            } else {
                events.append(&mut kept.events);
            }
        });
    }

    /// The callback ends, all its events having been handled or put into the queue. What else is left.
    pub(super) fn end(&self, mut left: impl FnMut(Parking)) {
        while let Some(parking) = self.parking() {
            left(parking);
        }
        self.holds_some.store(false, Ordering::Relaxed);
    }
}

impl Hub {
    /// As [`Self::settle`], for who returns to the callback that this thread is in, if it is in one, before
    /// anybody waits for what was caused. The callback handles it then, and the loop is spared another turn.
    pub(crate) fn settle_unless_inside(&self, py: Python<'_>) -> PyResult<()> {
        let is_inside = self.at_hand.is_inside.load(Ordering::Relaxed) && self.is_loop_thread();
        if is_inside { Ok(()) } else { self.settle(py) }
    }
}
