//! The queue behind one lock, as owners, submitters and workers use it. What a submit costs: one lock, one
//! look at the clock, a place that is used again; no allocation, and no system call unless a worker is parked.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clock::{BatchClock, duration_ns};
use super::config::BatchConfig;
use super::dispatch::Formed;
use super::notice::{Cause, Notice};
use super::outcome::Reply;
use super::queue::{Asked, Bound, Decided, Phase, Queue};
use super::shared::{Found, Shared};
use super::stats::BatchStats;
use super::taken::Batch;
use super::terms::{Refused, Terms, Ticket, Timeout};
use crate::clock::NEVER;
use crate::error::StartError;

/// What [`Coordinator::try_take`] found.
#[derive(Debug)]
pub enum Taken<T: Send + 'static, P: Reply<T>> {
    /// A batch.
    Batch(Batch<T, P>),
    /// Nothing yet. [`Notice::ready`] will be called when there is something.
    Nothing,
    /// Nothing, and never again.
    Closed,
}

/// Collects items of type `T` into batches, and tells each item's reply `P` what became of it. Clones share
/// one queue. When the last one and every batch have been dropped, what still waits is told
/// [`super::Outcome::Closed`].
pub struct Coordinator<T: Send + 'static, P: Reply<T>> {
    shared: Arc<Shared<T, P>>,
}

