//! Events.

use std::ffi::{c_float, c_int, c_uint};
use std::sync::Arc;

use super::put;
use crate::code::Code;
use crate::driver::call;
use crate::event::{Event, Mark};
use crate::stream::Operation;

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuEventCreate(out: *mut usize, flags: c_uint) -> c_int {
    call("cuEventCreate", |driver| {
        let device = Arc::clone(driver.current()?);
        let handle = {
            let mut handles = driver.handles();
            let handle = handles.number();
            handles.events.insert(handle, (Arc::new(Event::new(flags)), device));
            handle
        };
        // SAFETY: the caller's promise, see the module above.
        unsafe { put(out, handle) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventDestroy_v2(event: usize) -> c_int {
    call("cuEventDestroy_v2", |driver| {
        driver.handles().events.remove(&event).map(|_| ()).ok_or(Code::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventRecord(event: usize, stream: usize) -> c_int {
    call("cuEventRecord", |driver| {
        let (event, device) = driver.event(event)?;
        let stream = driver.stream(stream)?;
        if !Arc::ptr_eq(&device, &stream.device) {
            return Err(Code::INVALID_HANDLE);
        }
        let mark = Arc::new(Mark::default());
        event.record(Arc::clone(&mark));
        device.enqueue(&stream, Operation::Mark(mark));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventQuery(event: usize) -> c_int {
    call("cuEventQuery", |driver| driver.event(event)?.0.query())
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventSynchronize(event: usize) -> c_int {
    call("cuEventSynchronize", |driver| driver.event(event)?.0.synchronize())
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuEventElapsedTime(out: *mut c_float, start: usize, end: usize) -> c_int {
    call("cuEventElapsedTime", |driver| {
        let (start, end) = (driver.event(start)?.0, driver.event(end)?.0);
        let time_ms = end.since(&start)?.as_secs_f32() * 1e3;
        // SAFETY: the caller's promise, see the module above.
        unsafe { put(out, time_ms) }
    })
}
