//! What a worker answers: ACCEPT or REJECT, PROLOGUE, and the two ends of a stream, END and ERROR.

use super::{invalid, window};
use crate::cursor::{Reader, put_text};
use crate::error::DecodeError;
use crate::limits::{ENDPOINT_MAX, STREAM_WINDOW_MIN, TEXT_MAX};

/// Why a worker did not admit a request. It did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RejectReason {
    /// Running and queued requests are at their limits.
    Overloaded = 1,
    /// The worker is shutting down.
    Draining = 2,
    /// It has no such endpoint.
    NoSuchEndpoint = 3,
    /// The request is larger than it accepts.
    TooLarge = 4,
    /// Its deadline had passed when it arrived.
    Expired = 5,
    /// The peer may not send requests.
    Unauthenticated = 6,
    /// The endpoint cannot serve this shape of request.
    UnsupportedShape = 7,
}

/// The body of REJECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
    /// When to try again, in milliseconds; 0 when that would not help.
    pub retry_after_ms: u32,
    /// What a person should know: the endpoints there are, the limit that was passed.
    pub detail: String,
}

impl Reject {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.reason as u8);
        out.extend_from_slice(&self.retry_after_ms.to_le_bytes());
        put_text(out, &self.detail, TEXT_MAX);
    }

    /// Reads the body.
    ///
    /// # Errors
    /// A field is missing, malformed or unknown.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let reason = match reader.u8("reject reason")? {
            1 => RejectReason::Overloaded,
            2 => RejectReason::Draining,
            3 => RejectReason::NoSuchEndpoint,
            4 => RejectReason::TooLarge,
            5 => RejectReason::Expired,
            6 => RejectReason::Unauthenticated,
            7 => RejectReason::UnsupportedShape,
            other => return Err(invalid("reject reason", u64::from(other))),
        };
        let retry_after_ms = reader.u32("retry_after")?;
        let detail = reader.text(TEXT_MAX, "detail")?.to_owned();
        reader.finish("REJECT")?;
        Ok(Self { reason, retry_after_ms, detail })
    }
}

/// What kind of failure ended a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FaultCode {
    /// The engine raised.
    Engine = 1,
    /// The engine yielded something that cannot be encoded.
    Encode = 2,
    /// The deadline passed at the worker.
    Deadline = 3,
    /// The caller did not read for too long.
    SlowConsumer = 4,
    /// The worker shut down before the engine had finished.
    Shutdown = 5,
    /// The engine yielded an item over the message limit; the type field holds `limit/actual` in bytes.
    TooLarge = 6,
    /// The worker could not decode the request.
    Decode = 7,
    /// The engine has no room for the request and has not begun with it; the type field holds the milliseconds
    /// after which to try again.
    Refused = 8,
}

/// A failure as it travels in PROLOGUE and ERROR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of failure.
    pub code: FaultCode,
    /// The exception's type name.
    pub kind: String,
    /// The exception's text.
    pub message: String,
    /// Its traceback; empty unless the worker exposes it.
    pub traceback: String,
}

impl Fault {
    /// Appends the fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.code as u8);
        put_text(out, &self.kind, ENDPOINT_MAX);
        put_text(out, &self.message, TEXT_MAX);
        put_text(out, &self.traceback, TEXT_MAX);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let code = match reader.u8("fault code")? {
            1 => FaultCode::Engine,
            2 => FaultCode::Encode,
            3 => FaultCode::Deadline,
            4 => FaultCode::SlowConsumer,
            5 => FaultCode::Shutdown,
            6 => FaultCode::TooLarge,
            7 => FaultCode::Decode,
            8 => FaultCode::Refused,
            other => return Err(invalid("fault code", u64::from(other))),
        };
        Ok(Self {
            code,
            kind: reader.text(ENDPOINT_MAX, "fault type")?.to_owned(),
            message: reader.text(TEXT_MAX, "fault message")?.to_owned(),
            traceback: reader.text(TEXT_MAX, "fault traceback")?.to_owned(),
        })
    }
}

/// Reads the body of ACCEPT: the credit for a request stream.
///
/// # Errors
/// The window is missing or out of range.
pub fn decode_accept(body: &[u8]) -> Result<u32, DecodeError> {
    let mut reader = Reader::new(body);
    let granted = window(reader.u32("window")?, STREAM_WINDOW_MIN, "window")?;
    reader.finish("ACCEPT")?;
    Ok(granted)
}

/// Appends the body of PROLOGUE.
pub fn encode_prologue(out: &mut Vec<u8>, fault: Option<&Fault>) {
    out.push(u8::from(fault.is_some()));
    if let Some(fault) = fault {
        fault.encode(out);
    }
}

/// Reads the body of PROLOGUE: the engine's failure to return a stream, if it failed.
///
/// # Errors
/// A field is missing or malformed.
pub fn decode_prologue(body: &[u8]) -> Result<Option<Fault>, DecodeError> {
    let mut reader = Reader::new(body);
    let fault = match reader.u8("prologue")? {
        0 => None,
        1 => Some(Fault::read(&mut reader)?),
        other => return Err(invalid("prologue", u64::from(other))),
    };
    reader.finish("PROLOGUE")?;
    Ok(fault)
}

/// Reads the body of END: the count of items that were sent.
///
/// # Errors
/// The count is missing.
pub fn decode_end(body: &[u8]) -> Result<u64, DecodeError> {
    let mut reader = Reader::new(body);
    let count = reader.u64("count")?;
    reader.finish("END")?;
    Ok(count)
}

/// Appends the body of ERROR.
pub fn encode_error(out: &mut Vec<u8>, count: u64, fault: &Fault) {
    out.extend_from_slice(&count.to_le_bytes());
    fault.encode(out);
}

/// Reads the body of ERROR: the count of items that were sent before it, and the failure.
///
/// # Errors
/// A field is missing or malformed.
pub fn decode_error(body: &[u8]) -> Result<(u64, Fault), DecodeError> {
    let mut reader = Reader::new(body);
    let count = reader.u64("count")?;
    let fault = Fault::read(&mut reader)?;
    reader.finish("ERROR")?;
    Ok((count, fault))
}
