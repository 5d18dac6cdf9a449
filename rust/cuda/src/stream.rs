//! A stream and what can be done with it: record, wait, allocate, copy, await. One that is leased works only
//! as long as its lease; the default stream and external ones always.
//!
//! Nothing here blocks but [`Stream::synchronize`]. What is queued on a stream runs in order; copies go
//! through pinned memory and run beside everything else.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use parking_lot::{Mutex, RwLock};

use crate::completion::{Completion, Ticket, Watch};
use crate::device::{Launch, RawStream};
use crate::error::CudaError;
use crate::event::Event;
use crate::kernel::Kernel;
use crate::memory::{Access, Budget, DeviceBuffer, PinnedBytes, Used};
use crate::open::OpenDevice;
use crate::runtime::{Counters, Runtime};

/// Whose a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// The device's default stream, which is never leased.
    Default,
    /// A pool's, lent by lease.
    Pooled,
    /// Somebody else's, who keeps it alive.
    External,
}

/// A stream of the pool, for everybody who has to do with it.
pub(crate) struct Core {
    pub(crate) runtime: Arc<Runtime>,
    /// From 1; 0 for the default stream and external ones.
    pub(crate) id: u32,
    pub(crate) raw: RawStream,
    pub(crate) kind: StreamKind,
    pub(crate) priority: i32,
    pub(crate) budget: Mutex<Budget>,
    /// The lease that may use it, none while nobody does. Read-locked while something is queued, so that a
    /// lease does not end in between. No callback takes it.
    pub(crate) lease: RwLock<Option<u64>>,
    /// Whether this lease has queued anything.
    pub(crate) touched: AtomicBool,
    /// Whether the handle was ever handed out: then others may queue on it unseen.
    pub(crate) exposed: AtomicBool,
}

impl Core {
    pub(crate) fn new(
        runtime: &Arc<Runtime>,
        id: u32,
        raw: RawStream,
        kind: StreamKind,
        priority: i32,
    ) -> Arc<Self> {
        Arc::new(Self {
            runtime: Arc::clone(runtime),
            id,
            raw,
            kind,
            priority,
            budget: Mutex::new(Budget::new(runtime.budget_bytes)),
            lease: RwLock::new(None),
            touched: AtomicBool::new(false),
            exposed: AtomicBool::new(kind != StreamKind::Pooled),
        })
    }

    /// Whether anything may be in flight on it.
    pub(crate) fn may_be_busy(&self) -> bool {
        self.touched.load(Ordering::Acquire) || self.exposed.load(Ordering::Acquire)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if self.kind == StreamKind::Pooled {
            let exposed = self.exposed.load(Ordering::Acquire);
            self.runtime.device.give_stream(self.raw, self.priority, exposed);
        }
    }
}

/// A stream. Clones are the same stream, under the same lease.
#[derive(Clone)]
pub struct Stream {
    pub(crate) core: Arc<Core>,
    /// The lease that it was lent by, none for streams that are not lent.
    pub(crate) lease: Option<u64>,
}

