//! From bytes to streams: decodes what a driver read and hands each frame to the stream or owner it is for.
//! A frame that breaks the protocol closes this link, with its reason, and nothing else.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use headrace_wire::body::{
    Goaway, GoawayReason, KillReason, Reject, RejectReason, RequestHead, Status, decode_accept,
    decode_credit, decode_kill, decode_ping, decode_pong,
};
use headrace_wire::credit::ReceiveWindow;
use headrace_wire::decoder::Decoder;
use headrace_wire::error::StreamError;
use headrace_wire::frame::Frame;
use headrace_wire::kind::{FRAGMENT, Kind, LAST, STOPPED};
use headrace_wire::limits::{ASSEMBLY_BYTES_FIRST, HEAD_MAX};
use headrace_wire::spare::Payload;
use headrace_wire::stream::Assembly;
use rustc_hash::FxHashMap;

use super::offset::ClockFilter;
use super::{Link, ReadOutcome};
use crate::budget::Claim;
use crate::clock::now_ns;
use crate::metrics::worker::KilledBy;

/// Reads of one call before other links get their turn.
const READS_PER_CALL: usize = 4;

/// The receiving half of a link.
#[derive(Debug)]
pub(super) struct Reader {
    decoder: Decoder,
    window: ReceiveWindow,
    peer_is_worker: bool,
    /// Requests that arrive in fragments.
    requests: FxHashMap<u64, (Assembly, Claim)>,
    last_request: u64,
    /// Frames decoded and not yet counted.
    frames: u64,
    clock: ClockFilter,
}

impl Reader {
    pub(super) fn new(decoder: Decoder, link_window: u32, peer_is_worker: bool) -> Self {
        Self {
            decoder,
            window: ReceiveWindow::new(link_window),
            peer_is_worker,
            requests: FxHashMap::default(),
            last_request: 0,
            frames: 0,
            clock: ClockFilter::default(),
        }
    }
}

impl Link {
    /// Reads what the socket has into `scratch`, decodes and dispatches it. If another thread is doing so
    /// already, that is enough.
    pub fn on_readable(self: &Arc<Self>, scratch: &mut [u8]) -> ReadOutcome {
        if self.is_closed() {
            return ReadOutcome::Closed;
        }
        let Some(mut reader) = self.reader.try_lock() else { return ReadOutcome::Drained };
        for _ in 0..READS_PER_CALL {
            let read = match self.socket.read(scratch) {
                Ok(0) => {
                    drop(reader);
                    self.close("the peer closed the connection");
                    return ReadOutcome::Closed;
                }
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return ReadOutcome::Drained,
                Err(error) => {
                    drop(reader);
                    self.close(&error.to_string());
                    return ReadOutcome::Closed;
                }
            };
            self.last_heard_ns.store(now_ns(), Ordering::Relaxed);
            self.metrics.received_bytes.add(read as u64);
            let decoded = self.decode(&mut reader, scratch.get(..read).unwrap_or_default());
            self.metrics.received_frames.add(std::mem::take(&mut reader.frames));
            if let Err(error) = decoded {
                drop(reader);
                self.owner.on_broken();
                self.close_with(GoawayReason::Protocol, &format!("the peer broke the protocol: {error}"));
                return ReadOutcome::Closed;
            }
            if read < scratch.len() {
                return ReadOutcome::Drained;
            }
        }
        ReadOutcome::More
    }

    /// Takes bytes that came with the handshake.
    pub(super) fn feed(self: &Arc<Self>, bytes: &[u8]) {
        self.metrics.received_bytes.add(bytes.len() as u64);
        let mut reader = self.reader.lock();
        let decoded = self.decode(&mut reader, bytes);
        self.metrics.received_frames.add(std::mem::take(&mut reader.frames));
        drop(reader);
        if let Err(error) = decoded {
            self.owner.on_broken();
            self.close_with(GoawayReason::Protocol, &format!("the peer broke the protocol: {error}"));
        }
    }

    fn decode(self: &Arc<Self>, reader: &mut Reader, mut input: &[u8]) -> Result<(), StreamError> {
        let Reader { decoder, window, peer_is_worker, requests, last_request, frames, clock } = reader;
        let mut requests = Requests { open: requests, last: last_request };
        while let Some(frame) = decoder.next(&mut input)? {
            *frames += 1;
            if matches!(frame.kind, Kind::Data | Kind::Request) {
                window.receive(frame.body.len() as u64)?;
                if let Some(bytes) = window.grant() {
                    self.send_lazily(|out| out.credit(0, bytes));
                }
            }
            match (frame.kind, *peer_is_worker) {
                (Kind::Ping | Kind::Pong | Kind::Credit | Kind::Data | Kind::Goaway, _) => {
                    self.either(clock, frame)?;
                }
                (_, true) => self.from_worker(frame)?,
                (_, false) => self.from_router(&mut requests, frame)?,
            }
        }
        Ok(())
    }

