//! The queue behind one lock.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::clock::BatchClock;
use super::config::BatchConfig;
use super::notice::Notice;
use super::outcome::Reply;
use super::stats::BatchStats;
use super::taken::Batch;
use super::terms::{Refused, Terms, Ticket};
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
/// one queue. The last one that is dropped closes it.
pub struct Coordinator<T: Send + 'static, P: Reply<T>> {
    shared: Arc<PhantomData<fn() -> (T, P)>>,
}

impl<T: Send + 'static, P: Reply<T>> Coordinator<T, P> {
    /// A coordinator that wakes the threads parked in [`Self::next_batch`] itself.
    ///
    /// # Errors
    /// [`StartError::Setting`] for a setting out of range.
    pub fn new(_config: BatchConfig) -> Result<Self, StartError> {
        unreachable!()
    }

    /// A coordinator that leaves it to `notice` when workers are woken, and goes by `clock`.
    ///
    /// # Errors
    /// [`StartError::Setting`] for a setting out of range.
    pub fn with_notice(
        _config: BatchConfig,
        _notice: Arc<dyn Notice>,
        _clock: BatchClock,
    ) -> Result<Self, StartError> {
        unreachable!()
    }

    /// Admits an item, or refuses it at once. Never blocks for longer than the lock is held elsewhere.
    ///
    /// # Errors
    /// The item and its reply, which has not been called, with the reason.
    pub fn submit(&self, _item: T, _reply: P, _terms: Terms) -> Result<Ticket, Refused<T, P>> {
        unreachable!()
    }

    /// Counts an item that its owner refused as invalid before it came here: a key or cost function that
    /// raised, for example.
    pub fn count_invalid(&self) {
        unreachable!()
    }

    /// Cancels an item: its reply is told [`super::Outcome::Cancelled`] in this call, unless it was resolved
    /// before, which false says.
    pub fn cancel(&self, _ticket: Ticket) -> bool {
        unreachable!()
    }

    /// Takes a batch if one can be taken now. `worker` is the caller's number for who runs it.
    #[must_use]
    pub fn try_take(&self, _worker: u32) -> Taken<T, P> {
        unreachable!()
    }

    /// Takes a batch of at most `limit` items, which then counts as full: for engines that have room for so
    /// many. With a limit of zero there is nothing.
    #[must_use]
    pub fn try_take_at_most(&self, _worker: u32, _limit: usize) -> Taken<T, P> {
        unreachable!()
    }

    /// Parks the calling thread until there is a batch; `None` when there will be none any more.
    #[must_use]
    pub fn next_batch(&self, _worker: u32) -> Option<Batch<T, P>> {
        unreachable!()
    }

    /// Parks the calling thread until a batch can be taken, without taking it; false when there will be none
    /// any more. For workers that need something else first, such as a lease: items may join meanwhile.
    #[must_use]
    pub fn wait_ready(&self) -> bool {
        unreachable!()
    }

    /// Wakes one parked thread if a batch can be taken; it wakes the next if there is another. What a
    /// [`Notice`] calls.
    pub fn wake_workers(&self) {
        unreachable!()
    }

    /// Gives up a worker that has died: its batches fail as [`super::Outcome::WorkerLost`].
    pub fn lose(&self, _worker: u32) {
        unreachable!()
    }

    /// Takes nothing new and lets what waits run, even while paused. [`Notice::quiet`] tells when it has.
    pub fn begin_drain(&self) {
        unreachable!()
    }

    /// [`Self::begin_drain`], and parks the calling thread until everything has run, or until `timeout` is
    /// over, when what still waits is closed as by [`Self::close`]. Whether everything had run.
    pub fn drain(&self, _timeout: Option<Duration>) -> bool {
        unreachable!()
    }

    /// Takes nothing new; what waits is told [`super::Outcome::Closed`]. Batches in flight go on.
    pub fn close(&self) {
        unreachable!()
    }

    /// Whether it has been closed or drains.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        unreachable!()
    }

    /// Hands out no batch until [`Self::resume`]. Items are admitted, and expire.
    pub fn pause(&self) {
        unreachable!()
    }

    /// Hands out batches again.
    pub fn resume(&self) {
        unreachable!()
    }

    /// Closes the windows of what waits now: it can be taken at once.
    pub fn flush(&self) {
        unreachable!()
    }

    /// Changes the settings, for what comes and for what waits. Deadlines that were given stay.
    ///
    /// # Errors
    /// [`StartError::Setting`] for a setting out of range; nothing has changed then.
    pub fn configure(&self, _config: BatchConfig) -> Result<(), StartError> {
        unreachable!()
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> BatchConfig {
        unreachable!()
    }

    /// Does what the time says: for owners of a manual [`BatchClock`]. Otherwise the timer's thread does.
    pub fn tick(&self) {
        unreachable!()
    }

    /// A consistent snapshot.
    #[must_use]
    pub fn stats(&self) -> BatchStats {
        unreachable!()
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
