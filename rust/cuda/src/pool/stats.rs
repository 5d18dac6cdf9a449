//! What a pool counts.

use std::time::Duration;

use crate::device::Backend;

/// Upper bounds of the wait-time histogram's buckets, in microseconds; a last bucket has the rest.
pub const WAIT_BOUNDS_US: [u64; 8] = [10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 60_000_000];

/// How long leases were waited for, those that were had at once included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitTimes {
    /// How many took at most as long as the bound of that index in [`WAIT_BOUNDS_US`], and longer than the
    /// one before it.
    pub counts: [u64; WAIT_BOUNDS_US.len() + 1],
    /// All of them together, in microseconds.
    pub sum_us: u64,
}

impl WaitTimes {
    pub(crate) fn add(&mut self, waited: Duration) {
        let us = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        let bucket = WAIT_BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(WAIT_BOUNDS_US.len());
        self.counts[bucket] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }
}

/// How a pool does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Which back end serves it.
    pub backend: Backend,
    /// Streams at most.
    pub max_streams: usize,
    /// Streams that are there.
    pub created: usize,
    /// Those that are free.
    pub idle: usize,
    /// Those that are leased.
    pub in_use: usize,
    /// Those whose lease has ended and whose work has not.
    pub draining: usize,
    /// How many wait for one.
    pub waiting: usize,
    /// Leases so far.
    pub leases: u64,
    /// Those that were refused at once because every stream was leased.
    pub refused: u64,
    /// Those who did not get one in time.
    pub timeouts: u64,
    /// How long they waited.
    pub wait_times: WaitTimes,
    /// How long streams were leased or drained, all together, in microseconds.
    pub busy_us: u64,
    /// Bytes copied to the device.
    pub bytes_to_device: u64,
    /// Bytes copied to the host.
    pub bytes_to_host: u64,
    /// Bytes of device memory outstanding on its streams.
    pub device_bytes: u64,
    /// Bytes of device memory that its streams may have, all together.
    pub budget_bytes: u64,
    /// Bytes of host memory that are pinned.
    pub pinned_bytes: u64,
    /// Calls that the driver refused.
    pub errors: u64,
    /// Whether the device is lost.
    pub poisoned: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_counted_in_the_first_bucket_that_has_room_for_it() {
        let mut times = WaitTimes::default();
        for us in [0, 10, 11, 100, 60_000_001] {
            times.add(Duration::from_micros(us));
        }
        assert_eq!(times.counts, [2, 2, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(times.sum_us, 60_000_122);
    }
}
