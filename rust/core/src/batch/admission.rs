//! Which items are admitted, and what those are told that are not.

use std::time::Duration;

use super::clock::duration_ns;
use super::queue::{Asked, Bound, Phase, Queue};
use super::terms::RejectReason;
use crate::clock::NEVER;

impl<T, P> Queue<T, P> {
    /// Whether an item may join.
    pub(super) fn admit(&self, asked: &Asked, until_ns: u64, now_ns: u64) -> Result<(), RejectReason> {
        if self.phase != Phase::Open {
            return Err(RejectReason::Closed);
        }
        let response_over = asked.response == Bound::After(0)
            || matches!(asked.response, Bound::Until(response_ns) if response_ns <= now_ns);
        if until_ns <= now_ns || response_over {
            return Err(RejectReason::Expired);
        }
        let (priority, priorities) = (asked.priority, self.config.priorities);
        if priority >= priorities {
            return Err(RejectReason::Priority { priority, priorities });
        }
        let cost = asked.cost;
        if let Some(max_cost) = self.config.max_cost
            && cost > max_cost
        {
            return Err(RejectReason::TooLarge { cost, max_cost });
        }
        if self.queued >= self.capacity {
            return Err(RejectReason::QueueFull { queued: self.queued, capacity: self.capacity });
        }
        if let Some(limit) = self.config.queue_cost
            && self.queued > 0
            && self.queued_cost + u128::from(cost) > u128::from(limit)
        {
            return Err(RejectReason::QueueCost { queued_cost: self.queued_cost_shown(), cost, limit });
        }
        if let (Some(client), Some(cap)) = (asked.client, self.config.max_in_flight_per_client)
            && self.clients.get(&client).is_some_and(|&held| held >= cap)
        {
            return Err(RejectReason::ClientCap { client, cap });
        }
        self.admit_in_time(asked, until_ns, now_ns)
    }

    /// Refuses an item whose time would be over before its answer even if everything before it were served
    /// without a pause. It would only make the queue longer, and be told later. One round does not count, since
    /// what waits first may have too little time itself, and make way. Not for items with a key: how long batches
    /// take is not known by key. Nor for whoever comes again when there is room, since their time begins when they
    /// are admitted.
    fn admit_in_time(&self, asked: &Asked, until_ns: u64, now_ns: u64) -> Result<(), RejectReason> {
        let round = self.rules.size * self.config.workers.max(self.flights.len()).max(1);
        if until_ns == NEVER || self.queued < 2 * round || !self.config.predictive_expiry {
            return Ok(());
        }
        if self.is_limited || asked.key != 0 || asked.waits_for_room {
            return Ok(());
        }
        let ahead = self.buckets.ahead(asked.key, asked.priority);
        let rounds = (ahead / round).saturating_sub(1);
        if rounds == 0 {
            return Ok(());
        }
        let last = ahead % self.rules.size + 1;
        let idle_ns = self.idle_ns(now_ns);
        match self.estimate.predict_rounds_ns(rounds, last, idle_ns) {
            Some(after_ns) if now_ns.saturating_add(after_ns) > until_ns => {
                let late = Duration::from_nanos(now_ns.saturating_add(after_ns) - until_ns);
                Err(RejectReason::WouldExpire { ahead, late })
            }
            _ => Ok(()),
        }
    }

    /// Counts a refusal.
    pub(super) fn refuse(&mut self, reason: &RejectReason, waits_for_room: bool) {
        if reason.passes() {
            (self.wants_room, self.made_room) = (true, false);
            if waits_for_room {
                self.stats.submitted -= 1;
                return;
            }
        }
        let rejected = &mut self.stats.rejected;
        let count = match reason {
            RejectReason::QueueFull { .. } => &mut rejected.queue_full,
            RejectReason::QueueCost { .. } => &mut rejected.queue_cost,
            RejectReason::ClientCap { .. } => &mut rejected.client_cap,
            RejectReason::TooLarge { .. } => &mut rejected.too_large,
            RejectReason::Priority { .. } => &mut rejected.invalid,
            RejectReason::Closed => &mut rejected.closed,
            RejectReason::Expired => &mut rejected.expired,
            RejectReason::WouldExpire { .. } => &mut rejected.would_expire,
        };
        *count += 1;
    }

    /// Counts an item that never came here.
    pub(super) fn count_invalid(&mut self) {
        self.stats.submitted += 1;
        self.stats.rejected.invalid += 1;
    }

    /// When there will be room for an item that was refused: when the next batch is likely to be taken, or so
    /// much less waits that its answer is likely to be in time.
    pub(super) fn retry_after_ns(&self, reason: &RejectReason) -> Option<u64> {
        if let RejectReason::WouldExpire { late, .. } = reason {
            return Some(duration_ns(*late));
        }
        let batch_ns = self.predict_ns(self.rules.size, self.latest_ns)?;
        reason.passes().then(|| batch_ns / self.config.workers.max(1) as u64)
    }
}
