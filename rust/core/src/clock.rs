//! The runtime's monotonic clock as plain numbers, so that instants fit into atomics.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

static START: OnceLock<Instant> = OnceLock::new();

/// Nanoseconds in a millisecond.
pub(crate) const NS_PER_MS: u64 = 1_000_000;

/// No instant: a deadline that never comes, a wait that has not begun.
pub(crate) const NEVER: u64 = u64::MAX;

fn elapsed() -> Duration {
    START.get_or_init(Instant::now).elapsed()
}

/// Nanoseconds since the process first asked.
pub(crate) fn now_ns() -> u64 {
    elapsed().as_nanos() as u64
}

/// When `instant` is, in nanoseconds since the process first asked; 0 if it is earlier.
pub(crate) fn instant_ns(instant: Instant) -> u64 {
    let since = instant.saturating_duration_since(*START.get_or_init(Instant::now));
    u64::try_from(since.as_nanos()).unwrap_or(NEVER)
}

/// Milliseconds since the process first asked.
pub(crate) fn now_ms() -> u64 {
    elapsed().as_millis() as u64
}

/// The instant that lies `wait` ahead, in milliseconds, rounded up; [`NEVER`] without one.
pub(crate) fn after_ms(wait: Option<Duration>) -> u64 {
    wait.map_or(NEVER, |wait| {
        elapsed().saturating_add(wait).as_micros().div_ceil(1000).min(u128::from(NEVER)) as u64
    })
}

/// A duration in milliseconds, [`NEVER`] without one.
pub(crate) fn duration_ms(duration: Option<Duration>) -> u64 {
    duration.map_or(NEVER, |duration| duration.as_millis().clamp(1, u128::from(NEVER)) as u64)
}