impl Stream {
    /// Its number in the pool, from 1; 0 for the default stream and external ones.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.core.id
    }

    /// Whose it is.
    #[must_use]
    pub fn kind(&self) -> StreamKind {
        self.core.kind
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &OpenDevice {
        &self.core.runtime.device
    }

    /// Its priority, as the driver counts: the smaller, the more urgent.
    #[must_use]
    pub fn priority(&self) -> i32 {
        self.core.priority
    }

    /// The driver's handle, a `CUstream`, for other libraries; 0 for the default stream. From now on the pool
    /// asks the driver whether the stream is done before it lends it again.
    #[must_use]
    pub fn handle(&self) -> usize {
        self.core.exposed.store(true, Ordering::Release);
        self.core.raw.0
    }

    /// Whether it may still be used: its lease has not ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.device().is_foreign() && (self.lease.is_none() || *self.core.lease.read() == self.lease)
    }

    /// Does something with the stream under its lease, which does not end before that is done. A buffer or
    /// event that takes part must be of the same device.
    pub(crate) fn enter<T>(
        &self,
        device: Option<&OpenDevice>,
        call: impl FnOnce(&Arc<Core>) -> Result<T, CudaError>,
    ) -> Result<T, CudaError> {
        self.device().check()?;
        if device.is_some_and(|device| !device.is(self.device())) {
            return Err(CudaError::OtherDevice);
        }
        let lease = self.core.lease.read();
        if self.lease.is_some() && *lease != self.lease {
            return Err(CudaError::LeaseEnded);
        }
        self.core.touched.store(true, Ordering::Release);
        call(&self.core)
    }

    /// Records the point that the stream has come to when everything queued so far is done.
    ///
    /// # Errors
    /// The lease has ended, the device is lost, or the driver refuses.
    pub fn record_event(&self) -> Result<Event, CudaError> {
        self.enter(None, |core| Event::record(&core.runtime, core.raw, false))
    }

    /// As [`record_event`](Self::record_event), for [`Event::elapsed_ms`].
    ///
    /// # Errors
    /// As for [`record_event`](Self::record_event).
    pub fn record_timed_event(&self) -> Result<Event, CudaError> {
        self.enter(None, |core| Event::record(&core.runtime, core.raw, true))
    }

    /// What is queued from now on runs after the event.
    ///
    /// # Errors
    /// As for [`record_event`](Self::record_event), and the event is another device's.
    pub fn wait_event(&self, event: &Event) -> Result<(), CudaError> {
        self.enter(Some(event.device()), |core| {
            core.runtime.call(|device| device.wait_event(core.raw, event.raw()))
        })
    }

    /// Whether everything queued so far is done.
    ///
    /// # Errors
    /// As for [`record_event`](Self::record_event).
    pub fn query(&self) -> Result<bool, CudaError> {
        self.enter(None, |core| core.runtime.call(|device| device.query_stream(core.raw)))
    }

    /// Blocks until everything queued so far is done.
    ///
    /// # Errors
    /// As for [`record_event`](Self::record_event).
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // Not under the lease's lock, which would have the lease wait with it: an event stands for the
        // stream.
        if self.query()? { Ok(()) } else { self.record_event()?.synchronize() }
    }

    /// The news that everything queued so far is done. If it is already, nothing is recorded and no thread is
    /// involved.
    pub fn completion(&self) -> Completion {
        let recorded = self.enter(None, |core| {
            if core.runtime.call(|device| device.query_stream(core.raw))? {
                return Ok(None);
            }
            Event::record(&core.runtime, core.raw, false).map(Some)
        });
        match recorded {
            Ok(Some(event)) => self.watch(event, || ()),
            Ok(None) => Completion::ready(Ok(())),
            Err(error) => Completion::ready(Err(error)),
        }
    }

    /// The news of an event, until which `keep` is not dropped. If it is not known when it is reached, `keep` is
    /// leaked: work may still use it.
    fn watch<K: Send + 'static>(&self, event: Event, keep: K) -> Completion {
        let ticket = Arc::new(Ticket::new());
        let after = Some(Box::new(move |result: &Result<(), CudaError>| match result {
            Ok(()) => drop(keep),
            Err(_) => mem::forget(keep),
        }) as Box<_>);
        self.core.runtime.reactor.watch(Watch { event, ticket: Some(Arc::clone(&ticket)), after });
        Completion::new(ticket)
    }

    /// Allocates device memory in the stream's order, from its budget. What is in it cannot be said.
    ///
    /// # Errors
    /// [`CudaError::OutOfBudget`], [`CudaError::ZeroBytes`], the device has no more memory, or as for
    /// [`record_event`](Self::record_event).
    pub fn allocate(&self, bytes: usize) -> Result<DeviceBuffer, CudaError> {
        self.enter(None, |core| {
            let buffer = DeviceBuffer::allocate(core, bytes)?;
            // The event by which other streams know that it is there.
            buffer.using(core, Access::Write, || Ok(())).map_err(Used::into_error)?;
            Ok(buffer)
        })
    }

    /// Pinned memory to fill for [`upload`](Self::upload). Its content cannot be said.
    ///
    /// # Errors
    /// The driver has none, or as for [`record_event`](Self::record_event).
    pub fn pinned(&self, bytes: usize) -> Result<PinnedBytes, CudaError> {
        let errors = &self.core.runtime.counters.errors;
        self.core.runtime.staging.take(bytes).inspect_err(|_| Counters::add(errors, 1))
    }

    /// Copies bytes to a new buffer. They are copied to pinned memory before this returns, so that the caller
    /// may change them; for many bytes, fill [`pinned`](Self::pinned) memory on another thread and
    /// [`upload`](Self::upload) it.
    ///
    /// # Errors
    /// As for [`allocate`](Self::allocate) and [`pinned`](Self::pinned).
    pub fn copy_to_device(&self, bytes: &[u8]) -> Result<(DeviceBuffer, Completion), CudaError> {
        let mut pinned = self.pinned(bytes.len())?;
        pinned.copy_from_slice(bytes);
        self.upload(pinned)
    }

    /// Copies pinned memory to a new buffer. The completion says when the memory was read.
    ///
    /// # Errors
    /// As for [`allocate`](Self::allocate).
    pub fn upload(&self, bytes: PinnedBytes) -> Result<(DeviceBuffer, Completion), CudaError> {
        let buffer = self.enter(None, |core| DeviceBuffer::allocate(core, bytes.len()))?;
        let completion = self.upload_to(&buffer, 0, bytes)?;
        Ok((buffer, completion))
    }

    /// Copies pinned memory into a buffer, `offset` bytes from its beginning.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`], buffer or memory are another device's, or as for
    /// [`record_event`](Self::record_event).
    pub fn upload_to(
        &self,
        to: &DeviceBuffer,
        offset: usize,
        bytes: PinnedBytes,
    ) -> Result<Completion, CudaError> {
        let len = bytes.len();
        let event = self.transfer(to, offset, Access::Write, &bytes, |core, address, bytes| {
            copy_to_device(core, address, bytes)
        });
        let event = match event {
            Ok(event) => event,
            Err(Used::NotQueued(error)) => return Err(error),
            Err(Used::Unmarked(error)) => {
                leak(to, bytes);
                return Err(error);
            }
        };
        Counters::add(&self.core.runtime.counters.bytes_to_device, len as u64);
        Ok(self.watch(event, bytes))
    }

    /// Copies `bytes` bytes of a buffer, from `offset` on, to pinned memory of the host.
    ///
    /// # Errors
    /// As for [`upload_to`](Self::upload_to) and [`pinned`](Self::pinned).
    pub fn download(&self, from: &DeviceBuffer, offset: usize, bytes: usize) -> Result<Download, CudaError> {
        from.check_range(offset, bytes)?;
        let pinned = self.pinned(bytes)?;
        let event = self.transfer(from, offset, Access::Read, &pinned, |core, address, pinned| {
            copy_to_host(core, address, pinned)
        });
        let event = match event {
            Ok(event) => event,
            Err(Used::NotQueued(error)) => return Err(error),
            Err(Used::Unmarked(error)) => {
                leak(from, pinned);
                return Err(error);
            }
        };
        Counters::add(&self.core.runtime.counters.bytes_to_host, bytes as u64);
        let bytes = Arc::new(Mutex::new(Some(pinned)));
        // The copy has a share until its event, whether or not anybody awaits it.
        let completion = self.watch(event, Arc::clone(&bytes));
        Ok(Download { completion, bytes })
    }

    fn transfer(
        &self,
        buffer: &DeviceBuffer,
        offset: usize,
        access: Access,
        pinned: &PinnedBytes,
        copy: impl FnOnce(&Core, u64, &PinnedBytes) -> Result<(), CudaError>,
    ) -> Result<Event, Used> {
        if !pinned.belongs_to(self.device()) {
            return Err(Used::NotQueued(CudaError::OtherDevice));
        }
        let address = buffer.check_range(offset, pinned.len()).map_err(Used::NotQueued)?;
        // The inner result says how far it came.
        let used = self.enter(Some(buffer.device()), |core| {
            Ok(buffer.using(core, access, || copy(core, address, pinned)))
        });
        used.map_err(Used::NotQueued)?
    }

    /// Queues a kernel.
    ///
    /// # Errors
    /// The kernel is another device's, or as for [`record_event`](Self::record_event).
    ///
    /// # Safety
    /// The kernel takes exactly these arguments, each of eight bytes, and touches no memory that is not there
    /// or is used by others.
    #[allow(unsafe_code, reason = "passes a promise on")]
    pub unsafe fn launch(&self, kernel: &Kernel, shape: Launch, arguments: &[u64]) -> Result<(), CudaError> {
        self.enter(Some(kernel.device()), |core| {
            // SAFETY: the caller promises what the kernel takes and touches.
            core.runtime.call(|device| unsafe { device.launch(kernel.raw(), shape, arguments, core.raw) })
        })
    }
}

