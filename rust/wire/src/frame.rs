//! The frame header and the items inside a DATA body.
//!
//! ```text
//!  0        4     5      6                  12
//!  +--------+-----+------+-------------------+----------------
//!  | length | kind| flags| stream id (48 bit)| body: `length` bytes
//!  +--------+-----+------+-------------------+----------------
//!                                        all integers little-endian
//!
//!  DATA, no flag:            { varint length | encoding | payload }*   length counts encoding + payload
//!  DATA, FRAGMENT, first:    u32 payload bytes in all | encoding | payload bytes
//!  DATA, FRAGMENT, further:  payload bytes                              (LAST on the final one)
//! ```

use crate::cursor::{put_varint, read_varint, varint_bytes};
use crate::error::DecodeError;
use crate::kind::Kind;
use crate::limits::{FRAME_BODY_MAX, HEADER_BYTES};

/// The first bytes of each direction of a link, before its HELLO.
pub const PREFACE: [u8; 8] = *b"HDRACE\r\n";

/// A decoded frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of body that follow.
    pub length: usize,
    /// The kind's number; see [`Kind`].
    pub kind: u8,
    /// Flags; see the constants in [`crate::kind`].
    pub flags: u8,
    /// Stream id, 0 for the link itself.
    pub stream: u64,
}

impl Header {
    /// Splits the twelve bytes into their fields.
    #[must_use]
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Self {
        let [l0, l1, l2, l3, kind, flags, s0, s1, s2, s3, s4, s5] = bytes;
        Self {
            length: u32::from_le_bytes([l0, l1, l2, l3]) as usize,
            kind,
            flags,
            stream: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, 0, 0]),
        }
    }

    /// The twelve bytes of a header.
    #[must_use]
    pub fn encode(kind: Kind, flags: u8, stream: u64, length: usize) -> [u8; HEADER_BYTES] {
        let [l0, l1, l2, l3] = (length as u32).to_le_bytes();
        let [s0, s1, s2, s3, s4, s5, ..] = stream.to_le_bytes();
        [l0, l1, l2, l3, kind as u8, flags, s0, s1, s2, s3, s4, s5]
    }
}

/// One frame as it lies in the received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: Kind,
    /// Flags; see the constants in [`crate::kind`].
    pub flags: u8,
    /// Stream id, 0 for the link itself.
    pub stream: u64,
    /// The body.
    pub body: &'a [u8],
}

/// One item inside a DATA body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemRef<'a> {
    /// The encoding's number; see [`crate::kind::Encoding`].
    pub encoding: u8,
    /// The encoded value.
    pub payload: &'a [u8],
}

/// Bytes that an item of this payload takes in a DATA body, and so of credit.
#[must_use]
pub const fn item_bytes(payload_bytes: usize) -> usize {
    varint_bytes(payload_bytes + 1) + 1 + payload_bytes
}

/// Whether an item of this payload fits one frame; otherwise it travels in fragments.
#[must_use]
pub const fn item_fits_frame(payload_bytes: usize) -> bool {
    item_bytes(payload_bytes) <= FRAME_BODY_MAX
}

/// Appends the prefix of an item: its length and its encoding. The payload follows.
pub(crate) fn put_item_prefix(out: &mut Vec<u8>, encoding: u8, payload_bytes: usize) {
    put_varint(out, payload_bytes + 1);
    out.push(encoding);
}

/// Splits the first item off `body`; `None` when nothing is left. Returns the item and its size in the body.
///
/// # Errors
/// The length runs past the body, or leaves no room for the encoding byte.
pub fn split_item(body: &[u8]) -> Result<Option<(ItemRef<'_>, usize)>, DecodeError> {
    if body.is_empty() {
        return Ok(None);
    }
    let (length, prefix) = read_varint(body).map_err(|error| error.named("item length"))?;
    let end = prefix + length;
    match body.get(prefix..end) {
        Some([encoding, payload @ ..]) => Ok(Some((ItemRef { encoding: *encoding, payload }, end))),
        Some([]) => Err(DecodeError::InvalidValue { what: "item length", value: 0 }),
        None => Err(DecodeError::Truncated { what: "item" }),
    }
}

/// Counts the items of a DATA body, checking every length, so that later reads cannot fail.
///
/// # Errors
/// As [`split_item`]; an empty body is refused too, since a frame without items has no purpose.
pub fn count_items(body: &[u8]) -> Result<u64, DecodeError> {
    let mut rest = body;
    let mut count = 0;
    while let Some((_, used)) = split_item(rest)? {
        rest = rest.get(used..).unwrap_or_default();
        count += 1;
    }
    if count == 0 {
        return Err(DecodeError::Truncated { what: "item" });
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::STREAM_ID_MAX;

    #[test]
    fn headers_round_trip() {
        for stream in [0, 1, 0xffff_ffff, STREAM_ID_MAX] {
            for length in [0, 1, FRAME_BODY_MAX] {
                let header = Header::decode(Header::encode(Kind::Data, 3, stream, length));
                assert_eq!(header, Header { length, kind: 7, flags: 3, stream });
            }
        }
    }

    #[test]
    fn items_are_split_and_counted() {
        let mut body = Vec::new();
        for payload in [&b""[..], b"x", &[7; 300]] {
            put_item_prefix(&mut body, 1, payload.len());
            body.extend_from_slice(payload);
        }
        assert_eq!(count_items(&body), Ok(3));
        assert_eq!(body.len(), item_bytes(0) + item_bytes(1) + item_bytes(300));
        let (item, used) = split_item(&body).unwrap().unwrap();
        assert_eq!((item.encoding, item.payload, used), (1, &b""[..], 2));
    }

    #[test]
    fn every_truncation_of_an_item_is_an_error() {
        let mut body = Vec::new();
        put_item_prefix(&mut body, 0, 200);
        body.extend_from_slice(&[0; 200]);
        for cut in 1..body.len() {
            assert!(count_items(&body[..cut]).is_err(), "cut at {cut}");
        }
        assert!(count_items(&[]).is_err());
        assert!(count_items(&[0]).is_err());
        assert!(count_items(&[0, 0]).is_err(), "an item has an encoding");
    }
}
