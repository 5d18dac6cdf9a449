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

    /// Whether somebody other than tokio reads, who may be busy: then the link's keeper looks after it.
    fn may_be_busy(&self) -> bool;
}

/// Bytes taken from the socket by one read: a whole fill of the other side's buffer.
pub const SCRATCH_BYTES: usize = 256 * 1024;

thread_local! {
    /// What a thread of the runtime reads into: links that are idle hold no memory for it.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
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

    fn may_be_busy(&self) -> bool {
        false
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
            let mut scratch = SCRATCH.take();
            scratch.resize(SCRATCH_BYTES, 0);
            outcome = link.on_readable(&mut scratch);
            SCRATCH.set(scratch);
            outcome != ReadOutcome::Drained
        });
        match outcome {
            ReadOutcome::Drained => {}
            ReadOutcome::More => tokio::task::yield_now().await,
            ReadOutcome::Closed => return,
        }
    }
}
