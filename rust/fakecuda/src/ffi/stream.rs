//! Streams and host functions.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use super::put;
use crate::code::Code;
use crate::driver::{Driver, HostCall, call, context_of};
use crate::stream::{Operation, Stream};

/// Contexts of which waiting threads block: `CU_CTX_SCHED_BLOCKING_SYNC`.
const BLOCKING_SYNC: c_uint = 4;

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuStreamCreate(out: *mut usize, flags: c_uint) -> c_int {
    // SAFETY: the caller's promise, see the module above.
    call("cuStreamCreate", |driver| unsafe { put(out, create(driver, flags, 0)?) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuStreamCreateWithPriority(
    out: *mut usize,
    flags: c_uint,
    priority: c_int,
) -> c_int {
    // SAFETY: the caller's promise, see the module above.
    call("cuStreamCreateWithPriority", |driver| unsafe {
        put(out, create(driver, flags, priority.clamp(-5, 0))?)
    })
}

fn create(driver: &'static Driver, flags: c_uint, priority: c_int) -> Result<usize, Code> {
    let device = driver.current()?;
    let stream = Stream::start(driver, Arc::clone(device), flags, priority)?;
    device.adopt(&stream);
    let mut handles = driver.handles();
    let handle = handles.number();
    handles.streams.insert(handle, stream);
    Ok(handle)
}

/// What is queued still runs.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuStreamDestroy_v2(stream: usize) -> c_int {
    call("cuStreamDestroy_v2", |driver| {
        let gone = driver.handles().streams.remove(&stream).ok_or(Code::INVALID_HANDLE)?;
        gone.device.forget(&gone);
        gone.close();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuStreamQuery(stream: usize) -> c_int {
    call("cuStreamQuery", |driver| driver.stream(stream)?.query())
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuStreamSynchronize(stream: usize) -> c_int {
    call("cuStreamSynchronize", |driver| {
        let stream = driver.stream(stream)?;
        let blocks = stream.device.context.lock().flags & BLOCKING_SYNC != 0;
        let mark = stream.mark();
        if blocks { mark.wait() } else { mark.spin() }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) -> c_int {
    call("cuStreamWaitEvent", |driver| {
        let (event, _) = driver.event(event)?;
        let stream = driver.stream(stream)?;
        if let Some(mark) = event.newest() {
            stream.device.enqueue(&stream, Operation::Wait(mark));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuStreamIsCapturing(stream: usize, out: *mut c_int) -> c_int {
    // SAFETY: the caller's promise, see the module above.
    call("cuStreamIsCapturing", |driver| driver.stream(stream).and_then(|_| unsafe { put(out, 0) }))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuStreamGetPriority(stream: usize, out: *mut c_int) -> c_int {
    // SAFETY: the caller's promise, see the module above.
    call("cuStreamGetPriority", |driver| unsafe { put(out, driver.stream(stream)?.priority) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuStreamGetFlags(stream: usize, out: *mut c_uint) -> c_int {
    // SAFETY: the caller's promise, see the module above.
    call("cuStreamGetFlags", |driver| unsafe { put(out, driver.stream(stream)?.flags) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuStreamGetCtx(stream: usize, out: *mut usize) -> c_int {
    // SAFETY: the caller's promise, see the module above.
    call("cuStreamGetCtx", |driver| unsafe { put(out, context_of(&driver.stream(stream)?.device)) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuLaunchHostFunc(
    stream: usize,
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    argument: *mut c_void,
) -> c_int {
    call("cuLaunchHostFunc", |driver| {
        let function = function.ok_or(Code::INVALID_VALUE)?;
        let stream = driver.stream(stream)?;
        let call = HostCall { function, argument: argument as usize };
        stream.device.enqueue(&stream, Operation::Host(call));
        Ok(())
    })
}
