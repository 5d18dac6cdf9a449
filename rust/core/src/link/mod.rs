//! One connection between a router and a worker, carrying many streams both ways.
//!
//! Everything here may be called from any thread. Locks nest in one order only, `out` before `table`; rings
//! are never locked together with either. Per pushed item: one lock, one copy into the outbound buffer; the
//! write is shared by whatever gathers (see [`Link::send`]). Per received frame: one lock on the table, one
//! on the stream's ring, one copy.

mod driver;
mod feed;
mod handshake;
mod keeper;
mod offset;
mod owner;
mod receive;
mod socket;
mod stream;
mod ticker;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use headrace_wire::body::{FaultCode, Goaway, GoawayReason, RequestHead};
use headrace_wire::error::EncodeError;
use headrace_wire::limits::CONTROL_BYTES_MAX;
use headrace_wire::outbound::Outbound;
use headrace_wire::stream::Inbound;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, watch};

pub use self::driver::{Driver, SCRATCH_BYTES, TokioDriver};
pub(crate) use self::feed::Feed;
pub(crate) use self::handshake::{
    Greeting, HandshakeError, Incoming, Local, Peer, accept, connect, greet_over,
};
use self::offset::OFFSET_UNKNOWN;
pub(crate) use self::owner::{Liveness, Owner};
use self::receive::Reader;
use self::socket::Socket;
pub use self::stream::Item;
pub(crate) use self::stream::{Ending, Next, Stream, Timing};
pub(crate) use self::ticker::Ticker;
use self::ticker::TickerWaker;
use crate::budget::Claim;
use crate::clock::{NEVER, NS_PER_MS, now_ms, now_ns};
use crate::metrics::link::LinkMetrics;
use crate::metrics::worker::KilledBy;

/// Bytes gathered before they are written at once, whatever else is planned: the size of a fragment.
const GATHER_BYTES_MAX: usize = 64 * 1024;

/// Requests and endings gathered before they are written at once: a turn of the loop that starts or answers
/// many calls lets the peer begin with the first of them while it makes the others. The figures behind it are
/// in `benches/results/LOG.md`.
const HANDOVERS_MAX: u32 = 16;

/// A link that wrote less than this long ago is in a burst: what follows waits for the planned flush. About
/// what one write and the peer's wake-up cost, so that an item on an idle link is never held back.
const BURST_NS: u64 = 50_000;

/// What a driver's call to read led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// All that was there has been read, or another thread is reading it.
    Drained,
    /// There may be more; call again after others had their turn.
    More,
    /// The link is closed: stop watching its socket.
    Closed,
}

#[derive(Debug, Default)]
struct Table {
    streams: FxHashMap<u64, Arc<Stream>>,
    last_id: u64,
    closed: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Link {
    socket: Socket,
    owner: Arc<dyn Owner>,
    driver: Arc<dyn Driver>,
    peer: Peer,
    liveness: Liveness,
    message_max: usize,
    stream_window: u32,
    out: Mutex<Outbound>,
    reader: Mutex<Reader>,
    table: Mutex<Table>,
    /// A flush has been asked of the driver and has not happened.
    flush_planned: AtomicBool,
    /// The socket took less than it was offered.
    blocked: AtomicBool,
    last_write_ns: AtomicU64,
    /// Pushes since the last write, and whether that write carried several: then this link's traffic comes
    /// in bursts, and writing the first item of a burst at once would cost a second write.
    pushes: AtomicU64,
    bursts: AtomicBool,
    last_heard_ns: AtomicU64,
    last_ping_ms: AtomicU64,
    next_check_ms: AtomicU64,
    /// Peer's clock minus ours in nanoseconds; [`OFFSET_UNKNOWN`] until a PONG has come.
    clock_offset_ns: AtomicI64,
    began_ns: u64,
    /// Its router has said that it closes.
    parted: AtomicBool,
    metrics: &'static LinkMetrics,
    keeper: Notify,
    ticker: TickerWaker,
    closed: watch::Sender<bool>,
    close_reason: OnceLock<Arc<str>>,
}

/// Waits for a link to close.
#[derive(Debug)]
pub(crate) struct Closed(watch::Receiver<bool>);

impl Closed {
    pub(crate) async fn wait(&mut self) {
        // An error means that the link itself is gone.
        let _ = self.0.wait_for(|&closed| closed).await;
    }
}

/// Why a stream could not be opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The link is closed, or takes no new streams.
    Closed,
    /// The worker's bound on streams per link is reached.
    TooManyStreams(u32),
    /// The request is too large.
    Encode(EncodeError),
}

