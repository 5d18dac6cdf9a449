//! The numbers behind the metrics: plain relaxed atomics, read when somebody scrapes. Counting costs one add,
//! a histogram two and the search for the bucket; nothing is locked and nothing allocated.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::labels::{LabelSet, UNLABELLED};
use super::names::{NAMES_MAX, OVERFLOW, TIME_BOUNDS, TIME_BOUNDS_S};

/// Something that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// At zero.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds to it.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// What it has come to.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

const BOUNDS_NS: [u64; TIME_BOUNDS] = {
    let mut bounds = [0; TIME_BOUNDS];
    let mut index = 0;
    while index < TIME_BOUNDS {
        // Rounded: a bound such as 0.00025 has no exact form.
        bounds[index] = (TIME_BOUNDS_S[index] * 1e9 + 0.5) as u64;
        index += 1;
    }
    bounds
};

/// How times are distributed, with the bounds of [`TIME_BOUNDS_S`].
#[derive(Debug)]
pub struct TimeHistogram {
    counts: [AtomicU64; TIME_BOUNDS + 1],
    sum_ns: AtomicU64,
}

impl Default for TimeHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl TimeHistogram {
    /// Without any.
    #[must_use]
    pub const fn new() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; TIME_BOUNDS + 1], sum_ns: AtomicU64::new(0) }
    }

    /// Takes in a time.
    pub fn observe(&self, time: Duration) {
        self.observe_ns(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Takes in a time in nanoseconds.
    pub(crate) fn observe_ns(&self, ns: u64) {
        // What is quickest comes most often, and need not be searched for.
        let bucket =
            if ns <= BOUNDS_NS[0] { 0 } else { BOUNDS_NS.partition_point(|&bound_ns| bound_ns < ns) };
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if ns > 0 {
            self.sum_ns.fetch_add(ns, Ordering::Relaxed);
        }
    }

    /// How many times it has taken in.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Their sum in seconds.
    #[must_use]
    pub fn sum_s(&self) -> f64 {
        Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)).as_secs_f64()
    }

    /// Each bound, with how many times were at most that; the last bound is infinite.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = TIME_BOUNDS_S.into_iter().chain([f64::INFINITY]);
        bounds.zip(&self.counts).scan(0, |total, (bound, count)| {
            *total += count.load(Ordering::Relaxed);
            Some((bound, *total))
        })
    }
}

/// A fixed set of words, each with its place.
pub(crate) trait Word: Copy + 'static {
    const WORDS: &'static [&'static str];

    fn index(self) -> usize;
}

/// A counter for each of `N` words.
#[derive(Debug)]
pub(crate) struct PerWord<const N: usize>([Counter; N]);

impl<const N: usize> Default for PerWord<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> PerWord<N> {
    pub(crate) const fn new() -> Self {
        Self([const { Counter::new() }; N])
    }

    pub(crate) fn count<W: Word>(&self, word: W) {
        const { assert!(W::WORDS.len() == N, "a counter for each word") };
        if let Some(counter) = self.0.get(word.index()) {
            counter.add(1);
        }
    }

    /// Each word with its count.
    pub(crate) fn each<W: Word>(&self) -> impl Iterator<Item = (&'static str, u64)> {
        const { assert!(W::WORDS.len() == N, "a counter for each word") };
        W::WORDS.iter().zip(&self.0).map(|(&word, counter)| (word, counter.get()))
    }
}

/// Numbers by name and labels, for as long as the process lives: a name that is used again goes on where it was.
/// At most [`NAMES_MAX`] of them, and one more for all that come later.
#[derive(Debug)]
pub(crate) struct Named<T: 'static>(RwLock<BTreeMap<(&'static LabelSet, String), &'static T>>);

impl<T: Default> Named<T> {
    pub(crate) const fn new() -> Self {
        Self(RwLock::new(BTreeMap::new()))
    }

    /// The numbers under this name, without labels.
    pub(crate) fn get(&self, name: &str) -> &'static T {
        self.labelled(&UNLABELLED, name)
    }

    /// The numbers under this name, with these labels.
    pub(crate) fn labelled(&self, labels: &'static LabelSet, name: &str) -> &'static T {
        let mut known = self.0.write();
        let key = (labels, name.to_owned());
        if let Some(found) = known.get(&key) {
            return found;
        }
        let key = if known.len() < NAMES_MAX { key } else { (&UNLABELLED, OVERFLOW.to_owned()) };
        // Leaked on purpose: counters outlive what they count, and there is a bound on how many there are.
        known.entry(key).or_insert_with(|| Box::leak(Box::default()))
    }

    /// Each of them, with its labels and name.
    pub(crate) fn each(&self) -> Vec<(&'static LabelSet, String, &'static T)> {
        self.0.read().iter().map(|((labels, name), &numbers)| (*labels, name.clone(), numbers)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_at_the_least_bound_that_holds_it() {
        for (ns, bound) in [
            (0, 1e-4),
            (100_000, 1e-4),
            (100_001, 2.5e-4),
            (250_000, 2.5e-4),
            (600_000_000_000, 600.0),
            (600_000_000_001, f64::INFINITY),
            (u64::MAX, f64::INFINITY),
        ] {
            let histogram = TimeHistogram::new();
            histogram.observe_ns(ns);
            let found = histogram.cumulative().find(|&(_, count)| count == 1).unwrap().0;
            assert!(found == bound, "{ns} ns at {found}, not {bound}");
            assert_eq!(histogram.count(), 1);
        }
    }

    #[test]
    fn names_beyond_the_bound_share_one() {
        static NAMED: Named<Counter> = Named::new();
        for number in 0..10 * NAMES_MAX {
            NAMED.get(&format!("name-{number}")).add(1);
        }
        let each = NAMED.each();
        assert_eq!(each.len(), NAMES_MAX + 1);
        assert_eq!(NAMED.get(OVERFLOW).get(), 9 * NAMES_MAX as u64);
        assert_eq!(each.iter().map(|(_, _, counter)| counter.get()).sum::<u64>(), 10 * NAMES_MAX as u64);
    }
}
