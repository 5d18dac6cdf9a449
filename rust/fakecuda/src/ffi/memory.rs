//! Memory outside pools, and copies.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use parking_lot::Mutex;

use super::put;
use crate::code::{Code, Status};
use crate::driver::{Driver, call};
use crate::stream::{Operation, Place};

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, _flags: c_uint) -> c_int {
    call("cuMemHostAlloc", |driver| {
        driver.current()?;
        let address = driver.pinned.allocate(bytes, 0)?;
        // SAFETY: the caller's promise, see the module above.
        unsafe { put(out, address as *mut c_void) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemFreeHost(address: *mut c_void) -> c_int {
    call("cuMemFreeHost", |driver| driver.pinned.free(address as usize))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemAlloc_v2(out: *mut usize, bytes: usize) -> c_int {
    call("cuMemAlloc_v2", |driver| {
        let address = driver.current()?.memory.allocate(bytes, 0)?;
        // SAFETY: the caller's promise, see the module above.
        unsafe { put(out, address) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemFree_v2(address: usize) -> c_int {
    call("cuMemFree_v2", |driver| if address == 0 { Ok(()) } else { driver.current()?.memory.free(address) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: usize,
    from: *const c_void,
    bytes: usize,
    stream: usize,
) -> c_int {
    // SAFETY: the caller's promise, see the module above.
    call("cuMemcpyHtoDAsync_v2", |driver| unsafe { to_device(driver, to, from, bytes, stream) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemcpyHtoD_v2(to: usize, from: *const c_void, bytes: usize) -> c_int {
    call("cuMemcpyHtoD_v2", |driver| {
        // SAFETY: the caller's promise, see the module above.
        unsafe { to_device(driver, to, from, bytes, 0) }?;
        driver.stream(0)?.mark().wait()
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: usize,
    bytes: usize,
    stream: usize,
) -> c_int {
    // SAFETY: the caller's promise, see the module above.
    call("cuMemcpyDtoHAsync_v2", |driver| unsafe { to_host(driver, to, from, bytes, stream) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: usize, bytes: usize) -> c_int {
    call("cuMemcpyDtoH_v2", |driver| {
        // SAFETY: the caller's promise, see the module above.
        unsafe { to_host(driver, to, from, bytes, 0) }?;
        driver.stream(0)?.mark().wait()
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemcpyDtoDAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) -> c_int {
    call("cuMemcpyDtoDAsync_v2", |driver| {
        let stream = driver.stream(stream)?;
        let copy = Operation::Copy { to: Place::Device(to), from: Place::Device(from), bytes };
        stream.device.enqueue(&stream, copy);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemsetD8Async(address: usize, value: u8, bytes: usize, stream: usize) -> c_int {
    call("cuMemsetD8Async", |driver| {
        let stream = driver.stream(stream)?;
        stream.device.enqueue(&stream, Operation::Fill { address, value, bytes });
        Ok(())
    })
}

/// # Safety
/// `from` is null, which is refused, or valid for reads of `bytes` bytes until the copy has run if it is
/// pinned, else during the call.
unsafe fn to_device(
    driver: &'static Driver,
    to: usize,
    from: *const c_void,
    bytes: usize,
    stream: usize,
) -> Status {
    if from.is_null() || bytes == 0 {
        return if bytes == 0 { Ok(()) } else { Err(Code::INVALID_VALUE) };
    }
    let stream = driver.stream(stream)?;
    let from = if driver.pinned.find(from as usize, bytes).is_some() {
        Place::Pinned(from as usize)
    } else {
        // SAFETY: by this function's contract.
        Place::Staged(unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) }.to_vec())
    };
    stream.device.enqueue(&stream, Operation::Copy { to: Place::Device(to), from, bytes });
    Ok(())
}

/// # Safety
/// `to` is null, which is refused, or valid for writes of `bytes` bytes until the copy has run if it is
/// pinned, else during the call.
unsafe fn to_host(
    driver: &'static Driver,
    to: *mut c_void,
    from: usize,
    bytes: usize,
    stream: usize,
) -> Status {
    if to.is_null() || bytes == 0 {
        return if bytes == 0 { Ok(()) } else { Err(Code::INVALID_VALUE) };
    }
    let stream = driver.stream(stream)?;
    let from = Place::Device(from);
    if driver.pinned.find(to as usize, bytes).is_some() {
        stream.device.enqueue(&stream, Operation::Copy { to: Place::Pinned(to as usize), from, bytes });
        return Ok(());
    }
    let landing = Arc::new(Mutex::new(Vec::new()));
    let copy = Operation::Copy { to: Place::Waiting(Arc::clone(&landing)), from, bytes };
    stream.device.enqueue(&stream, copy);
    stream.mark().wait()?;
    let landed = landing.lock();
    // SAFETY: by this function's contract; the copy has run, so that `bytes` bytes have landed.
    unsafe { to.cast::<u8>().copy_from_nonoverlapping(landed.as_ptr(), landed.len()) };
    Ok(())
}
