//! One stream of a link, either side: the ring of items that have arrived, how the stream ended, who waits.
//!
//! Whoever reads the socket puts items in; the consumer takes them out; neither holds the ring's lock while
//! it wakes the other or touches the link. An ending never overtakes items that arrived before it.

mod engine;
mod requests;
mod timing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use headrace_wire::body::{Fault, FaultCode, KillReason, Reject};
use headrace_wire::error::StreamError;
use headrace_wire::frame::split_item;
use headrace_wire::kind::FRAGMENT;
use headrace_wire::spare::Payload;
use headrace_wire::stream::{Arrived, Inbound};
use parking_lot::Mutex;

pub(crate) use self::timing::Timing;
use super::Link;
use super::feed::Feed;
use crate::budget::Claim;
use crate::clock::{NEVER, now_ms};
use crate::error::Phase;
use crate::metrics::router::ROUTER;

/// One item as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// How the payload is encoded; see [`headrace_wire::kind::Encoding`].
    pub encoding: u8,
    /// The encoded value.
    pub payload: Bytes,
}

/// How a stream ended, as its consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Every item arrived.
    Clean { stopped: bool },
    /// The request did not run.
    Rejected(Reject),
    /// The engine failed.
    Fault(Fault),
    /// The link broke.
    Lost { reason: Arc<str>, maybe_executed: bool },
    /// The deadline passed.
    Deadline,
    /// No item came in time.
    ItemTimeout,
    /// The consumer left items unread for too long.
    SlowConsumer,
    /// The caller's request stream failed, for this reason.
    RequestFailed(Arc<str>),
    /// An item of the caller's request stream is larger than the worker accepts.
    RequestTooLarge { limit: usize, actual: usize },
    /// This side killed or closed it.
    Closed,
}

/// What a consumer finds.
#[derive(Debug)]
pub(crate) enum Next {
    Item(Item),
    Pending,
    End(Ending),
}

#[derive(Debug)]
enum Chunk {
    /// The body of a DATA frame; its items are split off one by one.
    Frame(Bytes),
    /// An item that came in fragments, with the credit it holds.
    Whole { item: Item, credit: u64 },
}

#[derive(Debug)]
struct Ring {
    inbound: Inbound,
    chunks: VecDeque<Chunk>,
    ending: Option<Ending>,
    /// ACCEPT came.
    accepted: bool,
    /// PROLOGUE said that the engine has returned its stream.
    opened: bool,
    taken: u64,
    consumer: Option<Waker>,
    producer: Option<Waker>,
    watcher: Option<Waker>,
    /// When the request was sent, in nanoseconds, if that is counted; else 0.
    sent_ns: u64,
    /// Bytes of the items taken by the consumer.
    taken_bytes: u64,
    /// Since when the consumer waits on an empty ring, [`NEVER`] while it does not.
    waiting_since_ms: u64,
    /// Where the items of the request come from, until ACCEPT.
    feed: Option<Arc<Feed>>,
    /// What the window claims of the process's memory, and a request's large items beyond it, until nothing
    /// more can come and all is taken.
    window: Claim,
    /// `taken` when the keeper last looked at a full ring, and when that was; see `check_slow`.
    stalled: (u64, u64),
}

const TOO_MANY_UNREAD: &str = "the worker's process holds too many unread bytes; send smaller items";

const STOPPED: u8 = 1;
const KILLED: u8 = 2;
/// At a worker: the request is a stream, and the ring is its.
const REQUESTS: u8 = 4;
/// At a router: the worker takes no more items of the request stream.
const UNWANTED: u8 = 8;
/// Where the number of who killed it lies.
const BY_SHIFT: u32 = 4;

/// A stream of a link; see the module's text. In this order, what a push looks at lies in one cache line:
/// with hundreds of streams none of it is in the cache when the next item comes.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Stream {
    pub(crate) id: u64,
    pub(crate) link: Arc<Link>,
    flags: AtomicU8,
    pub(crate) timing: Timing,
    ring: Mutex<Ring>,
}

