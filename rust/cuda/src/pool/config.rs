//! Settings of a pool, with their bounds.

use std::time::Duration;

use crate::completion::CompletionMode;
use crate::error::InvalidSetting;
use crate::memory::BUDGET_MB_DEFAULT;

/// As many as the hardware has queues for: above it streams share them and wait for each other.
const STREAMS_MAX: usize = 32;

/// How urgent a stream's work is beside that of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// As any other stream, the default.
    #[default]
    Normal,
    /// The most urgent that the device has.
    High,
}

impl Priority {
    /// As the driver counts, within what the device has.
    pub(crate) fn within(self, (least, greatest): (i32, i32)) -> i32 {
        match self {
            Self::Normal => 0.clamp(greatest, least.max(greatest)),
            Self::High => greatest,
        }
    }
}

/// Settings of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Streams at most, 4 by default; 1 to 32. The default stream is not one of them.
    pub max_streams: usize,
    /// Streams that are created with the pool, 0 by default; at most `max_streams`.
    pub warm_streams: usize,
    /// How urgent their work is, [`Priority::Normal`] by default.
    pub priority: Priority,
    /// Device memory that Headrace may have allocated on one stream, in MiB, 256 by default; at least 1. What
    /// other libraries allocate is outside of it.
    pub budget_mb: u64,
    /// How completion is learned of, [`CompletionMode::Event`] by default.
    pub completion: CompletionMode,
    /// How long a thread asks the driver without a pause before it blocks, 20 microseconds by default; at
    /// most one second. With [`CompletionMode::HostFn`] it is of no effect.
    pub spin: Duration,
    /// Pinned host memory that is kept for its next use, in MiB, 1024 by default. What is in use is not
    /// bounded.
    pub pinned_mb: u64,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            max_streams: 4,
            warm_streams: 0,
            priority: Priority::Normal,
            budget_mb: BUDGET_MB_DEFAULT,
            completion: CompletionMode::Event,
            spin: Duration::from_micros(20),
            pinned_mb: 1024,
        }
    }
}

impl PoolSettings {
    /// Whether all settings are within their bounds.
    ///
    /// # Errors
    /// The first that is not.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let bounds = [
            ("max_streams", (1..=STREAMS_MAX).contains(&self.max_streams), "from 1 to 32"),
            ("warm_streams", self.warm_streams <= self.max_streams, "at most max_streams"),
            ("budget_mb", (1..=1 << 30).contains(&self.budget_mb), "from 1 to 1073741824"),
            ("spin", self.spin <= Duration::from_secs(1), "at most one second"),
            ("pinned_mb", self.pinned_mb <= 1 << 30, "at most 1073741824"),
        ];
        let broken = bounds.into_iter().find(|(_, holds, _)| !holds);
        broken.map_or(Ok(()), |(setting, _, must_be)| Err(InvalidSetting { setting, must_be }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_refused_by_name() {
        let default = PoolSettings::default;
        assert_eq!(default().validate(), Ok(()));
        let setting = |settings: PoolSettings| settings.validate().unwrap_err().setting;
        assert_eq!(setting(PoolSettings { max_streams: 0, ..default() }), "max_streams");
        assert_eq!(setting(PoolSettings { max_streams: 33, ..default() }), "max_streams");
        assert_eq!(setting(PoolSettings { warm_streams: 5, ..default() }), "warm_streams");
        assert_eq!(setting(PoolSettings { budget_mb: 0, ..default() }), "budget_mb");
        assert_eq!(setting(PoolSettings { spin: Duration::from_secs(2), ..default() }), "spin");
    }

    #[test]
    fn priorities_lie_within_what_the_device_has() {
        assert_eq!(Priority::Normal.within((0, -5)), 0);
        assert_eq!(Priority::High.within((0, -5)), -5);
        // Of a device that has none.
        assert_eq!(Priority::High.within((0, 0)), 0);
        assert_eq!(Priority::Normal.within((-1, -5)), -1);
    }
}
