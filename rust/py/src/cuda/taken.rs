//! Memory that another library has taken over: freed behind what the library has queued when it lets go of it.
//!
//! It names its stream by a handle, and may have destroyed that stream by then, which the driver must not be
//! asked about any more. Streams of pools are kept as long as somebody may name them. For all others the default
//! stream stands in, which waits for every stream that was not made to do without it.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, LazyLock, Weak};

use headrace_cuda::StreamKind;
use parking_lot::Mutex;

use super::pool::Pool;

/// The legacy default stream, as interchange protocols and the driver number it.
pub(super) const LEGACY_DEFAULT: usize = 1;

/// Pools' streams whose handles were given out.
#[derive(Default)]
pub(super) struct Shown(Mutex<HashMap<usize, headrace_cuda::Stream>>);

/// The pools by these handles: who takes memory of one may name a stream of another.
static POOLS: LazyLock<Mutex<HashMap<usize, Weak<Pool>>>> = LazyLock::new(Mutex::default);

/// Gives the handle of a stream out.
pub(super) fn show(pool: &Arc<Pool>, stream: &headrace_cuda::Stream) -> usize {
    let handle = stream.handle();
    if stream.kind() == StreamKind::Pooled
        && !pool.is_simulated()
        && let Some(shown) = pool.shown()
        && shown.0.lock().insert(handle, stream.clone()).is_none()
    {
        let mut pools = POOLS.lock();
        pools.retain(|_, pool| pool.strong_count() > 0);
        pools.insert(handle, Arc::downgrade(pool));
    }
    handle
}

/// See the module's text.
pub(super) struct Taken {
    buffer: headrace_cuda::DeviceBuffer,
    pool: Arc<Pool>,
    /// Behind whose work it is freed.
    behind: Option<usize>,
    /// Keeps that stream.
    _keeper: Option<Arc<Pool>>,
}

impl Taken {
    /// For the consumer's stream, if it uses one.
    pub(super) fn new(buffer: headrace_cuda::DeviceBuffer, pool: Arc<Pool>, consumer: Option<usize>) -> Self {
        let keeper = consumer.and_then(|handle| POOLS.lock().get(&handle).and_then(Weak::upgrade));
        let behind = if keeper.is_some() { consumer } else { consumer.map(|_| LEGACY_DEFAULT) };
        Self { buffer, pool, behind, _keeper: keeper }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some(handle) = self.behind else { return };
        let recorded = self.pool.native().and_then(|pool| self.buffer.record_use(&pool.external(handle)));
        if recorded.is_err() && self.buffer.device().is_healthy() {
            // Nothing would say when it is used no more, so nobody else gets it.
            mem::forget(self.buffer.clone());
        }
    }
}
