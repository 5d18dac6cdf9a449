//! What links count, by the side that this process is of them; peers are not told apart.

use std::sync::atomic::{AtomicI64, Ordering};

use super::names;
use super::numbers::{Counter, TimeHistogram};
use super::samples::Samples;
use crate::budget::claimed_bytes;

/// The numbers of all links of one side.
#[derive(Debug)]
pub(crate) struct LinkMetrics {
    pub(crate) sent_bytes: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) sent_frames: Counter,
    pub(crate) received_frames: Counter,
    pub(crate) opened: Counter,
    pub(crate) blocked_writes: Counter,
    pub(crate) round_trip: TimeHistogram,
    clock_offset_ns: AtomicI64,
}

impl LinkMetrics {
    const fn new() -> Self {
        Self {
            sent_bytes: Counter::new(),
            received_bytes: Counter::new(),
            sent_frames: Counter::new(),
            received_frames: Counter::new(),
            opened: Counter::new(),
            blocked_writes: Counter::new(),
            round_trip: TimeHistogram::new(),
            clock_offset_ns: AtomicI64::new(0),
        }
    }

    pub(crate) fn found_offset(&self, offset_ns: i64) {
        self.clock_offset_ns.store(offset_ns, Ordering::Relaxed);
    }

    /// Whether anybody is told of them.
    pub(crate) fn is_counted(&self) -> bool {
        !std::ptr::eq(self, &CHECKS)
    }
}

/// A worker's ends of links.
pub(crate) static WORKER_SIDE: LinkMetrics = LinkMetrics::new();

/// A router's ends of links.
pub(crate) static ROUTER_SIDE: LinkMetrics = LinkMetrics::new();

/// The links of workers to themselves, over which they check their engines: nobody is told of them.
pub(crate) static CHECKS: LinkMetrics = LinkMetrics::new();

pub(super) fn collect(samples: &mut Samples) {
    for (side, metrics) in [("worker", &WORKER_SIDE), ("router", &ROUTER_SIDE)] {
        for (family, counter) in [
            (&names::LINK_SENT_BYTES, &metrics.sent_bytes),
            (&names::LINK_RECEIVED_BYTES, &metrics.received_bytes),
            (&names::LINK_SENT_FRAMES, &metrics.sent_frames),
            (&names::LINK_RECEIVED_FRAMES, &metrics.received_frames),
            (&names::LINK_OPENED, &metrics.opened),
            (&names::LINK_BLOCKED_WRITES, &metrics.blocked_writes),
        ] {
            samples.count(family, &[side], counter.get());
        }
        samples.times(&names::LINK_ROUND_TRIP, &[side], &metrics.round_trip);
        let offset_ns = metrics.clock_offset_ns.load(Ordering::Relaxed);
        samples.value(&names::LINK_CLOCK_OFFSET, &[side], offset_ns as f64 / 1e9);
        // Added to by the workers and routers there are.
        samples.count(&names::LINK_OPEN, &[side], 0);
        samples.count(&names::LINK_STREAMS, &[side], 0);
    }
    samples.count(&names::LINK_CLAIMED_BYTES, &[], claimed_bytes() as u64);
}
