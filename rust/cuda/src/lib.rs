//! CUDA for Headrace. This version holds the errors and the probe: whether a driver is there, and why not.
//! The stream pool is not part of it yet.
//!
//! Nothing is loaded before [`probe`] is called, so that one build serves machines with and without CUDA.

mod error;
mod probe;

pub use self::error::{CudaError, Unavailable};
pub use self::probe::{device_count, probe};
