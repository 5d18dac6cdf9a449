//! The Headrace protocol, sans-I/O: bytes in, frames out, and the other way round. There is no socket, no
//! clock and no thread here; `headrace` drives it over TCP, tests drive it over byte vectors.
//!
//! | module | what lives there |
//! |---|---|
//! | [`limits`] | every maximum, with its reason |
//! | [`kind`] | frame kinds, flags, item encodings |
//! | [`frame`] | the frame header and the items of a DATA body |
//! | [`body`] | the bodies of every other kind |
//! | [`decoder`] | incremental decoding |
//! | [`stream`] | the receiving half of a stream: its states and its credit |
//! | [`outbound`] | the sending half of a link: order, turns, credit, batching into one buffer |
//! | [`credit`] | flow-control arithmetic |
//! | [`spare`] | large buffers, used again |
//! | [`error`] | what can be wrong |
//!
//! `docs/protocol.md` specifies the bytes well enough to write a client in another language.

#![forbid(unsafe_code)]

pub mod body;
mod buffer;
pub mod credit;
mod cursor;
pub mod decoder;
pub mod error;
pub mod frame;
mod half;
pub mod kind;
pub mod limits;
pub mod outbound;
pub mod spare;
pub mod stream;
