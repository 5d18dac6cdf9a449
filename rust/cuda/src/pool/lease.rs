//! A stream on loan, and the wait for one.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::queue::Ticket;
use super::shared::{Requested, Shared};
use super::waiter::Waiter;
use crate::error::CudaError;
use crate::stream::Stream;

/// A stream on loan. Dropping it gives the stream back: what was queued on it runs to its end before the
/// stream is lent again, and the dropping thread does not wait for that.
pub struct Lease {
    shared: Arc<Shared>,
    stream: Stream,
    since: Instant,
}

impl Lease {
    pub(super) fn new(shared: Arc<Shared>, stream: Stream) -> Self {
        Self { shared, stream, since: Instant::now() }
    }

    /// The stream, for whom a reference does not live long enough. It works as long as this lease.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.stream.clone()
    }
}

impl Deref for Lease {
    type Target = Stream;

    fn deref(&self) -> &Stream {
        &self.stream
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.end_lease(&self.stream, self.since);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// The wait for a lease.
#[must_use = "a lease is only asked for when this is awaited"]
pub struct LeaseFuture {
    shared: Arc<Shared>,
    key: Option<u64>,
    timeout: Option<Duration>,
    waiting: Option<(Ticket, Arc<Waiter>)>,
    done: bool,
}

impl LeaseFuture {
    pub(super) const fn new(shared: Arc<Shared>, key: Option<u64>, timeout: Option<Duration>) -> Self {
        Self { shared, key, timeout, waiting: None, done: false }
    }
}

impl Future for LeaseFuture {
    type Output = Result<Lease, CudaError>;

    /// Polled after it was ready, it stays pending.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.done {
            return Poll::Pending;
        }
        if let Err(error) = self.shared.check() {
            self.done = true;
            return Poll::Ready(Err(error));
        }
        let answer = match &self.waiting {
            Some((_, waiter)) => waiter.poll(context.waker()),
            None => match self.shared.request(self.key, self.timeout, context.waker()) {
                Requested::Now(answer) => Some(answer),
                Requested::Waiting(ticket, waiter) => {
                    self.waiting = Some((ticket, waiter));
                    None
                }
            },
        };
        let Some(answer) = answer else { return Poll::Pending };
        self.done = true;
        self.waiting = None;
        Poll::Ready(answer)
    }
}

impl Drop for LeaseFuture {
    fn drop(&mut self) {
        if let Some((ticket, waiter)) = self.waiting.take() {
            self.shared.abandon(ticket, &waiter);
        }
    }
}

impl fmt::Debug for LeaseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseFuture")
            .field("key", &self.key)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
