//! Device memory in the order of streams: it may be used on every stream of its device, and goes back after
//! its last use without anybody waiting for that.
//!
//! A buffer remembers the last write and the last read on each stream, as events. Whoever uses it on another
//! stream waits for those there; when it is dropped, its own stream waits for them and then frees it.
//! Addresses are therefore not handed out again while anything that Headrace knows of uses them.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::completion::Watch;
use crate::error::CudaError;
use crate::event::Event;
use crate::open::OpenDevice;
use crate::stream::{Core, Stream};

/// Bytes in a device's memory. Clones are the same bytes, which are freed with the last one.
#[derive(Clone)]
pub struct DeviceBuffer {
    inner: Arc<Inner>,
}

struct Inner {
    /// The stream in whose order and from whose budget it was allocated.
    core: Arc<Core>,
    address: u64,
    bytes: usize,
    uses: Mutex<Uses>,
}

#[derive(Default)]
struct Uses {
    write: Option<Event>,
    /// Since the last write, the last one of each stream.
    reads: Vec<Event>,
}

/// What is about to be done with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl DeviceBuffer {
    /// Allocates on a stream. No event says yet when it is there.
    pub(crate) fn allocate(core: &Arc<Core>, bytes: usize) -> Result<Self, CudaError> {
        core.runtime.device.check()?;
        core.budget.lock().admit(bytes as u64)?;
        let pool = core.runtime.memory_pool;
        let allocated = core.runtime.call(|device| device.allocate(bytes, core.raw, pool));
        let address = allocated.inspect_err(|_| core.budget.lock().refuse(bytes as u64))?;
        let inner = Inner { core: Arc::clone(core), address, bytes, uses: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where it lies in the device's memory.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.inner.address
    }

    /// Its length in bytes, at least 1.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.inner.bytes
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &OpenDevice {
        &self.inner.core.runtime.device
    }

    /// The id of the stream that it was allocated on, 0 for the default stream and external ones.
    #[must_use]
    pub fn stream_id(&self) -> u32 {
        self.inner.core.id
    }

    /// The last write that Headrace knows of: whoever reads the memory on a stream of its own has that stream
    /// wait for this event.
    #[must_use]
    pub fn ready(&self) -> Option<Event> {
        self.inner.uses.lock().write.clone()
    }

    /// Has a stream wait until what other streams do with the buffer has ended, before other code uses it
    /// there. Follow it with [`record_use`](Self::record_use).
    ///
    /// # Errors
    /// The stream's lease has ended, it is another device's, or as for [`Event::query`].
    pub fn wait_on(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.enter(Some(self.device()), |core| self.inner.uses.lock().wait_for(core, Access::Write))
    }

    /// Remembers what other code has queued on a stream up to now as uses of this buffer, so that it is not
    /// freed before.
    ///
    /// # Errors
    /// As for [`wait_on`](Self::wait_on).
    pub fn record_use(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.enter(Some(self.device()), |core| {
            // As a read: what else was read or written stays remembered.
            let mut uses = self.inner.uses.lock();
            uses.remember(Event::record(&core.runtime, core.raw, false)?, Access::Read);
            Ok(())
        })
    }

    pub(crate) fn check_range(&self, offset: usize, bytes: usize) -> Result<u64, CudaError> {
        let len = self.inner.bytes;
        match offset.checked_add(bytes) {
            Some(end) if end <= len => Ok(self.inner.address + offset as u64),
            _ => Err(CudaError::OutOfBounds { offset, bytes, len }),
        }
    }

    /// Queues something on a stream that uses the buffer, behind what others do with it; the event that marks
    /// its end.
    ///
    /// The lock is held throughout, so that no use gets between looking at the others and being remembered.
    /// No callback takes it.
    pub(crate) fn using(
        &self,
        core: &Arc<Core>,
        access: Access,
        queue: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Event, Used> {
        let mut uses = self.inner.uses.lock();
        uses.wait_for(core, access).map_err(Used::NotQueued)?;
        queue().map_err(Used::NotQueued)?;
        let event = Event::record(&core.runtime, core.raw, false).map_err(Used::Unmarked)?;
        uses.remember(event.clone(), access);
        Ok(event)
    }
}

/// How a use failed.
#[derive(Debug)]
pub(crate) enum Used {
    /// Nothing was queued.
    NotQueued(CudaError),
    /// It was queued, and nothing tells when it ends.
    Unmarked(CudaError),
}

impl Used {
    pub(crate) fn into_error(self) -> CudaError {
        let (Self::NotQueued(error) | Self::Unmarked(error)) = self;
        error
    }
}

impl Uses {
    fn wait_for(&self, core: &Core, access: Access) -> Result<(), CudaError> {
        let reads = if access == Access::Write { self.reads.as_slice() } else { &[] };
        for event in self.write.iter().chain(reads).filter(|event| event.raw_stream() != core.raw) {
            core.runtime.call(|device| device.wait_event(core.raw, event.raw()))?;
        }
        Ok(())
    }

    /// A write was ordered behind everything before it, and stands for it from now on.
    fn remember(&mut self, event: Event, access: Access) {
        match access {
            Access::Write => {
                self.reads.clear();
                self.write = Some(event);
            }
            Access::Read => {
                self.reads.retain(|it| it.raw_stream() != event.raw_stream());
                self.reads.push(event);
            }
        }
    }
}

impl Inner {
    /// Queues the free behind every use, and says when it was.
    fn free(&self) -> Result<Event, CudaError> {
        let (core, runtime) = (&self.core, &self.core.runtime);
        self.uses.lock().wait_for(core, Access::Write)?;
        if runtime.memory_pool.is_some() {
            free_now(core, self.address)?;
        }
        Event::record(runtime, core.raw, false)
    }
}

#[allow(unsafe_code, reason = "gives memory back")]
fn free_now(core: &Core, address: u64) -> Result<(), CudaError> {
    let pooled = core.runtime.memory_pool.is_some();
    // SAFETY: called once for each buffer, by its drop. With a pool, uses on other streams are ordered
    // before; without one, the event behind them was reached.
    core.runtime.call(|device| unsafe { device.free(address, core.raw, pooled) })
}

impl Drop for Inner {
    fn drop(&mut self) {
        let core = &self.core;
        if core.runtime.device.leaks() {
            return;
        }
        let bytes = self.bytes as u64;
        core.budget.lock().free(bytes);
        // What cannot be freed stays counted: it stays allocated.
        let Ok(event) = self.free() else { return };
        let (core, address) = (Arc::clone(core), self.address);
        let runtime = Arc::clone(&core.runtime);
        let after = move |result: &Result<(), CudaError>| {
            if result.is_err() || (core.runtime.memory_pool.is_none() && free_now(&core, address).is_err()) {
                return;
            }
            core.budget.lock().reap(bytes);
        };
        runtime.reactor.watch(Watch { event, ticket: None, after: Some(Box::new(after)) });
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceBuffer")
            .field("bytes", &self.inner.bytes)
            .field("stream", &self.inner.core.id)
            .finish_non_exhaustive()
    }
}