impl Stream {
    pub(crate) fn new(id: u64, link: Arc<Link>, inbound: Inbound, window: Claim, timing: Timing) -> Self {
        let ring = Ring {
            inbound,
            chunks: VecDeque::new(),
            ending: None,
            accepted: false,
            opened: false,
            taken: 0,
            consumer: None,
            producer: None,
            watcher: None,
            sent_ns: 0,
            taken_bytes: 0,
            waiting_since_ms: NEVER,
            feed: None,
            window,
            stalled: (0, NEVER),
        };
        Self { id, link, timing, ring: Mutex::new(ring), flags: AtomicU8::new(0) }
    }

    /// It is a router's, and its request was sent at this time.
    pub(crate) fn sent_at(mut self, now_ns: u64) -> Self {
        self.ring.get_mut().sent_ns = now_ns;
        self
    }

    // --- the consumer ---

    /// Takes the next item, or says how the stream ended.
    pub(crate) fn try_next(&self) -> Next {
        let mut ring = self.ring.lock();
        let Some((item, credit)) = ring.pop() else {
            return ring.ending.clone().map_or(Next::Pending, Next::End);
        };
        ring.taken += 1;
        ring.taken_bytes += item.payload.len() as u64;
        let grant = ring.inbound.take(credit);
        ring.settle();
        ring.give_back_large();
        drop(ring);
        self.granted(grant);
        Next::Item(item)
    }

    /// As [`Self::try_next`]; registers the waker when nothing is ready.
    pub(crate) fn poll_next(&self, cx: &Context<'_>) -> Poll<Next> {
        loop {
            match self.try_next() {
                // Never `Ready(Pending)`: a reader might take that for the end.
                Next::Pending if self.park(cx) => return Poll::Pending,
                Next::Pending => {}
                ready => return Poll::Ready(ready),
            }
        }
    }

    /// Whether a consumer would find an item or the end.
    pub(crate) fn is_ready(&self) -> bool {
        let ring = self.ring.lock();
        !ring.chunks.is_empty() || ring.ending.is_some()
    }

    /// Waits until the engine has returned its stream, or the stream ended without that.
    pub(crate) fn poll_open(&self, cx: &Context<'_>) -> Poll<Result<(), Ending>> {
        let mut ring = self.ring.lock();
        if ring.opened {
            return Poll::Ready(Ok(()));
        }
        if let Some(ending) = &ring.ending {
            return Poll::Ready(Err(ending.clone()));
        }
        ring.wait(cx);
        Poll::Pending
    }

    /// Waits until the stream has ended; `Some` at once when it holds more than `most` items.
    pub(crate) fn poll_ended(&self, cx: &Context<'_>, most: u64) -> Poll<()> {
        let mut ring = self.ring.lock();
        if ring.ending.is_some() || ring.inbound.items() - ring.taken > most {
            return Poll::Ready(());
        }
        ring.wait(cx);
        Poll::Pending
    }

    /// Registers the consumer's waker; false when something became ready meanwhile.
    fn park(&self, cx: &Context<'_>) -> bool {
        let mut ring = self.ring.lock();
        if !ring.chunks.is_empty() || ring.ending.is_some() {
            return false;
        }
        ring.wait(cx);
        true
    }

