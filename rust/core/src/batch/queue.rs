//! Everything a batcher decides, without clock, thread or lock: each method is told what time it is. Who is to
//! be told of a decision is handed out, to be called once the lock has been released.
//!
//! Here: what ends an item that waits, and the batcher's own states. Whether one is admitted is in `admission`,
//! what happens from dispatch on in `dispatch`.

use rustc_hash::FxHashMap;

use super::clock::duration_ns;
use super::config::BatchConfig;
use super::deadlines::{Deadlines, run};
use super::dispatch::Flights;
use super::estimate::Estimate;
use super::lanes::Buckets;
use super::outcome::TimeLimit;
use super::policy::Rules;
use super::slab::{Slab, State};
use super::stats::BatchStats;
use super::terms::{RejectReason, Ticket};
use crate::clock::NEVER;

/// A bound in time as a submitter gave it, on the batcher's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    Configured,
    /// So long, or until then; [`NEVER`] for neither.
    After(u64),
    Until(u64),
}

/// [`super::Terms`] with times as numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) cost: u64,
    pub(super) key: u64,
    pub(super) client: Option<u64>,
    pub(super) priority: usize,
    pub(super) timeout: Bound,
    pub(super) response: Bound,
    /// Who finds no room comes again: that counts neither as submitted nor as rejected.
    pub(super) waits_for_room: bool,
}

/// How an item ended, other than by an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Expired { waited_ns: u64, predicted: bool },
    TimedOut { waited_ns: u64, ran_ns: u64, limit: TimeLimit },
    Cancelled { dispatched: bool },
    Closed,
    WorkerLost { ran_ns: u64, hung: bool },
}

/// Somebody to be told.
#[derive(Debug)]
pub(super) struct Decided<T, P> {
    pub(super) reply: P,
    pub(super) item: Option<T>,
    pub(super) end: End,
}

/// Whether anything is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Nothing new; what waits runs.
    Draining,
    /// Nothing new, and nothing waits.
    Closed,
}

#[derive(Debug)]
pub(super) struct Queue<T, P> {
    pub(super) config: BatchConfig,
    pub(super) rules: Rules,
    pub(super) slab: Slab<T, P>,
    pub(super) buckets: Buckets,
    pub(super) deadlines: Deadlines,
    /// Permits that each client holds.
    pub(super) clients: FxHashMap<u64, usize>,
    pub(super) flights: Flights,
    pub(super) estimate: Estimate,
    /// Since when no batch is in flight.
    pub(super) idle_since_ns: u64,
    pub(super) stats: BatchStats,
    pub(super) queued: usize,
    pub(super) queued_cost: u128,
    /// An engine says for itself how many items it takes: how many are served at once is not known here.
    pub(super) is_limited: bool,
    pub(super) phase: Phase,
    paused: bool,
    /// A submit was refused for lack of room.
    pub(super) wants_room: bool,
    /// Room was made since.
    pub(super) made_room: bool,
    pub(super) capacity: usize,
    timeout_ns: u64,
    response_ns: u64,
    pub(super) hang_ns: u64,
    sequence: u64,
    /// The latest time that was told: times from different threads may come in another order.
    pub(super) latest_ns: u64,
}

impl<T, P> Queue<T, P> {
    pub(super) fn new(config: BatchConfig) -> Self {
        let mut queue = Self {
            rules: Rules::new(&config),
            slab: Slab::default(),
            buckets: Buckets::default(),
            deadlines: Deadlines::default(),
            clients: FxHashMap::default(),
            flights: Flights::default(),
            estimate: Estimate::default(),
            idle_since_ns: 0,
            stats: BatchStats::default(),
            queued: 0,
            queued_cost: 0,
            is_limited: false,
            phase: Phase::Open,
            paused: false,
            wants_room: false,
            made_room: false,
            capacity: 0,
            timeout_ns: NEVER,
            response_ns: NEVER,
            hang_ns: NEVER,
            sequence: 0,
            latest_ns: 0,
            config,
        };
        queue.read_config();
        queue
    }

