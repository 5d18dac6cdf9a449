//! One hub per event loop. Threads put what they want of the loop into its queue and, if nobody has yet,
//! make its descriptor readable; the loop then calls [`LoopHub::drain`] once, whatever has gathered.
//!
//! ```text
//!   any thread:  queue.push(x); if !pending.swap(true) { wake the descriptor }
//!   the loop:    clear the descriptor; pending = true
//!                loop { take the queue; empty? { pending = false; still empty? done } ; handle each }
//! ```
//! While the loop's own thread is inside [`Hub::enter`], `pending` is set, so what it causes itself costs no
//! system call. A wake-up is never lost: whoever pushes after `pending` was cleared sees it cleared.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use headrace::link::Link;
use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use slab::Slab;

use super::at_hand::AtHand;
pub(crate) use super::event::{Event, Slot, Target};
use super::loop_hub::{LoopHub, name_of_loop};
use super::parking::Parking;
use super::reader::LinkReader;
use super::waiter::Waiter;
use super::wake::Wake;
use crate::audit::entered_python;
use crate::ffi::LoopCell;
use crate::requests::RequestSink;
use crate::runtime::{is_forked, this_thread};
use crate::sink::Sink;

/// Events handled in one callback before the loop gets its turn.
const EVENTS_PER_DRAIN: usize = 512;

/// How long interpreter exit waits for a loop on another thread to leave a callback.
const ABANDON_WAIT: Duration = Duration::from_secs(1);

/// What the hub needs of Python to be called back: looked up once, not at every flush.
pub(super) struct LoopSide {
    pub(super) this: Py<LoopHub>,
    /// `this.flush`.
    pub(super) flush: Py<PyAny>,
    /// The loop's `call_soon`.
    pub(super) call_soon: Py<PyAny>,
}

/// Something that ends when its loop does.
pub(crate) trait Closes: Send + Sync {
    fn close(&self);
}

/// See the module's text.
pub(crate) struct Hub {
    pub(super) wake: Wake,
    pending: AtomicBool,
    queue: Mutex<VecDeque<Event>>,
    /// What the queue has held before: its memory is used again.
    handled: Mutex<VecDeque<Event>>,
    targets: Mutex<Slab<(u64, Target)>>,
    generation: AtomicUsize,
    /// What is not to be handled before the loop has had a turn.
    later: Mutex<Vec<Event>>,
    /// Links with gathered bytes, to be flushed by the loop at the end of its turn.
    dirty: Mutex<Vec<Arc<Link>>>,
    flush_wanted: AtomicBool,
    pub(super) flush_scheduled: AtomicBool,
    turns: AtomicU64,
    thread: ThreadId,
    /// What an operator knows the loop by.
    pub(super) name: String,
    pub(super) event_loop: Arc<Py<PyAny>>,
    /// A future of the loop that is done, with the result `None`; see [`Waiter::complete`].
    pub(super) done: Py<PyAny>,
    /// Futures of the loop keep nothing of who has awaited them.
    pub(super) uses_futures_again: bool,
    pub(super) loop_side: Mutex<Option<LoopSide>>,
    closed: AtomicBool,
    closes: Mutex<Vec<Weak<dyn Closes>>>,
    /// The loop's thread is in one of the callbacks, below which Python may run.
    inside: AtomicBool,
    scratch: Mutex<Vec<u8>>,
    /// The callbacks do nothing any more.
    abandoned: AtomicBool,
    /// Places to wait that nobody uses, kept for the next call.
    pub(super) spare_parkings: Mutex<Vec<Parking>>,
    pub(super) at_hand: AtHand,
}

