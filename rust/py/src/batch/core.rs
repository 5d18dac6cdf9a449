//! One batcher's queue and the loop it belongs to: what the coordinator tells reaches Python from here, on the
//! loop's thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use headrace::batch::{BatchClock, Cause, Coordinator, Notice, Taken};
use headrace::batch::{BatchConfig, Terms};
use parking_lot::Mutex;
use pyo3::prelude::*;

use super::flag::Flag;
use super::gathered::Gather;
use super::numbers::Numbers;
use super::reply::{Numbered, Reply, Thing};
use super::seat::Seat;
use super::taken::BatchTaken;
use crate::bridge::hub::{Closes, Event, Hub};
use crate::errors::start_error;
use crate::ffi::ForkSafe;
use crate::runtime::is_forked;

/// What is to be done for a queue on its loop's thread.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    /// Batches can be taken.
    Take,
    /// There is room for what was refused.
    Room,
    /// This worker has been given up.
    Lost(u32),
    /// It is closed, and nothing waits or runs any more.
    Quiet,
}

/// What Python wants to be called for.
#[derive(Debug, Default)]
pub(super) struct Callbacks {
    pub(super) key: Option<Py<PyAny>>,
    pub(super) cost: Option<Py<PyAny>>,
    /// Gets each batch, if batches are taken on the loop.
    pub(super) on_batch: Option<Py<PyAny>>,
    pub(super) on_lost: Option<Py<PyAny>>,
}

/// One who runs batches on the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    Busy,
    /// Given up, and still at it.
    Lost,
}

/// Those who run batches on the loop, by their numbers.
#[derive(Debug, Default)]
struct Crew {
    places: Vec<Place>,
    busy: usize,
}

impl Crew {
    /// A number for one more, if there may be one.
    fn enlist(&mut self, workers: usize) -> Option<u32> {
        if self.busy >= workers {
            return None;
        }
        let number = self.places.iter().position(|&place| place == Place::Free);
        let number = number.unwrap_or(self.places.len());
        match self.places.get_mut(number) {
            Some(place) => *place = Place::Busy,
            None => self.places.push(Place::Busy),
        }
        self.busy += 1;
        u32::try_from(number).ok()
    }