    /// Frames that both sides send.
    fn either(self: &Arc<Self>, clock: &mut ClockFilter, frame: Frame<'_>) -> Result<(), StreamError> {
        match frame.kind {
            Kind::Ping => {
                let echo_ns = decode_ping(frame.body)?;
                self.send(|out| out.pong(echo_ns, now_ns()));
            }
            Kind::Pong => {
                let (sent_ns, theirs_ns) = decode_pong(frame.body)?;
                self.pong_received(clock, sent_ns, theirs_ns);
            }
            Kind::Credit => {
                self.check_known(frame)?;
                let bytes = decode_credit(frame.body)?;
                self.send(|out| out.granted(frame.stream, bytes))?;
                self.wake_unblocked();
            }
            Kind::Data => match self.stream(frame.stream) {
                Some(stream) => stream.data(frame.flags, frame.body)?,
                None => self.check_known(frame)?,
            },
            _ => {
                let goaway = Goaway::decode(frame.body)?;
                self.goaway_received(&goaway)?;
            }
        }
        Ok(())
    }

    fn pong_received(&self, clock: &mut ClockFilter, sent_ns: u64, theirs_ns: u64) {
        let now = now_ns();
        // An answer to what was never asked says nothing.
        let round_trip_ns = now.saturating_sub(sent_ns.max(self.began_ns));
        self.metrics.round_trip.observe_ns(round_trip_ns);
        let offset_ns = clock.take(sent_ns, theirs_ns, now);
        self.clock_offset_ns.store(offset_ns, Ordering::Relaxed);
        self.metrics.found_offset(offset_ns);
    }

    /// CREDIT may have emptied a backlog without a write.
    fn wake_unblocked(&self) {
        let unblocked = self.out.lock().take_unblocked();
        self.wake_producers(&unblocked);
    }

    fn goaway_received(self: &Arc<Self>, goaway: &Goaway) -> Result<(), StreamError> {
        if goaway.reason != GoawayReason::Draining {
            self.parted.store(goaway.reason == GoawayReason::Closed, Ordering::Relaxed);
            match (goaway.reason, self.peer.is_worker) {
                (GoawayReason::Closed, true) => self.close("shutdown"),
                _ => self.close(&format!("the peer closed the link: {}", goaway.detail)),
            }
            return Ok(());
        }
        if !self.peer.is_worker {
            return Err(unexpected("a drain of a router"));
        }
        self.owner.on_goaway();
        // What the worker had not accepted never ran, and can run elsewhere.
        let reason: Arc<str> = "the worker is draining".into();
        for stream in self.all_streams() {
            if stream.id > goaway.last_stream {
                self.forget(stream.id);
                self.send(|out| out.kill(stream.id, KillReason::Cancelled));
                stream.lost(&reason, false);
            }
        }
        Ok(())
    }

    /// Frames that only a worker sends.
    fn from_worker(self: &Arc<Self>, frame: Frame<'_>) -> Result<(), StreamError> {
        match frame.kind {
            Kind::Status => {
                self.owner.on_status(Status::decode(frame.body)?);
                return Ok(());
            }
            Kind::Accept | Kind::Reject | Kind::Prologue | Kind::End | Kind::Error | Kind::Stop => {}
            _ => return Err(unexpected("a router's frame or a second HELLO from a worker")),
        }
        // A stream that this side has ended may still have frames on the way.
        let Some(stream) = self.stream(frame.stream) else { return self.check_known(frame) };
        let over = match frame.kind {
            Kind::Accept => {
                let feed = stream.accepted()?;
                let window = decode_accept(frame.body)?;
                self.send(|out| out.accepted(frame.stream, window))?;
                if let Some(feed) = feed {
                    feed.accept(&stream);
                }
                false
            }
            Kind::Stop => {
                stream.requests_unwanted()?;
                false
            }
            Kind::Reject => {
                stream.rejected(Reject::decode(frame.body)?)?;
                true
            }
            Kind::Prologue => stream.prologue(frame.body)?,
            Kind::End => {
                stream.end_received(frame.body, frame.flags & STOPPED != 0)?;
                true
            }
            _ => {
                stream.error_received(frame.body)?;
                true
            }
        };
        if over {
            self.forget(frame.stream);
            // Closing one half may let another have its turn, so what it puts there must be written.
            self.send(|out| out.close(frame.stream));
        }
        Ok(())
    }

    fn check_known(&self, frame: Frame<'_>) -> Result<(), StreamError> {
        let last = self.table.lock().last_id;
        if frame.stream > last {
            return Err(unexpected("a frame for a stream that was never opened"));
        }
        Ok(())
    }

