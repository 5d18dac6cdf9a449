//! The toy frame: its layout, and reading and writing it in memory.

use std::io;

use bytes::{Buf, Bytes, BytesMut};

pub(crate) const HEADER: usize = 9;
/// A peer's length field is checked against this before anything is sized by it.
pub(crate) const MAX_FRAME: usize = 64 * 1024;

pub(crate) const KIND_PING: u8 = 12;
pub(crate) const KIND_PONG: u8 = 13;
/// Never on the wire: tells Python that the peer has gone.
pub(crate) const KIND_CLOSED: u8 = 255;

pub(crate) struct Frame {
    pub(crate) stream: u32,
    pub(crate) kind: u8,
    pub(crate) body: Bytes,
}

pub(crate) fn decode(buf: &mut BytesMut, mut sink: impl FnMut(Frame)) -> io::Result<()> {
    while buf.len() >= HEADER {
        let len = u32::from_le_bytes([buf[0], buf[1], buf[2], buf[3]]) as usize;
        if !(HEADER - 4..=MAX_FRAME).contains(&len) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if buf.len() < 4 + len {
            break;
        }
        let mut frame = buf.split_to(4 + len);
        frame.advance(4);
        let stream = frame.get_u32_le();
        let kind = frame.get_u8();
        sink(Frame {
            stream,
            kind,
            body: frame.freeze(),
        });
    }
    Ok(())
}

pub(crate) fn encode(buf: &mut Vec<u8>, stream: u32, kind: u8, body: &[u8]) {
    let len = (HEADER - 4 + body.len()) as u32;
    buf.extend_from_slice(&len.to_le_bytes());
    buf.extend_from_slice(&stream.to_le_bytes());
    buf.push(kind);
    buf.extend_from_slice(body);
}
