//! When a stream must have made progress, and what has run out: the part of a stream that the ticker looks
//! at.

use super::{Ending, Stream};
use crate::clock::NEVER;

/// When a stream must have made progress. Milliseconds of [`crate::clock`], [`NEVER`] for none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) deadline_ms: u64,
    pub(crate) item_timeout_ms: u64,
    pub(crate) slow_consumer_ms: u64,
}

impl Timing {
    /// When a router's new stream must first be looked at.
    pub(crate) const fn first_check_ms(&self, now: u64) -> u64 {
        let item_ms = now.saturating_add(self.item_timeout_ms);
        let slow_ms = now.saturating_add(self.slow_look_ms());
        let soonest = if item_ms < slow_ms { item_ms } else { slow_ms };
        if soonest < self.deadline_ms { soonest } else { self.deadline_ms }
    }

    /// Slowness is looked at four times within its timeout, so that it is kept to within a quarter.
    const fn slow_look_ms(&self) -> u64 {
        match self.slow_consumer_ms {
            NEVER => NEVER,
            0..4 => 1,
            timeout => timeout / 4,
        }
    }
}

impl Stream {
    /// Checks the times of a router's stream: what has run out at `now`, and when to look again.
    pub(crate) fn check_times(&self, now: u64) -> (Option<Ending>, u64) {
        let Timing { deadline_ms, item_timeout_ms, .. } = self.timing;
        if now >= deadline_ms {
            return (Some(Ending::Deadline), NEVER);
        }
        let since = self.ring.lock().waiting_since_ms;
        let waits_until = since.min(now).saturating_add(item_timeout_ms);
        if since != NEVER && now >= waits_until {
            return (Some(Ending::ItemTimeout), NEVER);
        }
        let (slow, look_again) = self.check_slow(now);
        let ending = slow.then_some(Ending::SlowConsumer);
        (ending, deadline_ms.min(waits_until).min(look_again))
    }

    /// A consumer is slow when its window is used up and it has taken nothing for the whole timeout.
    fn check_slow(&self, now: u64) -> (bool, u64) {
        let timeout = self.timing.slow_consumer_ms;
        if timeout == NEVER {
            return (false, NEVER);
        }
        let mut ring = self.ring.lock();
        let window = ring.inbound.window();
        let full = ring.ending.is_none() && window.buffered() >= window.size() / 2;
        if !full || ring.stalled.0 != ring.taken || ring.stalled.1 == NEVER {
            ring.stalled = (ring.taken, if full { now } else { NEVER });
        }
        let since = ring.stalled.1;
        let look_again = now.saturating_add(self.timing.slow_look_ms());
        (since != NEVER && now >= since.saturating_add(timeout), look_again)
    }
}
