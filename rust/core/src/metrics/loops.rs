//! Whether event loops turn. While metrics are read, each loop is asked for a turn every half second, by what
//! it is always woken with; how long that takes is its lag, and one that does not answer is blocked, unless it
//! does not run at all. Whether it does, only its own kind can say and may take its time, so a thread apart asks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

    /// What finds out whether it runs: one that was stopped has no turns, and nothing blocks it. Called on a
    /// thread that has nothing else to do, so it may wait, and holds nothing that the loop's end gives back.
    fn look(&self) -> Look;
}

/// True while the loop runs.
pub type Look = Box<dyn FnOnce() -> bool + Send>;

/// One loop, and what it was asked.
struct Watched {
    event_loop: Weak<dyn EventLoop>,
    asked: Arc<Asked>,
}

#[derive(Default)]
struct Asked {
    /// Since when it has been asked for a turn: 0 while it has not.
    since_ns: AtomicU64,
    /// It was found not to run, and so need not answer.
    stopped: AtomicBool,
}

static LOOPS: Mutex<Vec<Watched>> = Mutex::new(Vec::new());
static LAG: TimeHistogram = TimeHistogram::new();
static ASKING: Mutex<Option<AbortHandle>> = Mutex::new(None);
/// Whether a thread looks at silent loops.
static LOOKING: AtomicBool = AtomicBool::new(false);

/// Makes a loop known, for as long as it lives.
pub fn watch_loop(event_loop: Weak<dyn EventLoop>) {
    let mut loops = LOOPS.lock();
    loops.retain(|watched| watched.event_loop.strong_count() > 0);
    loops.push(Watched { event_loop, asked: Arc::default() });
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
    fn is_asked(&self) -> bool {
        self.asked.since_ns.load(Ordering::Acquire) > 0
    }

    /// For how long; one that does not run is not waited for.
    fn asked_for(&self) -> Option<Duration> {
        let since_ns = self.asked.since_ns.load(Ordering::Acquire);
        let waited_for = since_ns > 0 && !self.asked.stopped.load(Ordering::Acquire);
        waited_for.then(|| Duration::from_nanos(now_ns().saturating_sub(since_ns)))
    }
}

async fn ask_for_ever() {
    loop {
        ask_all();
        tokio::time::sleep(LOOP_INTERVAL).await;
    }
}

/// Asks every loop that is not asked already, and has those looked at that have not answered.
fn ask_all() {
    let mut asked = Vec::new();
    let mut is_one_silent = false;
    LOOPS.lock().retain(|watched| {
        let event_loop = watched.event_loop.upgrade();
        let lives = event_loop.is_some();
        if watched.is_asked() {
            is_one_silent |= lives;
        } else {
            asked.extend(event_loop.map(|event_loop| (event_loop, Arc::clone(&watched.asked))));
        }
        lives
    });
    if is_one_silent {
        look_aside();
    }
    // Never 0, which stands for none.
    let began_ns = now_ns().max(1);
    for (event_loop, asked) in asked {
        asked.since_ns.store(began_ns, Ordering::Release);
        let turn = Turn { began_ns, asked };
        event_loop.ask(Box::new(move || turn.came()));
    }
}

/// Has a thread look at silent loops, until there are none. Not one of the runtime: it may have to wait for as
/// long as something blocks the interpreter, and until then its loops count as blocked, as they are.
fn look_aside() {
    struct Looking;
    impl Drop for Looking {
        fn drop(&mut self) {
            LOOKING.store(false, Ordering::Release);
        }
    }
    if LOOKING.swap(true, Ordering::AcqRel) {
        return;
    }
    let looking = Looking;
    let look = move || {
        let _looking = looking;
        while look_at_silent() {
            std::thread::sleep(LOOP_INTERVAL);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("headrace-loops".to_owned()).spawn(look) {
        tracing::warn!(%error, "no thread looks whether silent event loops run");
    }
}

/// Looks which of the loops that have not answered run at all; false if all have answered.
fn look_at_silent() -> bool {
    let silent = |watched: &Watched| {
        let event_loop = watched.event_loop.upgrade().filter(|_| watched.is_asked())?;
        Some((event_loop.look(), Arc::clone(&watched.asked)))
    };
    let silent: Vec<_> = LOOPS.lock().iter().filter_map(silent).collect();
    let is_one_silent = !silent.is_empty();
    // Without the lock, since it may take its time.
    for (is_running, asked) in silent {
        asked.stopped.store(!is_running(), Ordering::Release);
    }
    is_one_silent
}

/// A turn that a loop was asked for; one that is dropped will not come, and is not waited for.
struct Turn {
    began_ns: u64,
    asked: Arc<Asked>,
}

impl Turn {
    fn came(self) {
        if !self.asked.stopped.load(Ordering::Acquire) {
            LAG.observe_ns(now_ns().saturating_sub(self.began_ns));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.asked.stopped.store(false, Ordering::Release);
        self.asked.since_ns.store(0, Ordering::Release);
    }
}

pub(super) fn collect(samples: &mut Samples) {
    samples.times(&names::LOOP_LAG, &[], &LAG);
    let longest = LOOPS.lock().iter().filter_map(Watched::asked_for).max().unwrap_or_default();
    samples.value(&names::LOOP_BLOCKED, &[], longest.as_secs_f64());
}