    /// One who is busy is from now on something else. Whether that was so.
    fn leave(&mut self, number: u32, now: Place) -> bool {
        match self.places.get_mut(number as usize) {
            Some(place @ Place::Busy) => {
                *place = now;
                self.busy -= 1;
                true
            }
            Some(place @ Place::Lost) if now == Place::Free => {
                *place = now;
                false
            }
            _ => false,
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Core {
    pub(super) hub: Arc<Hub>,
    pub(super) coordinator: ForkSafe<Coordinator<Thing, Reply>>,
    /// Locked for no longer than to copy one: they are Python's.
    pub(super) callbacks: Mutex<Callbacks>,
    /// Whether there is a function of keys or costs.
    pub(super) looks: AtomicBool,
    keys: Numbers,
    clients: Numbers,
    notices: Arc<Notices>,
    /// How many batches run on the loop at once.
    workers: AtomicUsize,
    crew: Mutex<Crew>,
    /// How many of its functions run with a mark in their context.
    pub(super) marks: AtomicUsize,
    /// Maps that have more than there was room for.
    feeders: Mutex<Vec<Arc<Gather>>>,
    takers: Mutex<Vec<Py<Flag>>>,
    quiet: Mutex<Vec<Py<Flag>>>,
    /// Where tasks wait that run batches, by the numbers of who runs them.
    seats: Mutex<BTreeMap<u32, Py<Seat>>>,
    /// The loop looks for batches, and will once more when one has been run: whose place becomes free
    /// meanwhile need not ask for that. On the loop's thread.
    looking: AtomicBool,
    /// The loop's turn in which batches were last taken, and when the first of them was.
    turn: Mutex<Option<(u64, Instant)>>,
}

/// How long batches are run in one turn of the loop, one after the other, before others have theirs.
const TURN_MAX: Duration = Duration::from_micros(100);

#[derive(Debug)]
struct Notices {
    hub: Arc<Hub>,
    core: OnceLock<Weak<Core>>,
    /// The loop has been asked to take, and has not begun.
    planned: AtomicBool,
}

impl Notices {
    fn tell(&self, task: Task) {
        if let Some(core) = self.core.get() {
            self.hub.put(Event::Batch(Weak::clone(core), task));
        }
    }
}

/// The coordinator's notices, as events of the hub. (A type of its own, since the trait is the core's.)
struct Told(Arc<Notices>);

impl Notice for Told {
    fn ready(&self, _cause: Cause) {
        if !self.0.planned.swap(true, Ordering::AcqRel) {
            self.0.tell(Task::Take);
        }
    }

    fn room(&self) {
        self.0.tell(Task::Room);
    }

    fn lost(&self, worker: u32) {
        self.0.tell(Task::Lost(worker));
    }

    fn quiet(&self) {
        self.0.tell(Task::Quiet);
    }
}

impl Core {
    pub(super) fn start(hub: &Arc<Hub>, config: &BatchConfig, callbacks: Callbacks) -> PyResult<Arc<Self>> {
        let notices = Arc::new(Notices {
            hub: Arc::clone(hub),
            core: OnceLock::new(),
            planned: AtomicBool::new(false),
        });
        let notice = Arc::new(Told(Arc::clone(&notices)));
        let coordinator = Coordinator::with_notice(config.clone(), notice, BatchClock::default())
            .map_err(|error| start_error(&error))?;
        let core = Arc::new(Self {
            hub: Arc::clone(hub),
            coordinator: ForkSafe::new(coordinator),
            looks: AtomicBool::new(callbacks.key.is_some() || callbacks.cost.is_some()),
            callbacks: Mutex::new(callbacks),
            keys: Numbers::default(),
            clients: Numbers::default(),
            notices: Arc::clone(&notices),
            workers: AtomicUsize::new(config.workers),
            crew: Mutex::default(),
            marks: AtomicUsize::new(0),
            feeders: Mutex::default(),
            takers: Mutex::default(),
            quiet: Mutex::default(),
            seats: Mutex::default(),
            looking: AtomicBool::new(false),
            turn: Mutex::default(),
        });
        // Set once: the coordinator tells nothing before it has an item.
        let _ = notices.core.set(Arc::downgrade(&core));
        let closes: Weak<Self> = Arc::downgrade(&core);
        hub.close_with_loop(closes);
        Ok(core)
    }

    pub(super) fn configure(&self, config: &BatchConfig) -> PyResult<()> {
        self.coordinator.configure(config.clone()).map_err(|error| start_error(&error))?;
        self.workers.store(config.workers, Ordering::Relaxed);
        // More may run now.
        self.plan_take();
        Ok(())
    }

    /// Has the loop look for batches at the end of its turn.
    pub(super) fn plan_take(&self) {
        if !self.notices.planned.swap(true, Ordering::AcqRel) {
            self.notices.tell(Task::Take);
        }
    }

    /// One of the callbacks, if it is wanted.
    pub(super) fn callback(
        &self,
        py: Python<'_>,
        which: impl FnOnce(&Callbacks) -> &Option<Py<PyAny>>,
    ) -> Option<Py<PyAny>> {
        which(&self.callbacks.lock()).as_ref().map(|callback| callback.clone_ref(py))
    }

    /// Does something on the loop's thread.
    pub(crate) fn run(self: &Arc<Self>, py: Python<'_>, task: Task) -> PyResult<()> {
        match task {
            Task::Take => self.take(py),
            Task::Room => self.feed(py),
            // It may have come back since, with its own batch or as another under its number.
            Task::Lost(worker) if self.coordinator.is_running(worker) => Ok(()),
            Task::Lost(worker) => {
                self.give_up(worker);
                match self.callback(py, |callbacks| &callbacks.on_lost) {
                    Some(on_lost) => on_lost.call1(py, (worker,)).map(drop),
                    None => Ok(()),
                }
            }
            Task::Quiet => {
                tell_all(&self.quiet, true);
                tell_all(&self.takers, false);
                let seats = std::mem::take(&mut *self.seats.lock());
                seats.values().for_each(|seat| seat.get().close());
                Ok(())
            }
        }
    }

    fn take(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        self.notices.planned.store(false, Ordering::Release);
        let Some(on_batch) = self.callback(py, |callbacks| &callbacks.on_batch) else {
            self.coordinator.wake_workers();
            tell_all(&self.takers, !self.coordinator.is_closed() || !self.coordinator.is_quiet());
            return Ok(());
        };
        self.looking.store(true, Ordering::Relaxed);
        let result = self.run_batches(py, &on_batch);
        self.looking.store(false, Ordering::Relaxed);
        result
    }

    fn run_batches(self: &Arc<Self>, py: Python<'_>, on_batch: &Py<PyAny>) -> PyResult<()> {
        loop {
            // Functions run in here, as far as they need not wait.
            if !self.has_turn() {
                // One that is planned already will find the same.
                if !self.notices.planned.swap(true, Ordering::AcqRel) {
                    self.hub.put_off(Event::Batch(Arc::downgrade(self), Task::Take));
                }
                return Ok(());
            }
            let workers = self.workers.load(Ordering::Relaxed);
            let Some(worker) = self.crew.lock().enlist(workers) else { return Ok(()) };
            let Taken::Batch(batch) = self.coordinator.try_take(worker) else {
                self.crew.lock().leave(worker, Place::Free);
                return Ok(());
            };
            let taken = BatchTaken::of(self, batch, Some(Duty::new(self, worker))).bind(py)?;
            let seat = self.seats.lock().get(&worker).map(|seat| seat.clone_ref(py));
            let ran = match seat.map_or(Ok(false), |seat| seat.get().give(&taken)) {
                // There is none yet, or the one there was has been cancelled.
                Ok(false) => on_batch.call1(py, (taken,)).map(drop),
                result => result.map(drop),
            };
            if let Err(error) = ran {
                // It may have kept the batch. Other places may be free.
                self.plan_take();
                return Err(error);
            }
        }
    }

    /// Whether this is the loop's thread, looking for batches below.
    pub(super) fn is_looking(&self) -> bool {
        self.looking.load(Ordering::Relaxed) && self.hub.is_loop_thread()
    }

    /// Whether batches may be run in this turn of the loop still.
    fn has_turn(&self) -> bool {
        let (turn, now) = (self.hub.turn(), Instant::now());
        let mut began = self.turn.lock();
        match &*began {
            Some((number, since)) if *number == turn => now.duration_since(*since) < TURN_MAX,
            _ => {
                *began = Some((turn, now));
                true
            }
        }
    }

    /// A place for the task that runs the batches of this worker from now on.
    pub(super) fn seat(&self, py: Python<'_>, worker: u32) -> PyResult<Py<Seat>> {
        let seat = Py::new(py, Seat::new(&self.hub))?;
        let over = self.coordinator.is_closed() && self.coordinator.is_quiet();
        if over {
            seat.get().close();
        } else {
            // Dropping a Python object may run Python, so the lock is not held.
            let before = self.seats.lock().insert(worker, seat.clone_ref(py));
            drop(before);
        }
        Ok(seat)
    }

    /// Has the maps that wait go on, whoever was first last time being last now: while there is less room
    /// than they want, each would otherwise wait for those before it to end.
    fn feed(&self, py: Python<'_>) -> PyResult<()> {
        let mut feeders = std::mem::take(&mut *self.feeders.lock());
        if !feeders.is_empty() {
            feeders.rotate_left(1);
        }
        let mut result = Ok(());
        for gather in feeders {
            // What ends the program must not strand the others.
            result = result.and(gather.feed(py));
        }
        result
    }

    fn give_up(&self, worker: u32) {
        let given_up = self.crew.lock().leave(worker, Place::Lost);
        if given_up {
            self.plan_take();
        }
    }

    /// Has a map go on when there is room.
    pub(super) fn wait_for_room(&self, gather: Arc<Gather>) {
        self.feeders.lock().push(gather);
    }

    /// Done when batches can be taken, true, or never again, false.
    pub(super) fn takable(&self, py: Python<'_>) -> PyResult<Py<Flag>> {
        let over = self.coordinator.is_closed() && self.coordinator.is_quiet();
        let flag = Py::new(py, Flag::new(&self.hub, over.then_some(false)))?;
        if !over {
            self.takers.lock().push(flag.clone_ref(py));
            // What has come since the last look was perhaps told when nobody listened.
            self.coordinator.ask();
        }
        Ok(flag)
    }

    /// Done when it is closed and nothing waits or runs any more.
    pub(super) fn wait_quiet(&self, py: Python<'_>) -> PyResult<Py<Flag>> {
        let flag = Py::new(py, Flag::new(&self.hub, None))?;
        self.quiet.lock().push(flag.clone_ref(py));
        // Looked at afterwards, so that one of the two sees the other.
        if self.coordinator.is_quiet() {
            tell_all(&self.quiet, true);
        }
        Ok(flag)
    }

    // --- keys and clients ---

    /// Numbers an item's key and client.
    pub(super) fn number(
        &self,
        key: Option<&Bound<'_, PyAny>>,
        client: Option<&Bound<'_, PyAny>>,
        terms: &mut Terms,
    ) -> PyResult<Numbered> {
        let mut numbered = Numbered::default();
        if let Some(key) = key {
            numbered.key = self.keys.take(key)?;
            terms.key = numbered.key;
        }
        if let Some(client) = client {
            match self.clients.take(client) {
                Ok(number) => numbered.client = number,
                Err(error) => {
                    self.release(&numbered);
                    return Err(error);
                }
            }
            terms.client = Some(numbered.client);
        }
        Ok(numbered)
    }

    pub(super) fn release(&self, numbered: &Numbered) {
        if numbered.key != 0 {
            self.keys.release(numbered.key);
        }
        if numbered.client != 0 {
            self.clients.release(numbered.client);
        }
    }
}

/// Sets flags outside their list's lock.
fn tell_all(flags: &Mutex<Vec<Py<Flag>>>, value: bool) {
    let flags = std::mem::take(&mut *flags.lock());
    for flag in flags {
        flag.get().set(value);
    }
}

impl Closes for Core {
    fn close(&self) {
        self.coordinator.close();
        // Nobody tells them anything any more, and maps would keep this alive.
        let waiting = (std::mem::take(&mut *self.feeders.lock()), std::mem::take(&mut *self.takers.lock()));
        let quiet = std::mem::take(&mut *self.quiet.lock());
        let seats = std::mem::take(&mut *self.seats.lock());
        drop((waiting, quiet, seats));
    }
}

/// One of the loop's places to run a batch; the place is free when it is dropped.
#[derive(Debug)]
pub(super) struct Duty {
    core: Weak<Core>,
    worker: u32,
}

impl Duty {
    fn new(core: &Arc<Core>, worker: u32) -> Arc<Self> {
        Arc::new(Self { core: Arc::downgrade(core), worker })
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        if is_forked() {
            return;
        }
        if let Some(core) = self.core.upgrade() {
            let freed = core.crew.lock().leave(self.worker, Place::Free);
            if freed && !core.is_looking() {
                core.plan_take();
            }
        }
    }
}
