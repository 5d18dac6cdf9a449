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

/// A batcher, and its counts as they were told last: it may be going at this moment.
struct Known {
    batcher: Weak<dyn Counted>,
    last: BatchStats,
}

/// The batchers of one name.
#[derive(Default)]
struct OfName {
    /// Each until it has said that it is gone.
    live: Vec<Known>,
    /// Of those that are gone.
    gone: BatchStats,
}

static BATCHERS: Named<Mutex<OfName>> = Named::new();

/// Has a batcher's counts told from now on.
pub(crate) fn watch(name: &str, batcher: Weak<dyn Counted>) {
    BATCHERS.get(name).lock().live.push(Known { batcher, last: BatchStats::default() });
}

/// The batcher at this place is going: these were its last counts.
pub(crate) fn gone(name: &str, batcher: *const (), last: &BatchStats) {
    let mut known = BATCHERS.get(name).lock();
    known.live.retain(|known| known.batcher.as_ptr().cast() != batcher);
    known.gone.add(last);
}

pub(super) fn collect(samples: &mut Samples) {
    for (_, name, batchers) in BATCHERS.each() {
        // Dropped after the lock: whoever holds the last of a batcher says that it is gone.
        let mut alive = Vec::new();
        let mut known = batchers.lock();
        let mut gone = known.gone.clone();
        for known in &mut known.live {
            if let Some(batcher) = known.batcher.upgrade() {
                known.last = batcher.counts();
                collect_one(&name, &known.last, samples);
                alive.push(batcher);
            } else {
                gone.add(&known.last);
            }
        }
        drop(known);
        collect_one(&name, &gone, samples);
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

#[cfg(all(test, not(headrace_model)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    const NAME: &str = "a batcher that goes";

    /// One that has had so many items.
    struct Batcher(u64);

    impl Counted for Batcher {
        fn counts(&self) -> BatchStats {
            BatchStats { submitted: self.0, queued: 1, ..BatchStats::default() }
        }
    }

    fn told() -> [f64; 2] {
        let mut samples = Samples::default();
        collect(&mut samples);
        let families = samples.into_families();
        [&names::BATCH_SUBMITTED, &names::BATCH_QUEUED].map(|family| {
            let found = families.iter().find(|found| found.name() == family.name);
            let series = found.into_iter().flat_map(|found| found.get_metric());
            let of_name = series.filter(|series| series.get_label()[0].value() == NAME);
            of_name.map(|series| series.get_counter().get_value() + series.get_gauge().get_value()).sum()
        })
    }

    #[test]
    fn no_count_falls_between_a_batchers_last_reference_and_its_last_word() {
        let [going, staying] = [7, 2].map(|count| Arc::new(Batcher(count)));
        for batcher in [&going, &staying] {
            let weak = Arc::downgrade(batcher);
            watch(NAME, weak);
        }
        assert_eq!(told(), [9.0, 2.0]);
        let place = Arc::as_ptr(&going).cast();
        drop(going);
        assert_eq!(told(), [9.0, 1.0], "nothing waits there any more, and its items are not forgotten");
        gone(NAME, place, &Batcher(8).counts());
        assert_eq!(told(), [10.0, 1.0]);
        drop(staying);
        assert_eq!(told(), [10.0, 0.0]);
    }
}
