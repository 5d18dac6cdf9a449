//! The sending half of a link, sans-I/O: who may send what, in which order. Items go straight into the
//! buffer while there is credit. What has no credit, and what is larger than a frame, waits in its stream's
//! backlog; streams with a backlog take turns, one frame each.
//!
//! Invariants: the first frames of requests rise in stream id; a stream's items keep their order and its END
//! or ERROR comes behind them; no DATA or REQUEST body is sent without credit for it; after every call,
//! either something is unwritten or no stream could send.

mod turns;

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::body::{Fault, Goaway, Hello, KillReason, Reject, Status, encode_error, encode_prologue};
use crate::buffer::Buffer;
use crate::credit::SendWindow;
use crate::error::{EncodeError, StreamError};
use crate::frame::{PREFACE, item_bytes, item_fits_frame};
pub use crate::half::Finish;
use crate::half::{Message, SendHalf, Waiting};
use crate::kind::{Kind, STOPPED};
use crate::limits::{FILL_BYTES, FRAME_BODY_MAX, MESSAGE_MAX};

/// What became of an item that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is in the outbound buffer; the next may follow.
    Buffered,
    /// It waits for credit or its turn: push no more until the stream is reported by
    /// [`Outbound::take_unblocked`].
    Waiting,
}

/// The sending half of a link.
#[derive(Debug)]
pub struct Outbound {
    buffer: Buffer,
    link: SendWindow,
    halves: FxHashMap<u64, SendHalf>,
    turns: VecDeque<u64>,
    unblocked: Vec<u64>,
    message_max: usize,
    preface_said: bool,
    handovers: u32,
}

