//! The sending half of one stream: its credit, what of it waits, and which frame it would send next.
//! Bookkeeping only: nothing here touches the outbound buffer, and credit is taken where a frame is cut.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::body::Fault;
use crate::credit::SendWindow;
use crate::frame::item_bytes;
use crate::kind::{FRAGMENT, Kind, LAST};
use crate::limits::FRAME_BODY_MAX;

/// How a stream's sending half ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Clean: every item was sent. `stopped` when the engine ended because it was asked to.
    End {
        /// Whether the engine was asked to stop.
        stopped: bool,
    },
    /// Not clean.
    Error(Fault),
    /// A request stream is complete; the response goes on.
    HalfClose,
}

/// A request or an item that waits for credit or its turn.
#[derive(Debug)]
pub(crate) struct Message {
    /// Requests go on the link's credit alone: a stream has none before its request has arrived.
    is_request: bool,
    encoding: u8,
    /// The request's head, nothing for items.
    head: Bytes,
    payload: Bytes,
    /// Its first fragment has been cut.
    started: bool,
    /// Nothing of it is left to cut.
    sent: bool,
}

impl Message {
    pub(crate) const fn request(head: Bytes, payload: Bytes) -> Self {
        Self { is_request: true, encoding: 0, head, payload, started: false, sent: false }
    }

    pub(crate) const fn item(encoding: u8, payload: Bytes) -> Self {
        Self { is_request: false, encoding, head: Bytes::new(), payload, started: false, sent: false }
    }

    /// Cuts the next frame, whole if it may go whole, and takes the credit for it.
    fn next(&mut self, window: &mut SendWindow, link: &mut SendWindow) -> Next {
        let unlimited = (u64::MAX, u64::MAX);
        let (credit, reachable) =
            if self.is_request { unlimited } else { (window.available(), window.reachable()) };
        let left = self.head.len() + self.payload.len();
        let whole = if self.is_request { left } else { item_bytes(left) } as u64;
        let goes_whole =
            !self.started && whole <= FRAME_BODY_MAX as u64 && (whole <= credit || whole <= reachable);
        let prefix = self.prefix(left);
        let (wanted, needed) = if goes_whole {
            (whole, whole)
        } else {
            let wanted = (left + prefix.length).min(FRAME_BODY_MAX) as u64;
            (wanted, wanted.min(reachable).max(prefix.length as u64 + 1))
        };
        // A request stream's window is empty until its ACCEPT says how large it is.
        if credit < needed || reachable == 0 {
            return Next::NoStreamCredit;
        }
        if link.available() < wanted {
            return Next::NoLinkCredit;
        }
        let (next, used) = if goes_whole {
            (self.take_whole(), whole)
        } else {
            self.cut_fragment(prefix, wanted.min(credit) as usize)
        };
        link.use_up(used);
        if !self.is_request {
            window.use_up(used);
        }
        next
    }

    /// What goes in front of the payload in a fragment.
    const fn prefix(&self, left: usize) -> Prefix {
        let [a, b, c, d] = (left as u32).to_le_bytes();
        let length = match (self.started, self.is_request) {
            (true, _) => 0,
            (false, true) => 4,
            (false, false) => 5,
        };
        Prefix { bytes: [a, b, c, d, self.encoding], length }
    }

    fn take_whole(&mut self) -> Next {
        self.sent = true;
        let (head, payload) = (std::mem::take(&mut self.head), std::mem::take(&mut self.payload));
        if self.is_request {
            Next::Request { head, payload }
        } else {
            Next::Item { encoding: self.encoding, payload }
        }
    }

