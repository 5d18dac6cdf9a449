//! What concerns the link as a whole: CREDIT, PING, PONG and GOAWAY.

use super::{invalid, window};
use crate::cursor::{Reader, put_text};
use crate::error::DecodeError;
use crate::limits::TEXT_MAX;

/// Reads the body of CREDIT: granted bytes.
///
/// # Errors
/// The number is missing, zero or larger than a window can be.
pub fn decode_credit(body: &[u8]) -> Result<u64, DecodeError> {
    let mut reader = Reader::new(body);
    let bytes = reader.u32("credit")?;
    reader.finish("CREDIT")?;
    window(bytes, 1, "credit").map(u64::from)
}

/// Reads the body of PING: the sender's monotonic clock in nanoseconds.
///
/// # Errors
/// The stamp is missing.
pub fn decode_ping(body: &[u8]) -> Result<u64, DecodeError> {
    let mut reader = Reader::new(body);
    let stamp_ns = reader.u64("stamp")?;
    reader.finish("PING")?;
    Ok(stamp_ns)
}

/// Reads the body of PONG: the echoed stamp, then the answerer's own clock, in nanoseconds.
///
/// # Errors
/// A stamp is missing.
pub fn decode_pong(body: &[u8]) -> Result<(u64, u64), DecodeError> {
    let mut reader = Reader::new(body);
    let stamps = (reader.u64("echoed stamp")?, reader.u64("stamp")?);
    reader.finish("PONG")?;
    Ok(stamps)
}

/// Why a side accepts nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GoawayReason {
    /// The worker drains; accepted streams finish.
    Draining = 1,
    /// The other side broke the protocol; the link closes.
    Protocol = 2,
    /// The link closes because its owner closed.
    Closed = 3,
    /// Token or certificate were not accepted.
    Unauthenticated = 4,
    /// The version ranges do not meet.
    Version = 5,
    /// The namespaces differ.
    Namespace = 6,
    /// Too many links or streams.
    Limit = 7,
}

/// The body of GOAWAY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goaway {
    /// The last stream that was accepted: what lies beyond it never ran.
    pub last_stream: u64,
    /// Why.
    pub reason: GoawayReason,
    /// What a person should know.
    pub detail: String,
}

impl Goaway {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.last_stream.to_le_bytes());
        out.push(self.reason as u8);
        put_text(out, &self.detail, TEXT_MAX);
    }

    /// Reads the body. Fields that a later version appends are skipped.
    ///
    /// # Errors
    /// A field is missing, malformed or unknown.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let last_stream = reader.u64("last_stream")?;
        let reason = match reader.u8("goaway reason")? {
            1 => GoawayReason::Draining,
            2 => GoawayReason::Protocol,
            3 => GoawayReason::Closed,
            4 => GoawayReason::Unauthenticated,
            5 => GoawayReason::Version,
            6 => GoawayReason::Namespace,
            7 => GoawayReason::Limit,
            other => return Err(invalid("goaway reason", u64::from(other))),
        };
        let detail = reader.text(TEXT_MAX, "detail")?.to_owned();
        Ok(Self { last_stream, reason, detail })
    }
}