/// Keeps both from everybody for good: a copy between them was queued, and nothing tells when it ends.
fn leak(buffer: &DeviceBuffer, pinned: PinnedBytes) {
    mem::forget(buffer.clone());
    pinned.leak();
}

#[allow(unsafe_code, reason = "a copy between raw addresses")]
fn copy_to_device(core: &Core, to: u64, from: &PinnedBytes) -> Result<(), CudaError> {
    // SAFETY: the range lies in a buffer, whose free waits for the event that follows; the pinned memory is
    // owned by that event's watch, or leaked if there is none.
    core.runtime.call(|device| unsafe { device.copy_to_device(to, from.as_ptr(), from.len(), core.raw) })
}

#[allow(unsafe_code, reason = "a copy between raw addresses")]
fn copy_to_host(core: &Core, from: u64, to: &PinnedBytes) -> Result<(), CudaError> {
    let address = to.address() as *mut u8;
    // SAFETY: as in `copy_to_device`; and nobody has a slice of the memory until the copy's watch lets it go.
    core.runtime.call(|device| unsafe { device.copy_to_host(address, from, to.len(), core.raw) })
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.core.id)
            .field("kind", &self.core.kind)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// Bytes on their way to the host. Awaiting it gives them; dropping it gives up the bytes, not the copy.
#[must_use = "the bytes are lost unless this is awaited"]
pub struct Download {
    completion: Completion,
    bytes: Arc<Mutex<Option<PinnedBytes>>>,
}

impl Download {
    /// The news that they are there; then [`take`](Self::take) gives them.
    pub const fn completion(&self) -> &Completion {
        &self.completion
    }

    /// The bytes, once: when they are there, and not before.
    ///
    /// # Errors
    /// The copy failed.
    pub fn take(&self) -> Result<Option<PinnedBytes>, CudaError> {
        match self.completion.result() {
            Some(Ok(())) => Ok(self.bytes.lock().take()),
            Some(Err(error)) => Err(error),
            None => Ok(None),
        }
    }
}

impl Future for Download {
    type Output = Result<PinnedBytes, CudaError>;

    /// # Panics
    /// Never; polled after it was ready, it stays pending, as it does when [`Download::take`] took the bytes.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(Pin::new(&mut self.completion).poll(context))?;
        let bytes = self.bytes.lock().take();
        bytes.map_or(Poll::Pending, |bytes| Poll::Ready(Ok(bytes)))
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").field("completion", &self.completion).finish_non_exhaustive()
    }
}
