//! The receiving half of one stream: which frames may come when, what they add up to, what to grant.
//!
//! ```text
//!            ACCEPT          PROLOGUE(ok)           END
//!   Sent ───────────▶ Accepted ───────────▶ Open ───────────▶ Ended
//!     │                  │                 │  ▲ │                ▲
//!     │ REJECT           │ PROLOGUE(fault) │  └─┘ DATA           │
//!     └──────────────────┴─────────────────┴──── ERROR ──────────┘
//! ```
//! A router's response starts at `Sent`; the request stream that a worker receives starts at `Open`. A worker
//! that wants no more of it says STOP, which changes nothing of the response's state.

use crate::body::{Fault, decode_end, decode_error, decode_prologue};
use crate::credit::ReceiveWindow;
use crate::cursor::Reader;
use crate::error::{DecodeError, StreamError};
use crate::frame::count_items;
use crate::kind::{FRAGMENT, LAST};
use crate::limits::ASSEMBLY_BYTES_FIRST;
use crate::spare;

/// Where a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The request was sent; nothing has come back.
    Sent,
    /// Admitted; the engine has not returned its stream.
    Accepted,
    /// Items may come.
    Open,
    /// Nothing more may come.
    Ended,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Accepted => "accepted",
            Self::Open => "open",
            Self::Ended => "ended",
        }
    }
}

/// What a DATA frame brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    /// Whole items: the frame's body, with their count.
    Items {
        /// How many.
        count: u64,
    },
    /// A fragment of an item that is not complete yet.
    Fragment,
    /// The last fragment of an item.
    Whole {
        /// The item's encoding.
        encoding: u8,
        /// Its payload.
        payload: Vec<u8>,
        /// The credit it holds until it is taken.
        credit: u64,
    },
}

/// The receiving half of one stream.
#[derive(Debug)]
pub struct Inbound {
    state: State,
    window: ReceiveWindow,
    items: u64,
    assembly: Option<Assembly>,
    message_max: usize,
}

impl Inbound {
    /// The half of a router that has sent a request.
    #[must_use]
    pub const fn response(window: u32, message_max: usize) -> Self {
        Self::new(State::Sent, window, message_max)
    }

    /// The half of a worker that has accepted a request stream.
    #[must_use]
    pub const fn request_stream(window: u32, message_max: usize) -> Self {
        Self::new(State::Open, window, message_max)
    }

    /// The half of a worker that has accepted a single request: nothing of this stream may follow it.
    #[must_use]
    pub const fn single_request() -> Self {
        Self::new(State::Ended, 0, 0)
    }

    const fn new(state: State, window: u32, message_max: usize) -> Self {
        Self { state, window: ReceiveWindow::new(window), items: 0, assembly: None, message_max }
    }

    /// Where the stream stands.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Items that have arrived whole.
    #[must_use]
    pub const fn items(&self) -> u64 {
        self.items
    }

