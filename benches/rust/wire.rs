//! What one item costs in the protocol alone: no socket, no lock, no Python. Run with
//! `cargo bench -p headrace-benches --bench wire`; criterion reports time and items a second.
//!
//! The sketch that this checks: an item of a token's size costs one look-up and one copy to encode, one
//! length to check and one to split to decode, and no allocation either way.

#![allow(missing_docs, reason = "criterion's macros generate undocumented items")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation fails the benchmark")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use headrace_wire::decoder::Decoder;
use headrace_wire::frame::{PREFACE, item_bytes, split_item};
use headrace_wire::outbound::Outbound;
use headrace_wire::stream::{Arrived, Inbound};

const ITEMS: usize = 1024;
/// A token with a little framing around it, as msgpack has it.
const TOKEN: &[u8] = b"\x81\xa5token\xa6 world";
const LARGE: usize = 1 << 20;
const WINDOW: u32 = 1 << 28;

/// A worker's link with `streams` open streams.
fn outbound(streams: u64) -> Outbound {
    let mut out = Outbound::new();
    out.configure(WINDOW, 2 * LARGE);
    for stream in 1..=streams {
        out.accept(stream, 4096, WINDOW);
    }
    write(&mut out, |_| ());
    out
}

/// Writes everything into `sink`, as a socket that is never full would take it.
fn write(out: &mut Outbound, mut sink: impl FnMut(&[u8])) {
    out.write_to(|slices| {
        slices.iter().for_each(|slice| sink(slice));
        Ok(slices.iter().map(|slice| slice.len()).sum())
    })
    .unwrap();
}

/// Gives back the credit that `items` tokens took, half a window at a time as a peer would.
fn give_back(out: &mut Outbound, used: &mut u64, streams: u64, items: usize) {
    *used += (items * item_bytes(TOKEN.len())) as u64;
    if *used > u64::from(WINDOW) / 2 {
        out.granted(0, *used).unwrap();
        (1..=streams).for_each(|stream| out.granted(stream, *used / streams).unwrap());
        *used = 0;
    }
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Elements(ITEMS as u64));
    for (name, streams, per_write) in
        [("joined", 1, ITEMS), ("two_streams_alternate", 2, ITEMS), ("one_item_a_write", 1, 1)]
    {
        let mut out = outbound(streams);
        let mut used = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for index in 0..ITEMS {
                    let stream = 1 + index as u64 % streams;
                    black_box(out.item(stream, 1, black_box(TOKEN)).unwrap());
                    if (index + 1).is_multiple_of(per_write) {
                        write(&mut out, |bytes| _ = black_box(bytes));
                    }
                }
                give_back(&mut out, &mut used, streams, ITEMS);
            });
        });
    }
    group.finish();
}

/// The bytes of [`ITEMS`] tokens on one stream, with so many in a frame.
fn burst(items_per_frame: usize) -> Vec<u8> {
    let mut out = outbound(1);
    let mut bytes = Vec::new();
    for _ in 0..ITEMS / items_per_frame {
        for _ in 0..items_per_frame {
            out.item(1, 1, TOKEN).unwrap();
        }
        write(&mut out, |slice| bytes.extend_from_slice(slice));
    }
    bytes
}

fn open_decoder() -> Decoder {
    let mut decoder = Decoder::new();
    decoder.allow_full_frames();
    assert!(decoder.next(&mut &PREFACE[..]).unwrap().is_none());
    decoder
}

/// Decodes one read's worth of bytes and takes every item; returns how many there were.
fn take(decoder: &mut Decoder, inbound: &mut Inbound, mut input: &[u8]) -> usize {
    let mut taken = 0;
    while let Some(frame) = decoder.next(&mut input).unwrap() {
        match inbound.data(frame.flags, frame.body).unwrap() {
            Arrived::Items { .. } => {
                let mut rest = frame.body;
                while let Some((item, used)) = split_item(rest).unwrap() {
                    black_box(item.payload);
                    rest = &rest[used..];
                    taken += 1;
                }
                black_box(inbound.take(frame.body.len() as u64));
            }
            Arrived::Whole { payload, credit, .. } => {
                black_box(payload);
                black_box(inbound.take(credit));
                taken += 1;
            }
            Arrived::Fragment => drop(black_box(inbound.grant())),
        }
    }
    taken
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(ITEMS as u64));
    for items_per_frame in [1, 64] {
        let bytes = burst(items_per_frame);
        let frame = bytes.len() / (ITEMS / items_per_frame);
        // One read brings everything, or every read ends in the middle of a frame.
        let whole: Vec<&[u8]> = vec![&bytes];
        let (first, later) = bytes.split_at(frame / 2);
        let halves = std::iter::once(first).chain(later.chunks(frame)).collect();
        for (name, reads) in [("items_per_frame", whole), ("cut_in_half", halves)] {
            let (mut decoder, mut inbound) = (open_decoder(), Inbound::request_stream(WINDOW, LARGE));
            group.bench_function(BenchmarkId::new(name, items_per_frame), |bencher| {
                bencher.iter(|| {
                    let taken: usize =
                        reads.iter().map(|read| take(&mut decoder, &mut inbound, black_box(read))).sum();
                    assert_eq!(taken, ITEMS);
                });
            });
        }
    }
    group.finish();
}

fn large(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("item_of_1_mib");
    group.throughput(Throughput::Bytes(LARGE as u64));
    let payload = bytes::Bytes::from(vec![7; LARGE]);
    let used = LARGE as u64 + 5;
    let mut out = outbound(1);
    group.bench_function("encode_by_reference", |bencher| {
        bencher.iter(|| {
            out.item_shared(1, 0, payload.clone()).unwrap();
            write(&mut out, |bytes| _ = black_box(bytes));
            out.granted(0, used).unwrap();
            out.granted(1, used).unwrap();
        });
    });
    let mut wire = Vec::new();
    out.item_shared(1, 0, payload).unwrap();
    write(&mut out, |slice| wire.extend_from_slice(slice));
    let (mut decoder, mut inbound) = (open_decoder(), Inbound::request_stream(WINDOW, LARGE));
    group.bench_function("decode_in_reads_of_64_kib", |bencher| {
        bencher.iter(|| {
            let taken: usize =
                wire.chunks(64 * 1024).map(|read| take(&mut decoder, &mut inbound, black_box(read))).sum();
            assert_eq!(taken, 1);
        });
    });
    group.finish();
}

criterion_group!(benches, encode, decode, large);
criterion_main!(benches);
