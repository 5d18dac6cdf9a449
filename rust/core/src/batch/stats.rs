//! Counts and histograms of a batcher. They are plain numbers under the queue's lock, so that one snapshot is
//! consistent: the law of conservation holds in each.

/// Buckets of a histogram, the last one without a bound. The largest bound of times is 2^27 us, 134 s.
pub const HISTOGRAM_BUCKETS: usize = 29;

/// What a histogram counts, and so where its bounds are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    /// Nanoseconds; bounds are 1 us, 2 us, 4 us and so on.
    Time,
    /// Items or cost; bounds are 1, 2, 4 and so on.
    Count,
    /// Hundredths; bounds are 10, 20 and so on to 100.
    Percent,
}

/// A histogram with fixed bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    scale: Scale,
    counts: [u64; HISTOGRAM_BUCKETS],
    sum: u64,
}

impl Histogram {
    const fn new(scale: Scale) -> Self {
        Self { scale, counts: [0; HISTOGRAM_BUCKETS], sum: 0 }
    }

    pub(super) fn record(&mut self, value: u64) {
        let bucket = match self.scale {
            Scale::Time => ceil_log2(value.div_ceil(1000)),
            Scale::Count => ceil_log2(value),
            Scale::Percent => (value.div_ceil(10) as usize).clamp(1, 11) - 1,
        };
        if let Some(count) = self.counts.get_mut(bucket.min(HISTOGRAM_BUCKETS - 1)) {
            *count += 1;
        }
        self.sum = self.sum.saturating_add(value);
    }

    /// How many values were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum: seconds, items, cost, or a share of 1.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum as f64 * self.unit()
    }

    /// Their mean, if there are any.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.sum() / count as f64)
    }

    /// The bounds, each with how many values were at most that, as Prometheus has them. The last bound is
    /// infinite.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = if self.scale == Scale::Percent { 11 } else { HISTOGRAM_BUCKETS };
        let mut total = 0;
        self.counts.iter().take(bounds).enumerate().map(move |(bucket, count)| {
            total += count;
            let bound = match self.scale {
                _ if bucket == bounds - 1 => f64::INFINITY,
                Scale::Time => (1000_u64 << bucket) as f64 * self.unit(),
                Scale::Count => (1_u64 << bucket) as f64,
                Scale::Percent => (bucket + 1) as f64 / 10.0,
            };
            (bound, total)
        })
    }

    /// Takes in the values of another one of the same scale.
    fn add(&mut self, other: &Self) {
        debug_assert_eq!(self.scale, other.scale, "histograms of one figure");
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    const fn unit(&self) -> f64 {
        match self.scale {
            Scale::Time => 1e-9,
            Scale::Count => 1.0,
            Scale::Percent => 0.01,
        }
    }
}

/// The least `n` with `value <= 2^n`.
const fn ceil_log2(value: u64) -> usize {
    (64 - value.saturating_sub(1).leading_zeros()) as usize
}

/// Why a batch was closed when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DispatchReason {
    /// It had `max_batch_size` items, or as many as the worker could take.
    Size,
    /// The next item did not fit into `max_cost`.
    Cost,
    /// Its oldest item had waited for `max_latency`.
    Latency,
    /// Nothing had come for `linger`, or it had lingered long enough.
    Linger,
    /// A worker was free and there was nothing to wait for.
    Idle,
    /// It was flushed.
    Flush,
    /// The batcher drains.
    Drain,
    /// Half of a batch that had failed.
    Isolation,
}

impl DispatchReason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Size,
        Self::Cost,
        Self::Latency,
        Self::Linger,
        Self::Idle,
        Self::Flush,
        Self::Drain,
        Self::Isolation,
    ];

    /// The word that metrics have for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Cost => "cost",
            Self::Latency => "latency",
            Self::Linger => "linger",
            Self::Idle => "idle",
            Self::Flush => "flush",
            Self::Drain => "drain",
            Self::Isolation => "isolation",
        }
    }
}

