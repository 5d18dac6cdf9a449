//! A device as this process has opened it: a back end, whether it is lost, and the handles that are used
//! again. Every call into a back end from the rest of the crate goes through here, so that a fork, the
//! process's end and a sticky error are looked at in one place.
//!
//! Invariant: no lock of this file is held during a call into the back end or into a hook.

use std::fmt;
use std::process;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use crate::device::{Backend, Device, DeviceInfo, RawEvent, RawStream};
use crate::driver::Driver;
use crate::error::{CudaError, Fault};
use crate::process::is_ending;
use crate::sim::Simulation;

/// Events that are kept for their next use, of either kind. Above it they are destroyed.
const SPARE_EVENTS_MAX: usize = 1024;

/// A device, opened. Clones are the same device: a sticky error that one meets is met by all.
#[derive(Clone)]
pub struct OpenDevice {
    shared: Arc<Shared>,
}

/// Who has to know that the device is lost.
pub(crate) trait OnPoison: Send + Sync {
    fn poisoned(&self, error: &CudaError);
}

struct Shared {
    back: Box<dyn Device>,
    opened_by: u32,
    lost: OnceLock<CudaError>,
    hooks: Mutex<Vec<Weak<dyn OnPoison>>>,
    /// Without timing, and with.
    spare_events: [Mutex<Vec<RawEvent>>; 2],
    /// Streams whose handles were handed out, with their priority: others may still have them.
    spare_streams: Mutex<Vec<(i32, RawStream)>>,
}

