//! What becomes of an item, and who is told.

use std::fmt;
use std::time::Duration;

/// Which bound ended an item that its function had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeLimit {
    /// `timeout`, of the submit as a whole.
    Whole,
    /// `response_timeout`, from dispatch on.
    Response,
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "timeout",
            Self::Response => "response_timeout",
        })
    }
}

/// What became of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome<R, E> {
    /// The function answered.
    Completed(R),
    /// The function failed, for this item or for its batch.
    Failed(E),
    /// The deadline came, or would have been missed, while the item waited. The function has not seen it.
    Expired {
        /// How long it waited.
        waited: Duration,
        /// Whether the deadline was still ahead, but no longer to be met.
        predicted: bool,
    },
    /// The time was over while the function had the item, which it may still finish.
    TimedOut {
        /// How long it waited for the function.
        waited: Duration,
        /// How long the function has had it.
        ran: Duration,
        /// Which bound it was.
        limit: TimeLimit,
    },
    /// The caller cancelled it.
    Cancelled {
        /// Whether the function had it, and may still finish it.
        dispatched: bool,
    },
    /// The batcher closed while it waited. The function has not seen it.
    Closed,
    /// The function's worker has gone, or its batch was dropped, without an answer.
    WorkerLost {
        /// How long the function had it.
        ran: Duration,
        /// Whether the worker was given up because its function did not return within `callback_timeout`.
        hung: bool,
    },
    /// The function answered its batch with more or fewer results than the batch had items.
    WrongCount {
        /// Items.
        expected: usize,
        /// Results.
        actual: usize,
    },
}

/// Who is told what became of an item of type `T`.
///
/// Exactly one call for each item that was admitted, on whatever thread decides it (a submitter's, a worker's,
/// the timer's), never under a lock of the batcher. It must not block: on the timer's thread it holds up
/// every other batcher's deadlines.
pub trait Reply<T>: Send + 'static {
    /// What the function answers.
    type Output: Send;
    /// How the function fails.
    type Error: Send;

    /// Tells it. `item` is there unless the function took it; whoever minds on which thread it is dropped
    /// hands it on from here.
    fn resolve(self, outcome: Outcome<Self::Output, Self::Error>, item: Option<T>);
}
