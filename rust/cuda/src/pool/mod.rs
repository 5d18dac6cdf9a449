//! The pool: who may use which stream, and from when on.
//!
//! [`queue`] decides, as pure logic: who gets which stream, who waits, what happens when one comes back or
//! cannot be created. [`shared`] is the lock around it and does what it says with the driver, outside of the
//! lock, [`closing`] its end. [`lease`] is what callers hold, [`waiter`] what they hold while they wait,
//! [`keeper`] the thread that knows the time.
//!
//! ```text
//!                create               grant                     drop
//!   (no stream) -------> [creating] -------> [leased] ----------------------> [draining]
//!        ^                   |                ^  ^  |  nothing queued              |
//!        +---- fails --------+          grant |  |  +--------------+               | done
//!        |                                    |  |  next waiter    v               v
//!        |                                 [idle] <-------------------------- whoever waits,
//!        |                                                                     else idle
//!        +---- the driver refuses to say when it is done: the stream is given up ---+
//! ```

mod closing;
mod config;
mod keeper;
mod lease;
mod queue;
mod shared;
mod stats;
mod waiter;

use std::sync::Arc;
use std::time::Duration;

pub use self::config::{PoolSettings, Priority};
pub use self::lease::{Lease, LeaseFuture};
#[cfg(feature = "headrace")]
pub(crate) use self::shared::Shared;
#[cfg(not(feature = "headrace"))]
use self::shared::Shared;
pub use self::stats::{PoolStats, WAIT_BOUNDS_US, WaitTimes};
use crate::completion::Completion;
use crate::error::CudaError;
use crate::open::OpenDevice;
use crate::stream::{Core, Stream, StreamKind};

/// Streams of one device, each lent to one user at a time. Clones are the same pool. When the last one is
/// dropped, whoever waits is refused, and leased streams go on until their leases end.
#[derive(Clone, Debug)]
pub struct StreamPool {
    owner: Arc<Owner>,
}

/// Closes the pool with its last clone, which leases and threads are not.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.abandon_all();
    }
}

impl StreamPool {
    /// A pool on a device. Streams are created when they are first needed, `warm_streams` of them now.
    ///
    /// # Errors
    /// A setting is out of bounds, the device is lost, or a stream or memory pool cannot be created.
    pub fn new(device: OpenDevice, settings: PoolSettings) -> Result<Self, CudaError> {
        let shared = Shared::new(device, settings)?;
        #[cfg(feature = "headrace")]
        crate::metrics::watch(&shared);
        Ok(Self { owner: Arc::new(Owner { shared }) })
    }

    /// Borrows a stream if one is free and nobody waits for one. `key` is as for [`lease`](Self::lease).
    ///
    /// # Errors
    /// [`CudaError::Capacity`] if none is free, [`CudaError::ForkFailed`] if one cannot be created,
    /// [`CudaError::PoolClosed`], [`CudaError::ContextPoisoned`], [`CudaError::Forked`].
    pub fn try_lease(&self, key: Option<u64>) -> Result<Lease, CudaError> {
        self.owner.shared.try_lease(key)
    }

    /// As [`try_lease`](Self::try_lease), for whoever waits otherwise: that none is free is no error, and is not
    /// counted as one.
    ///
    /// # Errors
    /// As for [`try_lease`](Self::try_lease), but [`CudaError::Capacity`].
    pub fn take_free(&self, key: Option<u64>) -> Result<Option<Lease>, CudaError> {
        self.owner.shared.take_free(key)
    }

    /// Borrows a stream, first come, first served. A free stream that was last lent with the same `key` is
    /// preferred, else the one that was used last. The place in the line is taken when the future is first
    /// polled, and given up when it is dropped; a stream that was granted meanwhile goes to the next.
    ///
    /// The future fails as [`try_lease`](Self::try_lease), except that it waits where nothing is free: at
    /// most `timeout`, then it fails with [`CudaError::LeaseTimeout`]; without one, for as long as it takes.
    pub fn lease(&self, key: Option<u64>, timeout: Option<Duration>) -> LeaseFuture {
        LeaseFuture::new(Arc::clone(&self.owner.shared), key, timeout)
    }

    /// The stream of that number: 0 is the device's default stream, which always works and is never lent. A
    /// stream of the pool works as long as the lease that has it now.
    #[must_use]
    pub fn resolve(&self, id: u32) -> Option<Stream> {
        self.owner.shared.resolve(id)
    }

    /// A stream that somebody else made and keeps alive, by its driver's handle. The pool does not own it and
    /// lends it to nobody.
    #[must_use]
    pub fn external(&self, handle: usize) -> Stream {
        let shared = &self.owner.shared;
        let raw = crate::device::RawStream(handle);
        let kind = if handle == 0 { StreamKind::Default } else { StreamKind::External };
        Stream { core: Core::new(&shared.runtime, 0, raw, kind, 0), lease: None }
    }

    /// Refuses new leases and everybody who waits. The completion says when all streams have come back and
    /// are done. It fails when the device is lost, and with [`CudaError::Thread`] where no thread can be
    /// started that looks after streams which have not come back; then close again.
    pub fn close(&self) -> Completion {
        self.owner.shared.close()
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.owner.shared.is_closed()
    }

    /// Whether its device can be used.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.device().is_healthy()
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &OpenDevice {
        &self.owner.shared.runtime.device
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &PoolSettings {
        &self.owner.shared.settings
    }

    /// How it does.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.owner.shared.stats()
    }
}
