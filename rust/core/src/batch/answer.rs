//! What a caller of [`super::Batcher`] gets: an answer, or why there is none.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::oneshot;

use super::coordinator::Coordinator;
use super::lease::LeaseError;
use super::outcome::{Outcome, Reply, TimeLimit};
use super::taken::Batch;
use super::terms::RejectReason;

/// Why an item has no answer.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum BatchError<E> {
    /// It was not admitted.
    #[error("rejected: {reason}")]
    Rejected {
        /// Why.
        reason: RejectReason,
        /// When there will be room, as far as the time of past batches tells.
        retry_after: Option<Duration>,
    },
    /// The function failed for this item.
    #[error("the function failed for this item")]
    Failed(#[source] E),
    /// The function failed for the whole batch.
    #[error("the function failed for a batch of {batch}")]
    BatchFailed {
        /// What it said.
        source: Arc<E>,
        /// Items of the batch.
        batch: usize,
    },
    /// The function panicked.
    #[error("the function panicked with a batch of {batch}: {message}")]
    Panicked {
        /// What it said.
        message: Arc<str>,
        /// Items of the batch.
        batch: usize,
    },
    /// What the batch did with its lease failed.
    #[error("a batch of {batch} failed: {source}")]
    Lease {
        /// How.
        source: LeaseError,
        /// Items of the batch.
        batch: usize,
    },
    /// Its deadline came, or would have been missed, while it waited. The function has not seen it.
    #[error("expired after {waited:?} in the queue (timeout)")]
    Expired {
        /// How long it waited.
        waited: Duration,
        /// Whether the deadline was still ahead, but no longer to be met.
        predicted: bool,
    },
    /// Its time was over while the function had it.
    #[error("no answer within {ran:?} of dispatch, after {waited:?} in the queue ({limit})")]
    TimedOut {
        /// How long it waited for the function.
        waited: Duration,
        /// How long the function has had it.
        ran: Duration,
        /// Which bound it was.
        limit: TimeLimit,
    },
    /// The batcher closed while it waited.
    #[error("the batcher was closed")]
    Closed,
    /// Its worker has gone without an answer.
    #[error("the worker was lost after {ran:?} with the batch{}", if *hung { " (callback_timeout)" } else { "" })]
    WorkerLost {
        /// How long the function had it.
        ran: Duration,
        /// Whether the worker was given up because its function did not return within `callback_timeout`.
        hung: bool,
    },
    /// The function answered its batch with more or fewer results than the batch had items.
    #[error("the function returned {actual} results for a batch of {expected}")]
    WrongCount {
        /// Items.
        expected: usize,
        /// Results.
        actual: usize,
    },
}

/// What a submission waits for.
pub struct Waiting<R, E>(pub(super) oneshot::Sender<Result<R, BatchError<E>>>);

impl<R, E> fmt::Debug for Waiting<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waiting")
    }
}

impl<T, R, E> Reply<T> for Waiting<R, E>
where
    R: Send + 'static,
    E: Send + Sync + 'static,
{
    type Output = R;
    type Error = BatchError<E>;

    fn resolve(self, outcome: Outcome<R, BatchError<E>>, _item: Option<T>) {
        let answer = match outcome {
            Outcome::Completed(result) => Ok(result),
            Outcome::Failed(error) => Err(error),
            Outcome::Expired { waited, predicted } => Err(BatchError::Expired { waited, predicted }),
            Outcome::TimedOut { waited, ran, limit } => Err(BatchError::TimedOut { waited, ran, limit }),
            // Only a submission that is dropped cancels: nobody hears it.
            Outcome::Cancelled { .. } | Outcome::Closed => Err(BatchError::Closed),
            Outcome::WorkerLost { ran, hung } => Err(BatchError::WorkerLost { ran, hung }),
            Outcome::WrongCount { expected, actual } => Err(BatchError::WrongCount { expected, actual }),
        };
        // Whoever waited may have gone at this very moment.
        let _ = self.0.send(answer);
    }
}

/// The batch that a function of a [`Batcher`] gets.
pub type WorkBatch<T, R, E> = Batch<T, Waiting<R, E>>;

pub(super) type Work<T, R, E> = Coordinator<T, Waiting<R, E>>;