/// What who uses something of a loop on another thread is told.
pub(crate) fn elsewhere() -> PyErr {
    PyRuntimeError::new_err("this belongs to another thread's event loop; make a router for each loop")
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("thread", &self.thread).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub for the loop that runs on this thread.
    pub(super) fn new(py: Python<'_>, event_loop: Py<PyAny>) -> PyResult<Self> {
        let done = event_loop.call_method0(py, "create_future")?;
        done.call_method1(py, "set_result", (py.None(),))?;
        Ok(Self {
            // From Python 3.14 on they know it until they are done.
            uses_futures_again: !done.bind(py).hasattr("_asyncio_awaited_by")?,
            done,
            wake: Wake::new()?,
            pending: AtomicBool::new(false),
            queue: Mutex::default(),
            handled: Mutex::default(),
            later: Mutex::default(),
            targets: Mutex::default(),
            generation: AtomicUsize::new(0),
            dirty: Mutex::default(),
            flush_wanted: AtomicBool::new(false),
            flush_scheduled: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            thread: this_thread(),
            name: name_of_loop(py)?,
            event_loop: Arc::new(event_loop),
            loop_side: Mutex::new(None),
            closed: AtomicBool::new(false),
            closes: Mutex::default(),
            inside: AtomicBool::new(false),
            scratch: Mutex::default(),
            abandoned: AtomicBool::new(false),
            spare_parkings: Mutex::default(),
            at_hand: AtHand::new(),
        })
    }

    /// Pushes an event; wakes the loop unless it is awake for this hub already.
    pub(crate) fn push(&self, event: Event) {
        let Some(event) = self.at_hand.keep_event(event) else { return };
        self.queue.lock().push_back(event);
        self.wake();
    }

    /// Pushes an event. On the loop's own thread it is handled at the end of the turn, which whoever called
    /// from Python plans by [`Self::settle`]. After the loop has ended it is dropped, but inside a callback that
    /// is to end yet: what it names would be kept alive by it, and keep the hub.
    pub(crate) fn put(&self, event: Event) {
        let Some(event) = self.at_hand.keep_event(event) else {
            self.flush_wanted.store(true, Ordering::Relaxed);
            return;
        };
        let mut queue = self.queue.lock();
        // Closing sets this first and empties the queue then.
        if self.is_closed() {
            drop(queue);
            drop(event);
            return;
        }
        queue.push_back(event);
        drop(queue);
        if self.is_loop_thread() {
            self.flush_wanted.store(true, Ordering::Relaxed);
        } else {
            self.wake();
        }
    }

    /// Puts an event off until the loop has had a turn; on the loop's thread.
    pub(crate) fn put_off(&self, event: Event) {
        self.later.lock().push(event);
        self.flush_wanted.store(true, Ordering::Relaxed);
    }

    fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            self.wake.wake();
        }
    }

    /// Runs `work` on the loop's thread.
    pub(crate) fn run(&self, work: Box<dyn FnOnce() + Send>) {
        self.push(Event::Run(work));
    }

    pub(crate) fn event_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.event_loop.bind(py).clone())
    }

    /// A future of the loop.
    pub(crate) fn new_future(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.event_loop.call_method0(py, pyo3::intern!(py, "create_future"))
    }

    /// A value that only the loop's thread looks at.
    pub(crate) const fn cell<T>(&self, value: T) -> LoopCell<T> {
        LoopCell::new(self.thread, value)
    }

    pub(crate) fn is_loop_thread(&self) -> bool {
        this_thread() == self.thread
    }

    /// Refuses use from another thread or after the loop has ended.
    pub(crate) fn check(&self, py: Python<'_>) -> PyResult<()> {
        crate::runtime::check_fork(py)?;
        if self.closed.load(Ordering::Acquire) {
            return Err(PyRuntimeError::new_err("the event loop that this belongs to has ended"));
        }
        if self.is_loop_thread() { Ok(()) } else { Err(elsewhere()) }
    }

    pub(crate) fn add_target(&self, target: Target) -> Slot {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) as u64;
        let index = self.targets.lock().insert((generation, target));
        Slot { index, generation }
    }

    pub(crate) fn remove_target(&self, slot: Slot) {
        let removed = {
            let mut targets = self.targets.lock();
            match targets.get(slot.index) {
                Some((generation, _)) if *generation == slot.generation => Some(targets.remove(slot.index)),
                _ => None,
            }
        };
        // Dropping a Python object may run Python, so the lock is not held.
        drop(removed);
    }

    fn with_target<T>(&self, slot: Slot, look: impl FnOnce(&Target) -> T) -> Option<T> {
        let targets = self.targets.lock();
        match targets.get(slot.index) {
            Some((generation, target)) if *generation == slot.generation => Some(look(target)),
            _ => None,
        }
    }

    /// Takes charge of closing something when the loop ends.
    pub(crate) fn close_with_loop(&self, closes: Weak<dyn Closes>) {
        let mut list = self.closes.lock();
        list.retain(|known| known.strong_count() > 0);
        list.push(closes);
    }

    /// Called by every method that may have sent something: plans the flush that a link asked for.
    pub(crate) fn settle(&self, py: Python<'_>) -> PyResult<()> {
        if !self.flush_wanted.load(Ordering::Relaxed) || self.flush_scheduled.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !self.is_loop_thread() {
            return Ok(());
        }
        let calls = self
            .loop_side
            .lock()
            .as_ref()
            .map(|side| (side.call_soon.clone_ref(py), side.flush.clone_ref(py)));
        if let Some((call_soon, flush)) = calls {
            call_soon.call1(py, (flush,))?;
            self.flush_scheduled.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// For destructors, which have no interpreter token to plan a flush with: the loop is called back.
    pub(crate) fn flush_later(&self) {
        if self.flush_wanted.load(Ordering::Relaxed) && !self.flush_scheduled.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    /// The hub as the loop sees it; `None` once it has closed.
    pub(super) fn this(&self, py: Python<'_>) -> Option<Py<LoopHub>> {
        self.loop_side.lock().as_ref().map(|side| side.this.clone_ref(py))
    }

    /// Has a link flushed at the end of the loop's turn; on the loop's thread.
    pub(super) fn flush_at_end_of_turn(&self, link: &Arc<Link>) {
        self.dirty.lock().push(Arc::clone(link));
        self.flush_wanted.store(true, Ordering::Relaxed);
    }

    pub(super) fn flush_dirty(&self) {
        self.flush_wanted.store(false, Ordering::Relaxed);
        let links = std::mem::take(&mut *self.dirty.lock());
        for link in links {
            link.flush();
        }
    }

    /// A number that changes whenever the loop has called back: whoever sees it changed knows that the loop
    /// had a turn.
    pub(crate) fn turn(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// The loop's thread begins something that may cause events; they are handled by [`Self::leave`].
    pub(crate) fn enter(&self) {
        self.inside.store(true, Ordering::Relaxed);
        self.at_hand.open();
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.pending.store(true, Ordering::Release);
    }

    /// Handles what has gathered, up to a budget; then the loop is called back for the rest.
    pub(crate) fn leave(&self, py: Python<'_>) -> PyResult<()> {
        let result = self.handle_gathered(py);
        // Before anything else runs Python: what that causes is for another callback.
        let left = self.at_hand.close(|parking| self.spare(parking));
        if !left.is_empty() {
            self.requeue(left);
        }
        let result = result.and_then(|()| self.settle(py));
        self.inside.store(false, Ordering::Relaxed);
        result
    }

    /// Whether callbacks shall do nothing: in a forked child, whose sockets are the parent's, and on a thread
    /// that still turns a loop while the interpreter exits.
    pub(crate) fn is_abandoned(&self) -> bool {
        is_forked() || self.abandoned.load(Ordering::Relaxed)
    }

    /// The interpreter exits while another thread turns the loop. CPython will end that thread wherever it
    /// wants the interpreter next, by unwinding its stack, and native frames do not survive that: it must
    /// have left ours, and not come back.
    pub(super) fn abandon(&self, py: Python<'_>) {
        self.abandoned.store(true, Ordering::Relaxed);
        let until = Instant::now() + ABANDON_WAIT;
        py.detach(|| {
            while self.inside.load(Ordering::Relaxed) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }

    fn handle_gathered(&self, py: Python<'_>) -> PyResult<()> {
        entered_python();
        let later = std::mem::take(&mut *self.later.lock());
        if !later.is_empty() {
            self.queue.lock().extend(later);
        }
        let mut budget = EVENTS_PER_DRAIN;
        let mut events = std::mem::take(&mut *self.handled.lock());
        loop {
            std::mem::swap(&mut events, &mut *self.queue.lock());
            self.at_hand.take_events(&mut events);
            if events.is_empty() {
                // What was put here meanwhile has been handled; only links may want a flush.
                let wanted = !self.dirty.lock().is_empty() || !self.later.lock().is_empty();
                self.flush_wanted.store(wanted, Ordering::Relaxed);
                self.pending.store(false, Ordering::Release);
                if self.queue.lock().is_empty() {
                    break;
                }
                self.pending.store(true, Ordering::Release);
                continue;
            }
            while budget > 0
                && let Some(event) = events.pop_front()
            {
                budget -= 1;
                if let Err(error) = self.handle(py, event) {
                    self.requeue(events);
                    return Err(error);
                }
            }
            if budget == 0 {
                self.requeue(std::mem::take(&mut events));
                break;
            }
        }
        if events.capacity() <= EVENTS_PER_DRAIN {
            *self.handled.lock() = events;
        }
        Ok(())
    }

    /// Puts events back in front and has the loop call again. Of a long queue only what is new is moved.
    fn requeue(&self, mut events: VecDeque<Event>) {
        self.at_hand.take_events(&mut events);
        let mut queue = self.queue.lock();
        // Closing, perhaps on another thread, has emptied the queue for good.
        if self.is_closed() {
            drop(queue);
            drop(events);
            return;
        }
        events.append(&mut queue);
        *queue = events;
        drop(queue);
        self.pending.store(true, Ordering::Release);
        self.wake.wake();
    }

    fn handle(&self, py: Python<'_>, event: Event) -> PyResult<()> {
        let result = match event {
            Event::Wake(slot) => self.wake_target(py, slot),
            Event::Start(slot, request) => {
                let engine = self.with_target(slot, |target| match target {
                    Target::Engine(engine) => Some(engine.clone_ref(py)),
                    Target::Waiter(_) | Target::Sink(_) | Target::Requests(_) => None,
                });
                match engine.flatten() {
                    Some(engine) => crate::worker::start(engine.bind(py), *request),
                    // The worker is gone: dropping the responder answers for it.
                    None => Ok(()),
                }
            }
            Event::Attach(link) => LinkReader::attach(py, self, link),
            Event::Flush(link) => {
                link.flush();
                Ok(())
            }
            Event::Batch(core, task) => core.upgrade().map_or(Ok(()), |core| core.run(py, task)),
            Event::Answered(told) => told.wake(py, self),
            Event::Trash(object) => {
                drop(object);
                Ok(())
            }
            Event::Run(work) => {
                work();
                Ok(())
            }
        };
        match result {
            // What ends the program passes; anything else must not keep the other events waiting.
            Err(error) if error.is_instance_of::<pyo3::exceptions::PyException>(py) => {
                error.write_unraisable(py, None);
                Ok(())
            }
            result => result,
        }
    }

    fn wake_target(&self, py: Python<'_>, slot: Slot) -> PyResult<()> {
        enum Found {
            Waiter(Arc<Waiter>),
            Sink(Py<Sink>),
            Requests(Py<RequestSink>),
        }
        let found = self.with_target(slot, |target| match target {
            Target::Waiter(waiter) => Some(Found::Waiter(Arc::clone(waiter))),
            Target::Sink(sink) => Some(Found::Sink(sink.clone_ref(py))),
            Target::Requests(sink) => Some(Found::Requests(sink.clone_ref(py))),
            Target::Engine(_) => None,
        });
        match found.flatten() {
            Some(Found::Waiter(waiter)) => waiter.complete(py).map(drop),
            Some(Found::Sink(sink)) => Sink::signalled(sink.bind(py)),
            Some(Found::Requests(sink)) => RequestSink::signalled(sink.bind(py)),
            None => Ok(()),
        }
    }

    /// The memory that reads of this loop go through; one for all its links.
    pub(crate) fn with_scratch<T>(&self, read: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut scratch = self.scratch.lock();
        if scratch.is_empty() {
            scratch.resize(headrace::link::SCRATCH_BYTES, 0);
        }
        read(&mut scratch)
    }

    /// Ends everything that belongs to the loop.
    pub(crate) fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) || is_forked() {
            return;
        }
        let closes = std::mem::take(&mut *self.closes.lock());
        for owned in closes {
            if let Some(owned) = owned.upgrade() {
                owned.close();
            }
        }
        let later = std::mem::take(&mut *self.later.lock());
        drop(later);
        // Requests that nobody will start are answered by their responders as these are dropped.
        let events = std::mem::take(&mut *self.queue.lock());
        drop(events);
        let spare = std::mem::take(&mut *self.spare_parkings.lock());
        drop(spare);
        let targets = std::mem::take(&mut *self.targets.lock());
        drop(targets);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}
