//! Who runs, who waits, who is refused. A place is a [`Permit`]: when it drops, the longest waiting request
//! gets it. Nothing here blocks and nothing is lost: a job is started, or its stream has ended already.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::Shared;
use crate::engine::{Engine, Request};
use crate::link::Stream;

/// An admitted request.
#[derive(Debug)]
pub(crate) struct Job {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) request: Request,
    pub(super) stream: Arc<Stream>,
}

/// What admission decided.
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
    pub(super) fn admit(&self, shared: &Arc<Shared>, job: Job, accept: impl FnOnce(&Arc<Stream>)) -> Admitted {
        let mut places = self.places.lock();
        if places.running < self.concurrency {
            places.running += 1;
            accept(&job.stream);
            return Admitted::Run(job, Permit::new(shared));
        }
        if places.queue.len() >= self.queue {
            places.forget_killed();
        }
        if places.queue.len() < self.queue {
            accept(&job.stream);
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

    /// Forgets what waits: its streams have ended.
    pub(super) fn clear(&self) {
        let waiting = std::mem::take(&mut self.places.lock().queue);
        drop(waiting);
    }
}

impl Places {
    fn forget_killed(&mut self) {
        self.queue.retain(|job| !job.stream.is_killed());
    }
}

/// A place among the running; freed when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    shared: Arc<Shared>,
    since: Instant,
}

impl Permit {
    fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), since: Instant::now() }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let next = {
            let mut places = self.shared.admission().places.lock();
            places.held_ms += WEIGHT * (self.since.elapsed().as_secs_f64() * 1e3 - places.held_ms);
            loop {
                match places.queue.pop_front() {
                    // It keeps the place: `running` stays as it is.
                    Some(job) if !job.stream.is_killed() => break Some(job),
                    Some(_) => {}
                    None => {
                        places.running -= 1;
                        break None;
                    }
                }
            }
        };
        match next {
            Some(job) => super::start(job, Self::new(&self.shared)),
            None => self.shared.progressed(),
        }
    }
}
