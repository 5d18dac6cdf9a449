//! When a batch may be closed, and what fits into it: the rules, over plain numbers.
//!
//! A batch is formed when a worker takes it, so "closed" means "may be taken now". Windows are measured from
//! the submission of the oldest item: one that has waited for a busy worker has served its time.

use super::clock::duration_ns;
use super::config::{BatchConfig, LINGERS_MAX};
use super::stats::DispatchReason;
use crate::clock::NEVER;

/// The configuration as the rules need it.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) size: usize,
    latency_ns: u64,
    linger_ns: u64,
    linger_all_ns: u64,
    max_cost: u64,
    padded: bool,
    aging_ns: Option<u64>,
}

impl Rules {
    pub(super) fn new(config: &BatchConfig) -> Self {
        Self {
            size: config.max_batch_size,
            latency_ns: duration_ns(config.max_latency),
            linger_ns: duration_ns(config.linger),
            linger_all_ns: duration_ns(config.linger.saturating_mul(LINGERS_MAX)),
            max_cost: config.max_cost.unwrap_or(u64::MAX),
            padded: config.padded_cost,
            aging_ns: config.aging.map(duration_ns),
        }
    }

    /// The bound on a batch's cost, if there is one.
    pub(super) fn max_cost(&self) -> Option<u64> {
        (self.max_cost != u64::MAX).then_some(self.max_cost)
    }

    pub(super) const fn is_padded(&self) -> bool {
        self.padded
    }

    pub(super) const fn budget(&self, most: usize) -> Budget {
        Budget { left: most, cost: 0, peak: 0, len: 0, max_cost: self.max_cost, padded: self.padded }
    }
}

/// The order in which items are served: the smallest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    level: u8,
    time_ns: u64,
    sequence: u64,
}

impl Rank {
    /// With aging, an item stands where it would stand had it come so much later for each level. Both wait
    /// at the same pace, so the order of two items never changes, and none waits for ever.
    pub(super) fn new(rules: &Rules, lane: u8, enqueued_ns: u64, sequence: u64) -> Self {
        match rules.aging_ns {
            None => Self { level: lane, time_ns: enqueued_ns, sequence },
            Some(aging_ns) => {
                let later_ns = aging_ns.saturating_mul(u64::from(lane));
                Self { level: 0, time_ns: enqueued_ns.saturating_add(later_ns), sequence }
            }
        }
    }
}

/// What is known of the items of one key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) count: usize,
    /// Whether they fill a batch by their cost.
    pub(super) costly: bool,
    pub(super) oldest_ns: u64,
    pub(super) newest_ns: u64,
    /// Whether one of them was there at the last flush.
    pub(super) flushed: bool,
    pub(super) draining: bool,
}

/// Whether a batch may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ripe {
    Now(DispatchReason),
    /// Not before then, unless more comes.
    At(u64),
}

pub(super) fn ripe(rules: &Rules, waiting: Waiting, now_ns: u64) -> Ripe {
    if waiting.count >= rules.size {
        return Ripe::Now(DispatchReason::Size);
    }
    if waiting.costly {
        return Ripe::Now(DispatchReason::Cost);
    }
    if rules.latency_ns == 0 && rules.linger_ns == 0 {
        return Ripe::Now(DispatchReason::Idle);
    }
    let (mut at_ns, mut reason) = (NEVER, DispatchReason::Latency);
    if rules.latency_ns > 0 {
        at_ns = waiting.oldest_ns.saturating_add(rules.latency_ns);
    }
    if rules.linger_ns > 0 {
        let quiet_ns = waiting.newest_ns.saturating_add(rules.linger_ns);
        let longest_ns = waiting.oldest_ns.saturating_add(rules.linger_all_ns);
        let linger_ns = quiet_ns.min(longest_ns);
        if linger_ns < at_ns {
            (at_ns, reason) = (linger_ns, DispatchReason::Linger);
        }
    }
    if at_ns <= now_ns {
        Ripe::Now(reason)
    } else if waiting.flushed {
        Ripe::Now(DispatchReason::Flush)
    } else if waiting.draining {
        Ripe::Now(DispatchReason::Drain)
    } else {
        Ripe::At(at_ns)
    }
}

/// What still fits into a batch that is being formed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    left: usize,
    len: u64,
    cost: u64,
    peak: u64,
    max_cost: u64,
    padded: bool,
}

impl Budget {
    const fn with(&self, cost: u64) -> u64 {
        if self.padded {
            let peak = if cost > self.peak { cost } else { self.peak };
            peak.saturating_mul(self.len + 1)
        } else {
            self.cost.saturating_add(cost)
        }
    }

    /// Whether it would exceed the cost. Never the first: it was let in under a larger `max_cost`, and would
    /// otherwise wait for ever.
    pub(super) const fn is_over(&self, cost: u64) -> bool {
        self.len > 0 && self.with(cost) > self.max_cost
    }

    pub(super) fn add(&mut self, cost: u64) {
        self.cost = self.with(cost);
        self.peak = self.peak.max(cost);
        self.len += 1;
        self.left -= 1;
    }

    pub(super) const fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Whether not even another item that costs nothing more than the batch does would fit.
    pub(super) const fn is_spent(&self) -> bool {
        self.len > 0 && self.cost >= self.max_cost
    }

