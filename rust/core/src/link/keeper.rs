//! What a link needs done while nobody calls it, on one tokio task per link: liveness, deadlines, writing on
//! after the socket was full, and reading when the thread that should read is busy.
//!
//! The tick is 20 ms while the link is in use: a worker whose Python is busy answers PING and KILL within
//! that, and a deadline is kept to that; an idle link ticks every 100 ms, an idle CPU notices neither. The
//! tick is kept whatever else the task is woken for, so that traffic cannot put deadlines off.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use headrace_wire::body::KillReason;
use tokio::io::Interest;
use tokio::time::{Instant, sleep};

use super::socket::Watch;
use super::{Ending, Link, ReadOutcome};
use crate::clock::{NEVER, duration_ms, now_ms, now_ns};

const TICK: Duration = Duration::from_millis(20);
pub(super) const TICK_IDLE_MS: u64 = 100;
const TICK_IDLE: Duration = Duration::from_millis(TICK_IDLE_MS);
/// A link counts as in use for this long after it last heard something.
const IN_USE_MS: u64 = 1_000;
/// What the keeper reads at once on behalf of a busy thread.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Rounds of reading in one tick: 4 MiB, a link's window. A peer that sends more than that gets its next
/// turn after the keeper's other work.
const ROUNDS_PER_TICK: usize = 16;

pub(super) async fn keep(link: Arc<Link>) {
    let mut closed = link.closed();
    let mut guard = Guard::default();
    let mut watch: Option<Watch> = None;
    let mut tick = pin!(sleep(TICK));
    loop {
        tokio::select! {
            biased;
            () = closed.wait() => return,
            () = &mut tick => {
                link.forgive_own_stall(tick.deadline().elapsed());
                let more = guard.tick(&link);
                link.check_liveness();
                link.check_times();
                let pause = if more { Duration::ZERO } else { link.tick() };
                tick.as_mut().reset(Instant::now() + pause);
            }
            () = link.keeper.notified() => {
                link.flush();
                let soonest = Instant::now() + link.tick();
                if soonest < tick.deadline() {
                    tick.as_mut().reset(soonest);
                }
            }
            () = until_writable(watch.as_ref()) => {
                if let Some(watch) = &watch {
                    watch.attempt(Interest::WRITABLE, || {
                        link.flush();
                        !link.is_blocked()
                    });
                }
                // Waiting for a socket costs no budget; without this, no other branch might get a turn.
                tokio::task::coop::consume_budget().await;
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
    /// True when there is more to read than one tick allows.
    fn tick(&mut self, link: &Arc<Link>) -> bool {
        if !link.driver.may_be_busy() {
            return false;
        }
        let reads = link.reads.load(Ordering::Relaxed);
        let mut more = false;
        if reads == self.reads_seen {
            self.scratch.resize(SCRATCH_BYTES, 0);
            more = (0..ROUNDS_PER_TICK).all(|_| link.on_readable(&mut self.scratch) == ReadOutcome::More);
            link.flush();
        }
        self.reads_seen = link.reads.load(Ordering::Relaxed);
        if self.reads_seen == reads {
            // Nothing waited: an idle link holds no memory for it.
            self.scratch = Vec::new();
        }
        more
    }
}

impl Link {
    pub(super) fn ask_keeper_to_flush(&self) {
        self.keeper.notify_one();
    }

    fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// How long until the next tick.
    fn tick(&self) -> Duration {
        let silent_ms = now_ms().saturating_sub(self.last_heard_ms.load(Ordering::Relaxed));
        if silent_ms > IN_USE_MS && !self.has_streams() { TICK_IDLE } else { TICK }
    }

    /// This process itself stood still (suspended, or starved of CPU): the peer's silence meanwhile says
    /// nothing about the peer.
    fn forgive_own_stall(&self, late: Duration) {
        if late > self.liveness.ping_timeout / 2 {
            self.last_heard_ms.store(now_ms(), Ordering::Relaxed);
        }
    }

    /// Asks a silent peer whether it is there, and gives it up when it does not answer.
    fn check_liveness(self: &Arc<Self>) {
        let interval = duration_ms(Some(self.liveness.ping_interval));
        let timeout = duration_ms(Some(self.liveness.ping_timeout));
        let now = now_ms();
        let silent = now.saturating_sub(self.last_heard_ms.load(Ordering::Relaxed));
        if silent >= interval.saturating_add(timeout) {
            return self.close(&format!("the peer has been silent for {:.1} s", silent as f64 / 1_000.0));
        }
        if silent >= interval && now.saturating_sub(self.last_ping_ms.load(Ordering::Relaxed)) >= interval {
            self.last_ping_ms.store(now, Ordering::Relaxed);
            self.send(|out| out.ping(now_ns()));
        }
    }

    /// Ends streams whose time is up.
    fn check_times(self: &Arc<Self>) {
        let now = now_ms();
        if now < self.next_check_ms.load(Ordering::Relaxed) {
            return;
        }
        self.next_check_ms.store(NEVER, Ordering::Relaxed);
        let mut next = NEVER;
        for stream in self.all_streams() {
            let (ending, look_again) = stream.check_times(now);
            match ending {
                None => next = next.min(look_again),
                Some(_) if !self.peer.is_worker => stream.expire(),
                Some(ending) => {
                    let reason = match ending {
                        Ending::Deadline => KillReason::Deadline,
                        Ending::SlowConsumer => KillReason::SlowConsumer,
                        _ => KillReason::ItemTimeout,
                    };
                    stream.kill(reason, ending);
                }
            }
        }
        self.next_check_ms.fetch_min(next, Ordering::Relaxed);
    }
}
