//! Frame kinds and flags: the one byte each that says what a body means.

/// What a frame is. The numbers are the protocol's; they never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// First frame of each side: versions, role, limits, identity.
    Hello = 1,
    /// Worker to router: readiness, load and endpoints, on change.
    Status = 2,
    /// Router to worker: a request head and its body, possibly in fragments.
    Request = 3,
    /// Worker to router: the request passed admission.
    Accept = 4,
    /// Worker to router: the request did not pass admission and did not run.
    Reject = 5,
    /// Worker to router: the engine has returned its stream, or failed to.
    Prologue = 6,
    /// Items of a stream, either way.
    Data = 7,
    /// Clean end of a stream in one direction, with the count of its items.
    End = 8,
    /// The engine failed: the stream ends here, not cleanly.
    Error = 9,
    /// Router to worker: finish when convenient. Worker to router: no more items of the request stream.
    Stop = 10,
    /// Router to worker: end now, nobody reads any more.
    Kill = 11,
    /// Bytes that the other side may send, for one stream or (stream 0) for the link.
    Credit = 12,
    /// Are you there? Carries a monotonic stamp.
    Ping = 13,
    /// Yes. Echoes the stamp and adds the answerer's own.
    Pong = 14,
    /// No new requests: what lies beyond the carried stream id never ran.
    Goaway = 15,
}

impl Kind {
    /// The kind of this number, if this version of the protocol knows it.
    #[must_use]
    pub const fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Status,
            3 => Self::Request,
            4 => Self::Accept,
            5 => Self::Reject,
            6 => Self::Prologue,
            7 => Self::Data,
            8 => Self::End,
            9 => Self::Error,
            10 => Self::Stop,
            11 => Self::Kill,
            12 => Self::Credit,
            13 => Self::Ping,
            14 => Self::Pong,
            15 => Self::Goaway,
            _ => return None,
        })
    }

    /// Whether frames of this kind belong to the link as a whole and carry stream id 0.
    /// CREDIT may be either.
    #[must_use]
    pub const fn is_link_level(self) -> bool {
        matches!(self, Self::Hello | Self::Status | Self::Ping | Self::Pong | Self::Goaway)
    }
}

/// Flag: the body is one fragment of a larger message.
pub const FRAGMENT: u8 = 0x01;
/// Flag, with [`FRAGMENT`]: the last fragment.
pub const LAST: u8 = 0x02;
/// Flag on END: the engine ended because it was asked to stop.
pub const STOPPED: u8 = 0x04;
/// Flag: a receiver that does not know this kind skips the frame instead of closing the link.
pub const IGNORABLE: u8 = 0x80;

/// How an item's payload is encoded: the byte in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    /// Opaque bytes.
    Raw = 0,
    /// One msgpack value.
    Msgpack = 1,
    /// An array: element type, shape, then the data in C order (see `docs/protocol.md`).
    Ndarray = 2,
}

impl Encoding {
    /// The encoding of this number, if known.
    #[must_use]
    pub const fn from_u8(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Msgpack),
            2 => Some(Self::Ndarray),
            _ => None,
        }
    }
}
