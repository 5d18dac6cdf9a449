//! A request that is a stream: [`RequestSink`], where a caller puts its items, and [`RequestStream`], where
//! an engine takes them. Neither end is ever mistaken for the other: a sink that is dropped unfinished fails
//! its call, and a stream that was cut off says so instead of ending.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use headrace_wire::outbound::Pushed;
use thiserror::Error;

use crate::engine::{PushError, push_result};
use crate::link::{Ending, Feed, Item, Next, Stream};

/// Where the items of one request go; made by [`crate::Router::call_streaming`].
///
/// It may be used from the start. What is pushed before a worker has accepted the request is kept, and goes
/// to another worker if that one rejects it; what is pushed afterwards is sent and kept no longer.
pub struct RequestSink {
    feed: Arc<Feed>,
    finished: bool,
}

impl fmt::Debug for RequestSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestSink").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

impl RequestSink {
    pub(crate) const fn new(feed: Arc<Feed>) -> Self {
        Self { feed, finished: false }
    }

    /// Pushes an item, copying its payload. After [`Pushed::Waiting`] the next push should wait for
    /// [`Self::drained`], or items gather in memory.
    ///
    /// # Errors
    /// Nobody wants the item any more, or it is too large; nothing was sent.
    pub fn push(&self, encoding: u8, payload: &[u8]) -> Result<Pushed, PushError> {
        push_result(self.feed.push(encoding, payload))
    }

    /// As [`Self::push`], by reference: for large payloads that nobody changes any more.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_shared(&self, encoding: u8, payload: Bytes) -> Result<Pushed, PushError> {
        push_result(self.feed.push_shared(encoding, payload))
    }

    /// Sends an item, waiting for credit when the engine is slower, and for a worker to accept the request.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub async fn send(&self, encoding: u8, payload: Bytes) -> Result<(), PushError> {
        if self.push_shared(encoding, payload)? == Pushed::Waiting {
            self.drained().await;
        }
        Ok(())
    }

    /// Ready when a worker has accepted the request and everything pushed has found its place in the outbound
    /// buffer, or nobody takes items any more.
    pub fn poll_drained(&self, cx: &Context<'_>) -> Poll<()> {
        self.feed.poll_drained(cx)
    }

    /// Waits as [`Self::poll_drained`].
    pub async fn drained(&self) {
        poll_fn(|cx| self.poll_drained(cx)).await;
    }

    /// Ends the request: these were all items. The response goes on.
    pub fn finish(mut self) {
        self.finished = true;
        self.feed.finish();
    }

    /// Fails the call, since the items that should follow cannot be made: the engine is killed, and whoever
    /// reads the response finds [`crate::CallErrorKind::RequestFailed`] with `reason` behind the items that
    /// had come. False when nobody takes items any more: then nothing happens.
    pub fn fail(mut self, reason: &str) -> bool {
        self.finished = true;
        self.feed.fail(reason)
    }

    /// Whether nobody takes items any more: the call has ended, or the engine wants no more of them.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.feed.is_closed()
    }

    /// Waits until nobody takes items any more.
    pub async fn closed(&self) {
        poll_fn(|cx| {
            self.watch(cx.waker().clone());
            if self.is_closed() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Registers who is woken when nobody takes items any more; one at a time. Check [`Self::is_closed`]
    /// afterwards.
    pub fn watch(&self, waker: Waker) {
        self.feed.watch(waker);
    }
}

impl Drop for RequestSink {
    fn drop(&mut self) {
        if !self.finished {
            self.feed.fail("its sink was dropped before it had finished");
        }
    }
}

/// What an engine finds of its request without waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// The next item.
    Item(Item),
    /// Nothing yet.
    Pending,
    /// The caller has sent everything.
    End,
    /// The stream was cut off: nobody wants the answer any more, or it has ended.
    Closed,
}

/// A request stream was cut off before its end: nobody wants the answer any more, or it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the request stream was cut off before its end")]
pub struct RequestClosed;

/// The items of a request as they arrive. Credit returns to the caller as they are taken, so one that nobody
/// reads holds its caller back at the worker's `stream_window`. Dropping it tells the caller that no more
/// items are wanted.
pub struct RequestStream(Arc<Stream>);

impl fmt::Debug for RequestStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestStream").field("stream", &self.0.id).finish_non_exhaustive()
    }
}

impl RequestStream {
    pub(crate) const fn new(stream: Arc<Stream>) -> Self {
        Self(stream)
    }

    /// Takes what is there.
    #[must_use]
    pub fn try_next(&self) -> Received {
        received(self.0.try_next())
    }

    /// As [`Self::try_next`]; when nothing is there, registers the waker and is pending.
    pub fn poll_next(&self, cx: &Context<'_>) -> Poll<Received> {
        self.0.poll_next(cx).map(received)
    }

    /// The next item; `None` at the end. A future that is dropped loses no item.
    ///
    /// # Errors
    /// The stream was cut off.
    pub async fn next(&mut self) -> Option<Result<Item, RequestClosed>> {
        match poll_fn(|cx| self.poll_next(cx)).await {
            Received::Item(item) => Some(Ok(item)),
            Received::Closed => Some(Err(RequestClosed)),
            Received::End | Received::Pending => None,
        }
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        self.0.refuse_requests();
    }
}

fn received(next: Next) -> Received {
    match next {
        Next::Item(item) => Received::Item(item),
        Next::Pending => Received::Pending,
        Next::End(Ending::Clean { .. }) => Received::End,
        Next::End(_) => Received::Closed,
    }
}
