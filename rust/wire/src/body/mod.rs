//! The bodies of every frame but DATA: what each field is, how it is written and checked.
//!
//! Encoders cut text at its limit and never fail, except [`RequestHead`], whose limits are the caller's
//! concern. Decoders check every length before they read, and allocate no more than what really came.

mod answer;
mod hello;
mod link;
mod request;

pub use answer::{
    Fault, FaultCode, Reject, RejectReason, decode_accept, decode_end, decode_error, decode_prologue,
    encode_error, encode_prologue,
};
pub use hello::{Hello, Role, Status};
pub use link::{Goaway, GoawayReason, decode_credit, decode_ping, decode_pong};
pub use request::{KillReason, RequestHead, Shape, decode_kill};

use crate::error::DecodeError;
use crate::limits::WINDOW_MAX;

/// The version of the protocol that this crate speaks, and the oldest it still understands.
pub const VERSION: u16 = 1;
/// See [`VERSION`].
pub const VERSION_MIN: u16 = 1;

const fn invalid(what: &'static str, value: u64) -> DecodeError {
    DecodeError::InvalidValue { what, value }
}

fn window(bytes: u32, least: u32, what: &'static str) -> Result<u32, DecodeError> {
    if (least..=WINDOW_MAX).contains(&bytes) { Ok(bytes) } else { Err(invalid(what, u64::from(bytes))) }
}
