//! Picking one of several instances. Pure: given loads and a random number, the answer is fixed.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::Policy;

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

    /// The index of the instance to use out of `count`, by what each would cost; `None` out of none.
    pub(super) fn pick(&self, count: usize, cost: impl Fn(usize) -> f64) -> Option<usize> {
        match (count, self.policy) {
            (0, _) => None,
            (1, _) => Some(0),
            (_, Policy::RoundRobin) => Some(self.turn.fetch_add(1, Ordering::Relaxed) % count),
            (_, Policy::PowerOfTwo) => {
                let (first, second) = draw_two(count)?;
                Some(better_of_two(first, second, cost))
            }
        }
    }

    /// The two of `count` instances between which the policy chooses, without asking what the others are;
    /// `None` when it does not choose so, or there are not two.
    pub(super) fn draw(&self, count: usize) -> Option<(usize, usize)> {
        match self.policy {
            Policy::PowerOfTwo => draw_two(count),
            Policy::RoundRobin => None,
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let picker = Picker::new(Policy::RoundRobin);
        let picks: Vec<_> = (0..6).map(|_| picker.pick(3, |_| 0.0).unwrap()).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn an_idle_instance_is_preferred_by_power_of_two() {
        let picker = Picker::new(Policy::PowerOfTwo);
        let busy_picks = (0..1000).filter(|_| picker.pick(2, |index| index as f64) == Some(1)).count();
        assert_eq!(busy_picks, 0);
        assert_eq!(picker.pick(0, |_| 0.0), None);
    }
}
