//! Memory in stream order, and memory pools.

use std::ffi::{c_int, c_uchar, c_void};
use std::sync::Arc;

use super::put;
use crate::code::{Code, Status};
use crate::driver::{Driver, call};
use crate::heap::{Pool, PoolId};
use crate::stream::{Operation, Stream};

/// `CUmemPoolProps` since CUDA 12.2.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct PoolProperties {
    kind: c_int,
    handle_types: c_int,
    location_kind: c_int,
    location: c_int,
    attributes: *mut c_void,
    max_bytes: usize,
    reserved: [c_uchar; 56],
}

/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`, the first attribute of 64 bits; those below are of 32 and mean nothing here.
const RELEASE_THRESHOLD: c_int = 4;

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemPoolCreate(out: *mut usize, properties: *const PoolProperties) -> c_int {
    call("cuMemPoolCreate", |driver| {
        // SAFETY: the caller's promise, see the module above.
        let properties = unsafe { properties.as_ref() }.ok_or(Code::INVALID_VALUE)?;
        let device = driver.device(properties.location)?;
        check_supported(driver)?;
        let id = device.memory.new_pool(properties.max_bytes as u64);
        let handle = register(driver, device, id);
        // SAFETY: the caller's promise, see the module above.
        unsafe { put(out, handle) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemPoolDestroy(pool: usize) -> c_int {
    call("cuMemPoolDestroy", |driver| {
        let (device, id) = driver.handles().pools.remove(&pool).ok_or(Code::INVALID_HANDLE)?;
        device.memory.drop_pool(id)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetDefaultMemPool(out: *mut usize, device: c_int) -> c_int {
    call("cuDeviceGetDefaultMemPool", |driver| {
        let device = driver.device(device)?;
        check_supported(driver)?;
        let same = |pool: &(Arc<_>, PoolId)| Arc::ptr_eq(&pool.0, device) && pool.1 == device.default_pool;
        let known = driver.handles().pools.iter().find(|(_, pool)| same(pool)).map(|(handle, _)| *handle);
        let handle = known.unwrap_or_else(|| register(driver, device, device.default_pool));
        // SAFETY: the caller's promise, see the module above.
        unsafe { put(out, handle) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetMemPool(out: *mut usize, device: c_int) -> c_int {
    // SAFETY: the same contract; the pool of a device is its default one here.
    unsafe { cuDeviceGetDefaultMemPool(out, device) }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemPoolTrimTo(pool: usize, _keep_bytes: usize) -> c_int {
    call("cuMemPoolTrimTo", |driver| driver.pool(pool).map(|_| ()))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemPoolSetAttribute(
    pool: usize,
    attribute: c_int,
    value: *mut c_void,
) -> c_int {
    call("cuMemPoolSetAttribute", |driver| {
        let (device, id) = driver.pool(pool)?;
        if attribute < RELEASE_THRESHOLD {
            return Ok(());
        }
        // SAFETY: attributes from this one on have 64 bits, see the module above.
        let value = *unsafe { value.cast::<u64>().as_ref() }.ok_or(Code::INVALID_VALUE)?;
        device.memory.with_pool(id, |pool| match attribute {
            RELEASE_THRESHOLD => pool.threshold_bytes = value,
            _ => pool.high_bytes = pool.used_bytes,
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemPoolGetAttribute(
    pool: usize,
    attribute: c_int,
    value: *mut c_void,
) -> c_int {
    call("cuMemPoolGetAttribute", |driver| {
        let (device, id) = driver.pool(pool)?;
        let pool: Pool = device.memory.with_pool(id, |pool| *pool)?;
        if attribute < RELEASE_THRESHOLD {
            // SAFETY: attributes below have 32 bits, see the module above.
            return unsafe { put(value.cast::<c_int>(), 1) };
        }
        let bytes = match attribute {
            RELEASE_THRESHOLD => pool.threshold_bytes,
            5 | 7 => pool.used_bytes,
            6 | 8 => pool.high_bytes,
            _ => return Err(Code::INVALID_VALUE),
        };
        // SAFETY: attributes from the threshold on have 64 bits, see the module above.
        unsafe { put(value.cast::<u64>(), bytes) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemAllocAsync(out: *mut usize, bytes: usize, stream: usize) -> c_int {
    call("cuMemAllocAsync", |driver| {
        let stream = driver.stream(stream)?;
        let pool = stream.device.default_pool;
        // SAFETY: the caller's promise, see the module above.
        unsafe { allocate(driver, out, bytes, &stream, pool) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemAllocFromPoolAsync(
    out: *mut usize,
    bytes: usize,
    pool: usize,
    stream: usize,
) -> c_int {
    call("cuMemAllocFromPoolAsync", |driver| {
        let (device, id) = driver.pool(pool)?;
        let stream = driver.stream(stream)?;
        if !Arc::ptr_eq(&device, &stream.device) {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller's promise, see the module above.
        unsafe { allocate(driver, out, bytes, &stream, id) }
    })
}

/// The address stays in use until the stream comes to the free.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemFreeAsync(address: usize, stream: usize) -> c_int {
    call("cuMemFreeAsync", |driver| {
        let stream = driver.stream(stream)?;
        stream.device.memory.find(address, 1).ok_or(Code::INVALID_VALUE)?;
        stream.device.enqueue(&stream, Operation::Free(address));
        Ok(())
    })
}

/// # Safety
/// `out` is null, which is refused, or valid for a write.
unsafe fn allocate(driver: &Driver, out: *mut usize, bytes: usize, stream: &Stream, pool: PoolId) -> Status {
    check_supported(driver)?;
    let address = stream.device.memory.allocate(bytes, pool)?;
    // SAFETY: by this function's contract.
    unsafe { put(out, address) }
}

fn check_supported(driver: &Driver) -> Status {
    if driver.script.pools { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
}

fn register(driver: &Driver, device: &Arc<crate::device::Device>, id: PoolId) -> usize {
    let mut handles = driver.handles();
    let handle = handles.number();
    handles.pools.insert(handle, (Arc::clone(device), id));
    handle
}