    /// Admits an item.
    pub(super) fn push(
        &mut self,
        item: T,
        reply: P,
        asked: &Asked,
        now_ns: u64,
    ) -> Result<Ticket, (T, P, RejectReason)> {
        let now_ns = self.advance(now_ns);
        self.stats.submitted += 1;
        let until_ns = match asked.timeout {
            Bound::Configured => now_ns.saturating_add(self.timeout_ns),
            Bound::After(after_ns) => now_ns.saturating_add(after_ns),
            Bound::Until(until_ns) => until_ns,
        };
        if let Err(reason) = self.admit(asked, until_ns, now_ns) {
            self.refuse(&reason, asked.waits_for_room);
            return Err((item, reply, reason));
        }
        if let Some(client) = asked.client {
            *self.clients.entry(client).or_insert(0) += 1;
        }
        let index = self.slab.insert(item, reply);
        let slot = &mut self.slab[index];
        slot.limit = TimeLimit::Whole;
        slot.lane = asked.priority as u8;
        slot.sequence = self.sequence;
        slot.enqueued_ns = now_ns;
        slot.until_ns = until_ns;
        (slot.own_response, slot.response_ns) = match asked.response {
            Bound::Configured => (false, NEVER),
            Bound::After(after_ns) => (true, after_ns),
            // The earlier of two instants needs no second one.
            Bound::Until(response_ns) => {
                if response_ns < until_ns {
                    slot.until_ns = response_ns;
                }
                (true, NEVER)
            }
        };
        slot.cost = asked.cost;
        slot.client = asked.client;
        self.sequence += 1;
        self.queued += 1;
        self.queued_cost += u128::from(asked.cost);
        let own = asked.timeout != Bound::Configured || matches!(asked.response, Bound::Until(_));
        self.deadlines.insert(&mut self.slab, index, run(false, own));
        self.buckets.push(&mut self.slab, &self.rules, index, asked.key, now_ns);
        Ok(self.slab.ticket(index))
    }

    /// What the caller of an item that is cancelled is told; `None` if it has been resolved.
    pub(super) fn cancel(&mut self, ticket: Ticket, now_ns: u64) -> Option<Decided<T, P>> {
        let now_ns = self.advance(now_ns);
        let index = self.slab.find(ticket)?;
        let dispatched = match self.slab[index].state {
            State::Queued => false,
            State::Dispatched => true,
            State::Abandoned | State::Free => return None,
        };
        self.stats.cancelled += 1;
        let end = End::Cancelled { dispatched };
        if dispatched { self.abandon(index, end) } else { self.leave(index, end, now_ns) }
    }

    /// What is due by now: deadlines, functions that hang, windows. Returns workers that were given up.
    pub(super) fn tick(&mut self, now_ns: u64, decided: &mut Vec<Decided<T, P>>) -> Vec<u32> {
        let now_ns = self.advance(now_ns);
        self.expire(now_ns, decided);
        let hung = self.give_up_hung(now_ns, decided);
        self.buckets.ripen(&self.slab, &self.rules, now_ns);
        hung
    }

    /// What is due by now of what waits. Whether a batch may be taken.
    pub(super) fn look(&mut self, now_ns: u64, decided: &mut Vec<Decided<T, P>>) -> bool {
        let now_ns = self.advance(now_ns);
        self.expire(now_ns, decided);
        self.buckets.ripen(&self.slab, &self.rules, now_ns);
        self.is_ready()
    }

    /// Ends what has no time left.
    pub(super) fn expire(&mut self, now_ns: u64, decided: &mut Vec<Decided<T, P>>) {
        while let Some(index) = self.deadlines.first(&self.slab) {
            let slot = &self.slab[index];
            if slot.until_ns > now_ns {
                break;
            }
            if slot.state == State::Queued {
                self.expire_one(index, false, now_ns, decided);
                continue;
            }
            let end = End::TimedOut {
                waited_ns: slot.dispatched_ns - slot.enqueued_ns,
                ran_ns: now_ns - slot.dispatched_ns,
                limit: slot.limit,
            };
            self.stats.timed_out += 1;
            decided.extend(self.abandon(index, end));
        }
    }

    /// Expires an item that waits.
    pub(super) fn expire_one(
        &mut self,
        index: u32,
        predicted: bool,
        now_ns: u64,
        decided: &mut Vec<Decided<T, P>>,
    ) {
        let waited_ns = now_ns - self.slab[index].enqueued_ns;
        self.stats.expired += 1;
        self.stats.expired_early += u64::from(predicted);
        decided.extend(self.leave(index, End::Expired { waited_ns, predicted }, now_ns));
    }

    /// An item that waits goes.
    fn leave(&mut self, index: u32, end: End, now_ns: u64) -> Option<Decided<T, P>> {
        let at = self.unqueue(index);
        self.buckets.settle(&self.slab, &self.rules, at, now_ns);
        self.deadlines.remove(&mut self.slab, index);
        self.release(index);
        let slot = &mut self.slab[index];
        let (item, reply) = (slot.item.take(), slot.reply.take());
        self.slab.remove(index);
        reply.map(|reply| Decided { reply, item, end })
    }

    /// Takes an item out of its lane; its bucket is to be settled.
    pub(super) fn unqueue(&mut self, index: u32) -> u32 {
        self.queued -= 1;
        self.queued_cost -= u128::from(self.slab[index].cost);
        self.made_room = true;
        self.buckets.unlink(&mut self.slab, index)
    }

    /// Nobody waits any more for an item that the function has.
    fn abandon(&mut self, index: u32, end: End) -> Option<Decided<T, P>> {
        self.deadlines.remove(&mut self.slab, index);
        self.stats.dispatched -= 1;
        self.stats.abandoned += 1;
        let slot = &mut self.slab[index];
        slot.state = State::Abandoned;
        slot.reply.take().map(|reply| Decided { reply, item: None, end })
    }

