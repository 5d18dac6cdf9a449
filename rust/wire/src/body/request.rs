//! What a router says of a request: the head of REQUEST, and why it kills one.

use super::{invalid, window};
use crate::cursor::{Reader, put_text, put_varint};
use crate::error::{DecodeError, EncodeError};
use crate::limits::{
    ENDPOINT_MAX, HEAD_MAX, METADATA_ENTRIES_MAX, REQUEST_ID_MAX, STREAM_WINDOW_MIN, TRACEPARENT_MAX,
};

/// One item, or a stream of them: the two halves of the four request shapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// Exactly one item.
    #[default]
    Single,
    /// A stream of items.
    Many,
}

/// What a router says of a request, apart from its payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// `Many` when the request is itself a stream: its items follow as DATA.
    pub request_shape: Shape,
    /// `Many` when the caller reads a stream, `Single` when it wants one item.
    pub response_shape: Shape,
    /// How the payload is encoded; see [`crate::kind::Encoding`].
    pub encoding: u8,
    /// Credit for the response stream, in bytes.
    pub window: u32,
    /// Microseconds that are left to answer; `None` without a deadline. Remaining time, never a wall clock.
    pub deadline_us: Option<u64>,
    /// The sender's monotonic clock when it sent this, in microseconds, for transit time.
    pub sent_at_us: u64,
    /// The caller's name for the request.
    pub request_id: String,
    /// The endpoint asked for; empty for the only one there is.
    pub endpoint: String,
    /// W3C trace context; empty without a trace.
    pub traceparent: String,
    /// The caller's metadata.
    pub metadata: Vec<(String, String)>,
}

const NO_DEADLINE: u64 = u64::MAX;

impl RequestHead {
    /// Appends `u32 head length | head`, ready for the payload to follow.
    ///
    /// # Errors
    /// A part is over its limit. `out` is as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.check()?;
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        let shape =
            u8::from(self.request_shape == Shape::Many) | (u8::from(self.response_shape == Shape::Many) << 1);
        out.push(shape);
        out.push(self.encoding);
        out.extend_from_slice(&self.window.to_le_bytes());
        out.extend_from_slice(&self.deadline_us.unwrap_or(NO_DEADLINE).to_le_bytes());
        out.extend_from_slice(&self.sent_at_us.to_le_bytes());
        put_text(out, &self.request_id, REQUEST_ID_MAX);
        put_text(out, &self.endpoint, ENDPOINT_MAX);
        put_text(out, &self.traceparent, TRACEPARENT_MAX);
        put_varint(out, self.metadata.len());
        for (key, value) in &self.metadata {
            put_text(out, key, HEAD_MAX);
            put_text(out, value, HEAD_MAX);
        }
        let length = out.len() - start - 4;
        if length > HEAD_MAX {
            out.truncate(start);
            return Err(EncodeError::HeadTooLarge {
                what: "request head in bytes",
                limit: HEAD_MAX,
                actual: length,
            });
        }
        if let Some(prefix) = out.get_mut(start..start + 4) {
            prefix.copy_from_slice(&(length as u32).to_le_bytes());
        }
        Ok(())
    }

    fn check(&self) -> Result<(), EncodeError> {
        let metadata_bytes: usize = self.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        for (what, limit, actual) in [
            ("request id in bytes", REQUEST_ID_MAX, self.request_id.len()),
            ("endpoint name in bytes", ENDPOINT_MAX, self.endpoint.len()),
            ("traceparent in bytes", TRACEPARENT_MAX, self.traceparent.len()),
            ("number of metadata entries", METADATA_ENTRIES_MAX, self.metadata.len()),
            ("metadata in bytes", HEAD_MAX, metadata_bytes),
        ] {
            if actual > limit {
                return Err(EncodeError::HeadTooLarge { what, limit, actual });
            }
        }
        Ok(())
    }

    /// Splits a whole REQUEST message into head and payload.
    ///
    /// # Errors
    /// A field is missing, malformed or out of range.
    pub fn decode(message: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let mut reader = Reader::new(message);
        let length = reader.u32("request head")? as usize;
        if length > HEAD_MAX {
            return Err(DecodeError::TooLong { what: "request head", length, limit: HEAD_MAX });
        }
        let head = reader.bytes(length, "request head")?;
        let payload = reader.rest();
        let mut reader = Reader::new(head);
        let shape = reader.u8("request shape")?;
        if shape > 3 {
            return Err(invalid("request shape", u64::from(shape)));
        }
        let many = |bit: u8| {
            if shape & bit == 0 { Shape::Single } else { Shape::Many }
        };
        let head = Self {
            request_shape: many(1),
            response_shape: many(2),
            encoding: reader.u8("encoding")?,
            window: window(reader.u32("window")?, STREAM_WINDOW_MIN, "window")?,
            deadline_us: Some(reader.u64("deadline")?).filter(|&us| us != NO_DEADLINE),
            sent_at_us: reader.u64("sent_at")?,
            request_id: reader.text(REQUEST_ID_MAX, "request id")?.to_owned(),
            endpoint: reader.text(ENDPOINT_MAX, "endpoint")?.to_owned(),
            traceparent: reader.text(TRACEPARENT_MAX, "traceparent")?.to_owned(),
            metadata: metadata(&mut reader)?,
        };
        Ok((head, payload))
    }
}

/// Why a router kills a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KillReason {
    /// The caller cancelled, closed or dropped the stream.
    Cancelled = 1,
    /// The call's deadline passed.
    Deadline = 2,
    /// No item came within the item timeout.
    ItemTimeout = 3,
    /// The caller left items unread for too long.
    SlowConsumer = 4,
}

/// Reads the body of KILL. An unknown reason still kills.
///
/// # Errors
/// The body is empty.
pub fn decode_kill(body: &[u8]) -> Result<KillReason, DecodeError> {
    Ok(match Reader::new(body).u8("kill reason")? {
        2 => KillReason::Deadline,
        3 => KillReason::ItemTimeout,
        4 => KillReason::SlowConsumer,
        _ => KillReason::Cancelled,
    })
}

fn metadata(reader: &mut Reader<'_>) -> Result<Vec<(String, String)>, DecodeError> {
    let count = reader.varint("metadata")?;
    if count > METADATA_ENTRIES_MAX {
        return Err(DecodeError::TooLong { what: "metadata", length: count, limit: METADATA_ENTRIES_MAX });
    }
    (0..count)
        .map(|_| {
            let key = reader.text(HEAD_MAX, "metadata key")?.to_owned();
            Ok((key, reader.text(HEAD_MAX, "metadata value")?.to_owned()))
        })
        .collect()
}
