//! How much device memory one stream may have. Pure: bytes come and go, and what was freed counts until the
//! stream has come to its end.

use std::env;

use crate::error::{CudaError, InvalidSetting};

/// The budget of a stream that names none, in MiB.
pub const BUDGET_MB_DEFAULT: u64 = 256;
const ENVIRONMENT: &str = "HEADRACE_POOL_MB_PER_STREAM";
const MIB: u64 = 1 << 20;

/// The budget of a stream in MiB that the environment asks for by `HEADRACE_POOL_MB_PER_STREAM`, else 256.
/// For the outermost layer: the pool itself reads no environment.
///
/// # Errors
/// It is not a whole number above 0.
pub fn budget_mb_from_environment() -> Result<u64, InvalidSetting> {
    parse(env::var_os(ENVIRONMENT).as_deref().map(|value| value.to_string_lossy()).as_deref())
}

fn parse(value: Option<&str>) -> Result<u64, InvalidSetting> {
    let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else {
        return Ok(BUDGET_MB_DEFAULT);
    };
    let invalid = InvalidSetting { setting: ENVIRONMENT, must_be: "a whole number of MiB above 0" };
    value.parse().ok().filter(|mb| *mb > 0).ok_or(invalid)
}

/// What a pool may take of a device's memory, in bytes: `streams` of `mb_per_stream` MiB. At most
/// [`u64::MAX`].
#[must_use]
pub const fn planned_pool_budget_bytes(streams: u64, mb_per_stream: u64) -> u64 {
    streams.saturating_mul(mb_per_stream).saturating_mul(MIB)
}

/// The bytes of one stream.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    live: u64,
    /// Freed, but the stream may not have come to it.
    freed: u64,
}

impl Budget {
    pub(crate) const fn new(limit: u64) -> Self {
        Self { limit, live: 0, freed: 0 }
    }

    pub(crate) const fn outstanding(&self) -> u64 {
        self.live + self.freed
    }

    /// Takes bytes before they are allocated.
    pub(crate) const fn admit(&mut self, requested: u64) -> Result<(), CudaError> {
        let (current, limit) = (self.outstanding(), self.limit);
        let remaining = limit.saturating_sub(current);
        if requested == 0 {
            return Err(CudaError::ZeroBytes);
        }
        if requested > remaining {
            return Err(CudaError::OutOfBudget { requested, current, remaining, limit });
        }
        self.live += requested;
        Ok(())
    }

    /// They were not allocated after all.
    pub(crate) const fn refuse(&mut self, bytes: u64) {
        self.live -= bytes;
    }

    /// They were freed in the stream's order.
    pub(crate) const fn free(&mut self, bytes: u64) {
        self.live -= bytes;
        self.freed += bytes;
    }

    /// The stream has come to it.
    pub(crate) const fn reap(&mut self, bytes: u64) {
        self.freed -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_environment_is_a_number_above_nothing() {
        assert_eq!(parse(None), Ok(256));
        assert_eq!(parse(Some(" ")), Ok(256));
        assert_eq!(parse(Some(" 64 ")), Ok(64));
        for wrong in ["0", "-1", "1.5", "many", "99999999999999999999"] {
            assert_eq!(parse(Some(wrong)).unwrap_err().setting, ENVIRONMENT);
        }
    }

    #[test]
    fn a_plan_that_no_machine_has_room_for_does_not_overflow() {
        assert_eq!(planned_pool_budget_bytes(4, 256), 1 << 30);
        assert_eq!(planned_pool_budget_bytes(0, 256), 0);
        assert_eq!(planned_pool_budget_bytes(u64::MAX, 2), u64::MAX);
        assert_eq!(planned_pool_budget_bytes(2, u64::MAX), u64::MAX);
    }

    #[test]
    fn what_was_freed_counts_until_the_stream_has_come_to_it() {
        let mut budget = Budget::new(100);
        assert_eq!(budget.admit(0), Err(CudaError::ZeroBytes));
        budget.admit(60).unwrap();
        budget.free(60);
        let refused = CudaError::OutOfBudget { requested: 41, current: 60, remaining: 40, limit: 100 };
        assert_eq!(budget.admit(41), Err(refused));
        budget.reap(60);
        budget.admit(100).unwrap();
        assert!(budget.admit(1).is_err());
        assert!(budget.admit(u64::MAX).is_err());
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_and_nothing_is_lost(
            steps in proptest::collection::vec((0_u8..3, 1_u64..60), 0..200),
        ) {
            let mut budget = Budget::new(100);
            let (mut live, mut freed) = (Vec::new(), Vec::new());
            for (step, bytes) in steps {
                match step {
                    0 => if budget.admit(bytes).is_ok() { live.push(bytes) },
                    1 => if let Some(bytes) = live.pop() { budget.free(bytes); freed.push(bytes) },
                    _ => if let Some(bytes) = freed.pop() { budget.reap(bytes) },
                }
                let sum = live.iter().chain(&freed).sum::<u64>();
                prop_assert_eq!(budget.outstanding(), sum);
                prop_assert!(sum <= 100);
            }
        }
    }
}
