//! Reading and writing the fields of frame bodies: little-endian integers, LEB128 lengths, UTF-8 text.
//! Every read is checked; nothing is allocated here.

use crate::error::DecodeError;

/// Reads fields from the front of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn bytes(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Truncated { what })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated { what })?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// An unsigned LEB128 number of at most 28 bits: lengths and counts.
    pub(crate) fn varint(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        let (value, used) = read_varint(self.rest).map_err(|error| error.named(what))?;
        self.rest = self.rest.get(used..).unwrap_or_default();
        Ok(value)
    }

    pub(crate) fn text(&mut self, limit: usize, what: &'static str) -> Result<&'a str, DecodeError> {
        let length = self.varint(what)?;
        if length > limit {
            return Err(DecodeError::TooLong { what, length, limit });
        }
        std::str::from_utf8(self.bytes(length, what)?).map_err(|_| DecodeError::NotUtf8 { what })
    }

    pub(crate) fn finish(self, what: &'static str) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(DecodeError::TrailingBytes { what, extra }),
        }
    }
}

/// Why a LEB128 number could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VarintError {
    Truncated,
    TooLong,
}

impl VarintError {
    pub(crate) const fn named(self, what: &'static str) -> DecodeError {
        match self {
            Self::Truncated => DecodeError::Truncated { what },
            Self::TooLong => DecodeError::InvalidValue { what, value: u64::MAX },
        }
    }
}

/// Reads a LEB128 number of at most four bytes; returns it with the bytes it took.
pub(crate) fn read_varint(bytes: &[u8]) -> Result<(usize, usize), VarintError> {
    let mut value = 0_usize;
    for index in 0..4 {
        let Some(&byte) = bytes.get(index) else { return Err(VarintError::Truncated) };
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((value, index + 1));
        }
    }
    Err(VarintError::TooLong)
}

/// Bytes that `value` takes as LEB128.
pub(crate) const fn varint_bytes(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// Appends `value` as LEB128. Values stay below 2^28: every length is checked against a limit first.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    debug_assert!(value < 1 << 28, "lengths are limited to 28 bits before they are encoded");
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends text with its length, cut at `limit` bytes on a character boundary.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str, limit: usize) {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    put_varint(out, end);
    out.extend_from_slice(text.as_bytes().get(..end).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_every_length_boundary() {
        for value in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, 0x1f_ffff, 0x20_0000, (1 << 28) - 1] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_bytes(value));
            assert_eq!(read_varint(&out), Ok((value, out.len())));
            for cut in 0..out.len() {
                assert_eq!(read_varint(&out[..cut]), Err(VarintError::Truncated));
            }
        }
    }

    #[test]
    fn a_varint_of_five_bytes_is_refused() {
        assert_eq!(read_varint(&[0x80; 8]), Err(VarintError::TooLong));
    }

    #[test]
    fn text_is_cut_on_a_character_boundary() {
        let mut out = Vec::new();
        put_text(&mut out, "aé", 2);
        assert_eq!(out, [1, b'a']);
    }
}
