//! What links need done from time to time whether or not anybody calls them: liveness, deadlines, and reading
//! and flushing when the thread that should is busy. One task and one timer for all links of a router or
//! worker, so that a hundred links wake a core as often as one.
//!
//! The tick is 20 ms while a link is in use: a worker whose Python is busy answers PING and KILL within two
//! of them, and a deadline is kept to one. When all links are idle it is 100 ms, without links there is none.
//! A tick that finds nothing to do costs a few loads for each link.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use headrace_wire::body::KillReason;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::driver::with_scratch;
use super::{Ending, Link, ReadOutcome};
use crate::clock::{NEVER, NS_PER_MS, duration_ms, now_ms, now_ns};

const TICK: Duration = Duration::from_millis(20);
pub(super) const TICK_IDLE_MS: u64 = 100;
const TICK_IDLE: Duration = Duration::from_millis(TICK_IDLE_MS);
/// A link counts as in use for this long after it last heard something.
const IN_USE_MS: u64 = 1_000;
/// Calls to read on behalf of a busy thread in one tick: 4 MiB, a link's window. A peer that sends more gets
/// its next turn after the other work.
const READS_PER_TICK: usize = 4;

/// Handle of the task; see the module's text. The task ends with the last of its links once this is dropped.
#[derive(Debug)]
pub(crate) struct Ticker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    runtime: Handle,
    state: Mutex<State>,
    /// Links were added, or one wants to be looked at sooner than the next tick.
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    added: Vec<Weak<Link>>,
    running: bool,
}

impl Ticker {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self(Arc::new(Shared { runtime, state: Mutex::default(), wake: Notify::new() }))
    }

    /// The runtime that links' tasks run on.
    pub(super) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// Looks after a link from now on.
    pub(super) fn add(&self, link: &Arc<Link>) {
        let start = {
            let mut state = self.0.state.lock();
            state.added.push(Arc::downgrade(link));
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            self.0.runtime.spawn(tick_while_links_live(Arc::clone(&self.0)));
        }
        self.0.wake.notify_one();
    }

    /// Another handle for a link, to ask for a sooner tick with.
    pub(super) fn waker(&self) -> TickerWaker {
        TickerWaker(Arc::clone(&self.0))
    }
}

/// How a link asks for a tick that is not later than its usual one.
#[derive(Debug)]
pub(super) struct TickerWaker(Arc<Shared>);

impl TickerWaker {
    pub(super) fn wake(&self) {
        self.0.wake.notify_one();
    }
}

/// A link and the last turn of its reading thread that was seen.
struct Watched {
    link: Weak<Link>,
    turn_seen: Option<u64>,
}

async fn tick_while_links_live(shared: Arc<Shared>) {
    let mut watched: Vec<Watched> = Vec::new();
    let mut due = Instant::now() + TICK;
    loop {
        let ticked = tokio::select! {
            biased;
            () = sleep_until(due) => true,
            () = shared.wake.notified() => false,
        };
        {
            let mut state = shared.state.lock();
            watched.extend(state.added.drain(..).map(|link| Watched { link, turn_seen: None }));
            watched.retain(|each| each.link.strong_count() > 0);
            if watched.is_empty() {
                state.running = false;
                return;
            }
        }
        let mut pause = TICK_IDLE;
        if ticked {
            let late = due.elapsed();
            watched.retain_mut(|each| match each.link.upgrade() {
                Some(link) if !link.is_closed() => {
                    pause = pause.min(each.tick(&link, late));
                    true
                }
                _ => false,
            });
            due = Instant::now() + pause;
        } else {
            // The tick is kept whatever the task is woken for, so that traffic cannot put deadlines off.
            due = due.min(Instant::now() + TICK);
        }
    }
}

impl Watched {
    /// Looks after one link; returns when it wants the next tick.
    fn tick(&mut self, link: &Arc<Link>, late: Duration) -> Duration {
        link.forgive_own_stall(late);
        let more = self.stand_in(link);
        link.check_liveness();
        link.check_times();
        if more { Duration::ZERO } else { link.pause() }
    }

    /// Reads and flushes when the thread that should has had no turn since the last tick. True when there is
    /// more to read than one tick allows.
    fn stand_in(&mut self, link: &Arc<Link>) -> bool {
        let Some(turn) = link.driver.turns() else { return false };
        let busy = self.turn_seen.replace(turn) == Some(turn);
        if !busy {
            return false;
        }
        let more = with_scratch(|scratch| {
            (0..READS_PER_TICK).all(|_| link.on_readable(scratch) == ReadOutcome::More)
        });
        link.flush();
        more
    }
}

impl Link {
    /// How long until the next tick.
    fn pause(&self) -> Duration {
        let silent_ms = now_ms().saturating_sub(self.heard_ns() / NS_PER_MS);
        if silent_ms > IN_USE_MS && !self.has_streams() { TICK_IDLE } else { TICK }
    }

    /// This process itself stood still (suspended, or starved of CPU): the peer's silence meanwhile says
    /// nothing about the peer.
    fn forgive_own_stall(&self, late: Duration) {
        if late > self.liveness.ping_timeout / 2 {
            self.last_heard_ns.store(now_ns(), Ordering::Relaxed);
        }
    }

    /// Asks a silent peer whether it is there, and gives it up when it does not answer.
    fn check_liveness(self: &Arc<Self>) {
        let interval = duration_ms(Some(self.liveness.ping_interval));
        let timeout = duration_ms(Some(self.liveness.ping_timeout));
        let now = now_ms();
        let silent = now.saturating_sub(self.heard_ns() / NS_PER_MS);
        if silent >= interval.saturating_add(timeout) {
            return self.close(&format!("the peer has been silent for {:.1} s", silent as f64 / 1_000.0));
        }
        // A worker asks a busy router too: clocks drift apart, and transit times rest on their offset.
        let asks = silent >= interval || !self.peer.is_worker;
        if asks && now.saturating_sub(self.last_ping_ms.load(Ordering::Relaxed)) >= interval {
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
