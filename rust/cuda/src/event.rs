//! A point in a stream that was recorded: it can be asked about, awaited, and waited for by other streams.
//!
//! Invariant: the event of the back end is given back for its next use only when the last clone is gone, and
//! whoever waits for it holds one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::completion::{Completion, Ticket, Watch};
use crate::device::{RawEvent, RawStream};
use crate::error::CudaError;
use crate::open::OpenDevice;
use crate::runtime::Runtime;

/// A point in a stream. Clones are the same point.
#[derive(Clone)]
pub struct Event {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Arc<Runtime>,
    raw: RawEvent,
    stream: RawStream,
    timing: bool,
    /// The order in which events were recorded.
    serial: u64,
}

impl Event {
    /// Records the point that a stream has come to now.
    pub(crate) fn record(runtime: &Arc<Runtime>, stream: RawStream, timing: bool) -> Result<Self, CudaError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let raw = runtime.device.take_event(timing)?;
        // Made before it is recorded, so that a failure gives the event back.
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let inner = Inner { runtime: Arc::clone(runtime), raw, stream, timing, serial };
        let event = Self { inner: Arc::new(inner) };
        runtime.call(|device| device.record_event(raw, stream))?;
        Ok(event)
    }

    /// Whether the stream has come to it.
    ///
    /// # Errors
    /// The device is lost, the process was forked, or the driver refuses.
    pub fn query(&self) -> Result<bool, CudaError> {
        self.inner.runtime.call(|device| device.query_event(self.inner.raw))
    }

    /// Blocks until the stream has come to it.
    ///
    /// # Errors
    /// As for [`query`](Self::query).
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.inner.runtime.call(|device| device.synchronize_event(self.inner.raw))
    }

    /// The news that the stream has come to it, which fails when the device is lost.
    pub fn completion(&self) -> Completion {
        match self.query() {
            Ok(true) => return Completion::ready(Ok(())),
            Ok(false) => {}
            Err(error) => return Completion::ready(Err(error)),
        }
        let ticket = Arc::new(Ticket::new());
        let watch = Watch { event: self.clone(), ticket: Some(Arc::clone(&ticket)), after: None };
        self.inner.runtime.reactor.watch(watch);
        Completion::new(ticket)
    }

    /// Milliseconds from this point to a later one. Both must have been recorded with timing and reached.
    ///
    /// # Errors
    /// They were not, or as for [`query`](Self::query).
    pub fn elapsed_ms(&self, later: &Self) -> Result<f32, CudaError> {
        if !self.device().is(later.device()) {
            return Err(CudaError::OtherDevice);
        }
        self.inner.runtime.call(|device| device.elapsed_ms(self.inner.raw, later.inner.raw))
    }

    /// The driver's handle: a `CUevent`. It lives as long as this object.
    #[must_use]
    pub fn handle(&self) -> usize {
        self.inner.raw.0
    }

    /// Whether it was recorded with timing.
    #[must_use]
    pub fn has_timing(&self) -> bool {
        self.inner.timing
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &OpenDevice {
        &self.inner.runtime.device
    }

    pub(crate) fn raw(&self) -> RawEvent {
        self.inner.raw
    }

    pub(crate) fn raw_stream(&self) -> RawStream {
        self.inner.stream
    }

    pub(crate) fn serial(&self) -> u64 {
        self.inner.serial
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.runtime.device.give_event(self.raw, self.timing);
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("serial", &self.serial()).field("timing", &self.inner.timing).finish()
    }
}
