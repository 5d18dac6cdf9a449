//! What can go wrong with CUDA, as a caller meets it: one kind for each thing that a caller can act on.

use std::time::Duration;

use thiserror::Error;

/// Why CUDA cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The driver's library is not installed.
    #[error("the CUDA driver library (libcuda) was not found")]
    NoLibrary,
    /// The library that was found is too old, or another one of that name.
    #[error("the CUDA driver library has no {symbol}: it is too old")]
    MissingSymbol {
        /// The first function that it lacks.
        symbol: &'static str,
    },
    /// The library is the toolkit's, which is only for linking (code 34).
    #[error("the CUDA driver library is the toolkit's stub, which is only for linking: {0}")]
    StubLibrary(Fault),
    /// The driver runs and finds no device (code 100, or none counted).
    #[error("the CUDA driver finds no device")]
    NoDevice,
    /// Library and kernel module are of different versions (code 803).
    #[error("the CUDA driver library and the kernel's driver do not match: {0}")]
    DriverMismatch(Fault),
    /// The driver does not start, for another reason.
    #[error("the CUDA driver does not start: {0}")]
    Driver(Fault),
    /// This process was forked from one that uses CUDA.
    #[error("this process was forked after CUDA was used; start it by spawning")]
    Forked,
    /// The binding of the driver panicked, which it does where its library changes under it.
    #[error("the CUDA driver's binding failed while it was loaded")]
    Binding,
}

/// An error that the driver returned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{operation}: {name} ({code}): {text}")]
pub struct Fault {
    /// The driver's number for it.
    pub code: u32,
    /// The driver's name for it, such as `CUDA_ERROR_ILLEGAL_ADDRESS`.
    pub name: String,
    /// The driver's words.
    pub text: String,
    /// What was asked of the driver, such as `cuEventQuery`.
    pub operation: &'static str,
}

impl Fault {
    /// Whether it stays: every later call in this process meets it.
    ///
    /// These are the errors after which CUDA documents the context as unusable, those with which a kernel or
    /// a copy dies, and those that say that context or device are gone. `CUDA_ERROR_UNKNOWN` is among them
    /// because the driver answers it after such an error whose kind it has lost.
    /// `CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES` (701) is not: the launch that meets it never began.
    #[must_use]
    pub const fn is_sticky(&self) -> bool {
        matches!(
            self.code,
            4       // DEINITIALIZED: the driver shuts down
            | 46    // DEVICE_UNAVAILABLE: lost, or taken by another process
            | 214   // ECC_UNCORRECTABLE
            | 220   // NVLINK_UNCORRECTABLE
            | 226   // CONTAINED: the process has to be restarted, as after the others
            | 700   // ILLEGAL_ADDRESS
            | 702   // LAUNCH_TIMEOUT: the display's watchdog
            | 709   // CONTEXT_IS_DESTROYED
            | 710   // ASSERT
            | 714   // HARDWARE_STACK_ERROR
            | 715   // ILLEGAL_INSTRUCTION
            | 716   // MISALIGNED_ADDRESS
            | 717   // INVALID_ADDRESS_SPACE
            | 718   // INVALID_PC
            | 719   // LAUNCH_FAILED
            | 721   // TENSOR_MEMORY_LEAK
            | 999 // UNKNOWN
        )
    }
}

/// A setting that is out of bounds.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{setting} must be {must_be}")]
pub struct InvalidSetting {
    /// Its name, as in [`PoolSettings`](crate::PoolSettings).
    pub setting: &'static str,
    /// What it may be.
    pub must_be: &'static str,
}

/// A failure of this crate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CudaError {
    /// CUDA cannot be used here.
    #[error("CUDA is not available: {0}")]
    Unavailable(#[from] Unavailable),
    /// There is no device of that number.
    #[error("there is no CUDA device {ordinal}: {count} found")]
    NoSuchDevice {
        /// The number that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A setting is out of bounds.
    #[error(transparent)]
    Invalid(#[from] InvalidSetting),
    /// All streams of the pool are leased.
    #[error("all {max} streams of the pool are leased")]
    Capacity {
        /// How many there are.
        max: usize,
    },
    /// No stream came back in time.
    #[error("no stream came free within {waited:?}")]
    LeaseTimeout {
        /// How long the lease was waited for.
        waited: Duration,
    },
    /// The pool was closed.
    #[error("the stream pool is closed")]
    PoolClosed,
    /// A stream could not be created. The pool never falls back to the default stream.
    #[error("a stream could not be created: {0}")]
    ForkFailed(Fault),
    /// The lease under which this stream was lent has ended.
    #[error("the lease of this stream has ended")]
    LeaseEnded,
    /// An allocation would exceed the stream's budget. The driver was not asked.
    #[error("{requested} bytes do not fit: {current} of {limit} are in use, {remaining} remain")]
    OutOfBudget {
        /// Bytes asked for.
        requested: u64,
        /// Bytes outstanding, freed ones included whose stream has not come to their end.
        current: u64,
        /// Bytes that remain.
        remaining: u64,
        /// The stream's budget, in bytes.
        limit: u64,
    },
    /// An allocation of nothing.
    #[error("an allocation of zero bytes")]
    ZeroBytes,
    /// A copy reaches past the end of its buffer.
    #[error("{bytes} bytes at {offset} lie outside of a buffer of {len} bytes")]
    OutOfBounds {
        /// Where the copy begins in the device buffer, in bytes.
        offset: usize,
        /// How long it is, in bytes.
        bytes: usize,
        /// How long the buffer is, in bytes.
        len: usize,
    },
    /// A buffer, event or kernel was used with a stream of another device.
    #[error("this belongs to another device")]
    OtherDevice,
    /// The driver refused this call. Others are not affected.
    #[error(transparent)]
    Driver(Fault),
    /// A sticky error: nothing works on this device in this process any more.
    #[error("the CUDA context is lost: {0}; the process has to be restarted")]
    ContextPoisoned(Fault),
    /// This process was forked from one that uses CUDA, which CUDA does not allow.
    #[error("this process was forked after CUDA was used; start it by spawning")]
    Forked,
    /// A thread could not be started.
    #[error("a thread could not be started")]
    Thread,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_stays_that_leaves_nothing_but_a_new_process() {
        let is_sticky = |code| {
            Fault { code, name: String::new(), text: String::new(), operation: "cuEventQuery" }.is_sticky()
        };
        assert!([4, 46, 214, 220, 226, 700, 702, 709, 710, 719, 721, 999].into_iter().all(is_sticky));
        assert!(![1, 2, 201, 400, 600, 701, 800].into_iter().any(is_sticky));
    }
}
