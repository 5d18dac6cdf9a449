//! What is lent to each batch in flight: a CUDA stream, a connection, a scratch buffer. The batcher waits for
//! one before it takes a batch, and gives it back before anybody is told of the results.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

/// Why nothing was lent, or why what was lent could not be given back in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseError {
    /// The source lends nothing any more. The worker ends.
    Closed,
    /// Nothing could be lent this time, or what the batch did with it has failed, at the latest when it was
    /// drained. The batch fails.
    Failed {
        /// What went wrong.
        reason: String,
    },
}

impl fmt::Display for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the source of leases is closed"),
            Self::Failed { reason } => write!(f, "the lease failed: {reason}"),
        }
    }
}

impl std::error::Error for LeaseError {}

/// Lends one thing for each batch in flight. A lease goes back when it is dropped.
pub trait LeaseSource: Send + Sync + 'static {
    /// What is lent.
    type Lease: Send + 'static;

    /// Borrows one if one is free.
    ///
    /// # Errors
    /// [`LeaseError::Closed`] if none will ever be, [`LeaseError::Failed`] if this attempt failed.
    fn try_lease(&self) -> Result<Option<Self::Lease>, LeaseError>;

    /// Waits for one. Dropping the future gives up the place in the line.
    fn lease(&self) -> impl Future<Output = Result<Self::Lease, LeaseError>> + Send;

    /// Waits until everything that was started with the lease has ended, before the replies are sent.
    ///
    /// # Errors
    /// [`LeaseError::Failed`] when something of it failed: the batch then fails.
    fn finish(&self, lease: &mut Self::Lease) -> impl Future<Output = Result<(), LeaseError>> + Send;
}

/// Lends nothing, to everybody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLeases;

impl LeaseSource for NoLeases {
    type Lease = ();

    fn try_lease(&self) -> Result<Option<()>, LeaseError> {
        Ok(Some(()))
    }

    async fn lease(&self) -> Result<(), LeaseError> {
        Ok(())
    }

    async fn finish(&self, _lease: &mut ()) -> Result<(), LeaseError> {
        Ok(())
    }
}

/// Parks the calling thread until the future is ready.
pub(super) fn wait_for<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let mut future = pin!(future);
    // Most are ready at once, and need no waker of their own.
    if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        return output;
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
