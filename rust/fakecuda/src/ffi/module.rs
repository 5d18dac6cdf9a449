//! Modules and kernels.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::put;
use crate::code::Code;
use crate::driver::call;
use crate::module::Module;

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuModuleLoadData(out: *mut usize, image: *const c_char) -> c_int {
    call("cuModuleLoadData", |driver| {
        driver.current()?;
        if image.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: an image is text that ends with a zero byte, see the module above; others are not taken here.
        let text = unsafe { CStr::from_ptr(image) }.to_str().map_err(|_| Code::INVALID_PTX)?;
        let module = Module::load(text)?;
        let mut handles = driver.handles();
        let handle = handles.number();
        handles.modules.insert(handle, module);
        // SAFETY: the caller's promise, see the module above.
        unsafe { put(out, handle) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuModuleUnload(module: usize) -> c_int {
    call("cuModuleUnload", |driver| {
        driver.handles().modules.remove(&module).map(|_| ()).ok_or(Code::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuModuleGetFunction(
    out: *mut usize,
    module: usize,
    name: *const c_char,
) -> c_int {
    call("cuModuleGetFunction", |driver| {
        if name.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: a name is text that ends with a zero byte, see the module above.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| Code::NOT_FOUND)?;
        let mut handles = driver.handles();
        let kernel = handles.modules.get(&module).ok_or(Code::INVALID_HANDLE)?.kernel(name)?;
        let handle = handles.number();
        handles.kernels.insert(handle, kernel);
        // SAFETY: the caller's promise, see the module above.
        unsafe { put(out, handle) }
    })
}

#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "the driver's own signature")]
pub(crate) unsafe extern "C" fn cuLaunchKernel(
    kernel: usize,
    _grid_x: c_uint,
    _grid_y: c_uint,
    _grid_z: c_uint,
    _block_x: c_uint,
    _block_y: c_uint,
    _block_z: c_uint,
    _shared_bytes: c_uint,
    stream: usize,
    parameters: *const *const c_void,
    _extra: *const *const c_void,
) -> c_int {
    call("cuLaunchKernel", |driver| {
        let kernel = driver.handles().kernels.get(&kernel).copied().ok_or(Code::INVALID_HANDLE)?;
        let stream = driver.stream(stream)?;
        let mut parameter = 0;
        if kernel.takes_parameter() {
            if parameters.is_null() {
                return Err(Code::INVALID_VALUE);
            }
            // SAFETY: a launch brings a pointer for each parameter, and the first of these kernels has 64 bits.
            parameter = unsafe { (*parameters).cast::<u64>().read_unaligned() };
        }
        stream.device.enqueue(&stream, kernel.operation(parameter));
        Ok(())
    })
}
