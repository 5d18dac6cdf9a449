//! Is there a CUDA driver, and which devices does it have? Asked without a panic, whatever the machine;
//! nothing is loaded before the first question.

use std::panic::catch_unwind;

use cudarc::driver::result::{self, DriverError};

use crate::device::DeviceInfo;
use crate::driver::{describe, fault, load};
use crate::error::{CudaError, Unavailable};
use crate::process::is_forked_child;

/// Why CUDA cannot be used here, or none if it can.
#[must_use]
pub fn unavailable_reason() -> Option<Unavailable> {
    count().err()
}

/// The number of devices, at least 1.
///
/// # Errors
/// CUDA is not available.
pub fn device_count() -> Result<usize, CudaError> {
    Ok(count()?)
}

/// The devices, by their numbers.
///
/// # Errors
/// CUDA is not available, or a device does not answer.
pub fn devices() -> Result<Vec<DeviceInfo>, CudaError> {
    let count = count()?;
    let library = load()?;
    (0..count).map(|ordinal| Ok(describe(library, ordinal).map_err(CudaError::Driver)?.1)).collect()
}

fn count() -> Result<usize, Unavailable> {
    load()?;
    // The driver's state is of the process that started it.
    if is_forked_child() {
        return Err(Unavailable::Forked);
    }
    // The functions are known to be there. Should cudarc find another library all the same, it panics.
    let count = catch_unwind(start).map_err(|_| Unavailable::Binding)??;
    if count == 0 { Err(Unavailable::NoDevice) } else { Ok(count) }
}

fn start() -> Result<usize, Unavailable> {
    result::init().map_err(|error| reason(error, "cuInit"))?;
    let count = result::device::get_count().map_err(|error| reason(error, "cuDeviceGetCount"))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

fn reason(error: DriverError, operation: &'static str) -> Unavailable {
    let fault = fault(error, operation);
    match fault.code {
        34 => Unavailable::StubLibrary(fault),
        100 => Unavailable::NoDevice,
        803 => Unavailable::DriverMismatch(fault),
        _ => Unavailable::Driver(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_answers_with_a_reason_and_never_panics() {
        match (device_count(), unavailable_reason()) {
            (Ok(count), None) => assert_eq!(devices().map(|devices| devices.len()), Ok(count)),
            (Err(CudaError::Unavailable(error)), Some(reason)) => assert_eq!(error, reason),
            other => panic!("the probe contradicts itself: {other:?}"),
        }
    }
}
