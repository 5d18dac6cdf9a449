//! What batchers count, by name. The numbers are the batchers' own ([`BatchStats`]); those of batchers that
//! are gone are kept, so that no counter ever falls.

// Under the model checker batchers are not watched, since their locks are the checker's.
#![cfg_attr(headrace_model, allow(dead_code))]

use std::sync::Weak;

use parking_lot::Mutex;

use super::names::{self, Family};
use super::numbers::Named;
use super::samples::Samples;
use crate::batch::{BatchStats, DispatchReason};

/// A batcher, whatever its items are.
pub(crate) trait Counted: Send + Sync {
    /// Its counts at this moment.
    fn counts(&self) -> BatchStats;
}

/// The batchers of one name.
#[derive(Default)]
struct OfName {
    live: Vec<Weak<dyn Counted>>,
    /// Of those that are gone.
    gone: BatchStats,
}

static BATCHERS: Named<Mutex<OfName>> = Named::new();

/// Has a batcher's counts told from now on.
pub(crate) fn watch(name: &str, batcher: Weak<dyn Counted>) {
    let mut known = BATCHERS.get(name).lock();
    known.live.retain(|batcher| batcher.strong_count() > 0);
    known.live.push(batcher);
}

/// A batcher is going: these were its last counts.
pub(crate) fn gone(name: &str, last: &BatchStats) {
    BATCHERS.get(name).lock().gone.add(last);
}

pub(super) fn collect(samples: &mut Samples) {
    for (name, batchers) in BATCHERS.each() {
        let (live, gone) = {
            let known = batchers.lock();
            let live: Vec<_> = known.live.iter().filter_map(Weak::upgrade).collect();
            (live, known.gone.clone())
        };
        collect_one(&name, &gone, samples);
        for batcher in live {
            collect_one(&name, &batcher.counts(), samples);
        }
    }
}

fn collect_one(name: &str, stats: &BatchStats, samples: &mut Samples) {
    let mut count = |family: &'static Family, count| samples.count(family, &[name], count);
    count(&names::BATCH_SUBMITTED, stats.submitted);
    count(&names::BATCH_COMPLETED, stats.completed);
    count(&names::BATCH_FAILED, stats.failed);
    count(&names::BATCH_EXPIRED, stats.expired);
    count(&names::BATCH_CANCELLED, stats.cancelled);
    count(&names::BATCH_CLOSED, stats.closed);
    count(&names::BATCH_TIMED_OUT, stats.timed_out);
    count(&names::BATCH_LATE_RESULTS, stats.late_results);
    count(&names::BATCH_WORKERS_LOST, stats.workers_lost);
    count(&names::BATCH_QUEUED, stats.queued as u64);
    count(&names::BATCH_DISPATCHED, stats.dispatched as u64);
    count(&names::BATCH_ABANDONED, stats.abandoned as u64);
    count(&names::BATCH_INFLIGHT, stats.in_flight as u64);
    count(&names::BATCH_CONSECUTIVE_ERRORS, stats.consecutive_errors);
    for (reason, count) in stats.rejected.by_reason() {
        samples.count(&names::BATCH_REJECTED, &[name, reason], count);
    }
    for (reason, count) in DispatchReason::ALL.iter().zip(stats.batches) {
        samples.count(&names::BATCH_BATCHES, &[name, reason.as_str()], count);
    }
    for (family, histogram) in [
        (&names::BATCH_SIZE, &stats.batch_size),
        (&names::BATCH_FILL, &stats.fill),
        (&names::BATCH_COST, &stats.batch_cost),
        (&names::BATCH_QUEUE_WAIT, &stats.queue_wait),
        (&names::BATCH_FORMATION, &stats.formation),
        (&names::BATCH_EXECUTION, &stats.execution),
    ] {
        samples.histogram(family, &[name], histogram.cumulative(), histogram.sum());
    }
}