/// Items that were refused, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the reasons")]
pub struct Rejections {
    pub queue_full: u64,
    pub queue_cost: u64,
    pub client_cap: u64,
    pub too_large: u64,
    pub invalid: u64,
    pub closed: u64,
    pub expired: u64,
    pub would_expire: u64,
}

impl Rejections {
    /// All of them together.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.queue_full
            + self.queue_cost
            + self.client_cap
            + self.too_large
            + self.invalid
            + self.closed
            + self.expired
            + self.would_expire
    }

    /// Each reason's word with its count.
    #[must_use]
    pub const fn by_reason(&self) -> [(&'static str, u64); 8] {
        [
            ("queue_full", self.queue_full),
            ("queue_cost", self.queue_cost),
            ("client_cap", self.client_cap),
            ("too_large", self.too_large),
            ("invalid", self.invalid),
            ("closed", self.closed),
            ("expired", self.expired),
            ("would_expire", self.would_expire),
        ]
    }
}

/// Counts of a batcher since it was made, and what it holds at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchStats {
    /// Items that were submitted, refused ones included.
    pub submitted: u64,
    /// Items that were refused.
    pub rejected: Rejections,
    /// Items that the function answered.
    pub completed: u64,
    /// Items for which it failed, their batch was answered with a wrong count, or their worker was lost.
    pub failed: u64,
    /// Items whose deadline came, or would have been missed, while they waited.
    pub expired: u64,
    /// Of those, the ones that were expired ahead of their deadline.
    pub expired_early: u64,
    /// Items that were cancelled, queued or dispatched.
    pub cancelled: u64,
    /// Items that the batcher's closing met in the queue.
    pub closed: u64,
    /// Items whose time was over while the function had them.
    pub timed_out: u64,
    /// Results that came after their item had been resolved otherwise.
    pub late_results: u64,
    /// Batches that were handed out, by reason, in the order of [`DispatchReason::ALL`].
    pub batches: [u64; DispatchReason::ALL.len()],
    /// Batches that failed as a whole since one last did not.
    pub consecutive_errors: u64,
    /// Workers that were given up.
    pub workers_lost: u64,
    /// Items that wait.
    pub queued: usize,
    /// What they cost.
    pub queued_cost: u64,
    /// Items that the function has and somebody waits for.
    pub dispatched: usize,
    /// Items that the function has and nobody waits for any more.
    pub abandoned: usize,
    /// Batches in flight.
    pub in_flight: usize,
    /// Most items of one batch, as configured.
    pub max_batch_size: usize,
    /// Items of the smallest batch so far; 0 before the first.
    pub min_batch_size_seen: usize,
    /// Items of the largest batch so far.
    pub max_batch_size_seen: usize,
    /// Items of each batch.
    pub batch_size: Histogram,
    /// Items of each batch as a share of `max_batch_size`.
    pub fill: Histogram,
    /// Cost of each batch.
    pub batch_cost: Histogram,
    /// Each item's time from submission to dispatch.
    pub queue_wait: Histogram,
    /// Each batch's time from its oldest item's submission to dispatch.
    pub formation: Histogram,
    /// Each batch's time from dispatch to answer.
    pub execution: Histogram,
}

impl Default for BatchStats {
    fn default() -> Self {
        Self {
            submitted: 0,
            rejected: Rejections::default(),
            completed: 0,
            failed: 0,
            expired: 0,
            expired_early: 0,
            cancelled: 0,
            closed: 0,
            timed_out: 0,
            late_results: 0,
            batches: [0; DispatchReason::ALL.len()],
            consecutive_errors: 0,
            workers_lost: 0,
            queued: 0,
            queued_cost: 0,
            dispatched: 0,
            abandoned: 0,
            in_flight: 0,
            max_batch_size: 0,
            min_batch_size_seen: 0,
            max_batch_size_seen: 0,
            batch_size: Histogram::new(Scale::Count),
            fill: Histogram::new(Scale::Percent),
            batch_cost: Histogram::new(Scale::Count),
            queue_wait: Histogram::new(Scale::Time),
            formation: Histogram::new(Scale::Time),
            execution: Histogram::new(Scale::Time),
        }
    }
}