    /// Gives back the permit of an item's client.
    pub(super) fn release(&mut self, index: u32) {
        let Some(client) = self.slab[index].client.take() else { return };
        self.made_room = true;
        if let Some(held) = self.clients.get_mut(&client) {
            *held -= 1;
            if *held == 0 {
                self.clients.remove(&client);
            }
        }
    }

    /// Takes nothing new; what waits runs, paused or not.
    pub(super) fn drain(&mut self, now_ns: u64) {
        let now_ns = self.advance(now_ns);
        if self.phase == Phase::Open {
            self.phase = Phase::Draining;
            self.buckets.drain(&self.slab, &self.rules, now_ns);
        }
    }

    /// Takes nothing new, and ends what waits.
    pub(super) fn close(&mut self, now_ns: u64, decided: &mut Vec<Decided<T, P>>) {
        let now_ns = self.advance(now_ns);
        // Everything that waits is ready then, the most urgent first.
        self.drain(now_ns);
        while let Some((_, index)) =
            self.buckets.first_ready().and_then(|at| self.buckets.head(&self.slab, &self.rules, at))
        {
            self.stats.closed += 1;
            decided.extend(self.leave(index, End::Closed, now_ns));
        }
        self.phase = Phase::Closed;
    }

    pub(super) const fn pause(&mut self) {
        self.paused = true;
    }

    pub(super) const fn resume(&mut self) {
        self.paused = false;
    }

    /// What waits now may be taken now.
    pub(super) fn flush(&mut self, now_ns: u64) {
        let now_ns = self.advance(now_ns);
        self.buckets.flush(&self.slab, &self.rules, self.sequence, now_ns);
    }

    /// Changes the settings.
    pub(super) fn configure(&mut self, config: BatchConfig, now_ns: u64) {
        let now_ns = self.advance(now_ns);
        self.config = config;
        self.read_config();
        self.buckets.settle_all(&self.slab, &self.rules, now_ns);
        // There may be more of it.
        self.made_room = true;
    }

    fn read_config(&mut self) {
        let config = &self.config;
        self.rules = Rules::new(config);
        self.capacity = config.capacity();
        self.timeout_ns = config.timeout.map_or(NEVER, duration_ns);
        self.response_ns = config.response_timeout.map_or(NEVER, duration_ns);
        self.hang_ns = config.callback_timeout.map_or(NEVER, duration_ns);
    }

    /// How long the function may have an item, from dispatch on.
    pub(super) fn response_bound_ns(&self, index: u32) -> u64 {
        let slot = &self.slab[index];
        if slot.own_response { slot.response_ns } else { self.response_ns }
    }

    /// Whether a worker that is free could take a batch now.
    pub(super) fn is_ready(&self) -> bool {
        self.may_take() && self.buckets.is_ready()
    }

    /// Whether batches are handed out. A drain would never end if a pause outlasted it.
    pub(super) fn may_take(&self) -> bool {
        !self.paused || self.phase != Phase::Open
    }

    /// Nothing comes, waits or runs any more.
    pub(super) fn is_quiet(&self) -> bool {
        self.phase != Phase::Open && self.queued == 0 && self.flights.is_empty()
    }

    /// When [`Self::tick`] has something to do next; [`NEVER`] if nothing that is known. Windows matter while
    /// a worker is free: one that is not looks for itself when it is.
    pub(super) fn next_ns(&mut self, worker_free: bool) -> u64 {
        let ripe_ns = if worker_free && self.may_take() { self.buckets.next_ripe_ns() } else { NEVER };
        let hung_ns = self.flights.next_hang_ns(self.hang_ns);
        self.deadlines.first_ns(&self.slab).min(ripe_ns).min(hung_ns)
    }

    /// When an item's time is over; [`NEVER`] if that has no bound, or there is no such item.
    pub(super) fn until_ns(&self, ticket: Ticket) -> u64 {
        self.slab.find(ticket).map_or(NEVER, |index| self.slab[index].until_ns)
    }

    pub(super) fn predict_ns(&self, size: usize, now_ns: u64) -> Option<u64> {
        self.estimate.predict_ns(size, self.idle_ns(now_ns))
    }

    /// How long nothing has run.
    pub(super) fn idle_ns(&self, now_ns: u64) -> u64 {
        if self.flights.is_empty() { now_ns - self.idle_since_ns.min(now_ns) } else { 0 }
    }

    pub(super) fn snapshot(&self) -> BatchStats {
        BatchStats {
            queued: self.queued,
            queued_cost: self.queued_cost_shown(),
            in_flight: self.flights.len(),
            max_batch_size: self.rules.size,
            ..self.stats.clone()
        }
    }

    pub(super) fn queued_cost_shown(&self) -> u64 {
        u64::try_from(self.queued_cost).unwrap_or(u64::MAX)
    }

    /// Time never goes back.
    pub(super) fn advance(&mut self, now_ns: u64) -> u64 {
        self.latest_ns = self.latest_ns.max(now_ns);
        self.latest_ns
    }
}
