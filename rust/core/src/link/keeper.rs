//! What a link needs done while nobody calls it, on one tokio task per link: liveness, deadlines, writing on
//! after the socket was full, and reading when the thread that should read is busy.
//!
//! The tick is 20 ms while the link is in use: a worker whose Python is busy answers PING and KILL within
//! that, and a deadline is kept to that; an idle link ticks every 100 ms, an idle CPU notices neither.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;

use super::socket::Watch;
use super::{Link, ReadOutcome};
use crate::clock::now_ms;

const TICK: Duration = Duration::from_millis(20);
const TICK_IDLE: Duration = Duration::from_millis(100);
/// A link counts as in use for this long after it last heard something.
const IN_USE_MS: u64 = 1_000;
/// What the keeper reads at once on behalf of a busy thread.
const SCRATCH_BYTES: usize = 64 * 1024;

pub(super) async fn keep(link: Arc<Link>) {
    let mut closed = link.closed();
    let mut guard = Guard::default();
    let mut watch: Option<Watch> = None;
    loop {
        let idle = now_ms().saturating_sub(link.last_heard_ms()) > IN_USE_MS && !link.has_streams();
        tokio::select! {
            biased;
            () = closed.wait() => return,
            () = link.keeper.notified() => link.flush(),
            () = until_writable(watch.as_ref()) => {
                if let Some(watch) = &watch {
                    watch.attempt(Interest::WRITABLE, || {
                        link.flush();
                        !link.is_blocked()
                    });
                }
            }
            () = tokio::time::sleep(if idle { TICK_IDLE } else { TICK }) => {
                guard.tick(&link);
                link.check_liveness();
                link.check_times();
            }
        }
        match (link.is_blocked(), &watch) {
            (true, None) => match link.socket.watch() {
                Ok(new) => watch = Some(new),
                Err(error) => return link.close(&format!("the socket cannot be watched: {error}")),
            },
            (false, Some(_)) => watch = None,
            _ => {}
        }
    }
}

async fn until_writable(watch: Option<&Watch>) {
    match watch {
        // An error shows at the next write.
        Some(watch) => drop(watch.writable().await),
        None => std::future::pending().await,
    }
}

/// Notices that the thread which should read and flush has not done so since the last tick.
#[derive(Default)]
struct Guard {
    reads_seen: u64,
    scratch: Vec<u8>,
}

impl Guard {
    fn tick(&mut self, link: &Arc<Link>) {
        if !link.driver_may_be_busy() {
            return;
        }
        let reads = link.reads();
        if reads == self.reads_seen {
            self.scratch.resize(SCRATCH_BYTES, 0);
            while link.on_readable(&mut self.scratch) == ReadOutcome::More {}
            link.flush();
        }
        self.reads_seen = link.reads();
        if self.reads_seen == reads {
            // Nothing waited: an idle link holds no memory for it.
            self.scratch = Vec::new();
        }
    }
}
