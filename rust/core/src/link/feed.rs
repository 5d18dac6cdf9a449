//! What a caller has put into its request stream before a worker accepted the request, and who waits to put
//! more. Until ACCEPT items are kept here, so that a request that was rejected, or never ran, can go to
//! another worker whole; from ACCEPT on they go straight to the link, nothing is kept, and the request is
//! never sent again.
//!
//! A feed is locked before the link's `out`, never under it.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use headrace_wire::body::KillReason;
use headrace_wire::error::EncodeError;
use headrace_wire::outbound::{Finish, Outbound, Pushed};
use parking_lot::Mutex;

use super::{Ending, Item, Stream};

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    /// The stream that a worker has accepted.
    stream: OnceLock<Arc<Stream>>,
    kept: Mutex<Kept>,
}

/// What holds until ACCEPT.
#[derive(Debug, Default)]
struct Kept {
    items: VecDeque<Item>,
    /// The caller has said that these are all.
    finished: bool,
    /// The caller's stream failed.
    failed: Option<Arc<str>>,
    /// The call is over.
    closed: bool,
    producer: Option<Waker>,
    watcher: Option<Waker>,
}

impl Feed {
    // --- the caller's side ---

    /// Pushes an item, copying its payload.
    pub(crate) fn push(&self, encoding: u8, payload: &[u8]) -> Result<Pushed, EncodeError> {
        match self.accepted_or(|kept| kept.push(encoding, Bytes::copy_from_slice(payload))) {
            Ok(stream) => stream.link.send(|out| out.item(stream.id, encoding, payload)),
            Err(kept) => kept,
        }
    }

    /// Pushes an item by reference.
    pub(crate) fn push_shared(&self, encoding: u8, payload: Bytes) -> Result<Pushed, EncodeError> {
        match self.accepted_or(|kept| kept.push(encoding, payload.clone())) {
            Ok(stream) => stream.link.send(|out| out.item_shared(stream.id, encoding, payload)),
            Err(kept) => kept,
        }
    }

    /// Ready when everything pushed has found its place in the outbound buffer, or nobody takes any more.
    pub(crate) fn poll_drained(&self, cx: &Context<'_>) -> Poll<()> {
        match self.accepted_or(|kept| kept.poll_closed(cx)) {
            Ok(stream) => stream.poll_requests_drained(cx),
            Err(closed) => closed,
        }
    }

    /// The caller has pushed everything.
    pub(crate) fn finish(&self) {
        if let Ok(stream) = self.accepted_or(|kept| kept.finished = true) {
            stream.link.send(|out| out.finish(stream.id, Finish::HalfClose));
        }
    }

    /// The caller's stream failed, and with it the call: the engine is killed. False when the call was over.
    pub(crate) fn fail(&self, reason: &str) -> bool {
        match self.accepted_or(|kept| kept.fail(reason)) {
            // What comes after the worker wanted no more, or after the end, is nobody's failure.
            Ok(stream) if !stream.takes_requests() => false,
            Ok(stream) => stream.kill(KillReason::Cancelled, Ending::RequestFailed(reason.into())),
            Err(counts) => counts,
        }
    }

    /// The accepted stream, or else what `before` makes of the time before.
    fn accepted_or<T>(&self, before: impl FnOnce(&mut Kept) -> T) -> Result<&Arc<Stream>, T> {
        if let Some(stream) = self.stream.get() {
            return Ok(stream);
        }
        let mut kept = self.kept.lock();
        // Once more: it is set under this lock.
        self.stream.get().ok_or_else(|| before(&mut kept))
    }

    /// Whether nobody takes items any more.
    pub(crate) fn is_closed(&self) -> bool {
        match self.accepted_or(|kept| kept.closed) {
            Ok(stream) => !stream.takes_requests(),
            Err(closed) => closed,
        }
    }

    /// Registers who is told that nobody takes items any more; one at a time. Look at [`Self::is_closed`]
    /// afterwards.
    pub(crate) fn watch(&self, waker: Waker) {
        if let Ok(stream) = self.accepted_or(|kept| kept.watcher = Some(waker.clone())) {
            stream.watch(waker);
        }
    }

    // --- the call's side ---

    /// Why the caller's stream failed before a worker had accepted the request.
    pub(crate) fn failed(&self) -> Option<Arc<str>> {
        self.kept.lock().failed.clone()
    }

    /// Whether a worker has the request, so that items may have gone to it.
    pub(crate) fn is_accepted(&self) -> bool {
        self.stream.get().is_some()
    }

    /// The call is over: whoever would put items in is told. One that was accepted closes with its stream.
    pub(crate) fn close(&self) {
        let wakers = {
            let mut kept = self.kept.lock();
            kept.closed = true;
            kept.items.clear();
            [kept.watcher.take(), kept.producer.take()]
        };
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    // --- whoever reads the socket ---

    /// A worker accepted the request: what was kept goes out, what follows goes straight.
    pub(crate) fn accept(&self, stream: &Arc<Stream>) {
        let mut kept = self.kept.lock();
        let items = std::mem::take(&mut kept.items);
        let (finished, failed) = (kept.finished, kept.failed.take());
        // Lazily, since a write wakes others, which is not done under a lock.
        let sent = stream.link.send_lazily(|out| send_kept(out, stream.id, items, finished));
        // Set once: a request that was accepted goes nowhere else.
        let _ = self.stream.set(Arc::clone(stream));
        let (producer, watcher) = (kept.producer.take(), kept.watcher.take());
        drop(kept);
        if let Some(watcher) = watcher {
            stream.watch(watcher.clone());
            if !stream.takes_requests() {
                // It ended before its watcher was in place.
                watcher.wake();
            }
        }
        match (failed, sent) {
            (Some(reason), _) => {
                stream.kill(KillReason::Cancelled, Ending::RequestFailed(reason));
            }
            (None, Err(EncodeError::PayloadTooLarge { limit, actual })) => {
                stream.kill(KillReason::Cancelled, Ending::RequestTooLarge { limit, actual });
            }
            // A stream that closed meanwhile has told its caller why.
            (None, _) => {}
        }
        producer.into_iter().for_each(Waker::wake);
    }
}

impl Kept {
    fn push(&mut self, encoding: u8, payload: Bytes) -> Result<Pushed, EncodeError> {
        if self.closed || self.finished {
            return Err(EncodeError::Closed);
        }
        self.items.push_back(Item { encoding, payload });
        Ok(Pushed::Waiting)
    }

    fn poll_closed(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.closed {
            return Poll::Ready(());
        }
        self.producer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn fail(&mut self, reason: &str) -> bool {
        self.failed = Some(reason.into());
        !self.closed
    }
}

fn send_kept(
    out: &mut Outbound,
    stream: u64,
    items: VecDeque<Item>,
    finished: bool,
) -> Result<(), EncodeError> {
    for Item { encoding, payload } in items {
        out.item_shared(stream, encoding, payload)?;
    }
    if finished {
        out.finish(stream, Finish::HalfClose);
    }
    Ok(())
}
