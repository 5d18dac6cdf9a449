//! Hostile input: a million random and mutated inputs panic nowhere, and what a peer sends costs memory in
//! proportion to what it really sent. This binary counts every allocation, for each thread on its own.

#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use headrace_wire::body::{
    Goaway, Hello, Reject, RequestHead, Status, decode_accept, decode_credit, decode_end, decode_error,
    decode_kill, decode_ping, decode_pong, decode_prologue,
};
use headrace_wire::decoder::Decoder;
use headrace_wire::frame::{Frame, Header, PREFACE, split_item};
use headrace_wire::kind::{FRAGMENT, IGNORABLE, Kind, LAST};
use headrace_wire::limits::{
    ASSEMBLY_BYTES_FIRST, FRAME_BODY_MAX, HEADER_BYTES, HELLO_BODY_MAX, MESSAGE_MAX, WINDOW_MAX,
};
use headrace_wire::stream::{Arrived, Assembly, Inbound};

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let live = LIVE.get() + bytes;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches only thread-local cells that
// need neither initialisation nor a destructor, so it never allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps `alloc`'s contract, which is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps `dealloc`'s contract, which is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were allocated at once while `run` ran, beyond what was there before.
fn peak(run: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    run();
    PEAK.get().abs_diff(before)
}

/// Everything that takes a body, as `headrace` hands it over.
fn decode_body(kind: Kind, flags: u8, body: &[u8], inbound: &mut Inbound) {
    let _read_or_refused = match kind {
        Kind::Hello => Hello::decode(body).map(drop),
        Kind::Status => Status::decode(body).map(drop),
        Kind::Request if flags & FRAGMENT != 0 => return drop(Assembly::request(body, MESSAGE_MAX)),
        Kind::Request => RequestHead::decode(body).map(drop),
        Kind::Accept => decode_accept(body).map(drop),
        Kind::Reject => Reject::decode(body).map(drop),
        Kind::Prologue => decode_prologue(body).map(drop),
        Kind::Data => return decode_data(flags, body, inbound),
        Kind::End => {
            let _refused = inbound.end(body);
            decode_end(body).map(drop)
        }
        Kind::Error => decode_error(body).map(drop),
        Kind::Stop => Ok(()),
        Kind::Kill => decode_kill(body).map(drop),
        Kind::Credit => decode_credit(body).map(drop),
        Kind::Ping => decode_ping(body).map(drop),
        Kind::Pong => decode_pong(body).map(drop),
        Kind::Goaway => Goaway::decode(body).map(drop),
    };
}

fn decode_data(flags: u8, body: &[u8], inbound: &mut Inbound) {
    match inbound.data(flags, body) {
        Ok(Arrived::Items { count }) => {
            let mut rest = body;
            for _ in 0..count {
                let (_, used) = split_item(rest).unwrap().unwrap();
                rest = &rest[used..];
            }
            assert!(rest.is_empty(), "counted items can be split");
            inbound.take(body.len() as u64);
        }
        Ok(Arrived::Whole { credit, .. }) => drop(inbound.take(credit)),
        Ok(Arrived::Fragment) | Err(_) => {}
    }
}

/// A whole connection's worth of bytes, until something is refused; returns how many frames came.
fn receive(bytes: &[u8], piece: usize) -> usize {
    let mut decoder = Decoder::new();
    decoder.allow_full_frames();
    let mut inbound = Inbound::request_stream(1 << 20, MESSAGE_MAX);
    let mut frames = 0;
    for mut input in bytes.chunks(piece.max(1)) {
        loop {
            match decoder.next(&mut input) {
                Ok(Some(Frame { kind, flags, body, .. })) => {
                    decode_body(kind, flags, body, &mut inbound);
                    frames += 1;
                }
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
    }
    frames
}

/// xorshift64: cheap, seeded, good enough to reach odd corners.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// The golden frames, without preface.
fn seeds() -> Vec<Vec<u8>> {
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    let golden = include_str!("golden/v1.txt").lines().map(|line| hex(line.split_once(' ').unwrap().1));
    golden.map(|bytes| bytes.strip_prefix(&PREFACE).map(<[u8]>::to_vec).unwrap_or(bytes)).collect()
}

/// Changes `bytes` in one of the ways that parsers are known to mind.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random, seeds: &[Vec<u8>]) {
    let at = random.below(bytes.len());
    match random.below(7) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
        3 => bytes.truncate(at.max(1)),
        4 => bytes.insert(at, random.next() as u8),
        5 => bytes.extend_from_slice(&seeds[random.below(seeds.len())]),
        _ if bytes.len() > 1 => drop(bytes.remove(at)),
        _ => {}
    }
}

const KINDS: u8 = 15;

fn mutated_frames(seed: u64, rounds: usize) {
    let mut random = Random(seed);
    let seeds = seeds();
    let mut frames = Vec::new();
    let mut decoded = 0;
    for _ in 0..rounds {
        frames.clear();
        frames.extend_from_slice(&seeds[random.below(seeds.len())]);
        for _ in 0..=random.below(3) {
            mutate(&mut frames, &mut random, &seeds);
        }
        decoded += receive(&[&PREFACE[..], &frames].concat(), 1 + random.below(64));
    }
    assert!(decoded > rounds / 2, "mutations leave enough frames to decode: {decoded}");
}

