//! A batch in a function's hands: a guard, so that whatever becomes of the function, each item is resolved.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::dispatch::{Answer, FlightId, Formed, Settled};
use super::notice::Cause;
use super::outcome::{Outcome, Reply};
use super::shared::{Shared, tell};
use super::stats::DispatchReason;
use super::terms::Ticket;
use crate::clock::NEVER;

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
    shared: Arc<Shared<T, P>>,
    id: FlightId,
    tickets: Arc<[Ticket]>,
    items: Vec<T>,
    key: u64,
    cost: u64,
    padded_size: usize,
    reason: DispatchReason,
    worker: u32,
    /// Items that were answered ahead of the others.
    ahead: usize,
    /// Whether it has been answered, or split.
    over: bool,
}

impl<T: Send + 'static, P: Reply<T>> Batch<T, P> {
    pub(super) fn new(shared: &Arc<Shared<T, P>>, formed: Formed<T>, worker: u32) -> Self {
        let Formed { id, tickets, items, key, cost, padded_size, reason } = formed;
        let shared = Arc::clone(shared);
        Self { shared, id, tickets, items, key, cost, padded_size, reason, worker, ahead: 0, over: false }
    }

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
    pub const fn key(&self) -> u64 {
        self.key
    }

    /// What the batch costs: the sum of its items, or padded.
    #[must_use]
    pub const fn cost(&self) -> u64 {
        self.cost
    }

    /// Why it was closed when it was.
    #[must_use]
    pub const fn reason(&self) -> DispatchReason {
        self.reason
    }

    /// The worker that took it.
    #[must_use]
    pub const fn worker(&self) -> u32 {
        self.worker
    }

    /// The size to pad it to: the smallest of `allowed_sizes` that holds it, else its own.
    #[must_use]
    pub const fn padded_size(&self) -> usize {
        self.padded_size
    }

    /// Whether nobody waits for this item any more: it was cancelled, timed out, or resolved.
    #[must_use]
    pub fn is_cancelled(&self, index: usize) -> bool {
        self.remaining_ns(index) == 0
    }

    /// How long somebody will wait for this item; `None` without a bound, zero if nobody waits any more.
    #[must_use]
    pub fn remaining(&self, index: usize) -> Option<Duration> {
        match self.remaining_ns(index) {
            NEVER => None,
            left_ns => Some(Duration::from_nanos(left_ns)),
        }
    }

    fn remaining_ns(&self, index: usize) -> u64 {
        let Some(&ticket) = self.tickets.get(index) else { return 0 };
        let now_ns = self.shared.clock.now_ns();
        self.shared.lock().queue.remaining_ns(ticket, now_ns)
    }

    /// Answers one item ahead of the others. False, with the result dropped, if it had been resolved before.
    /// [`Self::complete`] is then still to be called, with a result for every item; those of items that were
    /// answered ahead are ignored. [`Self::finish`] needs none.
    pub fn resolve(&mut self, index: usize, result: Result<P::Output, P::Error>) -> bool {
        let mut state = self.shared.lock();
        let reply = state.queue.resolve(self.id, index, result.is_ok());
        self.shared.follow(state, Cause::Other, Vec::new());
        let Some(reply) = reply else { return false };
        self.ahead += 1;
        tell(reply, result.map_or_else(Outcome::Failed, Outcome::Completed), None);
        true
    }

    /// Answers all items, in their order. Another number of results than of items fails every one as
    /// [`super::Outcome::WrongCount`].
    pub fn complete(mut self, results: Vec<Result<P::Output, P::Error>>) -> Finished {
        let (expected, actual) = (self.len(), results.len());
        if expected != actual {
            return self.end(&Answer::Failed, |_, _| Outcome::WrongCount { expected, actual });
        }
        let is_ok = |index: usize| matches!(results.get(index), Some(Ok(_)));
        let settled = self.settle(&Answer::Each(&is_ok));
        let mut results = results.into_iter().enumerate();
        // Replies come in the order of the items, as results do; some are missing.
        self.tell(settled, |wanted, _| match results.find(|&(index, _)| index == wanted) {
            Some((_, Ok(result))) => Outcome::Completed(result),
            Some((_, Err(error))) => Outcome::Failed(error),
            None => Outcome::WrongCount { expected, actual },
        })
    }

    /// Fails all items that are left; `error` makes one for each, by index.
    pub fn fail(mut self, mut error: impl FnMut(usize) -> P::Error) -> Finished {
        self.end(&Answer::Failed, |index, _| Outcome::Failed(error(index)))
    }

    /// Ends a batch whose items were answered by [`Self::resolve`]. What was not, and is still waited for, is
    /// failed as [`super::Outcome::WrongCount`].
    pub fn finish(mut self) -> Finished {
        let (expected, actual) = (self.len(), self.ahead);
        self.end(&Answer::Ended, |_, _| Outcome::WrongCount { expected, actual })
    }

    /// Whether a batch that fails as a whole is to be split and run again (`isolate_failures`).
    #[must_use]
    pub fn isolates(&self) -> bool {
        self.shared.lock().queue.config.isolate_failures
    }

    /// Splits it in the middle, for a second run. The items stay dispatched; those that nobody waits for any
    /// more go with their half. Each half is a batch of its own; call [`Self::rearm`] when its run begins.
    ///
    /// # Errors
    /// The batch itself, if it has one item, or was lost.
    pub fn split(mut self) -> Result<(Self, Self), Self> {
        let middle = self.len() / 2;
        let halves =
            if middle == 0 { None } else { self.shared.lock().queue.split(self.id, self.key, middle) };
        let Some([first, second]) = halves else { return Err(self) };
        self.over = true;
        let mut items = self.take_items();
        let later = items.split_off(middle.min(items.len()));
        let half = |formed, items| Self::new(&self.shared, Formed { items, ..formed }, self.worker);
        Ok((half(first, items), half(second, later)))
    }

    /// Starts the clock of `callback_timeout` and of the execution histogram anew.
    pub fn rearm(&self) {
        let now_ns = self.shared.clock.now_ns();
        let mut state = self.shared.lock();
        state.queue.rearm(self.id, now_ns);
        self.shared.follow(state, Cause::Other, Vec::new());
    }

    /// Answers what is left, with an outcome for each by its index and the time for which it ran.
    fn end(
        &mut self,
        answer: &Answer<'_>,
        outcome: impl FnMut(usize, Duration) -> Outcome<P::Output, P::Error>,
    ) -> Finished {
        let settled = self.settle(answer);
        self.tell(settled, outcome)
    }

    fn settle(&mut self, answer: &Answer<'_>) -> Settled<P> {
        self.over = true;
        let now_ns = self.shared.clock.now_ns();
        let mut state = self.shared.lock();
        let settled = state.queue.finish(self.id, self.tickets.len(), self.ahead, answer, now_ns);
        self.shared.follow(state, Cause::Other, Vec::new());
        settled
    }

    fn tell(
        &mut self,
        settled: Settled<P>,
        mut outcome: impl FnMut(usize, Duration) -> Outcome<P::Output, P::Error>,
    ) -> Finished {
        let Settled { replies, late, lost } = settled;
        let resolved = replies.len();
        let mut items = self.take_items().into_iter().enumerate();
        for (wanted, reply, ran_ns) in replies {
            let item = items.find(|&(index, _)| index == wanted).map(|(_, item)| item);
            tell(reply, outcome(wanted, Duration::from_nanos(ran_ns)), item);
        }
        Finished { resolved, late, lost }
    }
}

impl<T: Send + 'static, P: Reply<T>> fmt::Debug for Batch<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<T: Send + 'static, P: Reply<T>> Drop for Batch<T, P> {
    fn drop(&mut self) {
        if !self.over {
            self.end(&Answer::Ended, |_, ran| Outcome::WorkerLost { ran, hung: false });
        }
    }
}