    pub(super) const fn cost(&self) -> u64 {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: u64 = 1_000_000;

    fn rules(latency_ms: u64, linger_ms: u64) -> Rules {
        Rules::new(&BatchConfig {
            max_batch_size: 4,
            max_latency: Duration::from_millis(latency_ms),
            linger: Duration::from_millis(linger_ms),
            max_cost: Some(100),
            ..BatchConfig::default()
        })
    }

    fn waiting(count: usize, oldest_ms: u64, newest_ms: u64) -> Waiting {
        Waiting {
            count,
            costly: false,
            oldest_ns: oldest_ms * MS,
            newest_ns: newest_ms * MS,
            flushed: false,
            draining: false,
        }
    }

    #[test]
    fn without_windows_a_free_worker_takes_what_is_there() {
        assert_eq!(ripe(&rules(0, 0), waiting(1, 7, 7), 7 * MS), Ripe::Now(DispatchReason::Idle));
    }

    #[test]
    fn a_full_batch_never_waits() {
        for windows in [rules(0, 0), rules(50, 0), rules(0, 5), rules(50, 5)] {
            assert_eq!(ripe(&windows, waiting(4, 0, 0), 0), Ripe::Now(DispatchReason::Size));
            let costly = Waiting { costly: true, ..waiting(2, 0, 0) };
            assert_eq!(ripe(&windows, costly, 0), Ripe::Now(DispatchReason::Cost));
        }
    }

    #[test]
    fn the_latency_window_begins_with_the_oldest_item() {
        let rules = rules(50, 0);
        assert_eq!(ripe(&rules, waiting(3, 10, 55), 60 * MS - 1), Ripe::At(60 * MS));
        assert_eq!(ripe(&rules, waiting(3, 10, 55), 60 * MS), Ripe::Now(DispatchReason::Latency));
    }

    #[test]
    fn lingering_ends_with_a_quiet_period() {
        let rules = rules(0, 5);
        assert_eq!(ripe(&rules, waiting(3, 10, 20), 25 * MS - 1), Ripe::At(25 * MS));
        assert_eq!(ripe(&rules, waiting(3, 10, 20), 25 * MS), Ripe::Now(DispatchReason::Linger));
    }

    #[test]
    fn lingering_never_lasts_longer_than_ten_times_itself() {
        assert_eq!(ripe(&rules(0, 5), waiting(3, 10, 59), 59 * MS), Ripe::At(60 * MS));
        assert_eq!(ripe(&rules(0, 5), waiting(3, 10, 59), 60 * MS), Ripe::Now(DispatchReason::Linger));
    }

    #[test]
    fn lingering_never_lasts_longer_than_max_latency() {
        assert_eq!(ripe(&rules(20, 5), waiting(3, 10, 28), 28 * MS), Ripe::At(30 * MS));
        assert_eq!(ripe(&rules(20, 5), waiting(3, 10, 28), 30 * MS), Ripe::Now(DispatchReason::Latency));
        assert_eq!(ripe(&rules(20, 5), waiting(3, 10, 12), 17 * MS), Ripe::Now(DispatchReason::Linger));
    }

    #[test]
    fn a_flush_or_a_drain_ends_every_window() {
        let flushed = Waiting { flushed: true, ..waiting(1, 0, 0) };
        assert_eq!(ripe(&rules(50, 5), flushed, 0), Ripe::Now(DispatchReason::Flush));
        let draining = Waiting { draining: true, ..waiting(1, 0, 0) };
        assert_eq!(ripe(&rules(50, 5), draining, 0), Ripe::Now(DispatchReason::Drain));
    }

    #[test]
    fn windows_without_an_end_are_possible() {
        let rules = Rules::new(&BatchConfig { max_latency: Duration::MAX, ..BatchConfig::default() });
        assert_eq!(ripe(&rules, waiting(1, 10, 10), 20 * MS), Ripe::At(NEVER));
    }

    #[test]
    fn costs_add_up_to_the_budget_and_no_further() {
        let mut budget = rules(0, 0).budget(4);
        for cost in [40, 40] {
            assert!(!budget.is_over(cost));
            budget.add(cost);
        }
        assert!(budget.is_over(21) && !budget.is_over(20) && !budget.is_spent());
        budget.add(20);
        assert!(budget.is_spent() && !budget.is_over(0) && budget.cost() == 100);
    }

    #[test]
    fn a_padded_batch_costs_its_largest_item_times_its_size() {
        let padded = BatchConfig { max_cost: Some(100), padded_cost: true, ..BatchConfig::default() };
        let mut budget = Rules::new(&padded).budget(32);
        budget.add(10);
        assert!(budget.is_over(51) && !budget.is_over(50));
        budget.add(30);
        assert_eq!(budget.cost(), 60);
        assert!(budget.is_over(34) && !budget.is_over(33));
        budget.add(1);
        assert_eq!(budget.cost(), 90);
        assert!(budget.is_over(1), "four items of 30 are 120");
    }

    #[test]
    fn the_first_item_always_fits() {
        assert!(!rules(0, 0).budget(4).is_over(u64::MAX));
    }

    #[test]
    fn with_aging_an_item_stands_so_much_later_for_each_level() {
        let aging = BatchConfig { aging: Some(Duration::from_nanos(100)), ..BatchConfig::default() };
        let (aging, strict) = (Rules::new(&aging), Rules::new(&BatchConfig::default()));
        assert!(Rank::new(&strict, 1, 0, 0) > Rank::new(&strict, 0, 1_000_000, 1));
        assert!(Rank::new(&aging, 1, 0, 0) > Rank::new(&aging, 0, 99, 1));
        assert!(Rank::new(&aging, 1, 0, 0) < Rank::new(&aging, 0, 100, 1), "the earlier of equals");
        assert!(Rank::new(&aging, 3, 0, 0) < Rank::new(&aging, 0, 301, 1));
    }
}
