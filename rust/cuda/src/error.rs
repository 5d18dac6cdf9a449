//! What can go wrong with CUDA, as a caller meets it.

use thiserror::Error;

/// Why CUDA cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The driver's library is not installed.
    #[error("the CUDA driver library (libcuda) was not found")]
    NoLibrary,
    /// The driver refused to start.
    #[error("the CUDA driver does not start: {0}")]
    Driver(String),
    /// The driver runs and finds no device.
    #[error("the CUDA driver finds no device")]
    NoDevice,
}

/// A failure of this crate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CudaError {
    /// CUDA cannot be used here.
    #[error("CUDA is not available: {0}")]
    Unavailable(#[from] Unavailable),
}