impl<T: Send + 'static, P: Reply<T>> Coordinator<T, P> {
    /// A coordinator that wakes the threads parked in [`Self::next_batch`] itself.
    ///
    /// # Errors
    /// [`StartError::Setting`] for a setting out of range.
    pub fn new(config: BatchConfig) -> Result<Self, StartError> {
        Self::with_clock(config, BatchClock::default())
    }

    /// The same, going by `clock`.
    ///
    /// # Errors
    /// [`StartError::Setting`] for a setting out of range.
    pub fn with_clock(config: BatchConfig, clock: BatchClock) -> Result<Self, StartError> {
        config.check()?;
        Ok(Self { shared: Shared::new(config, None, clock) })
    }

    /// A coordinator that leaves it to `notice` when workers are woken, and goes by `clock`.
    ///
    /// # Errors
    /// [`StartError::Setting`] for a setting out of range.
    pub fn with_notice(
        config: BatchConfig,
        notice: Arc<dyn Notice>,
        clock: BatchClock,
    ) -> Result<Self, StartError> {
        config.check()?;
        Ok(Self { shared: Shared::new(config, Some(notice), clock) })
    }

    /// Admits an item, or refuses it at once. Never blocks for longer than the lock is held elsewhere.
    ///
    /// # Errors
    /// The item and its reply, which has not been called, with the reason.
    pub fn submit(&self, item: T, reply: P, terms: Terms) -> Result<Ticket, Refused<T, P>> {
        self.admit(item, reply, &self.asked(&terms))
    }

    /// The same for whoever submits again when there is room ([`Notice::room`]): a refusal that passes counts
    /// neither as submitted nor as rejected.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn offer(&self, item: T, reply: P, terms: Terms) -> Result<Ticket, Refused<T, P>> {
        self.admit(item, reply, &Asked { waits_for_room: true, ..self.asked(&terms) })
    }

    fn admit(&self, item: T, reply: P, asked: &Asked) -> Result<Ticket, Refused<T, P>> {
        let now_ns = self.shared.clock.now_ns();
        let mut state = self.shared.lock();
        match state.queue.push(item, reply, asked, now_ns) {
            Ok(ticket) => {
                self.shared.arrived(state, ticket);
                Ok(ticket)
            }
            Err((item, reply, reason)) => {
                let retry_after = state.queue.retry_after_ns(&reason).map(Duration::from_nanos);
                Err(Refused { item, reply, reason, retry_after })
            }
        }
    }

    /// Counts an item that its owner refused as invalid before it came here: a key or cost function that
    /// raised, for example.
    pub fn count_invalid(&self) {
        self.shared.lock().queue.count_invalid();
    }

    /// Cancels an item: its reply is told [`super::Outcome::Cancelled`] in this call, unless it was resolved
    /// before, which false says.
    pub fn cancel(&self, ticket: Ticket) -> bool {
        let now_ns = self.shared.clock.now_ns();
        let mut state = self.shared.lock();
        let decided: Vec<_> = state.queue.cancel(ticket, now_ns).into_iter().collect();
        let cancelled = !decided.is_empty();
        self.shared.follow(state, Cause::Other, decided);
        cancelled
    }

    /// Takes a batch if one can be taken now. `worker` is the caller's number for who runs it.
    #[must_use]
    pub fn try_take(&self, worker: u32) -> Taken<T, P> {
        self.try_take_at_most(worker, usize::MAX)
    }

    /// Takes a batch of at most `limit` items: for engines that have room for so many. With a limit of zero
    /// there is nothing, and nothing is told of.
    #[must_use]
    pub fn try_take_at_most(&self, worker: u32, limit: usize) -> Taken<T, P> {
        match self.shared.poll(worker, limit) {
            Found::Batch(formed) => Taken::Batch(Batch::new(&self.shared, formed, worker)),
            Found::Nothing => Taken::Nothing,
            Found::Closed => Taken::Closed,
        }
    }

    /// Parks the calling thread until there is a batch; `None` when there will be none any more.
    #[must_use]
    pub fn next_batch(&self, worker: u32) -> Option<Batch<T, P>> {
        let formed: Formed<T> = self
            .shared
            .park(|state, now_ns, decided| state.queue.take(worker, usize::MAX, now_ns, decided))?;
        Some(Batch::new(&self.shared, formed, worker))
    }

    /// Parks the calling thread until a batch can be taken, without taking it; false when there will be none
    /// any more. For workers that need something else first, such as a lease: items may join meanwhile. Who is
    /// told true must then try to take, or call [`Self::wake_workers`]: until then nobody else is told.
    #[must_use]
    pub fn wait_ready(&self) -> bool {
        self.shared.wait_ready()
    }

    /// Has [`Notice::ready`] called when a batch can be taken, at once if one can: as after a
    /// [`Self::try_take`] that found nothing, for who has done something else since.
    pub fn ask(&self) {
        self.shared.ask();
    }

    /// Wakes one parked thread if a batch can be taken; it wakes the next if there is another. What a
    /// [`Notice`] calls.
    pub fn wake_workers(&self) {
        self.shared.wake_workers();
    }

    /// Gives up a worker that has died: its batches fail as [`super::Outcome::WorkerLost`].
    pub fn lose(&self, worker: u32) {
        self.change(|queue, now_ns, decided| _ = queue.lose(worker, false, now_ns, decided));
    }

    /// Whether this worker has a batch that it has not been given up with. An owner that hears that a worker is
    /// lost, and finds one, hears it too late: the worker has come back.
    #[must_use]
    pub fn is_running(&self, worker: u32) -> bool {
        self.shared.lock().queue.is_running(worker)
    }

    /// Gives up every batch in flight.
    pub fn lose_all(&self) {
        self.change(|queue, now_ns, decided| queue.lose_all(now_ns, decided));
    }

    /// Takes nothing new and lets what waits run, even while paused. [`Notice::quiet`] tells when it has.
    pub fn begin_drain(&self) {
        self.change(|queue, now_ns, _| queue.drain(now_ns));
        // Workers that find nothing left end.
        self.shared.wake_all();
    }

    /// [`Self::begin_drain`], and parks the calling thread until everything has run, or until `timeout` is
    /// over, when what still waits is closed as by [`Self::close`]. Whether everything had run.
    pub fn drain(&self, timeout: Option<Duration>) -> bool {
        self.begin_drain();
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let quiet = self.shared.wait_quiet(until);
        if !quiet {
            self.close();
        }
        quiet
    }

    /// Takes nothing new; what waits is told [`super::Outcome::Closed`]. Batches in flight go on.
    pub fn close(&self) {
        self.change(|queue, now_ns, decided| queue.close(now_ns, decided));
        self.shared.wake_all();
    }

    /// Whether it has been closed or drains.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.lock().queue.phase != Phase::Open
    }

    /// Whether it has been closed or drains, and nothing waits or runs any more.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.shared.lock().queue.is_quiet()
    }

    /// Hands out no batch until [`Self::resume`]. Items are admitted, and expire.
    pub fn pause(&self) {
        self.change(|queue, _, _| queue.pause());
    }

    /// Hands out batches again.
    pub fn resume(&self) {
        self.change(|queue, _, _| queue.resume());
    }

    /// Closes the windows of what waits now: it can be taken at once.
    pub fn flush(&self) {
        self.change(|queue, now_ns, _| queue.flush(now_ns));
    }

    /// Changes the settings, for what comes and for what waits. Deadlines that were given stay.
    ///
    /// # Errors
    /// [`StartError::Setting`] for a setting out of range; nothing has changed then.
    pub fn configure(&self, config: BatchConfig) -> Result<(), StartError> {
        config.check()?;
        self.change(|queue, now_ns, _| queue.configure(config, now_ns));
        Ok(())
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> BatchConfig {
        self.shared.lock().queue.config.clone()
    }

    /// Does what the time says: for owners of a manual [`BatchClock`]. Otherwise the timer's thread does.
    pub fn tick(&self) {
        if let Some(at_ns) = self.shared.tick() {
            self.shared.arm(at_ns);
        }
    }

    /// A consistent snapshot.
    #[must_use]
    pub fn stats(&self) -> BatchStats {
        self.shared.lock().queue.snapshot()
    }

    /// Changes the queue, and does what follows.
    fn change(&self, change: impl FnOnce(&mut Queue<T, P>, u64, &mut Vec<Decided<T, P>>)) {
        let mut decided = Vec::new();
        let now_ns = self.shared.clock.now_ns();
        let mut state = self.shared.lock();
        change(&mut state.queue, now_ns, &mut decided);
        self.shared.follow(state, Cause::Other, decided);
    }

    fn asked(&self, terms: &Terms) -> Asked {
        let bound = |timeout| match timeout {
            Timeout::Configured => Bound::Configured,
            Timeout::Never => Bound::After(NEVER),
            Timeout::After(duration) => Bound::After(duration_ns(duration)),
            Timeout::At(instant) => Bound::Until(self.shared.clock.at_ns(instant)),
        };
        Asked {
            cost: terms.cost,
            key: terms.key,
            client: terms.client,
            priority: terms.priority,
            timeout: bound(terms.timeout),
            response: bound(terms.response_timeout),
            waits_for_room: false,
        }
    }
}

impl<T: Send + 'static, P: Reply<T>> Clone for Coordinator<T, P> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T: Send + 'static, P: Reply<T>> fmt::Debug for Coordinator<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator").finish_non_exhaustive()
    }
}
