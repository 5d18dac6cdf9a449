//! Is there a CUDA driver with a device? Asked without a panic, whatever the machine.

use cudarc::driver::result;

use crate::error::{CudaError, Unavailable};

/// Loads the driver if it is there and counts its devices.
///
/// # Errors
/// There is no library, it does not start, or it finds no device.
pub fn probe() -> Result<usize, CudaError> {
    let count = device_count()?;
    if count == 0 { Err(Unavailable::NoDevice.into()) } else { Ok(count) }
}

/// The number of devices, zero included.
///
/// # Errors
/// There is no library, or it does not start.
pub fn device_count() -> Result<usize, CudaError> {
    if !is_installed() {
        return Err(Unavailable::NoLibrary.into());
    }
    let driver = |error: result::DriverError| Unavailable::Driver(format!("{error:?}"));
    result::init().map_err(driver)?;
    let count = result::device::get_count().map_err(driver)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

#[allow(unsafe_code, reason = "the one raw call of the probe")]
fn is_installed() -> bool {
    // SAFETY: it only tries to load the library by its known names; no symbol is called.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_answers_with_a_reason_and_never_panics() {
        match probe() {
            Ok(count) => assert!(count > 0),
            Err(CudaError::Unavailable(reason)) => assert!(!reason.to_string().is_empty()),
        }
    }
}
