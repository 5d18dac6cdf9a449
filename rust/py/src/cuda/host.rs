//! What is Python's on threads that must not touch Python: it is let go of on the loop's thread. Also the
//! threads that copy large buffers.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;

use crate::bridge::hub::Hub;
use crate::runtime::is_forked;

/// Threads that copy between Python's buffers and pinned memory: one moves about 10 GB a second, and a link of
/// a device takes several times that.
const THREADS_MAX: usize = 4;

/// Something of Python's, let go of on the loop's thread.
pub(super) struct OnLoop<T: Send + 'static> {
    inner: Option<T>,
    hub: Arc<Hub>,
}

impl<T: Send + 'static> OnLoop<T> {
    pub(super) const fn new(inner: T, hub: Arc<Hub>) -> Self {
        Self { inner: Some(inner), hub }
    }

    pub(super) const fn get(&self) -> Option<&T> {
        self.inner.as_ref()
    }

    /// What it is; on the loop's thread.
    pub(super) fn take(mut self) -> Option<T> {
        self.inner.take()
    }
}

impl<T: Send + 'static> Drop for OnLoop<T> {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        // Nobody can let go of it any more where the loop has ended, or is the parent's.
        if is_forked() || self.hub.is_closed() {
            mem::forget(inner);
        } else {
            self.hub.run(Box::new(move || drop(inner)));
        }
    }
}

impl<T: Send + 'static> fmt::Debug for OnLoop<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnLoop").finish_non_exhaustive()
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Does something on one of the copying threads; false if there is none and none can be started.
pub(super) fn on_thread(job: impl FnOnce() + Send + 'static) -> bool {
    static THREADS: Mutex<Option<(u32, Arc<Threads>)>> = Mutex::new(None);
    let threads = {
        let mut threads = THREADS.lock();
        let process = std::process::id();
        match &*threads {
            Some((owner, threads)) if *owner == process => Arc::clone(threads),
            // A forked child has none of its parent's threads.
            _ => Arc::clone(&threads.insert((process, Arc::new(Threads::new()))).1),
        }
    };
    threads.run(Box::new(job))
}

struct Threads {
    jobs: Sender<Job>,
    next: Arc<Mutex<Receiver<Job>>>,
    started: AtomicUsize,
    /// Jobs that wait or run.
    busy: Arc<AtomicUsize>,
}

impl Threads {
    fn new() -> Self {
        let (jobs, next) = channel();
        let next = Arc::new(Mutex::new(next));
        Self { jobs, next, started: AtomicUsize::new(0), busy: Arc::default() }
    }

    fn run(&self, job: Job) -> bool {
        let busy = self.busy.fetch_add(1, Ordering::AcqRel) + 1;
        let started = self.started.load(Ordering::Acquire);
        if started < THREADS_MAX.min(busy) {
            self.start(started);
        }
        self.started.load(Ordering::Acquire) > 0 && self.jobs.send(job).is_ok()
    }

    fn start(&self, number: usize) {
        let (next, busy) = (Arc::clone(&self.next), Arc::clone(&self.busy));
        let work = move || {
            loop {
                let job = next.lock().recv();
                let Ok(job) = job else { return };
                job();
                busy.fetch_sub(1, Ordering::AcqRel);
            }
        };
        let name = format!("headrace-cuda-copy-{number}");
        if std::thread::Builder::new().name(name).spawn(work).is_ok() {
            self.started.fetch_add(1, Ordering::AcqRel);
        }
    }
}
