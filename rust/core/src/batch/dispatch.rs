//! What happens to items from dispatch on: forming a batch, the answers to it, and what becomes of it when its
//! worker does not answer.

use std::sync::Arc;

use super::config::QUEUE_CAPACITY_MAX;
use super::deadlines::run;
use super::outcome::TimeLimit;
use super::queue::{Decided, End, Queue};
use super::slab::State;
use super::stats::DispatchReason;
use super::terms::Ticket;
use crate::clock::NEVER;

/// Names a batch until it has been answered or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlightId {
    index: usize,
    generation: u64,
}

/// A batch in flight.
#[derive(Debug)]
struct Flight {
    generation: u64,
    worker: u32,
    tickets: Arc<[Ticket]>,
    /// When its run began; [`NEVER`] before.
    armed_ns: u64,
}

/// The batches in flight: few, one for each worker or, in an engine that steps, one for each time it took.
#[derive(Debug, Default)]
pub(super) struct Flights {
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    generation: u64,
}

impl Flights {
    fn insert(&mut self, worker: u32, tickets: Arc<[Ticket]>, armed_ns: u64) -> FlightId {
        self.generation += 1;
        let generation = self.generation;
        let flight = Some(Flight { generation, worker, tickets, armed_ns });
        let index = self.free.pop().unwrap_or(self.flights.len());
        match self.flights.get_mut(index) {
            Some(place) => *place = flight,
            None => self.flights.push(flight),
        }
        FlightId { index, generation }
    }

    fn get_mut(&mut self, id: FlightId) -> Option<&mut Flight> {
        let flight = self.flights.get_mut(id.index)?.as_mut()?;
        (flight.generation == id.generation).then_some(flight)
    }

    fn remove(&mut self, id: FlightId) -> Option<Flight> {
        self.get_mut(id)?;
        self.free.push(id.index);
        self.flights.get_mut(id.index)?.take()
    }

    fn find(&self, mut wanted: impl FnMut(&Flight) -> bool) -> Option<FlightId> {
        self.flights.iter().enumerate().find_map(|(index, flight)| {
            let flight = flight.as_ref().filter(|flight| wanted(flight))?;
            Some(FlightId { index, generation: flight.generation })
        })
    }

    fn worker(&self, mut wanted: impl FnMut(&Flight) -> bool) -> Option<u32> {
        self.flights.iter().flatten().find(|flight| wanted(flight)).map(|flight| flight.worker)
    }

    pub(super) fn len(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When the next function will have run for too long.
    pub(super) fn next_hang_ns(&self, hang_ns: u64) -> u64 {
        if hang_ns == NEVER {
            return NEVER;
        }
        let armed = self.flights.iter().flatten().map(|flight| flight.armed_ns.saturating_add(hang_ns));
        armed.min().unwrap_or(NEVER)
    }
}

/// A batch that was formed.
#[derive(Debug)]
pub(super) struct Formed<T> {
    pub(super) id: FlightId,
    pub(super) tickets: Arc<[Ticket]>,
    pub(super) items: Vec<T>,
    pub(super) key: u64,
    pub(super) cost: u64,
    pub(super) padded_size: usize,
    pub(super) reason: DispatchReason,
}

/// What a function, or its absence, says to a batch.
pub(super) enum Answer<'a> {
    /// For each item whether it has succeeded.
    Each(&'a dyn Fn(usize) -> bool),
    /// All of it has failed.
    Failed,
    /// Nothing more: its items were answered ahead, or it was dropped.
    Ended,
}

/// Who is to be told of an answer.
#[derive(Debug)]
pub(super) struct Settled<P> {
    /// Where in the batch, and how long the function had the item.
    pub(super) replies: Vec<(usize, P, u64)>,
    pub(super) late: usize,
    pub(super) lost: bool,
}

impl<T, P> Queue<T, P> {
    /// Forms a batch of at most `limit` items, if one may be taken now.
    pub(super) fn take(
        &mut self,
        worker: u32,
        limit: usize,
        now_ns: u64,
        decided: &mut Vec<Decided<T, P>>,
    ) -> Option<Formed<T>> {
        let now_ns = self.advance(now_ns);
        self.expire(now_ns, decided);
        self.is_limited |= limit < QUEUE_CAPACITY_MAX;
        let most = limit.min(self.rules.size);
        if most == 0 || !self.may_take() {
            return None;
        }
        self.buckets.ripen(&self.slab, &self.rules, now_ns);
        loop {
            let at = self.buckets.first_ready()?;
            let reason = self.buckets.reason(&self.slab, &self.rules, at, now_ns);
            if let Some(formed) = self.form(at, reason, most, worker, now_ns, decided) {
                return Some(formed);
            }
        }
    }

