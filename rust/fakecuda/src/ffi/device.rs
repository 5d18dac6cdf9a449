//! Start, errors, devices and contexts.

use std::ffi::{c_char, c_int, c_uint};

use super::put;
use crate::code::{Code, names};
use crate::driver::{call, check, context_of, current_context, set_current_context};

/// `CU_DEVICE_ATTRIBUTE_*` that are answered with something else than 0.
const ATTRIBUTES: &[(c_int, c_int)] = &[
    (1, 1024), // threads in a block
    (10, 32),  // threads in a warp
    (16, 8),   // multiprocessors
    (31, 1),   // kernels run at the same time
    (40, 2),   // engines for copies
    (41, 1),   // one address space
    (75, 9),   // compute capability, major
    (76, 0),   // and minor
    (78, 1),   // streams have priorities
    (115, 1),  // memory pools
];
const POOLS_SUPPORTED: c_int = 115;
/// The least and the greatest priority of a stream.
const PRIORITIES: (c_int, c_int) = (0, -5);
const NAME: &[u8] = b"Headrace fake device\0";

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuInit(flags: c_uint) -> c_int {
    call("cuInit", |driver| if flags == 0 { driver.initialise() } else { Err(Code::INVALID_VALUE) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDriverGetVersion(out: *mut c_int) -> c_int {
    // SAFETY: the caller's promise, see the module.
    call("cuDriverGetVersion", |driver| unsafe { put(out, driver.script.driver_version) })
}

// These two need neither a start nor a device, and so pass `call` by.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuGetErrorName(code: c_int, out: *mut *const c_char) -> c_int {
    let name = names(code).map(|(name, _)| name.as_ptr());
    // SAFETY: the caller's promise, see the module.
    let told = unsafe { put(out, name.unwrap_or(std::ptr::null())) };
    told.and(name.map(|_| ()).ok_or(Code::INVALID_VALUE)).err().map_or(0, |code| code.0)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuGetErrorString(code: c_int, out: *mut *const c_char) -> c_int {
    let text = names(code).map(|(_, text)| text.as_ptr());
    // SAFETY: the caller's promise, see the module.
    let told = unsafe { put(out, text.unwrap_or(std::ptr::null())) };
    told.and(text.map(|_| ()).ok_or(Code::INVALID_VALUE)).err().map_or(0, |code| code.0)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetCount(out: *mut c_int) -> c_int {
    // SAFETY: the caller's promise, see the module.
    call("cuDeviceGetCount", |driver| unsafe { put(out, driver.devices.len() as c_int) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGet(out: *mut c_int, ordinal: c_int) -> c_int {
    // SAFETY: the caller's promise, see the module.
    call("cuDeviceGet", |driver| driver.device(ordinal).and_then(|_| unsafe { put(out, ordinal) }))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetName(out: *mut c_char, room: c_int, device: c_int) -> c_int {
    call("cuDeviceGetName", |driver| {
        driver.device(device)?;
        let room = usize::try_from(room).unwrap_or(0);
        if out.is_null() || room < NAME.len() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller has room for `room` bytes, which are enough.
        unsafe { out.copy_from_nonoverlapping(NAME.as_ptr().cast(), NAME.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetUuid(out: *mut [u8; 16], device: c_int) -> c_int {
    call("cuDeviceGetUuid", |driver| {
        let device = driver.device(device)?;
        let mut uuid = *b"headrace-fake-\0\0";
        uuid[15] = device.ordinal as u8;
        // SAFETY: the caller's promise, see the module.
        unsafe { put(out, uuid) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetUuid_v2(out: *mut [u8; 16], device: c_int) -> c_int {
    // SAFETY: the same function.
    unsafe { cuDeviceGetUuid(out, device) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetAttribute(
    out: *mut c_int,
    attribute: c_int,
    device: c_int,
) -> c_int {
    call("cuDeviceGetAttribute", |driver| {
        driver.device(device)?;
        let value = ATTRIBUTES.iter().find(|known| known.0 == attribute).map_or(0, |known| known.1);
        let value = if attribute == POOLS_SUPPORTED { c_int::from(driver.script.pools) } else { value };
        // SAFETY: the caller's promise, see the module.
        unsafe { put(out, value) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceTotalMem_v2(out: *mut usize, device: c_int) -> c_int {
    call("cuDeviceTotalMem_v2", |driver| {
        let total = driver.device(device)?.memory.limit_bytes();
        // SAFETY: the caller's promise, see the module.
        unsafe { put(out, total as usize) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    call("cuMemGetInfo_v2", |driver| {
        let memory = &driver.current()?.memory;
        let (limit, used) = (memory.limit_bytes(), memory.used_bytes());
        // SAFETY: the caller's promise, see the module.
        unsafe { put(free, (limit - used) as usize).and_then(|()| put(total, limit as usize)) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDevicePrimaryCtxRetain(out: *mut usize, device: c_int) -> c_int {
    call("cuDevicePrimaryCtxRetain", |driver| {
        let device = driver.device(device)?;
        check(device)?;
        // SAFETY: the caller's promise, see the module.
        unsafe { put(out, context_of(device)) }?;
        device.context.lock().holders += 1;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> c_int {
    call("cuDevicePrimaryCtxRelease_v2", |driver| driver.release_context(driver.device(device)?))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: c_uint) -> c_int {
    call("cuDevicePrimaryCtxSetFlags_v2", |driver| {
        driver.device(device)?.context.lock().flags = flags;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    device: c_int,
    flags: *mut c_uint,
    active: *mut c_int,
) -> c_int {
    call("cuDevicePrimaryCtxGetState", |driver| {
        let device = driver.device(device)?;
        let (held, set) = {
            let context = device.context.lock();
            (context.holders > 0, context.flags)
        };
        // SAFETY: the caller's promise, see the module.
        unsafe { put(flags, set).and_then(|()| put(active, c_int::from(held))) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuCtxGetCurrent(out: *mut usize) -> c_int {
    // SAFETY: the caller's promise, see the module.
    call("cuCtxGetCurrent", |_| unsafe { put(out, current_context()) })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuCtxSetCurrent(context: usize) -> c_int {
    call("cuCtxSetCurrent", |driver| set_current_context(driver, context))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuCtxGetDevice(out: *mut c_int) -> c_int {
    call("cuCtxGetDevice", |driver| {
        let ordinal = driver.current()?.ordinal;
        // SAFETY: the caller's promise, see the module.
        unsafe { put(out, ordinal as c_int) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuCtxSetFlags(flags: c_uint) -> c_int {
    call("cuCtxSetFlags", |driver| {
        driver.current()?.context.lock().flags = flags;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuCtxGetStreamPriorityRange(
    least: *mut c_int,
    greatest: *mut c_int,
) -> c_int {
    call("cuCtxGetStreamPriorityRange", |driver| {
        driver.current()?;
        // Either may be null.
        for (out, value) in [(least, PRIORITIES.0), (greatest, PRIORITIES.1)] {
            if !out.is_null() {
                // SAFETY: the caller's promise, see the module.
                unsafe { put(out, value) }?;
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuCtxSynchronize() -> c_int {
    call("cuCtxSynchronize", |driver| {
        let device = driver.current()?;
        let (default, mut marks) = {
            let context = device.context.lock();
            (context.default_stream.clone(), context.ends.clone())
        };
        let mut streams: Vec<_> = driver.handles().streams.values().cloned().collect();
        streams.retain(|stream| std::sync::Arc::ptr_eq(&stream.device, device));
        marks.extend(streams.iter().chain(&default).map(|stream| stream.mark()));
        marks.iter().try_for_each(|mark| mark.wait())
    })
}
