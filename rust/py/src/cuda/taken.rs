//! Memory that another library has taken over: freed behind what the library has queued when it lets go of it.
//!
//! It names its stream by a handle, and may have destroyed that stream by then, which the driver must not be
//! asked about any more. Streams of pools are kept as long as somebody may name them, and the default stream is
//! always there. Behind any other, memory is freed when the whole device has come to the end of what it had: a
//! stream that was made not to wait for the default stream is not waited for in any other way.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, LazyLock, Weak};

use headrace_cuda::{CudaError, StreamKind};
use parking_lot::Mutex;

use super::pool::Pool;
use super::release::let_go_slowly;

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

/// What memory is freed behind.
enum Behind {
    /// The consumer sees to its order itself.
    Nothing,
    /// A stream whose handle is good: the default stream, or the one that this pool keeps.
    Stream { handle: usize, _keeper: Option<Arc<Pool>> },
    /// All that the device has: the consumer's stream is not ours to ask about.
    Everything,
}

impl Behind {
    fn of(consumer: Option<usize>) -> Self {
        match consumer {
            None => Self::Nothing,
            Some(LEGACY_DEFAULT) => Self::Stream { handle: LEGACY_DEFAULT, _keeper: None },
            Some(handle) => match POOLS.lock().get(&handle).and_then(Weak::upgrade) {
                Some(keeper) => Self::Stream { handle, _keeper: Some(keeper) },
                None => Self::Everything,
            },
        }
    }
}

/// See the module's text.
pub(super) struct Taken {
    buffer: headrace_cuda::DeviceBuffer,
    pool: Arc<Pool>,
    behind: Behind,
}

impl Taken {
    /// For the consumer's stream, if it uses one.
    pub(super) fn new(buffer: headrace_cuda::DeviceBuffer, pool: Arc<Pool>, consumer: Option<usize>) -> Self {
        Self { buffer, pool, behind: Behind::of(consumer) }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let buffer = &self.buffer;
        match self.behind {
            Behind::Nothing => {}
            Behind::Stream { handle, .. } => {
                let used = self.pool.native().and_then(|pool| buffer.record_use(&pool.external(handle)));
                keep_unless(buffer, used);
            }
            // Others wait for what is let go of meanwhile, and work that runs may wait for them.
            Behind::Everything => let_go_slowly(Unfinished(buffer.clone())),
        }
    }
}

/// Memory that is freed when the device has ended what it has now.
struct Unfinished(headrace_cuda::DeviceBuffer);

impl Drop for Unfinished {
    fn drop(&mut self) {
        keep_unless(&self.0, self.0.device().synchronize());
    }
}

/// Where nothing says when memory is used no more, nobody else gets it. A lost device frees nothing anyway.
fn keep_unless(buffer: &headrace_cuda::DeviceBuffer, ended: Result<(), CudaError>) {
    if ended.is_err() && buffer.device().is_healthy() {
        mem::forget(buffer.clone());
    }
}