    fn form(
        &mut self,
        at: u32,
        ripe: DispatchReason,
        most: usize,
        worker: u32,
        now_ns: u64,
        decided: &mut Vec<Decided<T, P>>,
    ) -> Option<Formed<T>> {
        let count = self.buckets.count(at).min(most);
        let (mut tickets, mut items) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let key = self.buckets.key(at);
        let done_ns = self.done_ns(count, now_ns);
        // So many items could be taken now, by this worker and those that are free beside it.
        let takeable = self.rules.size * (self.config.workers.saturating_sub(self.flights.len())).max(1);
        let mut budget = self.rules.budget(most);
        let mut reason = ripe;
        let mut oldest_ns = now_ns;
        while !budget.is_full() && !budget.is_spent() {
            let Some((_, index)) = self.buckets.head(&self.slab, &self.rules, at) else { break };
            let slot = &self.slab[index];
            // It would be too late for this one, and enough others wait that may be in time.
            if slot.until_ns < done_ns && self.queued + items.len() > takeable {
                self.expire_one(index, true, now_ns, decided);
                continue;
            }
            if budget.is_over(slot.cost) {
                reason = DispatchReason::Cost;
                break;
            }
            budget.add(slot.cost);
            oldest_ns = oldest_ns.min(slot.enqueued_ns);
            tickets.push(self.slab.ticket(index));
            items.extend(self.dispatch(index, now_ns));
        }
        self.buckets.settle(&self.slab, &self.rules, at, now_ns);
        if items.is_empty() {
            return None;
        }
        if budget.is_full() {
            reason = DispatchReason::Size;
        } else if budget.is_spent() {
            reason = DispatchReason::Cost;
        }
        self.count_batch(items.len(), reason);
        self.stats.batch_cost.record(budget.cost());
        self.stats.formation.record(now_ns - oldest_ns);
        let tickets = Arc::<[Ticket]>::from(tickets);
        Some(Formed {
            id: self.flights.insert(worker, Arc::clone(&tickets), now_ns),
            padded_size: self.config.padded_size(items.len()),
            tickets,
            items,
            key,
            cost: budget.cost(),
            reason,
        })
    }

    /// When a batch of `size` items that begins now is likely to be done; 0 when that is not to be asked.
    fn done_ns(&self, size: usize, now_ns: u64) -> u64 {
        if !self.config.predictive_expiry {
            return 0;
        }
        self.predict_ns(size, now_ns).map_or(0, |batch_ns| now_ns.saturating_add(batch_ns))
    }

    /// Hands an item to the function.
    fn dispatch(&mut self, index: u32, now_ns: u64) -> Option<T> {
        self.unqueue(index);
        let response_ns = now_ns.saturating_add(self.response_bound_ns(index));
        let slot = &mut self.slab[index];
        slot.state = State::Dispatched;
        slot.dispatched_ns = now_ns;
        self.stats.dispatched += 1;
        self.stats.queue_wait.record(now_ns - slot.enqueued_ns);
        let item = slot.item.take();
        if response_ns < slot.until_ns {
            let own = slot.own_response;
            self.deadlines.remove(&mut self.slab, index);
            let slot = &mut self.slab[index];
            (slot.until_ns, slot.limit) = (response_ns, TimeLimit::Response);
            self.deadlines.insert(&mut self.slab, index, run(true, own));
        }
        item
    }

