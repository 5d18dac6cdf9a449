//! What is Python's on threads that must not touch Python: it is let go of on the loop's thread. Also the
//! threads that copy large buffers.

use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::bridge::hub::{Event, Hub};
use crate::runtime::is_forked;

/// Threads that copy between Python's buffers and pinned memory: one moves about 10 GB a second, and a link of
/// a device takes several times that.
const THREADS_MAX: usize = 4;

/// Something of Python's, let go of on the loop's thread.
pub(super) struct OnLoop<T: Send + 'static> {
    held: Arc<Held<T>>,
    hub: Arc<Hub>,
}

/// What several hold: whoever has the interpreter may take it out and let go of it.
pub(super) struct Held<T: Send + 'static> {
    inner: Mutex<Option<T>>,
    hub: Weak<Hub>,
}

impl<T: Send + 'static> OnLoop<T> {
    pub(super) fn new(inner: T, hub: Arc<Hub>) -> Self {
        let held = Held { inner: Mutex::new(Some(inner)), hub: Arc::downgrade(&hub) };
        Self { held: Arc::new(held), hub }
    }

    /// Does something with it, during which nobody else does.
    pub(super) fn with(&self, call: impl FnOnce(&T)) {
        if let Some(inner) = &*self.held.inner.lock() {
            call(inner);
        }
    }

    /// A share, by which it is let go of before the loop comes to it.
    pub(super) fn share(&self) -> Arc<Held<T>> {
        Arc::clone(&self.held)
    }
}

impl<T: Send + 'static> Held<T> {
    /// What it is, once; on the loop's thread.
    pub(super) fn take(&self) -> Option<T> {
        self.inner.lock().take()
    }
}

impl<T: Send + 'static> Drop for OnLoop<T> {
    fn drop(&mut self) {
        if is_forked() || self.held.inner.lock().is_none() {
            return;
        }
        // Nothing of it stays here: the loop may end at any time, and then this thread must not be the last.
        let nothing = Held { inner: Mutex::new(None), hub: Weak::new() };
        let held = mem::replace(&mut self.held, Arc::new(nothing));
        let work = Box::new(move || drop(held.take()));
        if !self.hub.is_loop_thread() {
            // Dropped at once if the loop has ended.
            self.hub.put(Event::Run(work));
        } else if !self.hub.is_closed() {
            // The loop ends on this thread, hence not in between; and nobody settles here what was put.
            self.hub.run(work);
        }
    }
}

impl<T: Send + 'static> Drop for Held<T> {
    fn drop(&mut self) {
        let Some(inner) = self.inner.get_mut().take() else { return };
        // A loop that ends drops what it did not come to. Anywhere else nobody can let go of it any more.
        let is_there = self.hub.upgrade().is_some_and(|hub| hub.is_loop_thread());
        if is_forked() || !is_there {
            mem::forget(inner);
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
        let is_sent = self.started.load(Ordering::Acquire) > 0 && self.jobs.send(job).is_ok();
        if !is_sent {
            self.busy.fetch_sub(1, Ordering::AcqRel);
        }
        is_sent
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
