//! Calls that belong together go to the same instance: highest random weight hashing (Thaler and Ravishankar,
//! 1998) with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018). Pure.
//!
//! Every instance has a weight for every key, drawn by hashing, and the heaviest takes the call. One instance
//! more moves only the keys for which it is the heaviest, one in n. A key that is in great demand does not
//! drown its instance: one that has more than a quarter above the mean in flight is passed over.

use std::hash::{DefaultHasher, Hash, Hasher};

/// How far above the mean an instance's load may be.
const LOAD_FACTOR: f64 = 1.25;

/// What one instance is known by, for [`place`].
pub(crate) fn seed(name: &str) -> u64 {
    // SipHash with fixed keys: the same in every process, so that routers agree.
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// Which of the instances, given by seed and requests in flight, takes calls of `key`; `None` out of none.
pub(super) fn place(key: &str, instances: impl Iterator<Item = (u64, usize)> + Clone) -> Option<usize> {
    let (count, in_flight) =
        instances.clone().fold((0, 0), |(count, sum), (_, in_flight)| (count + 1, sum + in_flight));
    let most = (LOAD_FACTOR * (in_flight + 1) as f64 / f64::from(count)).ceil() as usize;
    let key = seed(key);
    instances
        .enumerate()
        .filter(|(_, (_, in_flight))| *in_flight < most)
        .max_by_key(|(_, (seed, _))| mix(seed ^ key))
        .map(|(index, _)| index)
}

/// The finaliser of SplitMix64: neighbouring inputs have unrelated outputs.
const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: usize = 10_000;

    fn instances(count: usize) -> Vec<(u64, usize)> {
        (0..count).map(|index| (seed(&format!("127.0.0.1:{index}")), 0)).collect()
    }

    fn places(instances: &[(u64, usize)]) -> Vec<usize> {
        (0..KEYS).map(|key| place(&key.to_string(), instances.iter().copied()).unwrap()).collect()
    }

    #[test]
    fn keys_are_spread_evenly() {
        for count in [1, 2, 5, 16] {
            let mut each = vec![0; count];
            places(&instances(count)).into_iter().for_each(|index| each[index] += 1);
            let mean = KEYS / count;
            assert!(each.iter().all(|&keys| keys * 10 > mean * 8 && keys * 10 < mean * 12), "{each:?}");
        }
    }

    #[test]
    fn one_instance_more_takes_its_share_and_moves_nothing_else() {
        for count in [2, 4, 9] {
            let (before, after) = (places(&instances(count)), places(&instances(count + 1)));
            let moved: Vec<_> = before.iter().zip(&after).filter(|(old, new)| old != new).collect();
            assert!(moved.iter().all(|(_, new)| **new == count), "a key moved between old instances");
            let share = KEYS / (count + 1);
            assert!(moved.len() * 10 > share * 8 && moved.len() * 10 < share * 12, "{}", moved.len());
        }
    }

    #[test]
    fn losing_an_instance_moves_only_its_keys() {
        let all = instances(5);
        let before = places(&all);
        let after = places(&[&all[..2], &all[3..]].concat());
        for (old, new) in before.into_iter().zip(after) {
            assert!(old == 2 || old == if new < 2 { new } else { new + 1 });
        }
    }

    #[test]
    fn a_key_in_great_demand_overflows_to_the_same_others() {
        let mut all = instances(4);
        let mut order = Vec::new();
        for _ in 0..400 {
            let index = place("hot", all.iter().copied()).unwrap();
            all[index].1 += 1;
            if !order.contains(&index) {
                order.push(index);
            }
        }
        assert!(all.iter().all(|(_, in_flight)| (1..=126).contains(in_flight)), "{all:?}");
        let empty = instances(4);
        assert_eq!(place("hot", empty.iter().copied()), order.first().copied());
    }

    #[test]
    fn none_of_none() {
        assert_eq!(place("key", std::iter::empty()), None);
    }
}
