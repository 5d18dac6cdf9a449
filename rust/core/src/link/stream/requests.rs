//! The request direction of a stream whose request is one itself. At the worker the stream's ring holds the
//! request's items, and its ending is theirs: the response is only sent. At the router the ring is the
//! response's, and items go out as any other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use headrace_wire::error::StreamError;

use super::{Ending, REQUESTS, Stream, UNWANTED};
use crate::link::feed::Feed;

impl Stream {
    // --- a router's ---

    /// The request's items come from `feed` once a worker has accepted it.
    pub(crate) fn fed_by(mut self, feed: Arc<Feed>) -> Self {
        self.ring.get_mut().feed = Some(feed);
        self
    }

    /// STOP came from the worker: it takes no more items. Whoever makes them is told.
    pub(crate) fn requests_unwanted(&self) -> Result<(), StreamError> {
        self.ring.lock().inbound.stop()?;
        if self.flags.fetch_or(UNWANTED, Ordering::Release) & UNWANTED == 0 {
            self.link.send(|out| out.requests_unwanted(self.id));
            self.wake_watcher();
            self.wake_producer();
        }
        Ok(())
    }

    /// Whether the worker still takes items.
    pub(crate) fn takes_requests(&self) -> bool {
        self.flags.load(Ordering::Acquire) & UNWANTED == 0 && self.ring.lock().ending.is_none()
    }

    /// Ready when every item has found its place in the outbound buffer, or nobody takes them any more.
    pub(crate) fn poll_requests_drained(&self, cx: &Context<'_>) -> Poll<()> {
        let waits = self.link.with_outbound(|out| {
            let waits = out.has_backlog(self.id);
            if waits {
                self.await_drained(cx.waker().clone());
            }
            waits
        });
        // Looked for after the waker is in place, so that one of the two is seen.
        if waits && self.takes_requests() { Poll::Pending } else { Poll::Ready(()) }
    }

    // --- a worker's ---

    /// The request is a stream.
    pub(crate) fn with_requests(mut self) -> Self {
        *self.flags.get_mut() |= REQUESTS;
        self
    }

    pub(super) fn has_requests(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & REQUESTS != 0
    }

    /// END of the request came: what its reader has not taken is all there is.
    pub(crate) fn requests_end_received(&self, body: &[u8]) -> Result<(), StreamError> {
        let mut ring = self.ring.lock();
        ring.inbound.end(body)?;
        // Only the reader is told: to whoever produces the response nothing has happened.
        let reader = match ring.ending {
            None => {
                ring.ending = Some(Ending::Clean { stopped: false });
                ring.settle();
                ring.stop_waiting()
            }
            Some(_) => None,
        };
        drop(ring);
        reader.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Drops what has not been read, also behind an END; the memory is given back and a reader told. True
    /// when more could have come.
    pub(super) fn close_requests(&self) -> bool {
        let mut ring = self.ring.lock();
        let was_open = ring.ending.is_none();
        ring.ending = Some(Ending::Closed);
        ring.chunks.clear();
        ring.settle();
        let reader = ring.stop_waiting();
        drop(ring);
        reader.into_iter().for_each(Waker::wake);
        was_open
    }

    /// The response has ended, and the request with it.
    pub(crate) fn responded(&self) {
        if self.has_requests() {
            self.close_requests();
        }
    }

    /// The engine wants no more items while its response goes on: the router is told with STOP.
    pub(crate) fn refuse_requests(&self) {
        if self.close_requests() {
            self.link.send(|out| {
                // Neither before ACCEPT nor after the response's end.
                if out.is_open(self.id) {
                    out.stop(self.id);
                }
            });
        }
    }
}
