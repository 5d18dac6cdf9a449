//! The decoder: any split of the same bytes gives the same frames, and what breaks the protocol is refused
//! before anything is kept of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation fails the test")]

use headrace_wire::decoder::Decoder;
use headrace_wire::error::DecodeError;
use headrace_wire::frame::{Frame, Header, PREFACE};
use headrace_wire::kind::{IGNORABLE, Kind};
use headrace_wire::limits::{FRAME_BODY_MAX, HEADER_BYTES, HELLO_BODY_MAX, STREAM_ID_MAX};
use proptest::prelude::*;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Owned {
    kind: Kind,
    flags: u8,
    stream: u64,
    body: Vec<u8>,
}

impl From<Frame<'_>> for Owned {
    fn from(frame: Frame<'_>) -> Self {
        Self { kind: frame.kind, flags: frame.flags, stream: frame.stream, body: frame.body.to_vec() }
    }
}

fn all_kinds() -> impl Iterator<Item = Kind> {
    (0..=u8::MAX).filter_map(Kind::from_u8)
}

/// A header that need not make sense.
fn header(length: u32, kind: u8, flags: u8, stream: u64) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(&stream.to_le_bytes()[..6]);
    bytes
}

/// Feeds `bytes` in pieces of the given sizes, over and over, and returns the frames up to the first error.
fn decode(bytes: &[u8], sizes: &[usize], full: bool) -> (Vec<Owned>, Option<DecodeError>) {
    let mut decoder = Decoder::new();
    if full {
        decoder.allow_full_frames();
    }
    let mut frames = Vec::new();
    let mut rest = bytes;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let (mut input, later) = rest.split_at((*sizes.next().unwrap()).clamp(1, rest.len()));
        rest = later;
        loop {
            match decoder.next(&mut input) {
                Ok(Some(frame)) => frames.push(frame.into()),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        assert!(input.is_empty(), "the decoder keeps what is left of the input");
    }
    (frames, None)
}

/// Bytes of a frame, and the frame unless it is skipped.
fn frames() -> impl Strategy<Value = (Vec<u8>, Option<Owned>)> {
    let length = prop_oneof![6 => 0..40_usize, 2 => 40..3000_usize, 1 => Just(FRAME_BODY_MAX)];
    let body = length.prop_flat_map(|length| (any::<u8>(), Just(length)));
    let known =
        (0..15_u8, any::<u8>(), 1..=STREAM_ID_MAX, body.clone()).prop_map(|(kind, flags, id, body)| {
            let kind = Kind::from_u8(kind + 1).unwrap();
            let body = vec![body.0; body.1];
            let stream = if kind.is_link_level() { 0 } else { id };
            let mut bytes = Header::encode(kind, flags, stream, body.len()).to_vec();
            bytes.extend(&body);
            (bytes, Some(Owned { kind, flags, stream, body }))
        });
    let ignorable =
        (16..=u8::MAX, any::<u8>(), 0..=STREAM_ID_MAX, body).prop_map(|(kind, flags, id, body)| {
            let mut bytes = header(body.1 as u32, kind, flags | IGNORABLE, id);
            bytes.extend(vec![body.0; body.1]);
            (bytes, None)
        });
    prop_oneof![4 => known, 1 => ignorable]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_frames_and_ignorable_kinds_are_skipped(
        frames in proptest::collection::vec(frames(), 0..12),
        sizes in proptest::collection::vec(prop_oneof![1..30_usize, 1..70_000_usize], 1..8),
    ) {
        let mut bytes = PREFACE.to_vec();
        frames.iter().for_each(|frame| bytes.extend(&frame.0));
        let expected: Vec<_> = frames.into_iter().filter_map(|frame| frame.1).collect();
        prop_assert_eq!(decode(&bytes, &sizes, true), (expected, None));
    }
}

#[test]
fn byte_by_byte_gives_the_same_frames_as_all_at_once() {
    let mut bytes = PREFACE.to_vec();
    for (length, kind) in all_kinds().enumerate() {
        let stream = u64::from(!kind.is_link_level()) * 7;
        bytes.extend(Header::encode(kind, 0, stream, length));
        bytes.extend((0..length).map(|byte| byte as u8));
        bytes.extend(header(length as u32, 200, IGNORABLE, 9));
        bytes.extend(vec![0xee; length]);
    }
    let whole = decode(&bytes, &[bytes.len()], false);
    assert_eq!((whole.0.len(), &whole.1), (15, &None));
    assert_eq!(decode(&bytes, &[1], false), whole);
    for first in 1..bytes.len() {
        assert_eq!(decode(&bytes, &[first, bytes.len()], false), whole, "cut at {first}");
    }
}

#[test]
fn a_wrong_preface_is_refused_at_its_first_wrong_byte() {
    for wrong in 0..PREFACE.len() {
        let mut bytes = PREFACE;
        bytes[wrong] ^= 1;
        for size in [1, 8] {
            let mut decoder = Decoder::new();
            for (index, piece) in bytes.chunks(size).enumerate() {
                let mut input = piece;
                let reached = (index + 1) * size > wrong;
                assert_eq!(decoder.next(&mut input).is_err(), reached, "byte {wrong}, pieces of {size}");
                if reached {
                    break;
                }
            }
        }
    }
    let found = *b"GET / HT";
    assert_eq!(decode(b"GET / HTTP/1.1", &[14], false).1, Some(DecodeError::BadPreface { found }));
    assert_eq!(decode(&PREFACE[..7], &[7], false), (vec![], None));
}

#[test]
fn bodies_are_small_until_hello_was_checked() {
    for (full, limit) in [(false, HELLO_BODY_MAX), (true, FRAME_BODY_MAX)] {
        for kind in [Kind::Hello as u8, 77] {
            let frame = |length: usize| {
                let mut bytes = PREFACE.to_vec();
                bytes.extend(header(length as u32, kind, IGNORABLE, 0));
                bytes.extend(vec![0; length]);
                bytes
            };
            assert_eq!(decode(&frame(limit), &[1 << 20], full).1, None);
            let length = limit + 1;
            let refused = Some(DecodeError::FrameTooLarge { length, limit });
            assert_eq!(decode(&frame(length), &[1 << 20], full).1, refused);
            assert_eq!(decode(&frame(length)[..PREFACE.len() + HEADER_BYTES], &[1], full).1, refused);
        }
    }
}

#[test]
fn an_unknown_kind_closes_the_link_unless_it_is_ignorable() {
    for kind in (0..=u8::MAX).filter(|&kind| Kind::from_u8(kind).is_none()) {
        let bytes = |flags| [&PREFACE[..], &header(0, kind, flags, 1)].concat();
        assert_eq!(decode(&bytes(!IGNORABLE), &[99], true).1, Some(DecodeError::UnknownKind { kind }));
        assert_eq!(decode(&bytes(IGNORABLE), &[99], true), (vec![], None));
    }
}

#[test]
fn stream_ids_belong_to_streams_and_none_to_the_link() {
    for kind in all_kinds() {
        for stream in [0, 1, STREAM_ID_MAX] {
            let bytes = [&PREFACE[..], &Header::encode(kind, 0, stream, 0)].concat();
            let allowed = kind == Kind::Credit || kind.is_link_level() == (stream == 0);
            let refused = DecodeError::BadStreamId { kind: kind as u8, stream };
            assert_eq!(decode(&bytes, &[99], true).1, (!allowed).then_some(refused));
        }
    }
}