    /// Frames that only a router sends.
    fn from_router(
        self: &Arc<Self>,
        requests: &mut Requests<'_>,
        frame: Frame<'_>,
    ) -> Result<(), StreamError> {
        match frame.kind {
            Kind::Request => self.request_frame(requests, frame)?,
            Kind::Stop => {
                self.check_known(frame)?;
                if let Some(stream) = self.stream(frame.stream) {
                    stream.set_stopped();
                }
            }
            Kind::Kill => {
                self.check_known(frame)?;
                let reason = decode_kill(frame.body)?;
                requests.open.remove(&frame.stream);
                // First of all: an engine that finds its half closed shall find out why.
                if let Some(stream) = self.stream(frame.stream) {
                    self.forget(frame.stream);
                    stream.set_killed(killed_by(reason));
                }
                self.send(|out| out.close(frame.stream));
            }
            Kind::End => match self.stream(frame.stream) {
                Some(stream) => stream.requests_end_received(frame.body)?,
                None => self.check_known(frame)?,
            },
            _ => return Err(unexpected("a worker's frame or a second HELLO from a router")),
        }
        Ok(())
    }

    fn request_frame(
        self: &Arc<Self>,
        requests: &mut Requests<'_>,
        frame: Frame<'_>,
    ) -> Result<(), StreamError> {
        let is_new = frame.stream > *requests.last;
        if is_new {
            *requests.last = frame.stream;
            self.table.lock().last_id = frame.stream;
        }
        if frame.flags & FRAGMENT == 0 {
            if !is_new {
                return Err(StreamError::StreamIdReused { stream: frame.stream, last: *requests.last });
            }
            return self.request_message(frame.stream, Bytes::copy_from_slice(frame.body));
        }
        if is_new {
            // The limit counts the payload; the head comes on top.
            let limit = self.message_max + HEAD_MAX + 4;
            match Assembly::request(frame.body, limit) {
                Ok(assembly) => drop(requests.open.insert(frame.stream, (assembly, Claim::none()))),
                Err(StreamError::MessageTooLarge { .. }) => self.reject_too_large(frame.stream),
                Err(error) => return Err(error),
            }
        } else if let Some((assembly, _)) = requests.open.get_mut(&frame.stream) {
            assembly.push(frame.body)?;
        }
        let Some((assembly, claim)) = requests.open.get_mut(&frame.stream) else { return Ok(()) };
        let reserved = if is_new { first_allocation(frame.body) } else { 0 };
        if !claim.grow_to(assembly.received().max(reserved)) {
            requests.open.remove(&frame.stream);
            self.owner.on_refused(RejectReason::Overloaded);
            self.reject(
                frame.stream,
                RejectReason::Overloaded,
                1_000,
                "the process holds too many unread bytes",
            );
            return Ok(());
        }
        if frame.flags & LAST != 0
            && let Some((assembly, _)) = requests.open.remove(&frame.stream)
        {
            self.request_message(frame.stream, Bytes::from_owner(Payload::new(assembly.finish()?)))?;
        }
        Ok(())
    }

    fn request_message(self: &Arc<Self>, id: u64, message: Bytes) -> Result<(), StreamError> {
        let (head, payload) = RequestHead::decode(&message)?;
        let payload = message.slice_ref(payload);
        if payload.len() > self.message_max {
            self.reject_too_large(id);
        } else {
            Arc::clone(&self.owner).on_request(self, id, head, payload);
        }
        Ok(())
    }

    fn reject_too_large(self: &Arc<Self>, id: u64) {
        self.owner.on_refused(RejectReason::TooLarge);
        let detail = format!("the limit is {} bytes", self.message_max);
        self.reject(id, RejectReason::TooLarge, 0, &detail);
    }

    /// Answers REJECT.
    pub(crate) fn reject(self: &Arc<Self>, id: u64, reason: RejectReason, retry_after_ms: u32, detail: &str) {
        let reject = Reject { reason, retry_after_ms, detail: detail.to_owned() };
        self.send(|out| out.reject(id, &reject));
    }
}

const fn killed_by(reason: KillReason) -> KilledBy {
    match reason {
        KillReason::Cancelled => KilledBy::Caller,
        KillReason::Deadline => KilledBy::Deadline,
        KillReason::ItemTimeout => KilledBy::ItemTimeout,
        KillReason::SlowConsumer => KilledBy::SlowConsumer,
    }
}

/// What an assembly reserves at the first fragment, before the bytes come: it is claimed from then on.
fn first_allocation(body: &[u8]) -> usize {
    let declared = body.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
    declared.min(ASSEMBLY_BYTES_FIRST)
}

/// Requests in fragments, and the highest id so far.
struct Requests<'a> {
    open: &'a mut FxHashMap<u64, (Assembly, Claim)>,
    last: &'a mut u64,
}

const fn unexpected(what: &'static str) -> StreamError {
    StreamError::OutOfOrder { kind: what, state: "any" }
}
