//! The driver of a process: what every call passes through, and what handles stand for. Handles are numbers,
//! never addresses: one that was destroyed, or never made, is answered with an error instead of a crash.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::code::{Code, Status};
use crate::device::Device;
use crate::event::Event;
use crate::heap::{Heap, PoolId};
use crate::module::{Kernel, Module};
use crate::script::Script;
use crate::stream::Stream;

/// The context of device 0; that of the next is one more.
const FIRST_CONTEXT: usize = 0x100;
/// Handles up to here are not given out: 0, 1 and 2 name default streams.
const FIRST_HANDLE: usize = 0x1000;

thread_local! {
    /// The device whose context is current on this thread.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
    /// This thread runs a host function.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Everything there is.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) script: Script,
    pub(crate) devices: Vec<Arc<Device>>,
    pub(crate) pinned: Heap,
    /// Held while a host function runs; every other call passes through it.
    lock: Mutex<()>,
    /// The process that called `cuInit`, or 0.
    process: AtomicU32,
    handles: Mutex<Handles>,
}

/// What the numbers that the program holds stand for.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    made: usize,
    pub(crate) streams: HashMap<usize, Arc<Stream>>,
    pub(crate) events: HashMap<usize, (Arc<Event>, Arc<Device>)>,
    pub(crate) modules: HashMap<usize, Module>,
    pub(crate) kernels: HashMap<usize, Kernel>,
    pub(crate) pools: HashMap<usize, (Arc<Device>, PoolId)>,
}

/// A host function and what it is called with.
#[derive(Debug)]
pub(crate) struct HostCall {
    pub(crate) function: unsafe extern "C" fn(*mut c_void),
    pub(crate) argument: usize,
}

impl Handles {
    /// A number that was never given out before.
    pub(crate) fn number(&mut self) -> usize {
        self.made += 1;
        FIRST_HANDLE + 16 * self.made
    }
}

/// Runs a function of the driver, and gives the code that the program sees.
pub(crate) fn call(symbol: &'static str, body: impl FnOnce(&'static Driver) -> Status) -> i32 {
    let run = || {
        if IN_CALLBACK.get() {
            return Err(Code::NOT_PERMITTED);
        }
        let driver = Driver::get();
        driver.check_process(symbol)?;
        drop(driver.lock.lock());
        driver.script.called(symbol)?;
        body(driver)
    };
    run().err().map_or(0, |code: Code| code.0)
}

