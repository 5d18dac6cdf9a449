//! A batch in a function's hands: a guard, so that whatever becomes of the function, each item is resolved.

use std::fmt;
use std::time::Duration;

use super::coordinator::Coordinator;
use super::outcome::Reply;
use super::stats::DispatchReason;
use super::terms::Ticket;

/// What became of a batch when it was handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Items that were resolved by this.
    pub resolved: usize,
    /// Results that came too late: their items had been resolved otherwise.
    pub late: usize,
    /// The batch had been taken from its worker, which has been replaced: it should end.
    pub lost: bool,
}

/// Items that were taken together, until the function has answered.
///
/// One that is dropped before fails what is left of it as [`super::Outcome::WorkerLost`].
pub struct Batch<T: Send + 'static, P: Reply<T>> {
    coordinator: Coordinator<T, P>,
    tickets: Vec<Ticket>,
    items: Vec<T>,
}

impl<T: Send + 'static, P: Reply<T>> Batch<T, P> {
    /// How many items it has, those that were resolved meanwhile included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tickets.len()
    }

    /// Never: a batch has at least one item.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// The items, in the order in which results are expected; empty after [`Self::take_items`].
    #[must_use]
    pub fn items(&self) -> &[T] {
        &self.items
    }

    /// The items, to be changed in place.
    pub fn items_mut(&mut self) -> &mut [T] {
        &mut self.items
    }

    /// Takes the items out. The replies are then called without them.
    #[must_use]
    pub fn take_items(&mut self) -> Vec<T> {
        std::mem::take(&mut self.items)
    }

    /// The items' tickets, in their order.
    #[must_use]
    pub fn tickets(&self) -> &[Ticket] {
        &self.tickets
    }

    /// The key that they share.
    #[must_use]
    pub fn key(&self) -> u64 {
        unreachable!()
    }

    /// What the batch costs: the sum of its items, or padded.
    #[must_use]
    pub fn cost(&self) -> u64 {
        unreachable!()
    }

    /// Why it was closed when it was.
    #[must_use]
    pub fn reason(&self) -> DispatchReason {
        unreachable!()
    }

    /// The worker that took it.
    #[must_use]
    pub fn worker(&self) -> u32 {
        unreachable!()
    }

    /// The size to pad it to: the smallest of `allowed_sizes` that holds it, else its own.
    #[must_use]
    pub fn padded_size(&self) -> usize {
        unreachable!()
    }

    /// Whether nobody waits for this item any more: it was cancelled, timed out, or resolved.
    #[must_use]
    pub fn is_cancelled(&self, _index: usize) -> bool {
        unreachable!()
    }

    /// How long somebody will wait for this item; `None` without a bound, zero if nobody waits any more.
    #[must_use]
    pub fn remaining(&self, _index: usize) -> Option<Duration> {
        unreachable!()
    }

    /// Answers one item ahead of the others. False, with the result dropped, if it had been resolved before.
    /// [`Self::complete`] is then still to be called, with a result for every item; those of items that were
    /// answered ahead are ignored. [`Self::finish`] needs none.
    pub fn resolve(&mut self, _index: usize, _result: Result<P::Output, P::Error>) -> bool {
        unreachable!()
    }

    /// Answers all items, in their order. Another number of results than of items fails every one as
    /// [`super::Outcome::WrongCount`].
    pub fn complete(self, _results: Vec<Result<P::Output, P::Error>>) -> Finished {
        unreachable!()
    }

    /// Fails all items that are left; `error` makes one for each, by index.
    pub fn fail(self, _error: impl FnMut(usize) -> P::Error) -> Finished {
        unreachable!()
    }

    /// Ends a batch whose items were all answered by [`Self::resolve`]. What was not is failed as
    /// [`super::Outcome::WrongCount`].
    pub fn finish(self) -> Finished {
        unreachable!()
    }

    /// Whether a batch that fails as a whole is to be split and run again (`isolate_failures`).
    #[must_use]
    pub fn isolates(&self) -> bool {
        unreachable!()
    }

    /// Splits it in the middle, for a second run. The items stay dispatched; those that nobody waits for any
    /// more go with their half. Each half is a batch of its own; call [`Self::rearm`] when its run begins.
    ///
    /// # Errors
    /// The batch itself, if it has one item, or was lost.
    pub fn split(self) -> Result<(Self, Self), Self> {
        unreachable!()
    }

    /// Starts the clock of `callback_timeout` and of the execution histogram anew.
    pub fn rearm(&self) {
        unreachable!()
    }
}

impl<T: Send + 'static, P: Reply<T>> fmt::Debug for Batch<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("len", &self.len()).finish_non_exhaustive()
    }
}