    /// How the stream ended, if it has.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.ring.lock().ending.clone()
    }

    /// Items taken by the consumer.
    pub(crate) fn taken(&self) -> u64 {
        self.ring.lock().taken
    }

    /// Bytes of the request's items that the engine has taken; 0 for a single request.
    pub(crate) fn requested_bytes(&self) -> u64 {
        if self.has_requests() { self.ring.lock().taken_bytes } else { 0 }
    }

    /// The phase in which the stream stands or ended.
    pub(crate) fn phase(&self) -> Phase {
        let ring = self.ring.lock();
        if ring.inbound.items() > 0 {
            Phase::Streaming
        } else if ring.accepted {
            Phase::Accepted
        } else {
            Phase::Sent
        }
    }

    /// Ends the stream from this side and tells the other one. False, and nothing happens, when it has ended
    /// already.
    pub(crate) fn kill(&self, reason: KillReason, ending: Ending) -> bool {
        self.end_telling(ending, || {
            self.link.forget(self.id);
            self.link.send(|out| out.kill(self.id, reason));
        })
    }

    /// Asks the engine to finish.
    pub(crate) fn stop(&self) {
        if self.flags.fetch_or(STOPPED, Ordering::Relaxed) & STOPPED == 0 && self.ring.lock().ending.is_none()
        {
            self.link.send(|out| out.stop(self.id));
        }
    }

    // --- whoever reads the socket ---

    /// ACCEPT; what feeds the request stream, if it is one, may begin.
    pub(crate) fn accepted(&self) -> Result<Option<Arc<Feed>>, StreamError> {
        let mut ring = self.ring.lock();
        ring.inbound.accept()?;
        ring.accepted = true;
        if ring.sent_ns > 0 {
            ROUTER.send.observe_ns(self.link.heard_ns().saturating_sub(ring.sent_ns));
        }
        Ok(ring.feed.take())
    }

    pub(crate) fn rejected(&self, reject: Reject) -> Result<(), StreamError> {
        self.ring.lock().inbound.reject()?;
        self.end(Ending::Rejected(reject));
        Ok(())
    }

    /// PROLOGUE; true when the engine failed, which ended the stream.
    pub(crate) fn prologue(&self, body: &[u8]) -> Result<bool, StreamError> {
        let mut ring = self.ring.lock();
        if let Some(fault) = ring.inbound.prologue(body)? {
            drop(ring);
            self.end(Ending::Fault(fault));
            return Ok(true);
        }
        ring.opened = true;
        let waker = ring.stop_waiting();
        drop(ring);
        waker.into_iter().for_each(Waker::wake);
        Ok(false)
    }

    pub(crate) fn data(&self, flags: u8, body: &[u8]) -> Result<(), StreamError> {
        let mut ring = self.ring.lock();
        let is_first = ring.sent_ns > 0 && ring.inbound.items() == 0;
        let chunk = match ring.inbound.data(flags, body)? {
            Arrived::Items { .. } => Some(Chunk::Frame(Bytes::copy_from_slice(body))),
            Arrived::Whole { encoding, payload, credit } => Some(Chunk::Whole {
                item: Item { encoding, payload: Bytes::from_owner(Payload::new(payload)) },
                credit,
            }),
            Arrived::Fragment => None,
        };
        if flags & FRAGMENT != 0 && self.has_requests() && !ring.claim_large() {
            drop(ring);
            self.fail(FaultCode::Engine, TOO_MANY_UNREAD);
            return Ok(());
        }
        if is_first && chunk.is_some() {
            ROUTER.ttft.observe_ns(self.link.heard_ns().saturating_sub(ring.sent_ns));
        }
        let Some(chunk) = chunk else {
            // The rest of an item that nobody will take is not asked for.
            let grant = if ring.ending.is_none() { ring.inbound.grant() } else { None };
            drop(ring);
            self.granted(grant);
            return Ok(());
        };
        if ring.ending.is_none() {
            ring.chunks.push_back(chunk);
        }
        let waker = ring.stop_waiting();
        drop(ring);
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    pub(crate) fn end_received(&self, body: &[u8], stopped: bool) -> Result<(), StreamError> {
        self.ring.lock().inbound.end(body)?;
        self.end(Ending::Clean { stopped });
        Ok(())
    }

    pub(crate) fn error_received(&self, body: &[u8]) -> Result<(), StreamError> {
        let fault = self.ring.lock().inbound.error(body)?;
        self.end(Ending::Fault(fault));
        Ok(())
    }

    /// Ends the stream; false when it had ended. Wakes whoever waits for anything.
    pub(crate) fn end(&self, ending: Ending) -> bool {
        self.end_telling(ending, || ())
    }

    /// As [`Self::end`]; tells the other side before the caller can go on, to a next request perhaps.
    fn end_telling(&self, ending: Ending, tell: impl FnOnce()) -> bool {
        let mut ring = self.ring.lock();
        if ring.ending.is_some() {
            return false;
        }
        if ending == Ending::Closed {
            ring.chunks.clear();
        }
        ring.ending = Some(ending);
        ring.settle();
        // The watcher first: what it cancels shall not see the end in another way before.
        let wakers = [ring.watcher.take(), ring.producer.take(), ring.stop_waiting()];
        drop(ring);
        tell();
        wakers.into_iter().flatten().for_each(Waker::wake);
        true
    }

    fn granted(&self, grant: Option<u64>) {
        if let Some(bytes) = grant {
            self.link.send(|out| out.credit(self.id, bytes));
        }
    }

    // --- who waits ---

    /// Registers who is told of STOP and KILL at a worker, of the end at a router; at most one.
    pub(crate) fn watch(&self, waker: Waker) {
        self.ring.lock().watcher = Some(waker);
    }

    /// Registers the producer that waits for its backlog to empty. The link's lock is held by the caller, so
    /// that no wake-up falls in between.
    pub(crate) fn await_drained(&self, waker: Waker) {
        self.ring.lock().producer = Some(waker);
    }

    pub(crate) fn wake_producer(&self) {
        let waker = self.ring.lock().producer.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn wake_watcher(&self) {
        let waker = self.ring.lock().watcher.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The link is gone: what did the caller lose?
    pub(crate) fn lost(&self, reason: &Arc<str>, maybe_executed: bool) {
        self.end(Ending::Lost { reason: Arc::clone(reason), maybe_executed });
    }
}

impl Ring {
    /// Registers the consumer.
    fn wait(&mut self, cx: &Context<'_>) {
        match &self.consumer {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => self.consumer = Some(cx.waker().clone()),
        }
        self.waiting_since_ms = self.waiting_since_ms.min(now_ms());
    }

    /// The consumer gets what it waits for: its waker, to be woken without the lock.
    fn stop_waiting(&mut self) -> Option<Waker> {
        self.waiting_since_ms = NEVER;
        self.consumer.take()
    }

    /// Claims what large items hold beyond the window; false when the process holds too much.
    fn claim_large(&mut self) -> bool {
        let held = self.inbound.window().buffered() as usize + self.inbound.unfinished();
        self.ending.is_some() || self.window.grow_to(held)
    }

    /// Gives back what was claimed for large items that have been taken.
    fn give_back_large(&mut self) {
        let size = self.inbound.window().size();
        if self.window.exceeds(size) {
            let held = self.inbound.window().buffered() as usize + self.inbound.unfinished();
            self.window.shrink_to(held.max(size as usize));
        }
    }

    /// Gives the window's claim back when nothing more can come and all has been taken: a caller may keep
    /// the finished stream.
    fn settle(&mut self) {
        if self.ending.is_some() && self.chunks.is_empty() {
            self.window = Claim::none();
        }
    }

    /// The next item and the credit it held.
    fn pop(&mut self) -> Option<(Item, u64)> {
        let (item, credit, emptied) = match self.chunks.front_mut()? {
            Chunk::Whole { item, credit } => (item.clone(), *credit, true),
            Chunk::Frame(body) => {
                // The body was checked when it arrived.
                let (item, used) = split_item(body).ok().flatten()?;
                let item = Item { encoding: item.encoding, payload: body.slice_ref(item.payload) };
                body.advance(used);
                (item, used as u64, body.is_empty())
            }
        };
        if emptied {
            self.chunks.pop_front();
        }
        Some((item, credit))
    }
}
