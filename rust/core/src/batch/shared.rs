//! The queue behind one lock, and what follows from each change of it: a worker is woken, a time is named,
//! replies are called. All of that is found out under the lock and done after it has been released.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::clock::BatchClock;
use super::config::BatchConfig;
use super::dispatch::Formed;
use super::notice::{Cause, Notice};
use super::outcome::{Outcome, Reply};
use super::queue::{Decided, End, Phase, Queue};
#[cfg(not(headrace_model))]
use super::stats::BatchStats;
use super::sync::{Condvar, Mutex, MutexGuard};
use super::terms::Ticket;
use super::timer::{self, Named, Timed};
#[cfg(not(headrace_model))]
use crate::metrics::batch as metrics;

pub(super) struct Shared<T: Send + 'static, P: Reply<T>> {
    state: Mutex<State<T, P>>,
    /// Where workers park.
    work: Condvar,
    /// Where those park who wait for everything to have run.
    done: Condvar,
    notice: Option<Arc<dyn Notice>>,
    /// Whether the notice hears of arrivals first.
    gathers: bool,
    pub(super) clock: BatchClock,
    /// For the timer, which must not keep a batcher alive.
    me: Weak<Self>,
}

pub(super) struct State<T, P> {
    pub(super) queue: Queue<T, P>,
    /// Threads that are parked.
    parked: usize,
    /// Somebody tried to take, found nothing, and wants to know when there is something.
    polled: bool,
    /// Somebody was told that a batch can be taken, and has not come yet.
    signalled: bool,
    named: Named,
    quiet_told: bool,
}

impl<T, P> State<T, P> {
    const fn worker_free(&self) -> bool {
        self.parked > 0 || self.polled
    }
}

/// What is to be done once the lock has been released.
#[derive(Default)]
struct Todo {
    ready: Option<Cause>,
    threads: bool,
    arm_ns: Option<u64>,
    room: bool,
    quiet: bool,
}

/// What a worker that asks for work is told.
pub(super) enum Found<T> {
    Batch(Formed<T>),
    Nothing,
    Closed,
}