impl BatchStats {
    /// Batches that were handed out.
    #[must_use]
    pub fn dispatched_batches(&self) -> u64 {
        self.batches.iter().sum()
    }

    /// Takes in what another batcher counted in all. What that one holds at present is not taken.
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { rejected, .. } = self;
        for (count, more) in [
            (&mut self.submitted, other.submitted),
            (&mut self.completed, other.completed),
            (&mut self.failed, other.failed),
            (&mut self.expired, other.expired),
            (&mut self.expired_early, other.expired_early),
            (&mut self.cancelled, other.cancelled),
            (&mut self.closed, other.closed),
            (&mut self.timed_out, other.timed_out),
            (&mut self.late_results, other.late_results),
            (&mut self.workers_lost, other.workers_lost),
            (&mut rejected.queue_full, other.rejected.queue_full),
            (&mut rejected.queue_cost, other.rejected.queue_cost),
            (&mut rejected.client_cap, other.rejected.client_cap),
            (&mut rejected.too_large, other.rejected.too_large),
            (&mut rejected.invalid, other.rejected.invalid),
            (&mut rejected.closed, other.rejected.closed),
            (&mut rejected.expired, other.rejected.expired),
            (&mut rejected.would_expire, other.rejected.would_expire),
        ] {
            *count += more;
        }
        for (count, more) in self.batches.iter_mut().zip(other.batches) {
            *count += more;
        }
        self.batch_size.add(&other.batch_size);
        self.fill.add(&other.fill);
        self.batch_cost.add(&other.batch_cost);
        self.queue_wait.add(&other.queue_wait);
        self.formation.add(&other.formation);
        self.execution.add(&other.execution);
    }

    /// Whether every item that was submitted is accounted for exactly once.
    #[must_use]
    pub const fn is_conserved(&self) -> bool {
        let ended = self.rejected.total()
            + self.completed
            + self.failed
            + self.expired
            + self.cancelled
            + self.closed
            + self.timed_out;
        self.submitted == ended + self.queued as u64 + self.dispatched as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_at_the_least_bound_that_holds_it() {
        let bound = |mut histogram: Histogram, value| {
            histogram.record(value);
            histogram.cumulative().find(|&(_, count)| count == 1).unwrap().0
        };
        for (value, expected) in [(0, 1e-6), (1000, 1e-6), (1001, 2e-6), (4000, 4e-6), (4001, 8e-6)] {
            assert!((bound(Histogram::new(Scale::Time), value) - expected).abs() < 1e-12, "{value}");
        }
        for (value, expected) in [(0, 1.0), (1, 1.0), (2, 2.0), (3, 4.0), (32, 32.0), (33, 64.0)] {
            assert!((bound(Histogram::new(Scale::Count), value) - expected).abs() < 1e-12, "{value}");
        }
        for (value, expected) in [(0, 0.1), (10, 0.1), (11, 0.2), (100, 1.0), (101, f64::INFINITY)] {
            let bound = bound(Histogram::new(Scale::Percent), value);
            assert!(bound == expected || (bound - expected).abs() < 1e-12, "{value}");
        }
        assert!(bound(Histogram::new(Scale::Time), u64::MAX).is_infinite());
    }

    #[test]
    fn a_histogram_has_a_sum_and_a_mean() {
        let mut histogram = Histogram::new(Scale::Time);
        assert_eq!(histogram.mean(), None);
        histogram.record(1_000_000_000);
        histogram.record(3_000_000_000);
        assert_eq!((histogram.count(), histogram.sum(), histogram.mean()), (2, 4.0, Some(2.0)));
    }
}
