//! Picking one of several instances. Pure but for the draws: given loads and random numbers, the answer is
//! fixed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::affinity;
use super::info::InstanceInfo;

/// How a router picks an instance, unless a call names one or brings an affinity.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Policy {
    /// The better of two random instances by requests in flight times recent peak latency.
    #[default]
    PowerOfTwo,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// One with the fewest requests of this router in flight.
    LeastLoaded,
    /// By the call's affinity; one without is placed as by [`Self::PowerOfTwo`].
    Hash,
    /// Only what the call names; one that names none fails.
    Direct,
    /// By a policy of one's own.
    Custom(Arc<dyn Choose>),
}

/// A policy of one's own. It is asked on whichever thread polls the call, and must not block.
pub trait Choose: fmt::Debug + Send + Sync {
    /// Picks one of `candidates`, never empty, by its place: all that take the call's endpoint and were not
    /// tried yet.
    ///
    /// # Errors
    /// Why none is picked; the call fails with it.
    fn choose(&self, candidates: &[InstanceInfo]) -> Result<usize, String>;
}

/// What the built-in policies look at.
pub(super) trait Loads {
    fn count(&self) -> usize;
    /// What one more request there would cost.
    fn cost(&self, index: usize) -> f64;
    fn in_flight(&self, index: usize) -> usize;
    /// The instance's seed for affinity.
    fn seed(&self, index: usize) -> u64;
    fn info(&self, index: usize) -> InstanceInfo;
}

/// Picks by a policy.
#[derive(Debug)]
pub(super) struct Picker {
    policy: Policy,
    turn: AtomicUsize,
}

impl Picker {
    pub(super) const fn new(policy: Policy) -> Self {
        Self { policy, turn: AtomicUsize::new(0) }
    }

    /// Whether calls have to name their instance.
    pub(super) const fn is_direct(&self) -> bool {
        matches!(self.policy, Policy::Direct)
    }

    /// The index of the instance to use; `None` out of none. A call with an affinity goes by it, whatever the
    /// policy.
    pub(super) fn pick(&self, loads: &impl Loads, affinity: &str) -> Result<Option<usize>, String> {
        let count = loads.count();
        if count == 0 {
            return Ok(None);
        }
        if !affinity.is_empty() {
            let each = (0..count).map(|index| (loads.seed(index), loads.in_flight(index)));
            return Ok(affinity::place(affinity, each));
        }
        if count == 1 && !matches!(self.policy, Policy::Custom(_)) {
            // A second attempt that has no choice takes nobody's turn.
            return Ok(Some(0));
        }
        Ok(match &self.policy {
            Policy::RoundRobin => Some(self.turn.fetch_add(1, Ordering::Relaxed) % count),
            Policy::Random => Some(fastrand::usize(..count)),
            Policy::LeastLoaded => least_loaded(count, fastrand::usize(..count), |i| loads.in_flight(i)),
            Policy::PowerOfTwo | Policy::Hash | Policy::Direct => Some(match draw_two(count) {
                Some((first, second)) => better_of_two(first, second, |index| loads.cost(index)),
                None => 0,
            }),
            Policy::Custom(choose) => {
                let candidates: Vec<_> = (0..count).map(|index| loads.info(index)).collect();
                let index = choose.choose(&candidates)?;
                if index >= count {
                    return Err(format!("it picked number {index} of {count} instances"));
                }
                Some(index)
            }
        })
    }

    /// The two of `count` instances between which the policy chooses, without asking what the others are;
    /// `None` when it does not choose so, or there are not two.
    pub(super) fn draw(&self, count: usize) -> Option<(usize, usize)> {
        match self.policy {
            Policy::PowerOfTwo | Policy::Hash => draw_two(count),
            _ => None,
        }
    }
}

/// Two different indices below `count`.
fn draw_two(count: usize) -> Option<(usize, usize)> {
    if count < 2 {
        return None;
    }
    let first = fastrand::usize(..count);
    Some((first, other_than(first, fastrand::usize(..count - 1))))
}

/// Maps a number below `count - 1` to an index below `count` that is not `first`.
const fn other_than(first: usize, drawn: usize) -> usize {
    if drawn < first { drawn } else { drawn + 1 }
}

fn better_of_two(first: usize, second: usize, cost: impl Fn(usize) -> f64) -> usize {
    if cost(second) < cost(first) { second } else { first }
}

/// The one with the fewest in flight; of several, the first from `start` on.
fn least_loaded(count: usize, start: usize, in_flight: impl Fn(usize) -> usize) -> Option<usize> {
    (0..count).map(|step| (start + step) % count).min_by_key(|&index| in_flight(index))
}

#[cfg(test)]
mod tests {
    use super::super::info::InstanceState;
    use super::*;

