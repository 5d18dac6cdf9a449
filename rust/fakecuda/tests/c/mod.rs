//! The driver's functions as a C program declares them, and what the tests build of them.
#![allow(unsafe_code, reason = "the interface under test is C")]
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::ffi::{CString, c_void};
use std::process::Command;

// Links the exports in.
use headrace_fakecuda as _;

pub(crate) const NON_BLOCKING: u32 = 1;
pub(crate) const BLOCKING_SYNC: u32 = 1;
pub(crate) const NOT_READY: i32 = 600;

unsafe extern "C" {
    pub(crate) safe fn cuInit(flags: u32) -> i32;
    pub(crate) fn cuDeviceGetCount(out: *mut i32) -> i32;
    pub(crate) fn cuDevicePrimaryCtxRetain(out: *mut usize, device: i32) -> i32;
    pub(crate) safe fn cuDevicePrimaryCtxRelease_v2(device: i32) -> i32;
    pub(crate) safe fn cuCtxSetCurrent(context: usize) -> i32;
    pub(crate) safe fn cuCtxSynchronize() -> i32;
    pub(crate) fn cuStreamCreate(out: *mut usize, flags: u32) -> i32;
    pub(crate) fn cuStreamCreateWithPriority(out: *mut usize, flags: u32, priority: i32) -> i32;
    pub(crate) safe fn cuStreamDestroy_v2(stream: usize) -> i32;
    pub(crate) safe fn cuStreamQuery(stream: usize) -> i32;
    pub(crate) safe fn cuStreamSynchronize(stream: usize) -> i32;
    pub(crate) safe fn cuStreamWaitEvent(stream: usize, event: usize, flags: u32) -> i32;
    pub(crate) fn cuLaunchHostFunc(
        stream: usize,
        function: unsafe extern "C" fn(*mut c_void),
        argument: *mut c_void,
    ) -> i32;
    pub(crate) fn cuEventCreate(out: *mut usize, flags: u32) -> i32;
    pub(crate) safe fn cuEventDestroy_v2(event: usize) -> i32;
    pub(crate) safe fn cuEventRecord(event: usize, stream: usize) -> i32;
    pub(crate) safe fn cuEventQuery(event: usize) -> i32;
    pub(crate) safe fn cuEventSynchronize(event: usize) -> i32;
    pub(crate) fn cuEventElapsedTime(out: *mut f32, start: usize, end: usize) -> i32;
    pub(crate) fn cuMemHostAlloc(out: *mut *mut u8, bytes: usize, flags: u32) -> i32;
    pub(crate) fn cuMemFreeHost(address: *mut u8) -> i32;
    pub(crate) fn cuMemAlloc_v2(out: *mut usize, bytes: usize) -> i32;
    pub(crate) safe fn cuMemFree_v2(address: usize) -> i32;
    pub(crate) fn cuMemAllocFromPoolAsync(out: *mut usize, bytes: usize, pool: usize, stream: usize) -> i32;
    pub(crate) safe fn cuMemFreeAsync(address: usize, stream: usize) -> i32;
    pub(crate) fn cuMemPoolCreate(out: *mut usize, properties: *const PoolProperties) -> i32;
    pub(crate) fn cuMemPoolGetAttribute(pool: usize, attribute: i32, value: *mut u64) -> i32;
    pub(crate) fn cuMemcpyHtoDAsync_v2(to: usize, from: *const u8, bytes: usize, stream: usize) -> i32;
    pub(crate) fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: usize, bytes: usize, stream: usize) -> i32;
    pub(crate) safe fn cuMemsetD8Async(address: usize, value: u8, bytes: usize, stream: usize) -> i32;
    pub(crate) fn cuModuleLoadData(out: *mut usize, image: *const i8) -> i32;
    pub(crate) fn cuModuleGetFunction(out: *mut usize, module: usize, name: *const i8) -> i32;
    pub(crate) fn cuLaunchKernel(
        kernel: usize,
        gx: u32,
        gy: u32,
        gz: u32,
        bx: u32,
        by: u32,
        bz: u32,
        shared: u32,
        stream: usize,
        parameters: *const *const u64,
        extra: *const c_void,
    ) -> i32;
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct PoolProperties {
    pub(crate) kind: i32,
    pub(crate) handle_types: i32,
    pub(crate) location_kind: i32,
    pub(crate) location: i32,
    pub(crate) attributes: usize,
    pub(crate) max_bytes: usize,
    pub(crate) reserved: [u64; 7],
}