impl<T: Send + 'static, P: Reply<T>> Shared<T, P> {
    pub(super) fn new(config: BatchConfig, notice: Option<Arc<dyn Notice>>, clock: BatchClock) -> Arc<Self> {
        #[cfg(not(headrace_model))]
        let name = config.name.clone();
        let shared = Arc::new_cyclic(|me| Self {
            state: Mutex::new(State {
                queue: Queue::new(config),
                parked: 0,
                // Whoever wants notices wants the first one too.
                polled: notice.is_some(),
                signalled: false,
                named: Named::default(),
                quiet_told: false,
            }),
            work: Condvar::default(),
            done: Condvar::default(),
            gathers: notice.as_ref().is_some_and(|notice| notice.gathers()),
            notice,
            clock,
            me: Weak::clone(me),
        });
        #[cfg(not(headrace_model))]
        metrics::watch(&name, Arc::downgrade(&shared) as Weak<dyn metrics::Counted>);
        shared
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<T, P>> {
        self.state.lock()
    }

    /// Releases the lock and does what follows from what was done under it.
    pub(super) fn follow(
        &self,
        mut state: MutexGuard<'_, State<T, P>>,
        cause: Cause,
        decided: Vec<Decided<T, P>>,
    ) {
        let todo = self.todo(&mut state, cause);
        drop(state);
        self.act(&todo);
        tell_all(decided);
    }

    /// Releases the lock after an item has come. Most come to workers that are busy or have been told of an
    /// earlier one, and are not the first whose time is over; then there is nothing to do.
    pub(super) fn arrived(&self, state: MutexGuard<'_, State<T, P>>, ticket: Ticket) {
        let follows = state.worker_free() || state.queue.wants_room;
        if follows || !state.named.covers(state.queue.until_ns(ticket)) {
            self.follow(state, Cause::Arrival, Vec::new());
        }
    }

    fn todo(&self, state: &mut State<T, P>, cause: Cause) -> Todo {
        let mut todo = Todo::default();
        let free = state.worker_free();
        if free && !state.signalled && state.queue.is_ready() {
            state.signalled = true;
            // There is nothing to gather: a parked thread is woken from here.
            todo.threads = state.parked > 0 && (cause == Cause::Other || !self.gathers);
            if !todo.threads {
                state.polled = false;
                todo.ready = Some(cause);
            }
        }
        if !self.clock.is_manual() {
            let next_ns = state.queue.next_ns(free);
            todo.arm_ns = state.named.name(next_ns).then_some(next_ns);
        }
        if state.queue.wants_room && state.queue.made_room {
            state.queue.wants_room = false;
            todo.room = true;
        }
        if !state.quiet_told && state.queue.is_quiet() {
            state.quiet_told = true;
            todo.quiet = true;
        }
        todo
    }

    /// Has the timer come at `at_ns`.
    pub(super) fn arm(&self, at_ns: u64) {
        timer::call_at(at_ns, Weak::clone(&self.me) as Weak<dyn Timed>);
    }

    fn act(&self, todo: &Todo) {
        if todo.threads {
            self.work.notify_one();
        }
        if let Some(at_ns) = todo.arm_ns {
            self.arm(at_ns);
        }
        if todo.quiet {
            self.done.notify_all();
        }
        if let Some(notice) = &self.notice {
            if let Some(cause) = todo.ready {
                notice.ready(cause);
            }
            if todo.room {
                notice.room();
            }
            if todo.quiet {
                notice.quiet();
            }
        }
    }

    /// Takes a batch if there is one; otherwise the next one that can be taken is told of.
    pub(super) fn poll(&self, worker: u32, limit: usize) -> Found<T> {
        let mut decided = Vec::new();
        let now_ns = self.clock.now_ns();
        let mut state = self.lock();
        state.signalled = false;
        let formed = state.queue.take(worker, limit, now_ns, &mut decided);
        let found = match formed {
            Some(formed) => Found::Batch(formed),
            None if is_over(&state) => Found::Closed,
            None => {
                state.polled |= limit > 0;
                Found::Nothing
            }
        };
        self.follow(state, Cause::Other, decided);
        found
    }

    /// Parks the calling thread until `attempt` says something. It is asked again whenever there may be a
    /// batch.
    pub(super) fn park<V>(
        &self,
        mut attempt: impl FnMut(&mut State<T, P>, u64, &mut Vec<Decided<T, P>>) -> Option<V>,
    ) -> Option<V> {
        loop {
            let mut decided = Vec::new();
            let now_ns = self.clock.now_ns();
            let mut state = self.lock();
            state.signalled = false;
            let found = attempt(&mut state, now_ns, &mut decided);
            if found.is_some() || is_over(&state) {
                self.follow(state, Cause::Other, decided);
                return found;
            }
            state.parked += 1;
            let todo = self.todo(&mut state, Cause::Other);
            if decided.is_empty() && !todo.is_something() {
                self.work.wait(&mut state);
                state.parked -= 1;
                continue;
            }
            // Something is to be done without the lock first; what has changed by then is seen by another
            // attempt.
            state.parked -= 1;
            drop(state);
            self.act(&todo);
            tell_all(decided);
        }
    }

    /// Parks the calling thread until a batch can be taken; false when there will be none any more. Nobody
    /// else is told of that batch until somebody has tried to take it.
    pub(super) fn wait_ready(&self) -> bool {
        let ready = self.park(|state, now_ns, decided| {
            state.signalled = state.queue.look(now_ns, decided);
            state.signalled.then_some(())
        });
        ready.is_some()
    }

    /// Has the next batch that can be taken told of; one that can be already is told of from here.
    pub(super) fn ask(&self) {
        let mut decided = Vec::new();
        let now_ns = self.clock.now_ns();
        let mut state = self.lock();
        state.queue.look(now_ns, &mut decided);
        state.polled = true;
        self.follow(state, Cause::Other, decided);
    }

    pub(super) fn wake_workers(&self) {
        let mut state = self.lock();
        let wake = state.parked > 0 && state.queue.is_ready();
        // Otherwise nobody will come, and the next batch is to be told of.
        state.signalled = wake;
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    /// Everybody who waits for work finds that there will be none, or different rules.
    pub(super) fn wake_all(&self) {
        self.work.notify_all();
        if let Some(notice) = &self.notice {
            notice.ready(Cause::Other);
        }
    }

    /// Parks the calling thread until everything has run; false after `until`.
    pub(super) fn wait_quiet(&self, until: Option<Instant>) -> bool {
        let mut state = self.lock();
        while !state.queue.is_quiet() {
            match until {
                None => self.done.wait(&mut state),
                Some(until) if Instant::now() < until => _ = self.done.wait_until(&mut state, until),
                Some(_) => return false,
            }
        }
        true
    }

    /// Does what the time says. When the timer is to come next, if that is earlier than it knows.
    pub(super) fn tick(&self) -> Option<u64> {
        let mut decided = Vec::new();
        let now_ns = self.clock.now_ns();
        let mut state = self.lock();
        state.named.pass(now_ns);
        let hung = state.queue.tick(now_ns, &mut decided);
        let mut todo = self.todo(&mut state, Cause::Other);
        drop(state);
        let next_ns = todo.arm_ns.take();
        self.act(&todo);
        tell_all(decided);
        if let Some(notice) = &self.notice {
            hung.into_iter().for_each(|worker| notice.lost(worker));
        }
        next_ns
    }
}

impl Todo {
    const fn is_something(&self) -> bool {
        self.threads || self.ready.is_some() || self.arm_ns.is_some() || self.room || self.quiet
    }
}

impl<T: Send + 'static, P: Reply<T>> Timed for Shared<T, P> {
    fn due(self: Arc<Self>) -> Option<u64> {
        self.tick()
    }
}