    /// Cuts a fragment with a body of at most `body_max` bytes; returns it with the body's size.
    fn cut_fragment(&mut self, prefix: Prefix, body_max: usize) -> (Next, u64) {
        let from = if self.head.is_empty() { &mut self.payload } else { &mut self.head };
        let room = body_max.saturating_sub(prefix.length);
        let chunk = from.split_to(room.min(from.len()));
        let used = (prefix.length + chunk.len()) as u64;
        self.started = true;
        self.sent = self.head.is_empty() && self.payload.is_empty();
        let flags = FRAGMENT | if self.sent { LAST } else { 0 };
        let kind = if self.is_request { Kind::Request } else { Kind::Data };
        (Next::Fragment { kind, flags, prefix, chunk }, used)
    }
}

/// The bytes in front of a fragment's payload: the whole length and the encoding, in the first one only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prefix {
    bytes: [u8; 5],
    length: usize,
}

impl Prefix {
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// What waits behind a stream's earlier frames.
#[derive(Debug)]
pub(crate) enum Waiting {
    Message(Message),
    /// STOP, behind a request that has not been sent whole.
    Stop,
    Finish(Finish),
}

/// What a stream with a backlog sends on its turn.
#[derive(Debug)]
pub(crate) enum Next {
    /// An item that fits one frame.
    Item { encoding: u8, payload: Bytes },
    /// A request that fits one frame.
    Request { head: Bytes, payload: Bytes },
    /// A frame's worth of a larger message.
    Fragment { kind: Kind, flags: u8, prefix: Prefix, chunk: Bytes },
    /// STOP.
    Stop,
    /// The stream's last frame.
    Finish(Finish),
    /// It has to wait for credit of its own.
    NoStreamCredit,
    /// It has to wait for credit of the link.
    NoLinkCredit,
    /// Nothing waits.
    Nothing,
}

/// The sending half of one stream.
#[derive(Debug)]
pub(crate) struct SendHalf {
    pub(crate) window: SendWindow,
    /// Items pushed so far.
    pub(crate) items: u64,
    pub(crate) backlog: VecDeque<Waiting>,
    /// It is in the queue of turns.
    pub(crate) in_turns: bool,
    /// Its producer was told to wait.
    pub(crate) blocked: bool,
    /// Its end was asked for: nothing more can be pushed.
    pub(crate) finished: bool,
    /// The buffer's mark behind the stream's REQUEST: STOP and KILL may overtake only what comes later.
    pub(crate) request_mark: u64,
}

impl SendHalf {
    pub(crate) const fn new(window: u32) -> Self {
        Self {
            window: SendWindow::new(window),
            items: 0,
            backlog: VecDeque::new(),
            in_turns: false,
            blocked: false,
            finished: false,
            request_mark: 0,
        }
    }

    /// Whether the request has not left the backlog, or not all of it.
    pub(crate) fn request_waits(&self) -> bool {
        matches!(self.backlog.front(), Some(Waiting::Message(Message { is_request: true, .. })))
    }

    /// Nobody wants the items that wait: they are dropped, and their end with them.
    pub(crate) fn drop_items(&mut self) {
        self.finished = true;
        self.blocked = false;
        self.backlog.retain(|waiting| match waiting {
            Waiting::Message(message) => message.is_request,
            Waiting::Stop => true,
            Waiting::Finish(_) => false,
        });
    }

    /// Whether nothing of the request has left the backlog.
    pub(crate) fn request_unsent(&self) -> bool {
        matches!(
            self.backlog.front(),
            Some(Waiting::Message(Message { is_request: true, started: false, .. }))
        )
    }

    /// Takes the next frame off the backlog, if there is credit for it.
    pub(crate) fn next(&mut self, link: &mut SendWindow) -> Next {
        match self.backlog.pop_front() {
            None => Next::Nothing,
            Some(Waiting::Stop) => Next::Stop,
            Some(Waiting::Finish(finish)) => Next::Finish(finish),
            Some(Waiting::Message(mut message)) => {
                let next = message.next(&mut self.window, link);
                if !message.sent {
                    self.backlog.push_front(Waiting::Message(message));
                }
                next
            }
        }
    }
}
