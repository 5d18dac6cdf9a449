//! What all streams of one pool share: the device, the reactor, pinned memory, the device's memory pool, and
//! the counters. It outlives the pool for as long as a stream, buffer or event of it is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::completion::Reactor;
use crate::device::{Device, RawPool};
use crate::error::{CudaError, Fault};
use crate::memory::Staging;
use crate::open::{OnPoison, OpenDevice};

pub(crate) struct Runtime {
    pub(crate) device: OpenDevice,
    pub(crate) reactor: Reactor,
    pub(crate) staging: Arc<Staging>,
    pub(crate) memory_pool: Option<RawPool>,
    /// Bytes of each stream that may be outstanding.
    pub(crate) budget_bytes: u64,
    pub(crate) counters: Counters,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes_to_device: AtomicU64,
    pub(crate) bytes_to_host: AtomicU64,
    pub(crate) errors: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

impl Runtime {
    /// Calls the back end, and counts what goes wrong.
    pub(crate) fn call<T>(&self, call: impl FnOnce(&dyn Device) -> Result<T, Fault>) -> Result<T, CudaError> {
        self.device.call(call).inspect_err(|_| Counters::add(&self.counters.errors, 1))
    }
}

impl OnPoison for Runtime {
    fn poisoned(&self, error: &CudaError) {
        self.reactor.fail_all(error);
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(pool) = self.memory_pool {
            self.device.release(|device| device.destroy_pool(pool));
        }
    }
}
