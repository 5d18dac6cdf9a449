//! What can be wrong with bytes from a peer, and with a message we were asked to send.

use thiserror::Error;

/// A peer broke the protocol. The link it came from closes with this reason; nothing else is affected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The first bytes are not Headrace's preface: another protocol speaks to this port.
    #[error("the peer does not speak Headrace: its first bytes are {found:02x?}")]
    BadPreface {
        /// What came instead.
        found: [u8; 8],
    },
    /// A body is longer than the limit in force.
    #[error("frame body of {length} bytes exceeds the limit of {limit}")]
    FrameTooLarge {
        /// Length in the frame's header.
        length: usize,
        /// The limit in force.
        limit: usize,
    },
    /// A kind that this version does not know and that is not marked ignorable.
    #[error("unknown frame kind {kind}")]
    UnknownKind {
        /// The kind's number.
        kind: u8,
    },
    /// A stream id where none belongs, or none where one does.
    #[error("frame kind {kind} cannot carry stream id {stream}")]
    BadStreamId {
        /// The kind's number.
        kind: u8,
        /// The stream id it carried.
        stream: u64,
    },
    /// A body ended before its fields did.
    #[error("truncated {what}")]
    Truncated {
        /// The field being read.
        what: &'static str,
    },
    /// A body went on after its last field.
    #[error("{extra} bytes after the end of {what}")]
    TrailingBytes {
        /// The frame's name.
        what: &'static str,
        /// How many bytes were left.
        extra: usize,
    },
    /// A field has a value outside its range.
    #[error("{what} has the invalid value {value}")]
    InvalidValue {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A field that holds text is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// The field.
        what: &'static str,
    },
    /// A field is longer than its limit.
    #[error("{what} of {length} exceeds the limit of {limit}")]
    TooLong {
        /// The field.
        what: &'static str,
        /// Its length or count.
        length: usize,
        /// The limit.
        limit: usize,
    },
}

/// A peer's frame does not fit the state of its stream or link.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A frame that the stream's state does not allow.
    #[error("{kind} arrived in state {state}")]
    OutOfOrder {
        /// What arrived.
        kind: &'static str,
        /// The state it arrived in.
        state: &'static str,
    },
    /// More bytes than were granted.
    #[error("the peer sent {sent} bytes with a credit of {credit}")]
    CreditExceeded {
        /// Bytes in the frame.
        sent: u64,
        /// Credit that was left.
        credit: u64,
    },
    /// Granted credit would exceed the largest window.
    #[error("credit of {credit} exceeds the largest window")]
    CreditOverflow {
        /// The sum that was refused.
        credit: u64,
    },
    /// END or ERROR counts other items than arrived: some were lost or doubled.
    #[error("the stream ended after {counted} items by the sender's count, {received} arrived")]
    CountMismatch {
        /// The sender's count.
        counted: u64,
        /// What arrived.
        received: u64,
    },
    /// A message in fragments is longer than the message limit.
    #[error("message of {length} bytes exceeds the limit of {limit}")]
    MessageTooLarge {
        /// Declared length.
        length: usize,
        /// The limit in force.
        limit: usize,
    },
    /// Fragments do not add up to what the first one declared.
    #[error("fragments add up to {received} of {declared} bytes")]
    FragmentMismatch {
        /// Declared length.
        declared: usize,
        /// What arrived.
        received: usize,
    },
    /// A stream id that is not above every earlier one.
    #[error("stream id {stream} is not above {last}")]
    StreamIdReused {
        /// The new id.
        stream: u64,
        /// The highest id so far.
        last: u64,
    },
    /// The body itself cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Something we were asked to send cannot be sent. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The item or request is larger than the limit both sides agreed on.
    #[error("payload of {actual} bytes exceeds the limit of {limit}")]
    PayloadTooLarge {
        /// The limit in force.
        limit: usize,
        /// The payload's size.
        actual: usize,
    },
    /// The request head (id, endpoint, metadata, trace) is too large.
    #[error("{what} of {actual} exceeds the limit of {limit}")]
    HeadTooLarge {
        /// Which part.
        what: &'static str,
        /// The limit.
        limit: usize,
        /// Its size.
        actual: usize,
    },
    /// The stream has ended or was never opened on this link.
    #[error("the stream is closed")]
    Closed,
}
