//! Who watches a link's socket and when gathered bytes are written. The link itself neither spawns nor
//! waits: a driver calls [`Link::on_readable`] and [`Link::flush`]. A Rust program uses [`TokioDriver`]; the
//! Python binding brings one that reads and writes on the event loop's own thread.

use std::cell::Cell;
use std::fmt::Debug;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::runtime::Handle;

use super::{Link, ReadOutcome};

/// Watches sockets for links.
pub trait Driver: Send + Sync + Debug {
    /// Begins to call [`Link::on_readable`] whenever the socket has bytes, until that returns
    /// [`ReadOutcome::Closed`]. Called on a tokio thread.
    fn attach(&self, link: Arc<Link>);

    /// Calls [`Link::flush`] once, soon: what is pushed until then shares the write. Called on any thread,
    /// at most once until that flush.
    fn flush_soon(&self, link: &Arc<Link>);

    /// How many turns the thread that reads and flushes has had, if that is one that may be busy with other
    /// things: when the number stands still, the link's ticker reads and flushes instead. `None` when tokio
    /// reads.
    fn turns(&self) -> Option<u64>;
}

/// Bytes taken from the socket by one read: a whole fill of the other side's buffer.
pub const SCRATCH_BYTES: usize = 256 * 1024;

thread_local! {
    /// What a thread of the runtime reads into: links that are idle hold no memory for it.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends this thread's memory for reading.
pub(super) fn with_scratch<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut scratch = SCRATCH.take();
    if scratch.is_empty() {
        scratch = vec![0; SCRATCH_BYTES];
    }
    let result = read(&mut scratch);
    SCRATCH.set(scratch);
    result
}

/// Reads on a tokio task for each link.
#[derive(Clone, Debug)]
pub struct TokioDriver {
    runtime: Handle,
}

impl TokioDriver {
    /// A driver that spawns on `runtime`.
    #[must_use]
    pub const fn new(runtime: Handle) -> Self {
        Self { runtime }
    }
}

impl Driver for TokioDriver {
    fn attach(&self, link: Arc<Link>) {
        self.runtime.spawn(read_until_closed(link));
    }

    fn flush_soon(&self, link: &Arc<Link>) {
        link.ask_keeper_to_flush();
    }

    fn turns(&self) -> Option<u64> {
        None
    }
}

async fn read_until_closed(link: Arc<Link>) {
    let watch = match link.socket.watch() {
        Ok(watch) => watch,
        Err(error) => return link.close(&format!("the socket cannot be watched: {error}")),
    };
    let mut closed = link.closed();
    loop {
        let readable = tokio::select! {
            readable = watch.readable() => readable,
            () = closed.wait() => return,
        };
        if let Err(error) = readable {
            return link.close(&format!("the socket cannot be watched: {error}"));
        }
        let mut outcome = ReadOutcome::Drained;
        watch.attempt(Interest::READABLE, || {
            outcome = with_scratch(|scratch| link.on_readable(scratch));
            outcome != ReadOutcome::Drained
        });
        match outcome {
            ReadOutcome::Drained => {}
            ReadOutcome::More => tokio::task::yield_now().await,
            ReadOutcome::Closed => return,
        }
    }
}
