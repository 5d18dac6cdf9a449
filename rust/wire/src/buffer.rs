//! The outbound buffer of a link: encoded frames in the order they will be written, as few pieces as
//! possible. Bursts of items of one stream share a frame; urgent frames overtake what is not yet written,
//! at a frame's boundary; large payloads are kept by reference.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::Bytes;

use crate::frame::{Header, item_bytes, put_item_prefix};
use crate::kind::Kind;
use crate::limits::{FRAME_BODY_MAX, HEADER_BYTES, REFERENCE_BYTES_MIN};

/// A piece is closed at this size, so that growing it never copies much.
const PIECE_BYTES: usize = 64 * 1024;
/// A written piece's memory is kept for the next one up to this size.
const SPARE_BYTES_MAX: usize = 2 * PIECE_BYTES;
/// Entries of one vectored write: more than a fill of the buffer needs.
const SLICES_MAX: usize = 32;

#[derive(Debug)]
enum Piece {
    /// Whole frames; the last one's body may go on in a `Shared` piece right behind.
    Frames { bytes: Vec<u8>, urgent: bool },
    /// The rest of a frame's body, by reference.
    Shared(Bytes),
}

impl Piece {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Frames { bytes, .. } => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// The DATA frame at the buffer's end that further items of its stream may join.
#[derive(Clone, Copy, Debug)]
struct OpenFrame {
    stream: u64,
    header_at: usize,
}

/// Frames that wait to be written.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    pieces: VecDeque<Piece>,
    urgent: Vec<u8>,
    /// Bytes of the first piece that have been written.
    front_written: usize,
    open: Option<OpenFrame>,
    unwritten: usize,
    /// Bytes of non-urgent frames appended and written since the link began; they order KILL after REQUEST.
    appended_total: u64,
    written_total: u64,
    /// Frames appended since somebody asked.
    frames: u64,
    spare: Vec<u8>,
}

impl Buffer {
    /// Bytes that wait.
    pub(crate) const fn unwritten(&self) -> usize {
        self.unwritten
    }

    /// Bytes of urgent frames that wait.
    pub(crate) const fn unwritten_urgent(&self) -> usize {
        let in_order = self.appended_total.saturating_sub(self.written_total) as usize;
        self.unwritten.saturating_sub(in_order)
    }

    /// Frames appended since the last call.
    pub(crate) const fn take_frames(&mut self) -> u64 {
        std::mem::replace(&mut self.frames, 0)
    }

    /// A mark for everything appended so far, for [`Self::is_written`].
    pub(crate) const fn mark(&self) -> u64 {
        self.appended_total
    }

    /// Whether everything before the mark has been written.
    pub(crate) const fn is_written(&self, mark: u64) -> bool {
        self.written_total >= mark
    }

