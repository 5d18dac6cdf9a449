//! A device that is none: copies move bytes between host memory, kernels are spans of time, and a script says
//! what fails. It is how the pool's logic is tested, and it is always visible as [`Backend::Sim`]: nothing
//! that it measures says anything about a GPU.
//!
//! [`engine`] decides, without a lock or a clock, which work runs when; [`core`] is the lock, the clock and
//! the thread for host functions around it, [`device`] the back end.

mod core;
mod device;
mod engine;
mod memory;
mod script;

pub use self::device::Simulation;
pub use self::engine::{Lane, Span};
pub use self::script::{SimCall, SimFault, When};

#[cfg(doc)]
use crate::Backend;

/// What makes the time of a simulated device pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimClock {
    /// Time itself.
    Wall,
    /// Only [`Simulation::advance_us`], so that what a test sees is always the same.
    Manual,
}

/// Settings of a simulated device.
#[derive(Clone, Debug)]
pub struct SimSettings {
    /// Its number, 0 by default.
    pub ordinal: usize,
    /// Its clock, [`SimClock::Wall`] by default.
    pub clock: SimClock,
    /// Bytes copied to the device in a microsecond, 10,000 by default; at least 1.
    pub to_device_bytes_per_us: u64,
    /// Bytes copied to the host in a microsecond, 10,000 by default; at least 1.
    pub to_host_bytes_per_us: u64,
    /// Kernels that run at once, 4 by default; at least 1.
    pub kernels_max: usize,
    /// Its memory in bytes, 1 GiB by default.
    pub memory_bytes: u64,
    /// Whether it has memory pools, which it has by default.
    pub memory_pools: bool,
}

impl Default for SimSettings {
    fn default() -> Self {
        Self {
            ordinal: 0,
            clock: SimClock::Wall,
            to_device_bytes_per_us: 10_000,
            to_host_bytes_per_us: 10_000,
            kernels_max: 4,
            memory_bytes: 1 << 30,
            memory_pools: true,
        }
    }
}
