//! What the loop's thread keeps at hand while it is inside one of the hub's callbacks, where nobody else looks and
//! nothing is locked: events that it causes itself, and places to wait that are free again and mostly wanted at
//! once. Whoever leaves the callback leaves nothing here, since another thread may close the hub then.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use super::event::Event;
use super::parking::Parking;
use crate::ffi::LoopCell;
use crate::runtime::this_thread;

/// See the module's text. On which thread one is takes longer to see than either flag.
pub(super) struct AtHand {
    /// The loop's thread is in one of the callbacks, which will look here.
    is_open: AtomicBool,
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
        Self { is_open: AtomicBool::new(false), holds_some: AtomicBool::new(false), kept }
    }

    /// Keeps something until the end of the callback that this thread is in, or gives it back.
    fn keep<T>(&self, thing: T, put: impl FnOnce(&mut Kept, T)) -> Option<T> {
        if !self.is_open.load(Ordering::Relaxed) {
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

    /// The callback begins.
    pub(super) fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }

    /// The callback ends: nothing more is kept. Events that are left, and each place to wait.
    pub(super) fn close(&self, mut each: impl FnMut(Parking)) -> VecDeque<Event> {
        self.is_open.store(false, Ordering::Relaxed);
        let mut events = VecDeque::new();
        self.take_events(&mut events);
        while let Some(parking) = self.parking() {
            each(parking);
        }
        self.holds_some.store(false, Ordering::Relaxed);
        events
    }
}