    fn count_batch(&mut self, len: usize, reason: DispatchReason) {
        if let Some(count) = self.stats.batches.get_mut(reason as usize) {
            *count += 1;
        }
        let stats = &mut self.stats;
        let is_first = stats.max_batch_size_seen == 0;
        stats.min_batch_size_seen = if is_first { len } else { stats.min_batch_size_seen.min(len) };
        stats.max_batch_size_seen = stats.max_batch_size_seen.max(len);
        self.stats.batch_size.record(len as u64);
        self.stats.fill.record((len * 100 / self.rules.size.max(1)) as u64);
    }

    /// Answers one item ahead of its batch: who is to be told, if anybody still waits.
    pub(super) fn resolve(&mut self, id: FlightId, at: usize, ok: bool) -> Option<P> {
        let Some(flight) = self.flights.get_mut(id) else {
            self.stats.late_results += 1;
            return None;
        };
        let index = self.slab.find(*flight.tickets.get(at)?)?;
        let reply = self.retire(index);
        if reply.is_none() {
            self.stats.late_results += 1;
        } else if ok {
            self.stats.completed += 1;
        } else {
            self.stats.failed += 1;
        }
        reply
    }

    /// Answers what is left of a batch, of whose items `ahead` were answered before.
    pub(super) fn finish(
        &mut self,
        id: FlightId,
        len: usize,
        ahead: usize,
        answer: &Answer<'_>,
        now_ns: u64,
    ) -> Settled<P> {
        let now_ns = self.advance(now_ns);
        let mut settled = Settled { replies: Vec::new(), late: 0, lost: false };
        let answered = !matches!(answer, Answer::Ended);
        let Some(flight) = self.flights.remove(id) else {
            (settled.late, settled.lost) = (if answered { len - ahead } else { 0 }, true);
            self.stats.late_results += settled.late as u64;
            return settled;
        };
        settled.replies.reserve_exact(flight.tickets.len());
        for (at, &ticket) in flight.tickets.iter().enumerate() {
            let Some(index) = self.slab.find(ticket) else { continue };
            let ran_ns = now_ns - self.slab[index].dispatched_ns;
            let Some(reply) = self.retire(index) else {
                settled.late += usize::from(answered);
                continue;
            };
            if matches!(answer, Answer::Each(is_ok) if is_ok(at)) {
                self.stats.completed += 1;
            } else {
                self.stats.failed += 1;
            }
            settled.replies.push((at, reply, ran_ns));
        }
        self.stats.late_results += settled.late as u64;
        let execution_ns = now_ns.saturating_sub(flight.armed_ns);
        self.stats.execution.record(execution_ns);
        let succeeded = match answer {
            Answer::Each(_) => true,
            Answer::Failed => false,
            Answer::Ended => settled.replies.is_empty(),
        };
        if succeeded {
            self.estimate.record(flight.tickets.len(), execution_ns);
            self.stats.consecutive_errors = 0;
        } else {
            self.stats.consecutive_errors += 1;
        }
        self.landed(now_ns);
        settled
    }

    /// An item leaves its function: its reply, unless it was abandoned. Its client's permit is free from now.
    fn retire(&mut self, index: u32) -> Option<P> {
        self.deadlines.remove(&mut self.slab, index);
        self.release(index);
        let slot = &mut self.slab[index];
        let reply = slot.reply.take();
        match slot.state {
            State::Abandoned => self.stats.abandoned -= 1,
            _ => self.stats.dispatched -= 1,
        }
        self.slab.remove(index);
        reply
    }