    /// Appends bytes that are no frame: the preface, which like HELLO nothing may overtake.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.urgent.extend_from_slice(bytes);
        self.unwritten += bytes.len();
    }

    /// Appends a control frame; `urgent` ones go ahead of what is not yet written, in their own order.
    pub(crate) fn control(
        &mut self,
        kind: Kind,
        flags: u8,
        stream: u64,
        urgent: bool,
        body: impl FnOnce(&mut Vec<u8>),
    ) {
        let out = if urgent {
            &mut self.urgent
        } else {
            self.open = None;
            Self::tail(&mut self.pieces, &mut self.spare)
        };
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        body(out);
        let length = out.len() - start - HEADER_BYTES;
        debug_assert!(length <= FRAME_BODY_MAX, "control bodies are limited field by field");
        if let Some(header) = out.get_mut(start..start + HEADER_BYTES) {
            header.copy_from_slice(&Header::encode(kind, flags, stream, length));
        }
        self.unwritten += length + HEADER_BYTES;
        self.frames += 1;
        if !urgent {
            self.appended_total += (length + HEADER_BYTES) as u64;
        }
    }

    /// Appends an item that fits one frame, joining the frame at the end if it is the same stream's.
    pub(crate) fn item(&mut self, stream: u64, encoding: u8, payload: &[u8]) {
        let bytes = item_bytes(payload.len());
        let tail = self.open_frame(stream, bytes);
        put_item_prefix(tail, encoding, payload.len());
        tail.extend_from_slice(payload);
    }

    /// Appends an item that fits one frame by reference.
    pub(crate) fn item_shared(&mut self, stream: u64, encoding: u8, payload: Bytes) {
        if payload.len() < REFERENCE_BYTES_MIN {
            return self.item(stream, encoding, &payload);
        }
        let tail = self.open_frame(stream, item_bytes(payload.len()));
        put_item_prefix(tail, encoding, payload.len());
        self.pieces.push_back(Piece::Shared(payload));
        self.open = None;
    }

    /// Makes room for `bytes` of items in a DATA frame of `stream` and returns where to write them.
    fn open_frame(&mut self, stream: u64, bytes: usize) -> &mut Vec<u8> {
        let tail = Self::tail(&mut self.pieces, &mut self.spare);
        let joined = self.open.filter(|open| open.stream == stream).and_then(|open| {
            let length = tail.len().checked_sub(open.header_at + HEADER_BYTES)? + bytes;
            let header = tail.get_mut(open.header_at..open.header_at + HEADER_BYTES)?;
            (length <= FRAME_BODY_MAX).then(|| {
                header.copy_from_slice(&Header::encode(Kind::Data, 0, stream, length));
            })
        });
        let mut added = bytes;
        if joined.is_none() {
            self.open = Some(OpenFrame { stream, header_at: tail.len() });
            tail.extend_from_slice(&Header::encode(Kind::Data, 0, stream, bytes));
            added += HEADER_BYTES;
            self.frames += 1;
        }
        self.unwritten += added;
        self.appended_total += added as u64;
        tail
    }

    /// Appends a frame of a message that travels in pieces: `prefix` then `chunk`.
    pub(crate) fn fragment(&mut self, kind: Kind, flags: u8, stream: u64, prefix: &[u8], chunk: Bytes) {
        self.open = None;
        let length = prefix.len() + chunk.len();
        debug_assert!(length <= FRAME_BODY_MAX, "fragments are cut to the frame limit");
        let tail = Self::tail(&mut self.pieces, &mut self.spare);
        tail.extend_from_slice(&Header::encode(kind, flags, stream, length));
        tail.extend_from_slice(prefix);
        if chunk.len() < REFERENCE_BYTES_MIN {
            tail.extend_from_slice(&chunk);
        } else {
            self.pieces.push_back(Piece::Shared(chunk));
        }
        self.unwritten += length + HEADER_BYTES;
        self.frames += 1;
        self.appended_total += (length + HEADER_BYTES) as u64;
    }

    /// The piece that in-order frames are appended to.
    fn tail<'a>(pieces: &'a mut VecDeque<Piece>, spare: &'a mut Vec<u8>) -> &'a mut Vec<u8> {
        let usable = matches!(pieces.back(), Some(Piece::Frames { bytes, urgent: false }) if bytes.len() < PIECE_BYTES);
        if !usable {
            pieces.push_back(Piece::Frames { bytes: std::mem::take(spare), urgent: false });
        }
        match pieces.back_mut() {
            Some(Piece::Frames { bytes, .. }) => bytes,
            // A frames piece was pushed above whenever the back was none.
            Some(Piece::Shared(_)) | None => spare,
        }
    }

    /// Writes what waits through `write`, which takes slices and returns how many bytes it took, and adds what
    /// was written to `total`. Stops when nothing waits or `write` takes less than it was given.
    pub(crate) fn write_to(
        &mut self,
        total: &mut usize,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        // A frame whose header may be under way must not grow.
        self.open = None;
        self.place_urgent();
        while self.unwritten > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut offered = 0;
            let mut used = 0;
            for (slot, piece) in slices.iter_mut().zip(&self.pieces) {
                let skip = if used == 0 { self.front_written } else { 0 };
                let bytes = piece.as_slice().get(skip..).unwrap_or_default();
                offered += bytes.len();
                *slot = IoSlice::new(bytes);
                used += 1;
            }
            let taken = write(slices.get(..used).unwrap_or_default())?;
            if taken == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.consume(taken);
            *total += taken;
            if taken < offered {
                break;
            }
        }
        Ok(())
    }

    fn consume(&mut self, mut taken: usize) {
        self.unwritten = self.unwritten.saturating_sub(taken);
        while taken > 0 {
            let Some(front) = self.pieces.front() else { return };
            let left = front.as_slice().len() - self.front_written;
            let step = taken.min(left);
            if !matches!(front, Piece::Frames { urgent: true, .. }) {
                self.written_total += step as u64;
            }
            taken -= step;
            self.front_written += step;
            if step == left {
                self.front_written = 0;
                match self.pieces.pop_front() {
                    Some(Piece::Frames { bytes, urgent: true }) => keep(&mut self.urgent, bytes),
                    Some(Piece::Frames { bytes, urgent: false }) => keep(&mut self.spare, bytes),
                    Some(Piece::Shared(_)) | None => {}
                }
            }
        }
    }

    /// Puts urgent frames at the first boundary between frames that is not yet written, behind those that
    /// were put there before: ACCEPT comes before PROLOGUE however the writes fall.
    fn place_urgent(&mut self) {
        if self.urgent.is_empty() {
            return;
        }
        let mut at = self.boundary();
        while matches!(self.pieces.get(at), Some(Piece::Frames { urgent: true, .. })) {
            at += 1;
        }
        let before = at.checked_sub(1).and_then(|before| self.pieces.get_mut(before));
        if let Some(Piece::Frames { bytes, urgent: true }) = before {
            bytes.append(&mut self.urgent);
        } else {
            let bytes = std::mem::take(&mut self.urgent);
            self.pieces.insert(at.min(self.pieces.len()), Piece::Frames { bytes, urgent: true });
        }
    }

    /// The index of the piece before which a frame may be inserted; splits the first piece if need be.
    fn boundary(&mut self) -> usize {
        let written = self.front_written;
        let bytes = match self.pieces.front_mut() {
            Some(Piece::Frames { bytes, urgent: false }) if written > 0 => bytes,
            None | Some(Piece::Frames { urgent: false, .. }) => return 0,
            // The end of a shared piece is the end of its frame; urgent frames keep their order.
            Some(Piece::Shared(_) | Piece::Frames { urgent: true, .. }) => return 1,
        };
        let mut end = 0;
        while end < written {
            let Some(header) = bytes.get(end..).and_then(|rest| rest.first_chunk::<HEADER_BYTES>()) else {
                return 1;
            };
            end += HEADER_BYTES + Header::decode(*header).length;
        }
        if end > bytes.len() {
            return 2;
        }
        if end < bytes.len() {
            let rest = bytes.split_off(end);
            self.pieces.insert(1, Piece::Frames { bytes: rest, urgent: false });
        }
        1
    }
}

