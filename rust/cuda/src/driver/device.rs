//! One device of the driver. Handles are the driver's pointers as numbers.
//!
//! Every call runs with the device's primary context, which other libraries of the process share, and leaves
//! the thread's own current afterwards: PyTorch, for one, takes it for the thread's choice of a device.
//! Threads of this crate keep it.

#![allow(unsafe_code, reason = "calls into the driver")]

use std::ffi::{CString, c_void};
use std::fmt;
use std::mem::{MaybeUninit, zeroed};
use std::ptr;
use std::slice;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::library::{Loaded, load};
use crate::device::{Backend, Device, DeviceInfo, HostCall, Launch, RawEvent, RawKernel, RawPool, RawStream};
use crate::error::{CudaError, Fault};
use crate::process::is_own_thread;

type Answer<T> = Result<T, Fault>;

/// What the driver means by an error. Only with a loaded library: it is asked for the words.
pub(crate) fn fault(error: DriverError, operation: &'static str) -> Fault {
    let words = |words: Result<&std::ffi::CStr, DriverError>| {
        words.map_or_else(|_| "unknown".to_owned(), |words| words.to_string_lossy().into_owned())
    };
    Fault {
        code: error.0 as u32,
        name: words(error.error_name()),
        text: words(error.error_string()),
        operation,
    }
}

/// What a device says of itself.
pub(crate) fn describe(library: &Loaded, ordinal: usize) -> Answer<(sys::CUdevice, DeviceInfo)> {
    use sys::CUdevice_attribute as Attribute;
    let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
    let device = result::device::get(number).map_err(|error| fault(error, "cuDeviceGet"))?;
    let attribute = |attribute: Attribute| {
        // SAFETY: the device is one that the driver has just given.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        value
            .map(|value| u32::try_from(value).unwrap_or(0))
            .map_err(|error| fault(error, "cuDeviceGetAttribute"))
    };
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) };
    let info = DeviceInfo {
        ordinal,
        name: result::device::get_name(device).map_err(|error| fault(error, "cuDeviceGetName"))?,
        memory_bytes: memory.map_err(|error| fault(error, "cuDeviceTotalMem"))? as u64,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        copy_engines: attribute(Attribute::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT)?,
        memory_pools: library.has_pools
            && attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0,
    };
    Ok((device, info))
}

/// A device of the driver. Its context is never released: it is shared, and others may go on using it.
pub(crate) struct Driver {
    info: DeviceInfo,
    device: sys::CUdevice,
    context: usize,
    calls_host: bool,
}

impl Driver {
    /// Opens a device, after the driver was started.
    pub(crate) fn open(ordinal: usize) -> Result<Self, CudaError> {
        let library = load()?;
        let (device, info) = describe(library, ordinal).map_err(CudaError::Driver)?;
        // SAFETY: the device is one that the driver has just given.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(|error| CudaError::Driver(fault(error, "cuDevicePrimaryCtxRetain")))?;
        Ok(Self { info, device, context: context as usize, calls_host: library.calls_host })
    }

    /// Calls the driver in the device's context.
    fn call<T>(&self, operation: &'static str, call: impl FnOnce() -> Result<T, DriverError>) -> Answer<T> {
        let _bound = self.bind().map_err(|error| fault(error, "cuCtxSetCurrent"))?;
        call().map_err(|error| fault(error, operation))
    }

    fn bind(&self) -> Result<Bound, DriverError> {
        let ours = self.context as sys::CUcontext;
        let before = result::ctx::get_current()?.unwrap_or(ptr::null_mut());
        if before == ours {
            return Ok(Bound(None));
        }
        // SAFETY: the context was retained and is never released.
        unsafe { result::ctx::set_current(ours) }?;
        Ok(Bound(if is_own_thread() { None } else { Some(before) }))
    }

    fn ask(&self, operation: &'static str, call: impl FnOnce() -> Result<(), DriverError>) -> Answer<bool> {
        self.call(operation, || match call() {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(error),
        })
    }
}

/// Puts the thread's own context back.
struct Bound(Option<sys::CUcontext>);

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            // SAFETY: it was current before this call, on this thread. That it stays alive meanwhile is up to
            // whoever made it current.
            let _ = unsafe { result::ctx::set_current(before) };
        }
    }
}

const fn stream_of(stream: RawStream) -> sys::CUstream {
    stream.0 as sys::CUstream
}

const fn event_of(event: RawEvent) -> sys::CUevent {
    event.0 as sys::CUevent
}

