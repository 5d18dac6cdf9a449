//! The time that a batcher goes by.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::clock::{instant_ns, now_ns};

/// The time that a batcher goes by: the system's monotonic clock, or one that a test moves by hand.
#[derive(Clone, Debug, Default)]
pub struct BatchClock {
    manual: Option<Arc<AtomicU64>>,
}

impl BatchClock {
    /// A clock that stands still but for [`Self::advance`]. A coordinator that has it starts no timer: call
    /// [`super::Coordinator::tick`] after moving it.
    #[must_use]
    pub fn manual() -> Self {
        Self { manual: Some(Arc::default()) }
    }

    /// Moves a manual clock; the system's goes on by itself.
    pub fn advance(&self, by: Duration) {
        if let Some(manual) = &self.manual {
            manual.fetch_add(duration_ns(by), Ordering::Relaxed);
        }
    }

    pub(super) const fn is_manual(&self) -> bool {
        self.manual.is_some()
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.manual.as_ref().map_or_else(now_ns, |manual| manual.load(Ordering::Relaxed))
    }

    /// When `instant` is on this clock; on a manual one, as far from now as it is in real time.
    pub(super) fn at_ns(&self, instant: Instant) -> u64 {
        if self.is_manual() {
            let ahead = instant.saturating_duration_since(Instant::now());
            return self.now_ns().saturating_add(duration_ns(ahead));
        }
        instant_ns(instant)
    }
}

/// A duration in nanoseconds. 584 years are for ever.
pub(super) fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