/// Keeps a written piece's memory for the next one, if it is not too large and there is none to use.
fn keep(spare: &mut Vec<u8>, mut written: Vec<u8>) {
    if spare.is_empty() && (spare.capacity()..=SPARE_BYTES_MAX).contains(&written.capacity()) {
        written.clear();
        *spare = written;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Decoder;
    use crate::frame::{PREFACE, count_items};

    /// The kinds and streams of the frames in `bytes`, with the count of items in DATA.
    fn frames(bytes: &[u8]) -> Vec<(Kind, u64, u64)> {
        let mut decoder = Decoder::new();
        decoder.allow_full_frames();
        decoder.next(&mut &PREFACE[..]).unwrap();
        let mut input = bytes;
        let mut found = Vec::new();
        while let Some(frame) = decoder.next(&mut input).unwrap() {
            let items = if frame.kind == Kind::Data { count_items(frame.body).unwrap() } else { 0 };
            found.push((frame.kind, frame.stream, items));
        }
        found
    }

    /// Writes up to `limit` bytes.
    fn write(buffer: &mut Buffer, limit: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut left = limit;
        let mut total = 0;
        let result = buffer.write_to(&mut total, |slices| {
            let before = out.len();
            for slice in slices {
                let step = slice.len().min(left);
                out.extend_from_slice(&slice[..step]);
                left -= step;
            }
            if out.len() == before { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(out.len() - before) }
        });
        assert!(result.is_ok() || left == 0);
        assert_eq!(total, out.len(), "what was written before an error counts");
        out
    }

    fn ping(buffer: &mut Buffer, stamp: u64) {
        buffer.control(Kind::Ping, 0, 0, true, |out| out.extend_from_slice(&stamp.to_le_bytes()));
    }

    /// Three in-order frames of which the middle one ends in a shared piece.
    fn three_frames() -> Buffer {
        let mut buffer = Buffer::default();
        buffer.item(1, 0, b"first");
        buffer.item_shared(2, 0, Bytes::from(vec![7; REFERENCE_BYTES_MIN]));
        buffer.control(Kind::End, 0, 2, false, |out| out.extend_from_slice(&1_u64.to_le_bytes()));
        buffer
    }

    #[test]
    fn urgent_frames_go_to_the_first_unwritten_boundary_at_every_offset() {
        let whole = three_frames().unwritten();
        let first = HEADER_BYTES + item_bytes(5);
        let second = first + HEADER_BYTES + item_bytes(REFERENCE_BYTES_MIN);
        let near = |offset: usize| [0, first, second, whole].iter().any(|edge| offset.abs_diff(*edge) < 40);
        for offset in (0..whole).filter(|&offset| near(offset) || offset % 997 == 0) {
            let mut buffer = three_frames();
            let mut bytes = if offset == 0 { Vec::new() } else { write(&mut buffer, offset) };
            ping(&mut buffer, 1);
            assert_eq!(buffer.unwritten_urgent(), HEADER_BYTES + 8);
            bytes.extend(write(&mut buffer, usize::MAX));
            let position = frames(&bytes).iter().position(|frame| frame.0 == Kind::Ping);
            let expected = [0, first, second, whole].iter().position(|&edge| edge >= offset);
            assert_eq!(position, expected, "cut at {offset}");
            assert_eq!((buffer.unwritten(), buffer.unwritten_urgent()), (0, 0));
        }
    }

    #[test]
    fn urgent_frames_keep_their_order_however_the_writes_fall() {
        for step in 1..60 {
            let mut buffer = three_frames();
            let mut bytes = write(&mut buffer, 3);
            let mut stamps = 0..40;
            while buffer.unwritten() > 0 {
                stamps.next().into_iter().for_each(|stamp| ping(&mut buffer, stamp));
                bytes.extend(write(&mut buffer, step));
            }
            let mut decoder = Decoder::new();
            decoder.allow_full_frames();
            decoder.next(&mut &PREFACE[..]).unwrap();
            let mut input = &bytes[..];
            let mut next = 0;
            while let Some(frame) = decoder.next(&mut input).unwrap() {
                if frame.kind == Kind::Ping {
                    assert_eq!(frame.body, u64::to_le_bytes(next), "step {step}");
                    next += 1;
                }
            }
            assert_eq!(next, 40, "step {step}");
        }
    }

    #[test]
    fn an_urgent_frame_on_an_idle_link_stays_ahead_of_the_next_urgent_one() {
        let mut buffer = Buffer::default();
        buffer.control(Kind::Accept, 0, 1, true, |out| out.extend_from_slice(&[0; 4]));
        buffer.control(Kind::Prologue, 0, 1, true, |out| out.push(0));
        buffer.item(1, 0, b"x");
        buffer.control(Kind::Accept, 0, 2, true, |out| out.extend_from_slice(&[0; 4]));
        let kinds: Vec<_> = frames(&write(&mut buffer, usize::MAX)).iter().map(|frame| frame.0).collect();
        assert_eq!(kinds, [Kind::Accept, Kind::Prologue, Kind::Accept, Kind::Data]);
    }

    #[test]
    fn items_of_one_stream_join_and_nothing_joins_a_frame_under_way() {
        let mut buffer = Buffer::default();
        (0..3).for_each(|_| buffer.item(1, 1, b"token"));
        buffer.item(2, 1, b"token");
        ping(&mut buffer, 0);
        buffer.item(2, 1, b"token");
        let mut bytes = write(&mut buffer, HEADER_BYTES + 8 + 5);
        buffer.item(2, 1, b"token");
        bytes.extend(write(&mut buffer, usize::MAX));
        let data = |stream, items| (Kind::Data, stream, items);
        assert_eq!(frames(&bytes), [(Kind::Ping, 0, 0), data(1, 3), data(2, 2), data(2, 1)]);
    }

    #[test]
    fn joined_frames_stop_at_the_frame_limit() {
        let mut buffer = Buffer::default();
        let payload = [0; 1000];
        let fit = FRAME_BODY_MAX / item_bytes(payload.len());
        (0..=fit).for_each(|_| buffer.item(1, 0, &payload));
        assert_eq!(
            frames(&write(&mut buffer, usize::MAX)),
            [(Kind::Data, 1, fit as u64), (Kind::Data, 1, 1)]
        );
    }

    #[test]
    fn a_mark_is_written_when_everything_before_it_is() {
        let mut buffer = three_frames();
        let mark = buffer.mark();
        let whole = buffer.unwritten();
        ping(&mut buffer, 0);
        buffer.item(3, 0, b"later");
        write(&mut buffer, HEADER_BYTES + 8 + whole - 1);
        assert!(!buffer.is_written(mark), "urgent bytes do not count");
        write(&mut buffer, 1);
        assert!(buffer.is_written(mark));
    }

    #[test]
    fn written_memory_is_used_again() {
        let mut buffer = Buffer::default();
        buffer.item(1, 0, &[0; 5000]);
        ping(&mut buffer, 0);
        write(&mut buffer, usize::MAX);
        let (spare, urgent) = (buffer.spare.as_ptr(), buffer.urgent.as_ptr());
        buffer.item(1, 0, &[0; 100]);
        ping(&mut buffer, 0);
        let used = buffer.pieces.back().map(|piece| piece.as_slice().as_ptr());
        assert_eq!((used, buffer.urgent.as_ptr()), (Some(spare), urgent));
    }

    #[test]
    fn bytes_written_before_a_failure_are_counted() {
        let mut buffer = Buffer::default();
        (0..SLICES_MAX as u64).for_each(|stream| {
            buffer.item_shared(stream, 0, Bytes::from(vec![0; REFERENCE_BYTES_MIN]));
        });
        let whole = buffer.unwritten();
        let (mut calls, mut total) = (0, 0);
        let result = buffer.write_to(&mut total, |slices| {
            calls += 1;
            if calls == 1 {
                return Ok(slices.iter().map(|slice| slice.len()).sum());
            }
            Err(io::ErrorKind::WouldBlock.into())
        });
        assert!(result.is_err() && total > 0);
        assert_eq!(total + buffer.unwritten(), whole);
    }
}
