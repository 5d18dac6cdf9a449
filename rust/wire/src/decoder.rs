//! Bytes in, frames out. A frame that lies whole in the input is handed on where it lies; only a frame that
//! the input cuts is copied, into one buffer that never grows past a frame.

use crate::error::DecodeError;
use crate::frame::{Frame, Header, PREFACE};
use crate::kind::{IGNORABLE, Kind};
use crate::limits::{FRAME_BODY_MAX, HEADER_BYTES, HELLO_BODY_MAX};

/// An incremental decoder for one direction of one link.
///
/// Any way of splitting the same bytes gives the same frames.
#[derive(Debug)]
pub struct Decoder {
    /// The beginning of a frame (or of the preface) whose rest has not come.
    partial: Vec<u8>,
    /// `partial` holds a frame that has been handed out: it is forgotten at the next call, since the
    /// frame borrows it until then.
    handed_out: bool,
    /// Body bytes of an ignorable frame that are still to be skipped.
    skip: usize,
    body_max: usize,
    preface_seen: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the beginning of a link: it wants the preface, then frames with a small body.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            partial: Vec::new(),
            handed_out: false,
            skip: 0,
            body_max: HELLO_BODY_MAX,
            preface_seen: false,
        }
    }

    /// The peer has said a valid HELLO: bodies may have their full size from here on.
    pub const fn allow_full_frames(&mut self) {
        self.body_max = FRAME_BODY_MAX;
    }

    /// Takes the next frame from the front of `input`, or `None` when what is left is only part of one
    /// (it is kept, and `input` is then empty).
    ///
    /// # Errors
    /// The peer broke the protocol; the link cannot be read any further.
    pub fn next<'d, 'i: 'd>(&'d mut self, input: &mut &'i [u8]) -> Result<Option<Frame<'d>>, DecodeError> {
        if !self.preface_seen && !self.read_preface(input)? {
            return Ok(None);
        }
        loop {
            if !self.skip_ignored(input) {
                return Ok(None);
            }
            let header = if self.partial.is_empty() {
                match input.first_chunk::<HEADER_BYTES>() {
                    Some(bytes) => Header::decode(*bytes),
                    None => {
                        self.partial.extend_from_slice(input);
                        *input = &[];
                        return Ok(None);
                    }
                }
            } else {
                if !self.gather(input, HEADER_BYTES) {
                    return Ok(None);
                }
                match self.partial.first_chunk::<HEADER_BYTES>() {
                    Some(bytes) => Header::decode(*bytes),
                    None => return Ok(None),
                }
            };
            let Some(kind) = self.check(header)? else {
                self.skip = header.length;
                if self.partial.is_empty() {
                    *input = input.get(HEADER_BYTES..).unwrap_or_default();
                } else {
                    self.partial.clear();
                }
                continue;
            };
            return Ok(self.body(input, header, kind));
        }
    }

    /// The body of the frame whose header has been read, if all of it is there.
    fn body<'d, 'i: 'd>(&'d mut self, input: &mut &'i [u8], header: Header, kind: Kind) -> Option<Frame<'d>> {
        let total = HEADER_BYTES + header.length;
        let Header { flags, stream, .. } = header;
        if self.partial.is_empty() {
            if let Some((frame, rest)) = input.split_at_checked(total) {
                *input = rest;
                let body = frame.get(HEADER_BYTES..).unwrap_or_default();
                return Some(Frame { kind, flags, stream, body });
            }
            self.partial.reserve_exact(total);
        }
        if !self.gather(input, total) {
            return None;
        }
        self.handed_out = true;
        let body = self.partial.get(HEADER_BYTES..).unwrap_or_default();
        Some(Frame { kind, flags, stream, body })
    }

    fn read_preface(&mut self, input: &mut &[u8]) -> Result<bool, DecodeError> {
        let complete = self.gather(input, PREFACE.len());
        if self.partial != PREFACE.get(..self.partial.len()).unwrap_or_default() {
            let mut found = [0; 8];
            for (to, from) in found.iter_mut().zip(&self.partial) {
                *to = *from;
            }
            return Err(DecodeError::BadPreface { found });
        }
        if complete {
            self.partial.clear();
            self.preface_seen = true;
        }
        Ok(complete)
    }

    /// Forgets a frame handed out from `partial`, and skips an ignored body. False when more bytes must come.
    fn skip_ignored(&mut self, input: &mut &[u8]) -> bool {
        if std::mem::take(&mut self.handed_out) {
            self.partial.clear();
        }
        let skipped = self.skip.min(input.len());
        *input = input.get(skipped..).unwrap_or_default();
        self.skip -= skipped;
        self.skip == 0
    }

    /// Moves bytes from `input` until `partial` holds `target`. False when there are not enough.
    fn gather(&mut self, input: &mut &[u8], target: usize) -> bool {
        let missing = target.saturating_sub(self.partial.len());
        let taken = missing.min(input.len());
        let (now, later) = input.split_at(taken);
        self.partial.extend_from_slice(now);
        *input = later;
        taken == missing
    }

    /// Checks a header; `None` for a frame to be skipped.
    fn check(&self, header: Header) -> Result<Option<Kind>, DecodeError> {
        if header.length > self.body_max {
            return Err(DecodeError::FrameTooLarge { length: header.length, limit: self.body_max });
        }
        let Some(kind) = Kind::from_u8(header.kind) else {
            if header.flags & IGNORABLE != 0 {
                return Ok(None);
            }
            return Err(DecodeError::UnknownKind { kind: header.kind });
        };
        let link_level = header.stream == 0;
        if kind != Kind::Credit && kind.is_link_level() != link_level {
            return Err(DecodeError::BadStreamId { kind: header.kind, stream: header.stream });
        }
        Ok(Some(kind))
    }
}
