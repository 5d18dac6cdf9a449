//! What a submitter says of an item, the ticket it gets for it, and why it may be refused.

use std::fmt;
use std::time::{Duration, Instant};

use thiserror::Error;

/// Names an item that was admitted, until it has been resolved; afterwards it names nothing, also when the
/// item's place is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl Ticket {
    /// The ticket as one number.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The ticket that [`Self::as_u64`] gave a number for. Any other number names nothing.
    #[must_use]
    pub const fn from_u64(number: u64) -> Self {
        Self { index: number as u32, generation: (number >> 32) as u32 }
    }
}

/// How long something may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timeout {
    /// As the configuration says.
    #[default]
    Configured,
    /// For ever.
    Never,
    /// So long from now on (a `timeout`), or from dispatch on (a `response_timeout`).
    After(Duration),
    /// Until then.
    At(Instant),
}

/// What a submitter says of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What it costs, in whatever `max_cost` and `queue_cost` count. Default 1.
    pub cost: u64,
    /// Only items of one key share a batch. The caller assigns the numbers: equal keys, equal numbers.
    /// Default 0.
    pub key: u64,
    /// Whom `max_in_flight_per_client` counts it for. The caller assigns the numbers. Default none: nobody.
    pub client: Option<u64>,
    /// 0 is the most urgent; below `priorities`. Default 0.
    pub priority: usize,
    /// Bounds the submit as a whole.
    pub timeout: Timeout,
    /// Bounds the wait for the function.
    pub response_timeout: Timeout,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            cost: 1,
            key: 0,
            client: None,
            priority: 0,
            timeout: Timeout::Configured,
            response_timeout: Timeout::Configured,
        }
    }
}

/// Why an item was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RejectReason {
    /// As many items wait as may.
    #[error("the queue is full: {queued} items wait (queue_capacity={capacity})")]
    QueueFull {
        /// Items that wait.
        queued: usize,
        /// Items that may.
        capacity: usize,
    },
    /// As much cost waits as may.
    #[error("a cost of {cost} does not fit beside {queued_cost} that waits (queue_cost={limit})")]
    QueueCost {
        /// What waits.
        queued_cost: u64,
        /// The item's.
        cost: u64,
        /// What may wait.
        limit: u64,
    },
    /// The client has as many items in flight as it may.
    #[error("the client has {cap} items in flight (max_in_flight_per_client={cap})")]
    ClientCap {
        /// The client.
        client: u64,
        /// Items that it may have in flight.
        cap: usize,
    },
    /// No batch could hold it.
    #[error("a cost of {cost} is more than a batch may have (max_cost={max_cost})")]
    TooLarge {
        /// The item's.
        cost: u64,
        /// A batch's.
        max_cost: u64,
    },
    /// Its priority does not exist.
    #[error("priority {priority} is not below {priorities} (priorities={priorities})")]
    Priority {
        /// The item's.
        priority: usize,
        /// Those there are.
        priorities: usize,
    },
    /// Nothing is taken any more.
    #[error("the batcher is closed")]
    Closed,
    /// It had no time left when it came.
    #[error("the deadline had passed before the item was submitted")]
    Expired,
    /// So many wait before it that its answer would come too late (`predictive_expiry`).
    #[error("{ahead} items wait before it, and its deadline would pass meanwhile (predictive_expiry)")]
    WouldExpire {
        /// Items that wait, and are as urgent or more.
        ahead: usize,
        /// How much later than its deadline its answer would come.
        late: Duration,
    },
}

impl RejectReason {
    /// The word that errors and metrics have for it: `queue_full`, `queue_cost`, `client_cap`, `too_large`,
    /// `invalid`, `closed`, `expired` or `would_expire`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::QueueFull { .. } => "queue_full",
            Self::QueueCost { .. } => "queue_cost",
            Self::ClientCap { .. } => "client_cap",
            Self::TooLarge { .. } => "too_large",
            Self::Priority { .. } => "invalid",
            Self::Closed => "closed",
            Self::Expired => "expired",
            Self::WouldExpire { .. } => "would_expire",
        }
    }

    /// Whether it will fit as soon as others have gone.
    #[must_use]
    pub const fn passes(&self) -> bool {
        match self {
            Self::QueueFull { .. }
            | Self::QueueCost { .. }
            | Self::ClientCap { .. }
            | Self::WouldExpire { .. } => true,
            Self::TooLarge { .. } | Self::Priority { .. } | Self::Closed | Self::Expired => false,
        }
    }
}

/// An item that was refused, with everything that came with it.
pub struct Refused<T, P> {
    /// The item.
    pub item: T,
    /// Who was to be told; it has not been called.
    pub reply: P,
    /// Why.
    pub reason: RejectReason,
    /// When there will be room, as far as the time of past batches tells.
    pub retry_after: Option<Duration>,
}

impl<T, P> fmt::Debug for Refused<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused")
            .field("reason", &self.reason)
            .field("retry_after", &self.retry_after)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_the_same_after_being_a_number() {
        let ticket = Ticket { index: 7, generation: u32::MAX };
        assert_eq!(Ticket::from_u64(ticket.as_u64()), ticket);
    }
}