/// A request ready to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) head: &'a mut RequestHead,
    pub(crate) payload: Bytes,
    /// What feeds the request stream, if it is one.
    pub(crate) feed: Option<&'a Arc<Feed>>,
    pub(crate) timing: Timing,
    /// The time now, which the caller has looked up already.
    pub(crate) now_ns: u64,
}

impl Link {
    /// Starts a link over a connection whose handshake is done. `known` is given it before anything happens
    /// on it, so that its owner finds it whatever its peer has it do.
    pub(crate) fn start(
        greeting: Greeting,
        owner: Arc<dyn Owner>,
        driver: Arc<dyn Driver>,
        ticker: &Ticker,
        liveness: Liveness,
        local: &Local,
        known: impl FnOnce(&Arc<Self>),
    ) -> Arc<Self> {
        let Greeting { socket, peer, decoder, mut out, rest } = greeting;
        let message_max = local.message_max.min(peer.message_max as usize);
        out.configure(peer.link_window, message_max);
        // Links are counted from here on; the handshake is not theirs.
        out.take_frames();
        let began_ns = now_ns();
        let metrics = owner.metrics();
        metrics.opened.add(1);
        let link = Arc::new(Self {
            socket,
            owner,
            metrics,
            driver,
            liveness,
            message_max: local.message_max,
            stream_window: local.stream_window,
            out: Mutex::new(out),
            reader: Mutex::new(Reader::new(decoder, local.link_window, peer.is_worker)),
            peer,
            table: Mutex::new(Table::default()),
            flush_planned: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            last_write_ns: AtomicU64::new(0),
            pushes: AtomicU64::new(0),
            bursts: AtomicBool::new(false),
            last_heard_ns: AtomicU64::new(began_ns),
            last_ping_ms: AtomicU64::new(began_ns / NS_PER_MS),
            next_check_ms: AtomicU64::new(NEVER),
            clock_offset_ns: AtomicI64::new(OFFSET_UNKNOWN),
            began_ns,
            parted: AtomicBool::new(false),
            keeper: Notify::new(),
            ticker: ticker.waker(),
            closed: watch::Sender::new(false),
            close_reason: OnceLock::new(),
        });
        known(&link);
        if !link.peer.is_worker {
            // What its requests take on the way cannot be told before.
            link.send(|out| out.ping(began_ns));
        }
        link.feed(&rest);
        link.driver.attach(Arc::clone(&link));
        ticker.runtime().spawn(keeper::keep(Arc::clone(&link)));
        ticker.add(&link);
        link
    }

    /// Who is at the other end.
    pub(crate) const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Resolves when the link is closed.
    pub(crate) fn closed(&self) -> Closed {
        Closed(self.closed.subscribe())
    }

    /// Whether it has closed, or is closing.
    pub fn is_closed(&self) -> bool {
        self.close_reason.get().is_some()
    }

    /// Streams open now.
    pub(crate) fn streams(&self) -> usize {
        self.table.lock().streams.len()
    }

    fn has_streams(&self) -> bool {
        self.streams() > 0
    }

    // --- sending ---

    /// Runs `push` on the outbound half, then writes or plans to. On a link that has been quiet, and whose
    /// last write carried a single push, it is written at once; otherwise it gathers until the driver's next
    /// flush. `docs/spike.md` has the figures behind this.
    pub(crate) fn send<T>(self: &Arc<Self>, push: impl FnOnce(&mut Outbound) -> T) -> T {
        let mut out = self.out.lock();
        let pushed = push(&mut out);
        self.write_or_plan(out);
        pushed
    }

    /// As [`Self::send`], but never writes at once: what follows shortly shall share the write.
    pub(crate) fn send_lazily<T>(self: &Arc<Self>, push: impl FnOnce(&mut Outbound) -> T) -> T {
        let pushed = push(&mut self.out.lock());
        self.plan_flush();
        pushed
    }

    /// Runs `look` on the outbound half without writing.
    pub(crate) fn with_outbound<T>(&self, look: impl FnOnce(&mut Outbound) -> T) -> T {
        look(&mut self.out.lock())
    }