impl OpenDevice {
    /// Opens a device of the driver. All pools of a process that open the same one share it.
    ///
    /// # Errors
    /// CUDA is not available, there is no device of that number, or it does not open.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        // Never closed: the context is the one that other libraries of the process use, and a lost device
        // stays so.
        static OPENED: Mutex<Vec<(usize, OpenDevice)>> = Mutex::new(Vec::new());
        let count = crate::probe::device_count()?;
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        let find = |opened: &[(usize, Self)]| {
            opened.iter().find(|(it, _)| *it == ordinal).map(|(_, device)| device.clone())
        };
        if let Some(device) = find(&OPENED.lock()) {
            return Ok(device);
        }
        // Not under the lock. Two threads may open it at once; then the first one's is used by both.
        let device = Self::new(Box::new(Driver::open(ordinal)?));
        let mut opened = OPENED.lock();
        let device = find(&opened).unwrap_or(device);
        if !opened.iter().any(|(it, _)| *it == ordinal) {
            opened.push((ordinal, device.clone()));
        }
        Ok(device)
    }

    /// Opens a simulated device.
    #[must_use]
    pub fn simulated(simulation: &Simulation) -> Self {
        Self::new(Box::new(simulation.clone()))
    }

    fn new(back: Box<dyn Device>) -> Self {
        let shared = Shared {
            back,
            opened_by: process::id(),
            lost: OnceLock::new(),
            hooks: Mutex::new(Vec::new()),
            spare_events: [Mutex::new(Vec::new()), Mutex::new(Vec::new())],
            spare_streams: Mutex::new(Vec::new()),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Which back end serves it.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.shared.back.backend()
    }

    /// What it says of itself.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        self.shared.back.info()
    }

    /// Whether it can be used: this process opened it, and no sticky error was met.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.check().is_ok()
    }

    /// The sticky error that was met, if one was.
    #[must_use]
    pub fn lost(&self) -> Option<CudaError> {
        self.shared.lost.get().cloned()
    }

    /// Whether both are the same device, opened once.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Refuses in a forked child, and once a sticky error was met. Takes no lock: in a forked child one may
    /// be held by a thread that is not there.
    pub(crate) fn check(&self) -> Result<(), CudaError> {
        if self.is_foreign() {
            return Err(CudaError::Forked);
        }
        self.shared.lost.get().map_or(Ok(()), |lost| Err(lost.clone()))
    }

    /// Whether this process is a fork of the one that opened the device.
    pub(crate) fn is_foreign(&self) -> bool {
        process::id() != self.shared.opened_by
    }

    /// Whether handles have to be leaked instead of given back.
    pub(crate) fn leaks(&self) -> bool {
        self.is_foreign() || is_ending() || self.shared.lost.get().is_some()
    }

    /// Calls the back end, unless that is known to be of no use.
    pub(crate) fn call<T>(&self, call: impl FnOnce(&dyn Device) -> Result<T, Fault>) -> Result<T, CudaError> {
        self.check()?;
        call(&*self.shared.back).map_err(|fault| self.judge(fault))
    }

    /// Gives a handle back, or leaks it. An error has nobody who could do anything about it, but a sticky one
    /// is remembered.
    pub(crate) fn release(&self, call: impl FnOnce(&dyn Device) -> Result<(), Fault>) {
        if !self.leaks()
            && let Err(fault) = call(&*self.shared.back)
        {
            self.judge(fault);
        }
    }

    /// What an error of the driver is to a caller. A sticky one poisons the device first.
    pub(crate) fn judge(&self, fault: Fault) -> CudaError {
        if !fault.is_sticky() {
            return CudaError::Driver(fault);
        }
        let error = CudaError::ContextPoisoned(fault);
        if self.shared.lost.set(error.clone()).is_ok() {
            // A hook that is added later looks at `lost` after it was added.
            let hooks = std::mem::take(&mut *self.shared.hooks.lock());
            for hook in hooks.iter().filter_map(Weak::upgrade) {
                hook.poisoned(&error);
            }
        }
        self.shared.lost.get().cloned().unwrap_or(error)
    }

    /// Has the hook called once, when the device is lost or at once if it is.
    pub(crate) fn on_poison(&self, hook: &Arc<dyn OnPoison>) {
        {
            let mut hooks = self.shared.hooks.lock();
            hooks.retain(|hook| hook.strong_count() > 0);
            hooks.push(Arc::downgrade(hook));
        }
        if let Some(error) = self.lost() {
            hook.poisoned(&error);
        }
    }

    /// Blocks until everything that was queued on the device by now is done, on whichever stream: this crate's,
    /// the default stream, and those of other libraries of the process.
    ///
    /// # Errors
    /// The device is lost, this is a forked child, or the driver refuses.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.call(|device| device.synchronize_all())
    }

    /// Has the function called once, when the device is lost or at once if it is, until what is returned is
    /// dropped. The function must neither block nor call CUDA.
    pub fn on_lost(&self, tell: impl FnOnce(&CudaError) + Send + 'static) -> LostHook {
        let hook = Arc::new(Telling(Mutex::new(Some(Box::new(tell)))));
        let known: Arc<dyn OnPoison> = Arc::clone(&hook) as _;
        self.on_poison(&known);
        LostHook { _hook: hook }
    }

    /// An event, of those that were given back or a new one.
    pub(crate) fn take_event(&self, timing: bool) -> Result<RawEvent, CudaError> {
        self.check()?;
        let spare = self.shared.spare_events[usize::from(timing)].lock().pop();
        spare.map_or_else(|| self.call(|device| device.create_event(timing)), Ok)
    }

    /// Gives an event back that nobody waits for any more.
    pub(crate) fn give_event(&self, event: RawEvent, timing: bool) {
        if self.leaks() {
            return;
        }
        {
            let mut spare = self.shared.spare_events[usize::from(timing)].lock();
            if spare.len() < SPARE_EVENTS_MAX {
                spare.push(event);
                return;
            }
        }
        self.release(|device| device.destroy_event(event));
    }

    /// A stream of that priority, one that was given back or a new one; and whether its handle was ever handed
    /// out.
    pub(crate) fn take_stream(&self, priority: i32) -> Result<(RawStream, bool), CudaError> {
        self.check()?;
        let spare = {
            let mut spare = self.shared.spare_streams.lock();
            let found = spare.iter().position(|(it, _)| *it == priority);
            found.map(|index| spare.swap_remove(index).1)
        };
        match spare {
            Some(stream) => Ok((stream, true)),
            None => self.call(|device| device.create_stream(priority)).map(|stream| (stream, false)),
        }
    }

    /// Gives a stream back. One whose handle was handed out is kept for the next pool and never destroyed: an
    /// allocator of another library may go on naming it.
    pub(crate) fn give_stream(&self, stream: RawStream, priority: i32, exposed: bool) {
        if self.leaks() {
            return;
        }
        if exposed {
            self.shared.spare_streams.lock().push((priority, stream));
        } else {
            self.release(|device| device.destroy_stream(stream));
        }
    }
}

/// A function that is called when a device is lost, until this is dropped.
#[must_use = "the function is not called once this is dropped"]
pub struct LostHook {
    _hook: Arc<Telling>,
}

impl fmt::Debug for LostHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LostHook").finish_non_exhaustive()
    }
}

type Tell = Box<dyn FnOnce(&CudaError) + Send>;

struct Telling(Mutex<Option<Tell>>);

impl OnPoison for Telling {
    fn poisoned(&self, error: &CudaError) {
        let tell = self.0.lock().take();
        if let Some(tell) = tell {
            tell(error);
        }
    }
}

impl fmt::Debug for OpenDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenDevice")
            .field("backend", &self.backend())
            .field("ordinal", &self.info().ordinal)
            .field("lost", &self.shared.lost.get())
            .finish_non_exhaustive()
    }
}