    /// Bytes of memory that an item in fragments holds so far, with what is reserved for the rest of it.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.assembly.as_ref().map_or(0, |assembly| assembly.bytes.capacity())
    }

    /// The stream's window.
    #[must_use]
    pub const fn window(&self) -> &ReceiveWindow {
        &self.window
    }

    /// The consumer took items of this size; returns the credit to send, if enough has gathered.
    pub const fn take(&mut self, bytes: u64) -> Option<u64> {
        self.window.take(bytes);
        self.grant()
    }

    /// The credit to send now, if enough has gathered and more items may come.
    pub const fn grant(&mut self) -> Option<u64> {
        match self.state {
            State::Ended => None,
            State::Sent | State::Accepted | State::Open => self.window.grant(),
        }
    }

    /// ACCEPT came.
    ///
    /// # Errors
    /// It came out of order.
    pub const fn accept(&mut self) -> Result<(), StreamError> {
        match self.state {
            State::Sent => {
                self.state = State::Accepted;
                Ok(())
            }
            state => Err(out_of_order("ACCEPT", state)),
        }
    }

    /// REJECT came: the request did not run.
    ///
    /// # Errors
    /// It came out of order.
    pub const fn reject(&mut self) -> Result<(), StreamError> {
        match self.state {
            State::Sent => {
                self.state = State::Ended;
                Ok(())
            }
            state => Err(out_of_order("REJECT", state)),
        }
    }

    /// PROLOGUE came; returns the engine's failure, which ends the stream.
    ///
    /// # Errors
    /// It came out of order or cannot be decoded.
    pub fn prologue(&mut self, body: &[u8]) -> Result<Option<Fault>, StreamError> {
        if self.state != State::Accepted {
            return Err(out_of_order("PROLOGUE", self.state));
        }
        let fault = decode_prologue(body)?;
        self.state = if fault.is_some() { State::Ended } else { State::Open };
        Ok(fault)
    }

    /// STOP came from the worker: it takes no more items of the request stream. The response goes on.
    ///
    /// # Errors
    /// It came out of order.
    pub const fn stop(&self) -> Result<(), StreamError> {
        match self.state {
            State::Accepted | State::Open => Ok(()),
            state => Err(out_of_order("STOP", state)),
        }
    }

    /// DATA came.
    ///
    /// # Errors
    /// It came out of order, exceeds its credit or the message limit, or is malformed.
    pub fn data(&mut self, flags: u8, body: &[u8]) -> Result<Arrived, StreamError> {
        if self.state != State::Open {
            return Err(out_of_order("DATA", self.state));
        }
        let bytes = body.len() as u64;
        self.window.receive(bytes)?;
        if flags & FRAGMENT != 0 {
            return self.fragment(flags & LAST != 0, body);
        }
        if self.assembly.is_some() {
            return Err(out_of_order("whole items", self.state));
        }
        let count = count_items(body)?;
        self.items += count;
        self.window.buffer(bytes);
        Ok(Arrived::Items { count })
    }

    fn fragment(&mut self, last: bool, body: &[u8]) -> Result<Arrived, StreamError> {
        let assembly = match &mut self.assembly {
            Some(assembly) => {
                assembly.push(body)?;
                assembly
            }
            none => {
                let mut reader = Reader::new(body);
                let total = reader.u32("message length")? as usize;
                let encoding = reader.u8("encoding")?;
                let mut first = Assembly::new(total, self.message_max)?;
                first.encoding = encoding;
                first.credit = (body.len() - reader.rest().len()) as u64;
                first.push(reader.rest())?;
                self.window.expect((total - first.received()) as u64);
                none.insert(first)
            }
        };
        if !last {
            return Ok(Arrived::Fragment);
        }
        let (encoding, credit) = (assembly.encoding, assembly.credit);
        let Some(assembly) = self.assembly.take() else { return Ok(Arrived::Fragment) };
        let payload = assembly.finish()?;
        self.items += 1;
        self.window.buffer(credit);
        Ok(Arrived::Whole { encoding, payload, credit })
    }

    /// END came: the stream is complete.
    ///
    /// # Errors
    /// It came out of order, or its count is not what arrived.
    pub fn end(&mut self, body: &[u8]) -> Result<(), StreamError> {
        if self.state != State::Open || self.assembly.is_some() {
            return Err(out_of_order("END", self.state));
        }
        self.check_count(decode_end(body)?)?;
        self.state = State::Ended;
        Ok(())
    }

    /// ERROR came: the stream ends here, not cleanly.
    ///
    /// # Errors
    /// It came out of order, or its count is not what arrived.
    pub fn error(&mut self, body: &[u8]) -> Result<Fault, StreamError> {
        if !matches!(self.state, State::Accepted | State::Open) {
            return Err(out_of_order("ERROR", self.state));
        }
        let (count, fault) = decode_error(body)?;
        self.check_count(count)?;
        self.assembly = None;
        self.state = State::Ended;
        Ok(fault)
    }

    const fn check_count(&self, counted: u64) -> Result<(), StreamError> {
        if counted == self.items {
            Ok(())
        } else {
            Err(StreamError::CountMismatch { counted, received: self.items })
        }
    }
}

const fn out_of_order(kind: &'static str, state: State) -> StreamError {
    StreamError::OutOfOrder { kind, state: state.name() }
}

/// A message that arrives in fragments. Its memory grows with what really came.
#[derive(Debug)]
pub struct Assembly {
    total: usize,
    encoding: u8,
    credit: u64,
    bytes: Vec<u8>,
}

impl Assembly {
    /// Starts a message of `total` bytes.
    ///
    /// # Errors
    /// It is larger than `limit`.
    pub fn new(total: usize, limit: usize) -> Result<Self, StreamError> {
        if total > limit {
            return Err(StreamError::MessageTooLarge { length: total, limit });
        }
        Ok(Self { total, encoding: 0, credit: 0, bytes: spare::take(total.min(ASSEMBLY_BYTES_FIRST)) })
    }

    /// Starts a fragmented REQUEST from the body of its first frame. `limit` bounds head and payload together,
    /// so it is the message limit and [`crate::limits::HEAD_MAX`] and the head's length field.
    ///
    /// # Errors
    /// The body is malformed or the request is larger than `limit`.
    pub fn request(body: &[u8], limit: usize) -> Result<Self, StreamError> {
        let mut reader = Reader::new(body);
        let mut assembly = Self::new(reader.u32("request length")? as usize, limit)?;
        assembly.push(reader.rest())?;
        Ok(assembly)
    }

    /// Bytes that have come.
    #[must_use]
    pub const fn received(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a fragment.
    ///
    /// # Errors
    /// It is empty, or there is more than the first fragment declared.
    pub fn push(&mut self, fragment: &[u8]) -> Result<(), StreamError> {
        if fragment.is_empty() {
            // It would use no credit, so nothing would bound how many come.
            return Err(DecodeError::Truncated { what: "fragment" }.into());
        }
        let received = self.bytes.len() + fragment.len();
        if received > self.total {
            return Err(StreamError::FragmentMismatch { declared: self.total, received });
        }
        if received > self.bytes.capacity() {
            // Doubling, but never past the declared length, which has been checked against the limit.
            let wanted = (self.bytes.capacity() * 2).clamp(received, self.total);
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
        self.credit += fragment.len() as u64;
        self.bytes.extend_from_slice(fragment);
        Ok(())
    }

    /// The whole message.
    ///
    /// # Errors
    /// Bytes are missing.
    pub fn finish(self) -> Result<Vec<u8>, StreamError> {
        if self.bytes.len() == self.total {
            Ok(self.bytes)
        } else {
            Err(StreamError::FragmentMismatch { declared: self.total, received: self.bytes.len() })
        }
    }
}
