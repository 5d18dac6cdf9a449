//! Who runs, who waits, who is refused. A place is a [`Permit`]: when it drops, the longest waiting request
//! gets it. Nothing here blocks and nothing is lost: a job is started, or its stream has ended already.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::health::Pulse;
use super::{Shared, session};
use crate::clock::now_ns;
use crate::engine::{Engine, Request};
use crate::link::Stream;
use crate::metrics::worker::{Account, KilledBy};

/// An admitted request.
#[derive(Debug)]
pub(crate) struct Job {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) request: Request,
    pub(super) stream: Arc<Stream>,
    /// Tells of the engine's health, if it can be checked.
    pub(super) pulse: Option<Pulse>,
    /// What counts it, once it is accepted; health checks have none.
    pub(super) account: Option<Account>,
}

impl Job {
    /// It was killed while it waited, or its worker closes.
    fn end_waiting(&mut self) {
        if let Some(account) = self.account.take() {
            let killed = self.stream.is_killed();
            let by = if killed { self.stream.killed_by() } else { KilledBy::Shutdown };
            account.ended(by.outcome(false));
        }
    }

    /// It goes to its engine, having waited for a place until this time, or not at all.
    fn started(&mut self, waited_until_ns: u64) {
        if let Some(account) = &mut self.account {
            account.started(waited_until_ns);
        }
    }
}

/// What admission decided.
#[expect(
    clippy::large_enum_variant,
    reason = "taken apart where it is made; a box would be an allocation a request"
)]
pub(super) enum Admitted {
    Run(Job, Permit),
    Queued,
    Full { retry_after_ms: u32, running: usize, queued: usize },
}

#[derive(Debug)]
struct Places {
    running: usize,
    queue: VecDeque<Job>,
    /// Moving average of how long a place is held, in milliseconds.
    held_ms: f64,
}

/// The places of one worker.
#[derive(Debug)]
pub(crate) struct Admission {
    concurrency: usize,
    queue: usize,
    places: Mutex<Places>,
}

/// Weight of the newest observation in the moving average.
const WEIGHT: f64 = 0.1;

impl Admission {
    pub(super) fn new(concurrency: usize, queue: usize) -> Self {
        let places = Places { running: 0, queue: VecDeque::new(), held_ms: 0.0 };
        Self { concurrency, queue, places: Mutex::new(places) }
    }

    /// Requests running and waiting. Those that wait but were killed are not counted.
    pub(super) fn load(&self) -> (usize, usize) {
        let mut places = self.places.lock();
        places.forget_killed();
        (places.running, places.queue.len())
    }

    /// Decides about a job. `accept` answers ACCEPT before the job can be started by whoever frees a place.
    pub(super) fn admit(
        &self,
        shared: &Arc<Shared>,
        mut job: Job,
        accept: impl FnOnce(&mut Job),
    ) -> Admitted {
        let mut places = self.places.lock();
        if places.running < self.concurrency {
            places.running += 1;
            accept(&mut job);
            job.started(0);
            // It was read just now.
            let permit = Permit::new(shared, job.stream.link.heard_ns());
            return Admitted::Run(job, permit);
        }
        if places.queue.len() >= self.queue {
            places.forget_killed();
        }
        if places.queue.len() < self.queue {
            accept(&mut job);
            places.queue.push_back(job);
            return Admitted::Queued;
        }
        Admitted::Full {
            retry_after_ms: self.retry_after_ms(&places),
            running: places.running,
            queued: places.queue.len(),
        }
    }

    /// When a place should be free for one more: the time to work off the queue, by what places were held.
    fn retry_after_ms(&self, places: &Places) -> u32 {
        let ahead = (places.queue.len() + 1) as f64 / self.concurrency as f64;
        (places.held_ms * ahead).clamp(1.0, 30_000.0) as u32
    }

    /// Whether one more request would be refused now.
    pub(super) fn is_full(&self) -> bool {
        let (running, queued) = self.load();
        running >= self.concurrency && queued >= self.queue
    }

    /// Forgets what waits: its streams have ended.
    pub(super) fn clear(&self) {
        let waiting = std::mem::take(&mut self.places.lock().queue);
        waiting.into_iter().for_each(|mut job| job.end_waiting());
    }
}

impl Places {
    fn forget_killed(&mut self) {
        self.queue.retain_mut(|job| {
            let killed = job.stream.is_killed();
            if killed {
                job.end_waiting();
            }
            !killed
        });
    }
}

thread_local! {
    /// Jobs to be started on this thread when the one that is starting there has returned.
    static STARTING: RefCell<Option<VecDeque<(Job, Permit)>>> = const { RefCell::new(None) };
}

/// Starts a job; inside another job's start, that one's caller does it afterwards. An engine that answers
/// before it returns frees its place within `start`, so a queue of such jobs would nest as deep as it is long.
pub(super) fn start_in_turn(job: Job, permit: Permit) {
    let mut next = Some((job, permit));
    let outermost = STARTING.try_with(|starting| {
        let mut starting = starting.borrow_mut();
        match starting.as_mut() {
            Some(waiting) => waiting.extend(next.take()),
            None => *starting = Some(VecDeque::new()),
        }
    });
    while let Some((job, permit)) = next {
        session::start(job, permit);
        // Without thread-locals (the thread is ending) nothing was left for later either.
        next = outermost.ok().and_then(|()| STARTING.with_borrow_mut(take_next));
    }
}

/// The next job that was left for later; forgets the queue when there is none.
fn take_next(starting: &mut Option<VecDeque<(Job, Permit)>>) -> Option<(Job, Permit)> {
    let next = starting.as_mut().and_then(VecDeque::pop_front);
    if next.is_none() {
        *starting = None;
    }
    next
}

/// A place among the running; freed when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    shared: Arc<Shared>,
    since_ns: u64,
}

impl Permit {
    fn new(shared: &Arc<Shared>, now_ns: u64) -> Self {
        Self { shared: Arc::clone(shared), since_ns: now_ns }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = now_ns();
        let next = {
            let mut places = self.shared.admission().places.lock();
            places.held_ms += WEIGHT * (now.saturating_sub(self.since_ns) as f64 / 1e6 - places.held_ms);
            loop {
                match places.queue.pop_front() {
                    // It keeps the place: `running` stays as it is.
                    Some(mut job) if !job.stream.is_killed() => {
                        job.started(now);
                        break Some(job);
                    }
                    Some(mut job) => job.end_waiting(),
                    None => {
                        places.running -= 1;
                        break None;
                    }
                }
            }
        };
        match next {
            Some(job) => start_in_turn(job, Self::new(&self.shared, now)),
            None => self.shared.progressed(),
        }
    }
}