#[cfg(not(headrace_model))]
impl<T: Send + 'static, P: Reply<T>> metrics::Counted for Shared<T, P> {
    fn counts(&self) -> BatchStats {
        self.lock().queue.snapshot()
    }
}

impl<T: Send + 'static, P: Reply<T>> Drop for Shared<T, P> {
    /// Nobody is left who could take what waits. Batches keep it alive, so none is in flight.
    fn drop(&mut self) {
        #[cfg(not(headrace_model))]
        let place = std::ptr::from_ref(self).cast();
        let mut decided = Vec::new();
        let now_ns = self.clock.now_ns();
        let queue = &mut self.state.get_mut().queue;
        queue.close(now_ns, &mut decided);
        #[cfg(not(headrace_model))]
        metrics::gone(&queue.config.name, place, &queue.snapshot());
        tell_all(decided);
    }
}

/// Whether there will be no batch any more.
fn is_over<T, P>(state: &State<T, P>) -> bool {
    state.queue.phase != Phase::Open && state.queue.queued == 0
}

pub(super) fn tell_all<T: Send + 'static, P: Reply<T>>(decided: Vec<Decided<T, P>>) {
    for Decided { reply, item, end } in decided {
        tell(reply, outcome(end), item);
    }
}

/// Calls a reply. One that panics costs nobody else theirs, nor the timer its thread.
pub(super) fn tell<T: Send + 'static, P: Reply<T>>(
    reply: P,
    outcome: Outcome<P::Output, P::Error>,
    item: Option<T>,
) {
    if catch_unwind(AssertUnwindSafe(|| reply.resolve(outcome, item))).is_err() {
        tracing::error!("a batcher's reply panicked");
    }
}

const fn outcome<R, E>(end: End) -> Outcome<R, E> {
    match end {
        End::Expired { waited_ns, predicted } => {
            Outcome::Expired { waited: Duration::from_nanos(waited_ns), predicted }
        }
        End::TimedOut { waited_ns, ran_ns, limit } => Outcome::TimedOut {
            waited: Duration::from_nanos(waited_ns),
            ran: Duration::from_nanos(ran_ns),
            limit,
        },
        End::Cancelled { dispatched } => Outcome::Cancelled { dispatched },
        End::Closed => Outcome::Closed,
        End::WorkerLost { ran_ns, hung } => Outcome::WorkerLost { ran: Duration::from_nanos(ran_ns), hung },
    }
}