impl Outbound {
    /// A link's sending half before its peer's HELLO: nothing but HELLO and GOAWAY can be sent with profit.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buffer: Buffer::default(),
            link: SendWindow::new(0),
            halves: FxHashMap::default(),
            turns: VecDeque::new(),
            unblocked: Vec::new(),
            message_max: 0,
            preface_said: false,
            handovers: 0,
        }
    }

    /// Takes the limits that both sides agreed on. A `message_max` over [`MESSAGE_MAX`] is cut to it.
    pub const fn configure(&mut self, link_window: u32, message_max: usize) {
        self.link = SendWindow::new(link_window);
        self.message_max = if message_max < MESSAGE_MAX { message_max } else { MESSAGE_MAX };
    }

    /// Bytes that wait to be written. Backlogs are not counted: they wait for credit.
    #[must_use]
    pub const fn unwritten(&self) -> usize {
        self.buffer.unwritten()
    }

    /// Requests, refusals and endings that have gathered since the last write: what the peer has to act on
    /// before it can go on, where an item only adds to what it has.
    #[must_use]
    pub const fn handovers(&self) -> u32 {
        self.handovers
    }

    /// Frames that have been put into the buffer since the last call.
    pub const fn take_frames(&mut self) -> u64 {
        self.buffer.take_frames()
    }

    /// Bytes of control frames that wait to be written. No credit bounds them: a peer that asks and does not
    /// read lets them pile up, and its link closes at [`crate::limits::CONTROL_BYTES_MAX`].
    #[must_use]
    pub const fn unwritten_control(&self) -> usize {
        self.buffer.unwritten_urgent()
    }

    /// Whether a write would have something to write. Streams that wait for credit do not count: an idle
    /// socket must not be woken for them.
    #[must_use]
    pub const fn wants_write(&self) -> bool {
        self.buffer.unwritten() > 0
    }

    /// Streams whose sending half is open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.halves.len()
    }

    /// Whether a stream's sending half is open.
    #[must_use]
    pub fn is_open(&self, stream: u64) -> bool {
        self.halves.contains_key(&stream)
    }

    /// Whether all of a stream's REQUEST has been written: if not, the worker cannot have run it.
    #[must_use]
    pub fn request_written(&self, stream: u64) -> bool {
        self.halves
            .get(&stream)
            .is_none_or(|half| !half.request_waits() && self.buffer.is_written(half.request_mark))
    }

    /// Whether something of a stream waits for credit or its turn.
    #[must_use]
    pub fn has_backlog(&self, stream: u64) -> bool {
        self.halves.get(&stream).is_some_and(|half| !half.backlog.is_empty())
    }

    /// Items sent so far on a stream, those in its backlog included.
    #[must_use]
    pub fn items(&self, stream: u64) -> u64 {
        self.halves.get(&stream).map_or(0, |half| half.items)
    }

    /// Streams whose producer was told to wait and whose backlog has emptied since the last call: it may push
    /// again.
    pub fn take_unblocked(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.unblocked)
    }

    // --- frames of the link as a whole ---

    /// The preface, ahead of everything else and once only. [`Self::hello`] and [`Self::goaway`] say it
    /// themselves.
    pub fn preface(&mut self) {
        if !std::mem::replace(&mut self.preface_said, true) {
            self.buffer.raw(&PREFACE);
        }
    }

    /// The preface and HELLO.
    pub fn hello(&mut self, hello: &Hello) {
        self.preface();
        self.buffer.control(Kind::Hello, 0, 0, true, |out| hello.encode(out));
    }

    /// STATUS.
    pub fn status(&mut self, status: &Status) {
        self.buffer.control(Kind::Status, 0, 0, true, |out| status.encode(out));
    }

    /// PING with a monotonic stamp in nanoseconds.
    pub fn ping(&mut self, stamp_ns: u64) {
        self.buffer.control(Kind::Ping, 0, 0, true, |out| out.extend_from_slice(&stamp_ns.to_le_bytes()));
    }

    /// PONG: the echoed stamp and our own.
    pub fn pong(&mut self, echo_ns: u64, stamp_ns: u64) {
        self.buffer.control(Kind::Pong, 0, 0, true, |out| {
            out.extend_from_slice(&echo_ns.to_le_bytes());
            out.extend_from_slice(&stamp_ns.to_le_bytes());
        });
    }

    /// GOAWAY; behind the preface alone when it refuses a peer.
    pub fn goaway(&mut self, goaway: &Goaway) {
        self.preface();
        self.buffer.control(Kind::Goaway, 0, 0, true, |out| goaway.encode(out));
    }

    /// CREDIT for a stream, or for the link with stream 0.
    pub fn credit(&mut self, stream: u64, bytes: u64) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.buffer.control(Kind::Credit, 0, stream, true, |out| out.extend_from_slice(&bytes.to_le_bytes()));
    }

    // --- a worker's answers ---

    /// ACCEPT; opens the stream's sending half with the credit that the request carried.
    pub fn accept(&mut self, stream: u64, request_window: u32, response_window: u32) {
        self.open(stream, response_window);
        self.buffer.control(Kind::Accept, 0, stream, true, |out| {
            out.extend_from_slice(&request_window.to_le_bytes());
        });
    }

    /// REJECT.
    pub fn reject(&mut self, stream: u64, reject: &Reject) {
        self.handovers += 1;
        self.buffer.control(Kind::Reject, 0, stream, true, |out| reject.encode(out));
    }

    /// PROLOGUE. A failure ends the stream.
    pub fn prologue(&mut self, stream: u64, fault: Option<&Fault>) {
        self.buffer.control(Kind::Prologue, 0, stream, true, |out| encode_prologue(out, fault));
        if fault.is_some() {
            self.close(stream);
        }
    }

    // --- a router's requests ---

    /// REQUEST: `head` as [`crate::body::RequestHead::encode`] wrote it, and the payload.
    ///
    /// # Errors
    /// It is larger than the peer accepts. Nothing was written.
    pub fn request(&mut self, stream: u64, head: Vec<u8>, payload: Bytes) -> Result<(), EncodeError> {
        let actual = payload.len();
        if actual > self.message_max {
            return Err(EncodeError::PayloadTooLarge { limit: self.message_max, actual });
        }
        self.handovers += 1;
        let whole = head.len() + actual;
        let room = whole <= FRAME_BODY_MAX && self.buffer.unwritten() < FILL_BYTES;
        if room && self.turns.is_empty() && self.link.available() >= whole as u64 {
            // The usual request: nobody waits for a turn, and there is credit.
            self.link.use_up(whole as u64);
            self.buffer.fragment(Kind::Request, 0, stream, &head, payload);
            self.open(stream, 0);
            self.mark_request(stream);
        } else {
            self.open(stream, 0);
            self.wait(stream, Waiting::Message(Message::request(head.into(), payload)));
            self.fill();
        }
        Ok(())
    }

    /// The worker accepted the stream and grants this much for the request stream.
    ///
    /// # Errors
    /// The sum exceeds the largest window.
    pub fn accepted(&mut self, stream: u64, window: u32) -> Result<(), StreamError> {
        if let Some(half) = self.halves.get_mut(&stream) {
            half.window = SendWindow::new(window);
            self.enter_turns(stream);
            self.fill();
        }
        Ok(())
    }

    /// The worker takes no more items of the request stream: those that wait are dropped, and nothing of them
    /// follows, not even END.
    pub fn requests_unwanted(&mut self, stream: u64) {
        if let Some(half) = self.halves.get_mut(&stream) {
            half.drop_items();
            // As in `close`, others may have stood behind it.
            self.fill();
        }
    }

    /// STOP, from a router or a worker; it follows a request that has not been sent whole.
    pub fn stop(&mut self, stream: u64) {
        if let Some(half) = self.halves.get_mut(&stream)
            && half.request_waits()
        {
            if !matches!(half.backlog.get(1), Some(Waiting::Stop)) {
                half.backlog.insert(1, Waiting::Stop);
            }
            return;
        }
        let urgent = self.request_written(stream);
        self.buffer.control(Kind::Stop, 0, stream, urgent, |_| ());
    }

    /// KILL; closes the stream's sending half. False when the REQUEST had not been written and never will be:
    /// the worker does not know of the stream.
    pub fn kill(&mut self, stream: u64, reason: KillReason) -> bool {
        let urgent = self.request_written(stream);
        let unsent = self.halves.get(&stream).is_some_and(SendHalf::request_unsent);
        if !unsent {
            self.buffer.control(Kind::Kill, 0, stream, urgent, |out| out.push(reason as u8));
        }
        self.close(stream);
        !unsent
    }

    // --- items, both ways ---

    /// Opens a stream's sending half with its first credit.
    fn open(&mut self, stream: u64, window: u32) {
        self.halves.insert(stream, SendHalf::new(window));
    }

    /// Forgets a stream's sending half and whatever of it has not reached the buffer.
    pub fn close(&mut self, stream: u64) {
        if self.halves.remove(&stream).is_some() {
            // It may have stood first in line for the link's credit.
            self.fill();
        }
    }

    /// Closes every stream's sending half: the link is gone.
    pub fn close_all(&mut self) {
        self.halves.clear();
        self.turns.clear();
    }

    /// Pushes an item by copying its payload.
    ///
    /// # Errors
    /// It is larger than the peer accepts, or the stream is closed. Nothing was written.
    pub fn item(&mut self, stream: u64, encoding: u8, payload: &[u8]) -> Result<Pushed, EncodeError> {
        if self.admit(stream, payload.len())? {
            self.buffer.item(stream, encoding, payload);
            return Ok(Pushed::Buffered);
        }
        Ok(self.item_waits(stream, encoding, Bytes::copy_from_slice(payload)))
    }

    /// Pushes an item by reference.
    ///
    /// # Errors
    /// As [`Self::item`].
    pub fn item_shared(&mut self, stream: u64, encoding: u8, payload: Bytes) -> Result<Pushed, EncodeError> {
        if self.admit(stream, payload.len())? {
            self.buffer.item_shared(stream, encoding, payload);
            return Ok(Pushed::Buffered);
        }
        Ok(self.item_waits(stream, encoding, payload))
    }

    /// Counts an item and takes the credit for it if it can be sent now.
    fn admit(&mut self, stream: u64, payload_bytes: usize) -> Result<bool, EncodeError> {
        if payload_bytes > self.message_max {
            return Err(EncodeError::PayloadTooLarge { limit: self.message_max, actual: payload_bytes });
        }
        let half = self.halves.get_mut(&stream).filter(|half| !half.finished).ok_or(EncodeError::Closed)?;
        half.items += 1;
        let bytes = item_bytes(payload_bytes) as u64;
        let now = half.backlog.is_empty()
            && item_fits_frame(payload_bytes)
            && half.window.available() >= bytes
            && self.link.available() >= bytes;
        if now {
            half.window.use_up(bytes);
            self.link.use_up(bytes);
        }
        Ok(now)
    }

    fn item_waits(&mut self, stream: u64, encoding: u8, payload: Bytes) -> Pushed {
        self.wait(stream, Waiting::Message(Message::item(encoding, payload)));
        self.fill();
        match self.halves.get_mut(&stream) {
            Some(half) if !half.backlog.is_empty() => {
                half.blocked = true;
                Pushed::Waiting
            }
            _ => Pushed::Buffered,
        }
    }

    /// Ends a stream's sending half, behind whatever it still has to send. Nothing can be pushed after it.
    pub fn finish(&mut self, stream: u64, finish: Finish) {
        let Some(half) = self.halves.get_mut(&stream) else { return };
        if std::mem::replace(&mut half.finished, true) {
            return;
        }
        if half.backlog.is_empty() {
            self.finish_now(stream, &finish);
        } else {
            self.wait(stream, Waiting::Finish(finish));
            self.fill();
        }
    }

    /// Ends a stream with an ERROR at once: what waits in its backlog is dropped and not counted.
    pub fn abandon(&mut self, stream: u64, fault: Fault) {
        let Some(half) = self.halves.get_mut(&stream) else { return };
        let dropped = half.backlog.drain(..).filter(|waiting| matches!(waiting, Waiting::Message(_))).count();
        half.items -= dropped as u64;
        self.finish_now(stream, &Finish::Error(fault));
        // As in `close`, others may have stood behind it.
        self.fill();
    }

    fn finish_now(&mut self, stream: u64, finish: &Finish) {
        self.handovers += 1;
        let count = self.items(stream);
        if let Finish::Error(fault) = finish {
            self.buffer.control(Kind::Error, 0, stream, false, |out| encode_error(out, count, fault));
        } else {
            let flags = if *finish == (Finish::End { stopped: true }) { STOPPED } else { 0 };
            self.buffer
                .control(Kind::End, flags, stream, false, |out| out.extend_from_slice(&count.to_le_bytes()));
        }
        // After a half-close the stream lives on: a KILL must still know where its REQUEST is.
        if *finish != Finish::HalfClose {
            self.halves.remove(&stream);
        }
    }

    /// CREDIT came for a stream, or for the link with stream 0.
    ///
    /// # Errors
    /// The sum exceeds the largest window.
    pub fn granted(&mut self, stream: u64, bytes: u64) -> Result<(), StreamError> {
        if stream == 0 {
            self.link.grant(bytes)?;
        } else if let Some(half) = self.halves.get_mut(&stream) {
            half.window.grant(bytes)?;
            if !half.backlog.is_empty() {
                self.enter_turns(stream);
            }
        }
        self.fill();
        Ok(())
    }

    /// Writes what waits through `write` and returns how many bytes it took; see [`Self::wants_write`] for
    /// whether anything is left.
    ///
    /// # Errors
    /// What `write` failed with, apart from `WouldBlock` and `Interrupted`, which end this round.
    pub fn write_to(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut total = 0;
        self.handovers = 0;
        loop {
            self.fill();
            if self.buffer.unwritten() == 0 {
                return Ok(total);
            }
            match self.buffer.write_to(&mut total, &mut write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(total),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(()) if self.buffer.unwritten() > 0 => {
                    self.fill();
                    return Ok(total);
                }
                Err(_) | Ok(()) => {}
            }
        }
    }
}

impl Default for Outbound {
    fn default() -> Self {
        Self::new()
    }
}
