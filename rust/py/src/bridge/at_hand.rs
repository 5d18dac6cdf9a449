//! What the loop's thread keeps at hand while it is inside one of the hub's callbacks, where nobody else looks and
//! nothing is locked: events that it causes itself, and places to wait that are free again and mostly wanted at
//! once. Whoever leaves the callback leaves nothing here, since another thread may close the hub then.

use std::collections::VecDeque;

use super::event::Event;
use super::hub::Hub;
use super::parking::Parking;

/// See the module's text.
#[derive(Default)]
pub(super) struct AtHand {
    is_inside: bool,
    events: VecDeque<Event>,
    parkings: Vec<Parking>,
}

impl Hub {
    /// Keeps an event for the end of the callback that this thread is in, or gives it back.
    pub(super) fn keep_event(&self, event: Event) -> Option<Event> {
        let mut event = Some(event);
        self.at_hand.with(|at_hand| {
            if at_hand.is_inside {
                at_hand.events.extend(event.take());
            }
        });
        event
    }

    /// Keeps a place to wait until the end of the callback that this thread is in, or gives it back.
    pub(super) fn keep_parking(&self, parking: Parking) -> Option<Parking> {
        let mut parking = Some(parking);
        self.at_hand.with(|at_hand| {
            if at_hand.is_inside {
                at_hand.parkings.extend(parking.take());
            }
        });
        parking
    }

    pub(super) fn kept_parking(&self) -> Option<Parking> {
        self.at_hand.with(|at_hand| at_hand.parkings.pop()).flatten()
    }

    /// Adds what was kept to `events`.
    pub(super) fn take_kept_events(&self, events: &mut VecDeque<Event>) {
        self.at_hand.with(|at_hand| events.append(&mut at_hand.events));
    }

    /// The callback begins.
    pub(super) fn begin_keeping(&self) {
        self.at_hand.with(|at_hand| at_hand.is_inside = true);
    }

    /// The callback ends, all its events having been handled or put into the queue.
    pub(super) fn end_keeping(&self) {
        let parkings = self.at_hand.with(|at_hand| {
            at_hand.is_inside = false;
            // The memory of one that is empty is used again.
            if at_hand.parkings.is_empty() { Vec::new() } else { std::mem::take(&mut at_hand.parkings) }
        });
        for parking in parkings.unwrap_or_default() {
            self.recycle(parking);
        }
    }
}
