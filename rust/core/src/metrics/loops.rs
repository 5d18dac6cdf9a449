//! Whether event loops turn. While metrics are read, each loop is asked for a turn every half second, by what
//! it is always woken with; how long that takes is its lag, and one that does not answer is blocked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::names;
use super::numbers::TimeHistogram;
use super::samples::Samples;
use crate::clock::now_ns;

/// How often loops are asked.
pub const LOOP_INTERVAL: Duration = Duration::from_millis(500);

/// A thread's loop that other threads can ask for a turn.
pub trait EventLoop: Send + Sync {
    /// What an operator knows it by.
    fn name(&self) -> String;

    /// Has `turn` called on the loop's thread, soon. One that has ended drops it.
    fn ask(&self, turn: Box<dyn FnOnce() + Send>);
}

/// One loop, and since when it has been asked for a turn: 0 while it has not.
struct Watched {
    event_loop: Weak<dyn EventLoop>,
    asked_ns: Arc<AtomicU64>,
}

static LOOPS: Mutex<Vec<Watched>> = Mutex::new(Vec::new());
static LAG: TimeHistogram = TimeHistogram::new();
static ASKING: Mutex<Option<AbortHandle>> = Mutex::new(None);

/// Makes a loop known, for as long as it lives.
pub fn watch_loop(event_loop: Weak<dyn EventLoop>) {
    let mut loops = LOOPS.lock();
    loops.retain(|watched| watched.event_loop.strong_count() > 0);
    loops.push(Watched { event_loop, asked_ns: Arc::default() });
}

/// Begins to ask the loops of this process for turns. Once is enough, as long as the runtime lives.
pub fn ask_loops(runtime: &Handle) {
    let mut asking = ASKING.lock();
    if asking.as_ref().is_none_or(AbortHandle::is_finished) {
        *asking = Some(runtime.spawn(ask_for_ever()).abort_handle());
    }
}

/// Loops that have been asked for a turn for longer than `bound`: what they are known by, and for how long.
#[must_use]
pub fn blocked_loops(bound: Duration) -> Vec<(String, Duration)> {
    let blocked = |watched: &Watched| {
        let asked_for = watched.asked_for()?;
        let event_loop = watched.event_loop.upgrade().filter(|_| asked_for > bound)?;
        Some((event_loop.name(), asked_for))
    };
    LOOPS.lock().iter().filter_map(blocked).collect()
}

impl Watched {
    fn asked_for(&self) -> Option<Duration> {
        let asked_ns = self.asked_ns.load(Ordering::Acquire);
        (asked_ns > 0).then(|| Duration::from_nanos(now_ns().saturating_sub(asked_ns)))
    }
}

async fn ask_for_ever() {
    loop {
        ask_all();
        tokio::time::sleep(LOOP_INTERVAL).await;
    }
}

/// Asks every loop that is not asked already.
fn ask_all() {
    let mut asked = Vec::new();
    LOOPS.lock().retain(|watched| {
        let event_loop = watched.event_loop.upgrade();
        let lives = event_loop.is_some();
        if watched.asked_ns.load(Ordering::Acquire) == 0 {
            asked.extend(event_loop.map(|event_loop| (event_loop, Arc::clone(&watched.asked_ns))));
        }
        lives
    });
    for (event_loop, asked_ns) in asked {
        // Never 0, which stands for none.
        let began_ns = now_ns().max(1);
        asked_ns.store(began_ns, Ordering::Release);
        let turn = Turn { began_ns, asked_ns };
        event_loop.ask(Box::new(move || turn.came()));
    }
}

/// A turn that a loop was asked for; one that is dropped will not come, and is not waited for.
struct Turn {
    began_ns: u64,
    asked_ns: Arc<AtomicU64>,
}

impl Turn {
    fn came(self) {
        LAG.observe_ns(now_ns().saturating_sub(self.began_ns));
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.asked_ns.store(0, Ordering::Release);
    }
}

pub(super) fn collect(samples: &mut Samples) {
    samples.times(&names::LOOP_LAG, &[], &LAG);
    let longest = LOOPS.lock().iter().filter_map(Watched::asked_for).max().unwrap_or_default();
    samples.value(&names::LOOP_BLOCKED, &[], longest.as_secs_f64());
}