    fn write_or_plan(self: &Arc<Self>, mut out: parking_lot::MutexGuard<'_, Outbound>) {
        if out.unwritten() == 0 {
            return;
        }
        if self.blocked.load(Ordering::Relaxed) {
            // Data is bounded by credit; what a peer makes us answer and does not read is bounded here.
            if out.unwritten_control() > CONTROL_BYTES_MAX {
                self.socket.shut_down();
            }
            return;
        }
        if out.unwritten() < GATHER_BYTES_MAX && out.handovers() < HANDOVERS_MAX {
            self.pushes.fetch_add(1, Ordering::Relaxed);
            if self.flush_planned.load(Ordering::Relaxed) {
                return;
            }
            let quiet = || now_ns().saturating_sub(self.last_write_ns.load(Ordering::Relaxed)) > BURST_NS;
            if self.bursts.load(Ordering::Relaxed) || !quiet() {
                drop(out);
                return self.plan_flush();
            }
        }
        let unblocked = self.write(&mut out);
        drop(out);
        self.wake_producers(&unblocked);
    }

    fn plan_flush(self: &Arc<Self>) {
        if !self.flush_planned.swap(true, Ordering::Relaxed) {
            self.driver.flush_soon(self);
        }
    }

    /// Writes what has gathered.
    pub fn flush(self: &Arc<Self>) {
        self.flush_planned.store(false, Ordering::Relaxed);
        let mut out = self.out.lock();
        let unblocked = self.write(&mut out);
        drop(out);
        self.wake_producers(&unblocked);
    }

    /// Writes as much as the socket takes; returns the streams whose producers may go on.
    fn write(self: &Arc<Self>, out: &mut Outbound) -> Vec<u64> {
        let written = out.write_to(|slices| self.socket.write(slices));
        // A dead socket counts as writable for ever, so it is not waited for.
        let blocked = written.is_ok() && out.unwritten() > 0;
        if blocked && !self.blocked.swap(true, Ordering::Relaxed) {
            self.metrics.blocked_writes.add(1);
            self.keeper.notify_one();
        } else if !blocked {
            self.blocked.store(false, Ordering::Relaxed);
        }
        match written {
            Ok(0) => {}
            Ok(bytes) => {
                self.metrics.sent_bytes.add(bytes as u64);
                self.metrics.sent_frames.add(out.take_frames());
                self.last_write_ns.store(now_ns(), Ordering::Relaxed);
                self.bursts.store(self.pushes.swap(0, Ordering::Relaxed) > 1, Ordering::Relaxed);
            }
            // Closing needs the lock that is held here; the keeper or the next read finds the socket dead.
            Err(_) => self.socket.shut_down(),
        }
        out.take_unblocked()
    }

    fn wake_producers(&self, ids: &[u64]) {
        for id in ids {
            if let Some(stream) = self.stream(*id) {
                stream.wake_producer();
            }
        }
    }

    // --- streams ---

    /// Opens a stream and sends its request.
    pub(crate) fn open(self: &Arc<Self>, request: Outgoing<'_>) -> Result<Arc<Stream>, OpenError> {
        let Outgoing { head, payload, feed, timing, now_ns } = request;
        let window = Claim::window(self.stream_window);
        head.window = window.bytes();
        head.sent_at_us = now_ns / 1_000;
        let mut encoded = Vec::with_capacity(128);
        head.encode(&mut encoded).map_err(OpenError::Encode)?;
        let mut out = self.out.lock();
        let stream = {
            let mut table = self.table.lock();
            if table.closed {
                return Err(OpenError::Closed);
            }
            if table.streams.len() >= self.peer.streams_max as usize {
                return Err(OpenError::TooManyStreams(self.peer.streams_max));
            }
            let id = table.last_id + 1;
            out.request(id, encoded, payload).map_err(OpenError::Encode)?;
            table.last_id = id;
            let inbound = Inbound::response(window.bytes(), self.message_max);
            let stream = Stream::new(id, Arc::clone(self), inbound, window, timing);
            let stream = if self.metrics.is_counted() { stream.sent_at(now_ns) } else { stream };
            let stream = Arc::new(match feed {
                Some(feed) => stream.fed_by(Arc::clone(feed)),
                None => stream,
            });
            table.streams.insert(id, Arc::clone(&stream));
            stream
        };
        self.check_no_later_than(timing.first_check_ms(now_ns / NS_PER_MS));
        self.write_or_plan(out);
        Ok(stream)
    }