impl Driver {
    fn get() -> &'static Self {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        DRIVER.get_or_init(|| {
            let script = Script::from_environment();
            let devices =
                (0..script.devices).map(|ordinal| Arc::new(Device::new(ordinal, script.memory_bytes)));
            Self {
                devices: devices.collect(),
                pinned: Heap::new(script.pinned_bytes),
                lock: Mutex::default(),
                process: AtomicU32::new(0),
                handles: Mutex::default(),
                script,
            }
        })
    }

    /// Nothing works before `cuInit`, nor in the child of a process that has called it.
    fn check_process(&self, symbol: &str) -> Status {
        let process = self.process.load(Ordering::Acquire);
        if process == std::process::id() || (process == 0 && symbol == "cuInit") {
            return Ok(());
        }
        Err(Code::NOT_INITIALIZED)
    }

    pub(crate) fn initialise(&self) -> Status {
        self.script.init?;
        if self.devices.is_empty() {
            return Err(Code(100));
        }
        self.process.store(std::process::id(), Ordering::Release);
        Ok(())
    }

    pub(crate) fn device(&self, ordinal: i32) -> Result<&Arc<Device>, Code> {
        usize::try_from(ordinal)
            .ok()
            .and_then(|ordinal| self.devices.get(ordinal))
            .ok_or(Code::INVALID_DEVICE)
    }

    /// The device whose context is current; its error if it is broken.
    pub(crate) fn current(&self) -> Result<&Arc<Device>, Code> {
        let device =
            CURRENT.get().and_then(|ordinal| self.devices.get(ordinal)).ok_or(Code::INVALID_CONTEXT)?;
        if device.context.lock().holders == 0 {
            return Err(Code::INVALID_CONTEXT);
        }
        check(device)?;
        Ok(device)
    }

    pub(crate) fn handles(&self) -> parking_lot::MutexGuard<'_, Handles> {
        self.handles.lock()
    }

    /// The stream of a handle. 0, 1 and 2 stand for the default stream of the current context.
    pub(crate) fn stream(&'static self, handle: usize) -> Result<Arc<Stream>, Code> {
        let device = self.current()?;
        if handle <= 2 {
            let mut context = device.context.lock();
            if let Some(stream) = &context.default_stream {
                return Ok(Arc::clone(stream));
            }
            let stream = Stream::start(self, Arc::clone(device), 0, 0)?;
            context.default_stream = Some(Arc::clone(&stream));
            return Ok(stream);
        }
        let stream = self.handles().streams.get(&handle).cloned().ok_or(Code::INVALID_HANDLE)?;
        check(&stream.device)?;
        Ok(stream)
    }

    pub(crate) fn event(&self, handle: usize) -> Result<(Arc<Event>, Arc<Device>), Code> {
        let found = self.handles().events.get(&handle).cloned().ok_or(Code::INVALID_HANDLE)?;
        check(&found.1)?;
        Ok(found)
    }

    pub(crate) fn pool(&self, handle: usize) -> Result<(Arc<Device>, PoolId), Code> {
        self.handles().pools.get(&handle).cloned().ok_or(Code::INVALID_HANDLE)
    }

    /// Runs a host function, on the thread of its stream.
    pub(crate) fn call_back(&self, call: &HostCall) {
        let _held = self.lock.lock();
        IN_CALLBACK.set(true);
        call.run();
        IN_CALLBACK.set(false);
    }

    /// The last holder of a context takes its streams along.
    pub(crate) fn release_context(&self, device: &Arc<Device>) -> Status {
        let mut context = device.context.lock();
        context.holders = context.holders.checked_sub(1).ok_or(Code::INVALID_CONTEXT)?;
        if context.holders > 0 {
            return Ok(());
        }
        context.ordered.clear();
        let default = context.default_stream.take();
        drop(context);
        let gone = |stream: &Arc<Stream>| Arc::ptr_eq(&stream.device, device);
        let own = self
            .handles()
            .streams
            .extract_if(|_, stream| gone(stream))
            .map(|(_, stream)| stream)
            .collect::<Vec<_>>();
        for stream in own.iter().chain(&default) {
            stream.close();
        }
        Ok(())
    }
}

impl HostCall {
    #[allow(unsafe_code, reason = "the program's own function")]
    fn run(&self) {
        // SAFETY: whoever passed the function to `cuLaunchHostFunc` promised that it may be called once, from
        // any thread, with this argument.
        unsafe { (self.function)(self.argument as *mut c_void) };
    }
}

/// The error of a broken device.
pub(crate) fn check(device: &Device) -> Status {
    device.broken().map_or(Ok(()), Err)
}

pub(crate) fn context_of(device: &Device) -> usize {
    FIRST_CONTEXT + device.ordinal
}

/// The context that is current on this thread, 0 for none.
pub(crate) fn current_context() -> usize {
    CURRENT.get().map_or(0, |ordinal| FIRST_CONTEXT + ordinal)
}

/// Makes a context current on this thread, or none for 0.
pub(crate) fn set_current_context(driver: &Driver, handle: usize) -> Status {
    if handle == 0 {
        CURRENT.set(None);
        return Ok(());
    }
    let ordinal = handle.checked_sub(FIRST_CONTEXT).filter(|ordinal| *ordinal < driver.devices.len());
    CURRENT.set(Some(ordinal.ok_or(Code::INVALID_CONTEXT)?));
    Ok(())
}
