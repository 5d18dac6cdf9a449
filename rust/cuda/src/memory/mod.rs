//! Memory: how much of a device's a stream may have ([`budget`]), pinned host memory that copies go through
//! ([`pinned`]), and device memory in the order of streams ([`buffer`]).

mod budget;
mod buffer;
mod pinned;

pub(crate) use self::budget::Budget;
pub use self::budget::{BUDGET_MB_DEFAULT, budget_mb_from_environment, planned_pool_budget_bytes};
pub use self::buffer::DeviceBuffer;
pub(crate) use self::buffer::{Access, Used};
pub use self::pinned::PinnedBytes;
pub(crate) use self::pinned::Staging;
