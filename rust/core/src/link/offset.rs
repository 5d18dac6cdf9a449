//! How far the peer's clock is from ours, by the stamps of PING and PONG. One round trip is wrong by up to
//! half of itself, and a busy loop makes it long; of the last few the shortest is believed.

use std::sync::atomic::Ordering;

use super::Link;

/// No PONG has come yet.
pub(super) const OFFSET_UNKNOWN: i64 = i64::MIN;

impl Link {
    /// When the bytes that are being dispatched were read, by the runtime's clock.
    pub(crate) fn heard_ns(&self) -> u64 {
        self.last_heard_ns.load(Ordering::Relaxed)
    }

    /// What a message that arrived just now has taken, by its sender's clock; `None` until that is known. A
    /// stamp that makes no sense is cut to the link's age.
    pub(crate) fn transit_ns(&self, sent_ns: u64) -> Option<u64> {
        let offset_ns = self.clock_offset_ns.load(Ordering::Relaxed);
        if offset_ns == OFFSET_UNKNOWN {
            return None;
        }
        let sent_ns = i128::from(sent_ns) - i128::from(offset_ns);
        let age_ns = self.heard_ns().saturating_sub(self.began_ns);
        Some((i128::from(self.heard_ns()) - sent_ns).clamp(0, i128::from(age_ns)) as u64)
    }
}

/// Round trips that are remembered: 40 s with the usual interval, in which clocks drift by 2 ms at the most.
const ROUNDS: usize = 8;

/// The last round trips.
#[derive(Debug, Default)]
pub(super) struct ClockFilter {
    /// Each with what it took and the offset it found, in nanoseconds.
    rounds: [Option<(u64, i64)>; ROUNDS],
    next: usize,
}

impl ClockFilter {
    /// Takes in a round trip: PING left at `sent_ns` and PONG came at `now_ns` by our clock, and the peer
    /// answered at `theirs_ns` by its own. Returns the peer's clock minus ours.
    pub(super) fn take(&mut self, sent_ns: u64, theirs_ns: u64, now_ns: u64) -> i64 {
        let took_ns = now_ns.saturating_sub(sent_ns);
        let middle_ns = sent_ns.min(now_ns) + took_ns / 2;
        // Whatever the peer says, the difference fits.
        let offset_ns = (i128::from(theirs_ns) - i128::from(middle_ns)).clamp(-(1 << 62), 1 << 62) as i64;
        if let Some(round) = self.rounds.get_mut(self.next) {
            *round = Some((took_ns, offset_ns));
        }
        self.next = (self.next + 1) % ROUNDS;
        self.rounds
            .iter()
            .flatten()
            .min_by_key(|(took_ns, _)| *took_ns)
            .map_or(offset_ns, |&(_, offset_ns)| offset_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_of_the_last_round_trips_is_believed() {
        let mut filter = ClockFilter::default();
        // The peer is 1,000 ahead; the second answer waited for 600 at the peer's side.
        assert_eq!(filter.take(0, 1_005, 10), 1_000);
        assert_eq!(filter.take(100, 1_705, 710), 1_000);
        // A shorter one is better, also when it says something else.
        assert_eq!(filter.take(1_000, 2_003, 1_004), 1_001);
        // It is forgotten after eight.
        for _ in 0..7 {
            filter.take(2_000, 2_900, 2_010);
        }
        assert_eq!(filter.take(2_000, 2_900, 2_010), 895);
    }

    #[test]
    fn no_stamp_is_too_strange() {
        for (sent, theirs, now) in [(u64::MAX, 0, 5), (0, u64::MAX, 5), (7, 7, 0), (0, 0, u64::MAX)] {
            let offset = ClockFilter::default().take(sent, theirs, now);
            assert!(offset.unsigned_abs() <= 1 << 63, "{offset}");
        }
    }
}