fn random_bodies(seed: u64, rounds: usize) {
    let mut random = Random(seed);
    let mut inbound = Inbound::request_stream(WINDOW_MAX, MESSAGE_MAX);
    let mut body = Vec::new();
    for round in 0..rounds {
        body.clear();
        for _ in 0..random.below(12) {
            body.extend_from_slice(&random.next().to_le_bytes());
        }
        let flags = [0, FRAGMENT, FRAGMENT | LAST][random.below(3)];
        // Small numbers make the lengths inside plausible, so that later fields are reached.
        if round % 2 == 0 {
            body.iter_mut().for_each(|byte| *byte &= 7);
        }
        if let Some(kind) = Kind::from_u8(1 + random.below(usize::from(KINDS)) as u8) {
            decode_body(kind, flags, &body, &mut inbound);
        }
        if round % 64 == 0 {
            inbound = Inbound::request_stream(WINDOW_MAX, MESSAGE_MAX);
        }
    }
}

#[test]
fn a_quarter_million_mutated_frames_panic_nowhere() {
    mutated_frames(0x9e37_79b9_7f4a_7c15, 250_000);
}

#[test]
fn another_quarter_million_mutated_frames_panic_nowhere() {
    mutated_frames(0x2545_f491_4f6c_dd1d, 250_000);
}

#[test]
fn a_quarter_million_random_bodies_panic_nowhere() {
    random_bodies(0xd6e8_feb8_6659_fd93, 250_000);
}

#[test]
fn another_quarter_million_random_bodies_panic_nowhere() {
    random_bodies(0xa076_1d64_78bd_642f, 250_000);
}

#[test]
fn a_declared_gigabyte_costs_no_more_than_its_first_allocation() {
    let total = (MESSAGE_MAX as u32).to_le_bytes();
    let item = [&total[..], &[0], b"a few bytes"].concat();
    let cost = peak(|| {
        let mut inbound = Inbound::request_stream(1 << 20, MESSAGE_MAX);
        assert_eq!(inbound.data(FRAGMENT, &item), Ok(Arrived::Fragment));
        assert_eq!(inbound.data(FRAGMENT, b"and a few more"), Ok(Arrived::Fragment));
    });
    assert!(cost <= ASSEMBLY_BYTES_FIRST, "{cost} bytes");
    let cost = peak(|| {
        let assembly = Assembly::request(&[&total[..], b"a few bytes"].concat(), MESSAGE_MAX).unwrap();
        assert_eq!(assembly.received(), 11);
    });
    assert!(cost <= ASSEMBLY_BYTES_FIRST + 64, "{cost} bytes");
    let over = [&u32::MAX.to_le_bytes()[..], &[0], b"x"].concat();
    let cost = peak(|| {
        assert!(Inbound::request_stream(1 << 20, MESSAGE_MAX).data(FRAGMENT, &over).is_err());
    });
    assert_eq!(cost, 0, "over the limit nothing is allocated");
}

#[test]
fn an_assembly_holds_at_most_twice_what_came() {
    let chunk = vec![1; 60_000];
    let mut assembly = Assembly::new(MESSAGE_MAX, MESSAGE_MAX).unwrap();
    let mut received = 0;
    let before = LIVE.get();
    for _ in 0..100 {
        assembly.push(&chunk).unwrap();
        received += chunk.len();
        let held = LIVE.get().abs_diff(before) + ASSEMBLY_BYTES_FIRST;
        assert!(held <= (2 * received).max(ASSEMBLY_BYTES_FIRST), "{held} bytes for {received}");
    }
}

#[test]
fn the_decoder_keeps_one_frame_at_most() {
    for (full, limit) in [(false, HELLO_BODY_MAX), (true, FRAME_BODY_MAX)] {
        let mut bytes = PREFACE.to_vec();
        for length in [limit, limit - 1, 0, limit] {
            bytes.extend(Header::encode(Kind::Ping, IGNORABLE, 0, length));
            bytes.extend(vec![0; length]);
        }
        for piece in [1, 5, 1000, limit] {
            let cost = peak(|| {
                let mut decoder = Decoder::new();
                if full {
                    decoder.allow_full_frames();
                }
                for mut input in bytes.chunks(piece) {
                    while decoder.next(&mut input).unwrap().is_some() {}
                }
            });
            // A buffer that grows byte by byte doubles, and is copied once while it does.
            assert!(cost <= 3 * (limit + HEADER_BYTES), "{cost} bytes in pieces of {piece}");
        }
    }
}

#[test]
fn a_header_that_announces_too_much_costs_nothing() {
    let mut bytes = PREFACE.to_vec();
    bytes.extend([0xff, 0xff, 0xff, 0xff, 7, 0, 1, 0, 0, 0, 0, 0]);
    let cost = peak(|| assert_eq!(receive(&bytes, bytes.len()), 0));
    assert!(cost <= 2 * PREFACE.len(), "{cost} bytes");
}

#[test]
fn an_ignored_body_is_not_kept() {
    let mut bytes = PREFACE.to_vec();
    bytes.extend([0, 0, 1, 0, 200, IGNORABLE, 0, 0, 0, 0, 0, 0]);
    bytes.extend(vec![0; FRAME_BODY_MAX]);
    let cost = peak(|| assert_eq!(receive(&bytes, 100), 0));
    assert!(cost <= 256, "{cost} bytes");
}

#[test]
fn decoded_bodies_cost_in_proportion_to_their_bytes() {
    let mut random = Random(7);
    let seeds = seeds();
    for _ in 0..20_000 {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        mutate(&mut bytes, &mut random, &seeds);
        let body = bytes.get(HEADER_BYTES..).unwrap_or_default();
        for kind in (1..=KINDS).filter_map(Kind::from_u8).filter(|&kind| kind != Kind::Data) {
            let mut inbound = Inbound::request_stream(1 << 20, MESSAGE_MAX);
            let cost = peak(|| decode_body(kind, 0, body, &mut inbound));
            // A name takes one byte on the wire and three words here; entries come in twos, and vectors double.
            assert!(cost <= 256 + 128 * body.len(), "{kind:?}: {cost} bytes for {}", body.len());
        }
    }
}
