//! CUDA streams for Headrace: a pool that lends each to one user at a time, work that can be awaited, copies
//! through pinned memory, and memory in the order of streams. Nothing is loaded before it is first asked for,
//! so that one build serves machines with and without CUDA.
//!
//! | Module | What lives there |
//! |---|---|
//! | [`probe`] | whether there is a driver, which devices, and why not |
//! | [`pool`] | leases: who may use which stream, and from when on |
//! | [`stream`], [`event`] | what can be done with a stream; points in it |
//! | [`completion`] | how it is learned that a stream has come to a point |
//! | [`memory`] | device memory, pinned memory, budgets |
//! | [`open`], [`device`] | a device as this process has opened it; what a back end must do |
//! | `driver`, [`sim`] | the back ends: CUDA's driver, and a simulated device |
//! | [`kernel`] | kernels for benchmarks and tests |
//!
//! No thread of this crate calls anything of its users but the wakers and functions they leave with a
//! [`Completion`] or a [`LeaseFuture`].
//!
//! ```
//! use headrace_cuda::{OpenDevice, PoolSettings, SimSettings, Simulation, StreamPool};
//!
//! # fn main() -> Result<(), headrace_cuda::CudaError> {
//! let device = OpenDevice::simulated(&Simulation::new(SimSettings::default())); // or OpenDevice::open(0)?
//! let pool = StreamPool::new(device, PoolSettings::default())?;
//! let stream = pool.try_lease(None)?;
//! let (buffer, _) = stream.copy_to_device(b"to the device and back")?;
//! let download = stream.download(&buffer, 0, buffer.len())?;
//! download.completion().wait(None);
//! assert_eq!(download.take()?.as_deref(), Some(&b"to the device and back"[..]));
//! # Ok(())
//! # }
//! ```

#![deny(unsafe_code)]

#[cfg(test)]
mod child;
pub mod completion;
pub mod device;
mod driver;
pub mod error;
pub mod event;
pub mod kernel;
#[cfg(feature = "headrace")]
mod leases;
pub mod memory;
#[cfg(feature = "headrace")]
mod metrics;
pub mod open;
pub mod pool;
pub mod probe;
mod process;
mod runtime;
pub mod sim;
pub mod stream;

pub use self::completion::{Completion, CompletionMode};
pub use self::device::{Backend, DeviceInfo, Launch};
pub use self::error::{CudaError, Fault, InvalidSetting, Unavailable};
pub use self::event::Event;
pub use self::kernel::{Kernel, SpinKernel};
pub use self::memory::{
    BUDGET_MB_DEFAULT, DeviceBuffer, PinnedBytes, budget_mb_from_environment, planned_pool_budget_bytes,
};
pub use self::open::{LostHook, OpenDevice};
pub use self::pool::{Lease, LeaseFuture, PoolSettings, PoolStats, Priority, StreamPool};
pub use self::probe::{device_count, devices, unavailable_reason};
pub use self::process::end_process;
pub use self::sim::{SimCall, SimClock, SimFault, SimSettings, Simulation, When};
pub use self::stream::{Download, Stream, StreamKind};