/// What a call gives out, or its code.
pub(crate) fn out<T: Default>(call: impl FnOnce(*mut T) -> i32) -> Result<T, i32> {
    let mut value = T::default();
    match call(&raw mut value) {
        0 => Ok(value),
        code => Err(code),
    }
}

/// Starts the driver, and makes the context of a device current on this thread.
pub(crate) fn start(device: i32) {
    assert_eq!(cuInit(0), 0);
    // SAFETY: `out` passes a valid pointer, here and in all of this file.
    let context = out(|at| unsafe { cuDevicePrimaryCtxRetain(at, device) }).expect("a context");
    assert_eq!(cuCtxSetCurrent(context), 0);
}

pub(crate) fn stream() -> usize {
    // SAFETY: as in `start`.
    out(|at| unsafe { cuStreamCreate(at, NON_BLOCKING) }).expect("a stream")
}

pub(crate) fn event() -> usize {
    // SAFETY: as in `start`.
    out(|at| unsafe { cuEventCreate(at, BLOCKING_SYNC) }).expect("an event")
}

pub(crate) fn recorded(stream: usize) -> usize {
    let event = event();
    assert_eq!(cuEventRecord(event, stream), 0);
    event
}

pub(crate) fn device_memory(bytes: usize) -> usize {
    // SAFETY: as in `start`.
    out(|at| unsafe { cuMemAlloc_v2(at, bytes) }).expect("device memory")
}

/// Pinned memory, given back at the end.
pub(crate) struct Pinned(*mut u8, usize);

impl Pinned {
    pub(crate) fn new(bytes: usize) -> Self {
        let mut start = std::ptr::null_mut();
        // SAFETY: as in `start`.
        assert_eq!(unsafe { cuMemHostAlloc(&raw mut start, bytes, 0) }, 0);
        Self(start, bytes)
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the block is that long; tests look at it while no copy runs.
        unsafe { std::slice::from_raw_parts_mut(self.0, self.1) }
    }

    pub(crate) fn at(&self) -> *mut u8 {
        self.0
    }

    /// Sets the word that a `gate` waits for.
    pub(crate) fn open(&self) {
        // SAFETY: the block has four bytes at least, and is aligned.
        unsafe { self.0.cast::<u32>().write_volatile(1) };
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`.
        unsafe { cuMemFreeHost(self.0) };
    }
}

/// Launches a kernel of the test's own module.
pub(crate) fn launch(name: &str, parameter: u64, stream: usize) {
    let text = c".version 7.0\n.entry headrace_spin(.param .u64 ns)\n.entry headrace_gate(.param .u64 word)\n.entry headrace_trap()\n";
    // SAFETY: as in `start`; the texts end with a zero byte.
    let module = out(|at| unsafe { cuModuleLoadData(at, text.as_ptr()) }).expect("a module");
    let name = CString::new(format!("headrace_{name}")).expect("a name");
    // SAFETY: as above.
    let kernel = out(|at| unsafe { cuModuleGetFunction(at, module, name.as_ptr()) }).expect("a kernel");
    let parameters = [&raw const parameter];
    // SAFETY: one parameter, as the kernel takes.
    let code =
        unsafe { cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, parameters.as_ptr(), std::ptr::null()) };
    assert_eq!(code, 0);
}

/// A closed gate in a stream: it stands still until the word is set.
pub(crate) fn gate(stream: usize) -> Pinned {
    let mut word = Pinned::new(4);
    word.bytes().fill(0);
    launch("gate", word.at() as u64, stream);
    word
}

/// Runs an ignored test of this program in a process of its own, with faults.
pub(crate) fn scenario(name: &str, faults: &[(&str, &str)]) {
    let program = std::env::current_exe().expect("the test program");
    let mut command = Command::new(program);
    command.args([name, "--exact", "--ignored", "--nocapture"]);
    for (fault, value) in faults {
        command.env(format!("HEADRACE_FAKECUDA_{fault}"), value);
    }
    let output = command.output().expect("the process starts");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{name}: {text}");
}
