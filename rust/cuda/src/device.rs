//! What a back end must be able to do, and nothing of what is made of it. There are two: the driver
//! ([`driver`](crate::driver)) and the simulated device ([`sim`](crate::sim)).
//!
//! The raw handles are numbers that only the back end that made them understands. Who owns one destroys it
//! once; `OpenDevice`, which wraps every back end, is the only caller that may forget to (after a fork, at
//! exit, or when the device is lost).

#![allow(unsafe_code, reason = "says what callers of a back end have to promise")]

use std::ffi::c_void;
use std::fmt;

use crate::error::Fault;

/// Which back end serves a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The real driver.
    Cuda,
    /// The simulated device. Its figures say nothing about a GPU.
    Sim,
}

impl Backend {
    /// `"cuda"` or `"sim"`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Sim => "sim",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a device says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number among those that this process sees, from 0.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// Its compute capability: major and minor.
    pub compute_capability: (u32, u32),
    /// How many copies run beside kernels and beside each other.
    pub copy_engines: u32,
    /// Whether it has stream-ordered memory pools.
    pub memory_pools: bool,
}

/// A stream of a back end; 0 is the default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RawStream(pub usize);

/// An event of a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RawEvent(pub usize);

/// A memory pool of a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawPool(pub usize);

/// A kernel of a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawKernel {
    pub module: usize,
    pub function: usize,
}

/// Where a kernel finds its arguments, and how many threads run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks of the grid.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
}

/// What a stream calls on the host when it has come so far: a function, and the address that it is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostCall {
    pub function: unsafe extern "C" fn(*mut c_void),
    pub argument: usize,
}

type Answer<T> = Result<T, Fault>;

/// A back end. Every call may come from any thread; none may come while a lock is held that a
/// [`HostCall`] takes.
pub(crate) trait Device: Send + Sync + fmt::Debug {
    fn backend(&self) -> Backend;

    fn info(&self) -> &DeviceInfo;

    /// Priorities of a stream, the least and the greatest. The greatest is the smallest number.
    fn priorities(&self) -> Answer<(i32, i32)>;

    /// A stream that does not wait for the default stream.
    fn create_stream(&self, priority: i32) -> Answer<RawStream>;

    fn destroy_stream(&self, stream: RawStream) -> Answer<()>;

    /// Whether everything queued on the stream has ended.
    fn query_stream(&self, stream: RawStream) -> Answer<bool>;

    /// The stream goes on only after the event's last record.
    fn wait_event(&self, stream: RawStream, event: RawEvent) -> Answer<()>;

    /// An event whose `synchronize` blocks without spinning.
    fn create_event(&self, timing: bool) -> Answer<RawEvent>;

    fn destroy_event(&self, event: RawEvent) -> Answer<()>;

    fn record_event(&self, event: RawEvent, stream: RawStream) -> Answer<()>;

    /// Whether the event's last record was reached. An event that was never recorded counts as reached.
    fn query_event(&self, event: RawEvent) -> Answer<bool>;

    fn synchronize_event(&self, event: RawEvent) -> Answer<()>;

    /// Blocks until everything that was queued before has ended, on whichever stream, others' included.
    fn synchronize_all(&self) -> Answer<()>;

    /// Milliseconds between two reached events with timing.
    fn elapsed_ms(&self, start: RawEvent, end: RawEvent) -> Answer<f32>;

    /// Pinned memory that is not write-combined; its address.
    fn allocate_host(&self, bytes: usize) -> Answer<usize>;

    /// # Safety
    /// The address is one of `allocate_host` that was not freed, and no copy uses it any more.
    unsafe fn free_host(&self, address: usize) -> Answer<()>;

    /// A memory pool of at most that many bytes, if the device has memory pools.
    fn create_pool(&self, bytes_max: u64) -> Answer<Option<RawPool>>;

    fn destroy_pool(&self, pool: RawPool) -> Answer<()>;

    /// Device memory, in the stream's order if it comes from a pool.
    fn allocate(&self, bytes: usize, stream: RawStream, pool: Option<RawPool>) -> Answer<u64>;

    /// Gives memory back, in the stream's order if it came from a pool and at once if not.
    ///
    /// # Safety
    /// The address is one of `allocate` that was not freed. Uses on other streams are ordered before; without
    /// a pool they have ended.
    unsafe fn free(&self, address: u64, stream: RawStream, pooled: bool) -> Answer<()>;

    /// # Safety
    /// Both ranges are valid, and stay so and untouched until the stream has come past this copy.
    unsafe fn copy_to_device(&self, to: u64, from: *const u8, bytes: usize, stream: RawStream) -> Answer<()>;

    /// # Safety
    /// As for `copy_to_device`.
    unsafe fn copy_to_host(&self, to: *mut u8, from: u64, bytes: usize, stream: RawStream) -> Answer<()>;

    /// Calls back when the stream has come so far, and never after a sticky error.
    ///
    /// # Safety
    /// The function may be called with the argument once, on any thread, until it has been.
    unsafe fn call_host(&self, stream: RawStream, call: HostCall) -> Answer<()>;

    /// Whether `call_host` exists.
    fn can_call_host(&self) -> bool;

    fn load_kernel(&self, source: &str, name: &str) -> Answer<RawKernel>;

    /// # Safety
    /// The kernel takes exactly these arguments, each of eight bytes, and touches only what they permit.
    unsafe fn launch(
        &self,
        kernel: RawKernel,
        shape: Launch,
        arguments: &[u64],
        stream: RawStream,
    ) -> Answer<()>;
}