    /// Puts an accepted stream into the table; false when the link closed meanwhile.
    fn insert(&self, stream: Arc<Stream>) -> bool {
        let deadline_ms = stream.timing.deadline_ms;
        {
            let mut table = self.table.lock();
            if table.closed {
                return false;
            }
            table.streams.insert(stream.id, stream);
        }
        // After the stream is in the table, or a check under way would forget the time and miss the stream.
        self.check_no_later_than(deadline_ms);
        true
    }

    /// Accepts a stream: its ring and its sending half exist from here on, unless the link has closed.
    pub(crate) fn accept_stream(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        request_window: u32,
        response_window: u32,
    ) {
        // One lock over both, so that whoever finds the stream in the table finds its sending half too.
        let accepted = self.send_lazily(|out| {
            let inserted = self.insert(Arc::clone(stream));
            if inserted {
                out.accept(stream.id, request_window, response_window);
            }
            inserted
        });
        if !accepted {
            stream.set_killed(KilledBy::Unopened);
        }
    }

    fn check_no_later_than(&self, at_ms: u64) {
        self.next_check_ms.fetch_min(at_ms, Ordering::Relaxed);
        if at_ms < now_ms().saturating_add(ticker::TICK_IDLE_MS) {
            // The ticker of idle links would look too late.
            self.ticker.wake();
        }
    }

    fn stream(&self, id: u64) -> Option<Arc<Stream>> {
        self.table.lock().streams.get(&id).cloned()
    }

    /// Removes a stream that has ended.
    pub(crate) fn forget(&self, id: u64) {
        self.table.lock().streams.remove(&id);
    }

    /// Whether nothing is open, nothing waits for credit and everything has been written.
    pub(crate) fn is_quiet(&self) -> bool {
        let out = self.out.lock();
        out.streams() == 0 && out.unwritten() == 0 && !self.has_streams()
    }

    /// The highest stream id so far.
    pub(crate) fn last_stream(&self) -> u64 {
        self.table.lock().last_id
    }

    /// Answers every open stream with a failure, whatever its engine still does.
    pub(crate) fn fail_streams(&self, code: FaultCode, message: &str) {
        for stream in self.all_streams() {
            stream.fail(code, message);
        }
    }

    fn all_streams(&self) -> Vec<Arc<Stream>> {
        self.table.lock().streams.values().cloned().collect()
    }

    // --- closing ---

    /// Says goodbye and closes: streams that are open are lost.
    pub(crate) fn close_with(self: &Arc<Self>, reason: GoawayReason, detail: &str) {
        let last_stream = self.last_stream();
        let goaway = Goaway { last_stream, reason, detail: detail.to_owned() };
        let mut out = self.out.lock();
        // What was pushed before comes first: GOAWAY would overtake it, and end streams that have an answer.
        let _ = self.write(&mut out);
        out.goaway(&goaway);
        // Best effort: a peer that does not read learns from the closed socket.
        let _ = self.write(&mut out);
        drop(out);
        self.close(detail);
    }

    /// Closes the link: every stream on it is lost, whoever watches is told. Only the first call counts.
    pub(crate) fn close(self: &Arc<Self>, reason: &str) {
        let reason: Arc<str> = reason.into();
        if self.close_reason.set(Arc::clone(&reason)).is_err() {
            return;
        }
        self.socket.shut_down();
        let streams = {
            let mut table = self.table.lock();
            table.closed = true;
            std::mem::take(&mut table.streams)
        };
        let lost = streams.len();
        let parted = self.parted.load(Ordering::Relaxed);
        let by = if parted { KilledBy::Caller } else { KilledBy::Lost };
        for stream in streams.into_values() {
            if self.peer.is_worker {
                let maybe_executed = self.out.lock().request_written(stream.id);
                stream.lost(&reason, maybe_executed);
            } else {
                stream.set_killed(by);
            }
        }
        // Nothing more gathers for a socket that nobody reads.
        self.out.lock().close_all();
        // The owner first: whoever waits for the close may go on to make the owner's next link.
        self.owner.on_closed(&reason, lost);
        self.closed.send_replace(true);
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