    /// Instances with so many in flight each; cost is the same.
    struct Fixed(Vec<usize>);

    impl Loads for Fixed {
        fn count(&self) -> usize {
            self.0.len()
        }
        fn cost(&self, index: usize) -> f64 {
            self.0[index] as f64
        }
        fn in_flight(&self, index: usize) -> usize {
            self.0[index]
        }
        fn seed(&self, index: usize) -> u64 {
            affinity::seed(&index.to_string())
        }
        fn info(&self, index: usize) -> InstanceInfo {
            InstanceInfo {
                address: index.to_string(),
                instance_id: String::new(),
                state: InstanceState::Up,
                endpoints: Vec::new(),
                in_flight: self.0[index],
                last_error: None,
            }
        }
    }

    /// How often each of the instances is picked.
    fn picks(policy: Policy, loads: &[usize], times: usize) -> Vec<usize> {
        let (picker, loads) = (Picker::new(policy), Fixed(loads.to_vec()));
        let mut each = vec![0; loads.count()];
        (0..times).for_each(|_| each[picker.pick(&loads, "").unwrap().unwrap()] += 1);
        each
    }

    #[test]
    fn two_choices_are_always_different() {
        for count in 2..6 {
            for first in 0..count {
                let mut seen: Vec<usize> = (0..count - 1).map(|drawn| other_than(first, drawn)).collect();
                seen.push(first);
                seen.sort_unstable();
                assert_eq!(seen, (0..count).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_cheaper_of_two_is_taken() {
        let costs = [3.0, 1.0];
        assert_eq!(better_of_two(0, 1, |index| costs[index]), 1);
        assert_eq!(better_of_two(1, 0, |index| costs[index]), 1);
    }

    #[test]
    fn round_robin_takes_turns() {
        assert_eq!(picks(Policy::RoundRobin, &[5, 0, 9], 300), [100, 100, 100]);
    }

    #[test]
    fn power_of_two_never_takes_the_worst_and_spreads_the_rest() {
        let each = picks(Policy::PowerOfTwo, &[0, 1, 2, 3], 12_000);
        // The best wins each pair that it is in: 3 of 6; the next 2 of 6, the next 1 of 6.
        assert_eq!(each[3], 0);
        for (index, share) in [6_000, 4_000, 2_000].into_iter().enumerate() {
            assert!(each[index].abs_diff(share) < share / 10, "{each:?}");
        }
    }

    #[test]
    fn random_spreads_whatever_the_load() {
        let each = picks(Policy::Random, &[0, 50, 100], 9_000);
        assert!(each.iter().all(|&picked| picked.abs_diff(3_000) < 300), "{each:?}");
    }

    #[test]
    fn least_loaded_takes_the_minimum_and_spreads_ties() {
        let each = picks(Policy::LeastLoaded, &[2, 1, 3, 1], 2_000);
        assert_eq!((each[0], each[2]), (0, 0));
        assert!(each[1].abs_diff(each[3]) < 300, "{each:?}");
    }

    #[test]
    fn an_affinity_goes_before_any_policy_and_always_to_the_same() {
        for policy in [Policy::PowerOfTwo, Policy::RoundRobin, Policy::Hash, Policy::Random] {
            let (picker, loads) = (Picker::new(policy), Fixed(vec![0; 5]));
            let all = (0..50).map(|_| picker.pick(&loads, "conversation 7").unwrap());
            assert_eq!(all.collect::<std::collections::HashSet<_>>().len(), 1);
        }
    }

    #[test]
    fn one_instance_is_taken_and_of_none_none() {
        for policy in
            [Policy::PowerOfTwo, Policy::RoundRobin, Policy::Random, Policy::LeastLoaded, Policy::Hash]
        {
            assert_eq!(picks(policy.clone(), &[7], 10), [10]);
            assert_eq!(Picker::new(policy).pick(&Fixed(Vec::new()), ""), Ok(None));
        }
    }

    /// Picks the place that it was made with.
    #[derive(Debug)]
    struct Always(Result<usize, String>);

    impl Choose for Always {
        fn choose(&self, candidates: &[InstanceInfo]) -> Result<usize, String> {
            assert_eq!(candidates[1].in_flight, 4);
            self.0.clone()
        }
    }

    #[test]
    fn a_policy_of_ones_own_is_asked_and_checked() {
        let pick = |answer| {
            let picker = Picker::new(Policy::Custom(Arc::new(Always(answer))));
            picker.pick(&Fixed(vec![3, 4]), "")
        };
        assert_eq!(pick(Ok(1)), Ok(Some(1)));
        assert_eq!(pick(Err("no".to_owned())), Err("no".to_owned()));
        assert_eq!(pick(Ok(2)), Err("it picked number 2 of 2 instances".to_owned()));
    }
}