    /// Splits a batch that has failed as a whole, before item `middle`; the items are with the guard. `None`
    /// if it was given up meanwhile.
    pub(super) fn split(&mut self, id: FlightId, key: u64, middle: usize) -> Option<[Formed<T>; 2]> {
        let Flight { worker, tickets, .. } = self.flights.remove(id)?;
        self.stats.consecutive_errors += 1;
        let (first, second) = tickets.split_at(middle.min(tickets.len()));
        Some([first, second].map(|half| {
            let mut budget = self.rules.budget(half.len());
            for index in half.iter().filter_map(|&ticket| self.slab.find(ticket)) {
                budget.add(self.slab[index].cost);
            }
            self.count_batch(half.len(), DispatchReason::Isolation);
            let tickets = Arc::<[Ticket]>::from(half);
            Formed {
                id: self.flights.insert(worker, Arc::clone(&tickets), NEVER),
                padded_size: self.config.padded_size(half.len()),
                tickets,
                items: Vec::new(),
                key,
                cost: budget.cost(),
                reason: DispatchReason::Isolation,
            }
        }))
    }

    /// The run of a batch begins, or begins again.
    pub(super) fn rearm(&mut self, id: FlightId, now_ns: u64) {
        let now_ns = self.advance(now_ns);
        if let Some(flight) = self.flights.get_mut(id) {
            flight.armed_ns = now_ns;
        }
    }

    /// Gives up a worker with all its batches. Whether it had one.
    pub(super) fn lose(
        &mut self,
        worker: u32,
        hung: bool,
        now_ns: u64,
        decided: &mut Vec<Decided<T, P>>,
    ) -> bool {
        let now_ns = self.advance(now_ns);
        let mut had = false;
        while let Some(flight) =
            self.flights.find(|flight| flight.worker == worker).and_then(|id| self.flights.remove(id))
        {
            had = true;
            for &ticket in flight.tickets.iter() {
                let Some(index) = self.slab.find(ticket) else { continue };
                let ran_ns = now_ns - self.slab[index].dispatched_ns;
                if let Some(reply) = self.retire(index) {
                    self.stats.failed += 1;
                    decided.push(Decided { reply, item: None, end: End::WorkerLost { ran_ns, hung } });
                }
            }
        }
        if had {
            self.stats.consecutive_errors += 1;
            self.stats.workers_lost += 1;
            self.landed(now_ns);
        }
        had
    }

    /// Whether a worker has a batch.
    pub(super) fn is_running(&self, worker: u32) -> bool {
        self.flights.find(|flight| flight.worker == worker).is_some()
    }

    /// Gives up all workers that have a batch.
    pub(super) fn lose_all(&mut self, now_ns: u64, decided: &mut Vec<Decided<T, P>>) {
        while let Some(worker) = self.flights.worker(|_| true) {
            self.lose(worker, false, now_ns, decided);
        }
    }

    /// Gives up the workers whose function has run for too long.
    pub(super) fn give_up_hung(&mut self, now_ns: u64, decided: &mut Vec<Decided<T, P>>) -> Vec<u32> {
        let (mut hung, hang_ns) = (Vec::new(), self.hang_ns);
        if hang_ns == NEVER {
            return hung;
        }
        let too_long = |flight: &Flight| flight.armed_ns.saturating_add(hang_ns) <= now_ns;
        while let Some(worker) =
            self.flights.find(too_long).and_then(|id| self.flights.get_mut(id).map(|flight| flight.worker))
        {
            self.lose(worker, true, now_ns, decided);
            hung.push(worker);
        }
        hung
    }

    /// How long somebody waits for an item of a batch: 0 if nobody does any more, [`NEVER`] without a bound.
    pub(super) fn remaining_ns(&self, ticket: Ticket, now_ns: u64) -> u64 {
        let waited_for = |&index: &u32| self.slab[index].state == State::Dispatched;
        self.slab.find(ticket).filter(waited_for).map_or(0, |index| match self.slab[index].until_ns {
            NEVER => NEVER,
            until_ns => until_ns.saturating_sub(now_ns).max(1),
        })
    }

    fn landed(&mut self, now_ns: u64) {
        if self.flights.is_empty() {
            self.idle_since_ns = now_ns;
        }
    }
}