// In all of these: handles are the driver's own and were not destroyed, which the types that own them see to
// (`Core`, `Event`, `DeviceBuffer`, `PinnedBytes`, `Runtime`). A handle of an external stream is kept alive
// by whoever handed it in.
impl Device for Driver {
    fn backend(&self) -> Backend {
        Backend::Cuda
    }

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn priorities(&self) -> Answer<(i32, i32)> {
        self.call("cuCtxGetStreamPriorityRange", result::stream::get_priority_range)
    }

    fn create_stream(&self, priority: i32) -> Answer<RawStream> {
        let kind = result::stream::StreamKind::NonBlocking;
        self.call("cuStreamCreateWithPriority", || result::stream::create_with_priority(kind, priority))
            .map(|stream| RawStream(stream as usize))
    }

    fn destroy_stream(&self, stream: RawStream) -> Answer<()> {
        // SAFETY: a live handle; nobody has it any more.
        self.call("cuStreamDestroy", || unsafe { result::stream::destroy(stream_of(stream)) })
    }

    fn query_stream(&self, stream: RawStream) -> Answer<bool> {
        // SAFETY: a live handle.
        self.ask("cuStreamQuery", || unsafe { sys::cuStreamQuery(stream_of(stream)).result() })
    }

    fn wait_event(&self, stream: RawStream, event: RawEvent) -> Answer<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: live handles.
        self.call("cuStreamWaitEvent", || unsafe {
            result::stream::wait_event(stream_of(stream), event_of(event), flags)
        })
    }

    fn create_event(&self, timing: bool) -> Answer<RawEvent> {
        use sys::CUevent_flags as Flags;
        let timing = if timing { 0 } else { Flags::CU_EVENT_DISABLE_TIMING as u32 };
        self.call("cuEventCreate", || {
            let mut event = MaybeUninit::uninit();
            // SAFETY: the driver writes the handle if it succeeds, and only then is it read.
            unsafe {
                sys::cuEventCreate(event.as_mut_ptr(), Flags::CU_EVENT_BLOCKING_SYNC as u32 | timing)
                    .result()?;
                Ok(RawEvent(event.assume_init() as usize))
            }
        })
    }

    fn destroy_event(&self, event: RawEvent) -> Answer<()> {
        // SAFETY: a live handle; nobody has it any more.
        self.call("cuEventDestroy", || unsafe { result::event::destroy(event_of(event)) })
    }

    fn record_event(&self, event: RawEvent, stream: RawStream) -> Answer<()> {
        // SAFETY: live handles.
        self.call("cuEventRecord", || unsafe { result::event::record(event_of(event), stream_of(stream)) })
    }

    fn query_event(&self, event: RawEvent) -> Answer<bool> {
        // SAFETY: a live handle.
        self.ask("cuEventQuery", || unsafe { result::event::query(event_of(event)) })
    }

    fn synchronize_event(&self, event: RawEvent) -> Answer<()> {
        // SAFETY: a live handle.
        self.call("cuEventSynchronize", || unsafe { result::event::synchronize(event_of(event)) })
    }

    fn synchronize_all(&self) -> Answer<()> {
        self.call("cuCtxSynchronize", result::ctx::synchronize)
    }

    fn elapsed_ms(&self, start: RawEvent, end: RawEvent) -> Answer<f32> {
        // SAFETY: live handles. That they have timing and were reached, the driver checks.
        self.call("cuEventElapsedTime", || unsafe { result::event::elapsed(event_of(start), event_of(end)) })
    }

    fn allocate_host(&self, bytes: usize) -> Answer<usize> {
        // Portable, so that whichever context is current finds it pinned; not write-combined.
        const FLAGS: u32 = sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: the memory is not read before it is written.
        let address = self.call("cuMemHostAlloc", || unsafe { result::malloc_host(bytes, FLAGS) })?;
        Ok(address as usize)
    }

    unsafe fn free_host(&self, address: usize) -> Answer<()> {
        // SAFETY: as the caller promises.
        self.call("cuMemFreeHost", || unsafe { result::free_host(address as *mut c_void) })
    }

    fn create_pool(&self, bytes_max: u64) -> Answer<Option<RawPool>> {
        use sys::CUmemPool_attribute as Attribute;
        if !self.info.memory_pools {
            return Ok(None);
        }
        // SAFETY: a structure of numbers and one pointer, for all of which zero means none.
        let mut props: sys::CUmemPoolProps = unsafe { zeroed() };
        props.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        props.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        props.location.id = self.device;
        props.maxSize = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        // SAFETY: the structure lives until the call returns.
        let pool = self.call("cuMemPoolCreate", || unsafe { result::mem_pool::create(&raw const props) })?;
        // What was freed is kept for the next allocation. A stream is not made to wait for another one so
        // that it can have the other's memory.
        let (mut threshold, mut off) = (bytes_max, 0_i32);
        let (threshold, off) = ((&raw mut threshold).cast(), (&raw mut off).cast());
        let configured = self.call("cuMemPoolSetAttribute", || {
            let keep = Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            let depend = Attribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES;
            // SAFETY: each attribute has the type that it is documented with, and both live until the calls
            // return.
            unsafe {
                result::mem_pool::set_attribute(pool, keep, threshold)?;
                result::mem_pool::set_attribute(pool, depend, off)
            }
        });
        if let Err(fault) = configured {
            let _ = self.destroy_pool(RawPool(pool as usize));
            return Err(fault);
        }
        Ok(Some(RawPool(pool as usize)))
    }

    fn destroy_pool(&self, pool: RawPool) -> Answer<()> {
        // SAFETY: a live handle; nobody allocates from it any more.
        self.call("cuMemPoolDestroy", || unsafe { result::mem_pool::destroy(pool.0 as sys::CUmemoryPool) })
    }

    fn allocate(&self, bytes: usize, stream: RawStream, pool: Option<RawPool>) -> Answer<u64> {
        match pool {
            // SAFETY: live handles. The memory is not read by this crate before it is written.
            Some(pool) => self.call("cuMemAllocFromPoolAsync", || unsafe {
                result::mem_pool::alloc_async(pool.0 as sys::CUmemoryPool, bytes, stream_of(stream))
            }),
            // SAFETY: as above.
            None => self.call("cuMemAlloc", || unsafe { result::malloc_sync(bytes) }),
        }
    }

    unsafe fn free(&self, address: u64, stream: RawStream, pooled: bool) -> Answer<()> {
        if pooled {
            // SAFETY: as the caller promises.
            return self.call("cuMemFreeAsync", || unsafe { result::free_async(address, stream_of(stream)) });
        }
        // SAFETY: as the caller promises.
        self.call("cuMemFree", || unsafe { result::free_sync(address) })
    }

    unsafe fn copy_to_device(&self, to: u64, from: *const u8, bytes: usize, stream: RawStream) -> Answer<()> {
        // SAFETY: as the caller promises.
        self.call("cuMemcpyHtoDAsync", || unsafe {
            result::memcpy_htod_async(to, slice::from_raw_parts(from, bytes), stream_of(stream))
        })
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: u64, bytes: usize, stream: RawStream) -> Answer<()> {
        // SAFETY: as the caller promises.
        self.call("cuMemcpyDtoHAsync", || unsafe {
            result::memcpy_dtoh_async(slice::from_raw_parts_mut(to, bytes), from, stream_of(stream))
        })
    }

    unsafe fn call_host(&self, stream: RawStream, call: HostCall) -> Answer<()> {
        // SAFETY: as the caller promises.
        self.call("cuLaunchHostFunc", || unsafe {
            result::stream::launch_host_function(
                stream_of(stream),
                call.function,
                call.argument as *mut c_void,
            )
        })
    }

    fn can_call_host(&self) -> bool {
        self.calls_host
    }

    fn load_kernel(&self, source: &str, name: &str) -> Answer<RawKernel> {
        let (Ok(source), Ok(name)) = (CString::new(source), CString::new(name)) else {
            return Err(fault(DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE), "cuModuleLoadData"));
        };
        // SAFETY: text that ends with a zero and lives until the call returns.
        let module =
            self.call("cuModuleLoadData", || unsafe { result::module::load_data(source.as_ptr().cast()) })?;
        // SAFETY: the module was just loaded and is never unloaded.
        let function =
            self.call("cuModuleGetFunction", || unsafe { result::module::get_function(module, name) })?;
        Ok(RawKernel { module: module as usize, function: function as usize })
    }

    unsafe fn launch(
        &self,
        kernel: RawKernel,
        shape: Launch,
        arguments: &[u64],
        stream: RawStream,
    ) -> Answer<()> {
        let mut arguments: Vec<*mut c_void> =
            arguments.iter().map(|argument| ptr::from_ref(argument).cast_mut().cast()).collect();
        // SAFETY: as the caller promises. The driver copies the arguments before it returns.
        self.call("cuLaunchKernel", || unsafe {
            result::launch_kernel(
                kernel.function as sys::CUfunction,
                (shape.blocks, 1, 1),
                (shape.threads, 1, 1),
                0,
                stream_of(stream),
                &mut arguments,
            )
        })
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("info", &self.info).finish_non_exhaustive()
    }
}
