//! The protocol alone: no socket, no lock. What is written here is what `headrace::link` does for each frame.

use std::error::Error;
use std::hint::black_box;
use std::io;

use bytes::Bytes;
use headrace_wire::body::{RequestHead, Shape, decode_accept};
use headrace_wire::decoder::Decoder;
use headrace_wire::frame::{Frame, PREFACE, item_bytes, split_item};
use headrace_wire::kind::Kind;
use headrace_wire::limits::{MESSAGE_MAX_DEFAULT, STREAM_WINDOW_DEFAULT, STREAM_WINDOW_MIN, WINDOW_MAX};
use headrace_wire::outbound::{Finish, Outbound};
use headrace_wire::stream::{Arrived, Inbound};

use super::TOKEN;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Items that share a write, as a worker's do that yields without awaiting.
pub(super) const BURST_ITEMS: usize = 64;
/// Items whose bytes are made once and decoded again and again: one read's worth.
const READ_ITEMS: usize = 1024;

/// Pushes `count` items into the outbound buffer, which is written after each burst.
pub(super) fn encode(count: usize) -> Outcome<()> {
    let mut out = worker()?;
    for _ in 0..count / BURST_ITEMS {
        for _ in 0..BURST_ITEMS {
            black_box(out.item(1, 1, black_box(TOKEN))?);
        }
        write(&mut out, |bytes| _ = black_box(bytes))?;
        let used = (BURST_ITEMS * item_bytes(TOKEN.len())) as u64;
        out.granted(0, used)?;
        out.granted(1, used)?;
    }
    Ok(())
}

/// Decodes `count` items that came so many to a frame, and takes them.
pub(super) fn decode(count: usize, items_per_frame: usize) -> Outcome<()> {
    let mut out = worker()?;
    let mut bytes = Vec::new();
    for _ in 0..READ_ITEMS / items_per_frame {
        for _ in 0..items_per_frame {
            out.item(1, 1, TOKEN)?;
        }
        write(&mut out, |slice| bytes.extend_from_slice(slice))?;
    }
    let mut decoder = decoder()?;
    let mut inbound = Inbound::request_stream(WINDOW_MAX, MESSAGE_MAX_DEFAULT);
    for _ in 0..count / READ_ITEMS {
        let mut input = black_box(bytes.as_slice());
        while let Some(frame) = decoder.next(&mut input)? {
            take(&mut inbound, &frame)?;
        }
    }
    Ok(())
}

/// Takes every item of a DATA frame.
fn take(inbound: &mut Inbound, frame: &Frame<'_>) -> Outcome<()> {
    let Arrived::Items { .. } = inbound.data(frame.flags, frame.body)? else {
        return Err("a token came in fragments".into());
    };
    let mut rest = frame.body;
    while let Some((item, used)) = split_item(rest)? {
        black_box(item.payload);
        rest = rest.get(used..).unwrap_or_default();
        black_box(inbound.take(used as u64));
    }
    Ok(())
}

/// Sends `count` requests, answers each with one item, and reads the answer: the frames of unary calls.
pub(super) fn calls(count: usize) -> Outcome<()> {
    let (mut router, mut worker) = (configured(), configured());
    let (mut from_router, mut from_worker) = (decoder()?, decoder()?);
    let mut bytes = Vec::new();
    for id in 1..=count as u64 {
        router.request(id, head()?, Bytes::from_static(TOKEN))?;
        send(&mut router, &mut bytes)?;
        let mut input = bytes.as_slice();
        while let Some(frame) = from_router.next(&mut input)? {
            answer(&mut worker, &frame)?;
        }
        send(&mut worker, &mut bytes)?;
        let mut input = bytes.as_slice();
        let mut inbound = Inbound::response(STREAM_WINDOW_DEFAULT, MESSAGE_MAX_DEFAULT);
        while let Some(frame) = from_worker.next(&mut input)? {
            receive(&mut router, &mut inbound, &frame)?;
        }
        if inbound.items() != 1 {
            return Err("a call was not answered with one item".into());
        }
    }
    Ok(())
}

/// A request's head as a router sends it.
fn head() -> Outcome<Vec<u8>> {
    let head = RequestHead {
        response_shape: Shape::Single,
        window: STREAM_WINDOW_DEFAULT,
        deadline_us: Some(600_000_000),
        request_id: "0123456789abcdef".to_owned(),
        endpoint: "echo".to_owned(),
        ..RequestHead::default()
    };
    let mut encoded = Vec::with_capacity(128);
    head.encode(&mut encoded)?;
    Ok(encoded)
}

/// The worker's part of a call.
fn answer(worker: &mut Outbound, frame: &Frame<'_>) -> Outcome<()> {
    let (head, payload) = RequestHead::decode(frame.body)?;
    worker.accept(frame.stream, STREAM_WINDOW_MIN, head.window);
    worker.prologue(frame.stream, None);
    worker.item(frame.stream, head.encoding, payload)?;
    worker.finish(frame.stream, Finish::End { stopped: false });
    black_box(head);
    Ok(())
}

/// What the router does with a frame of the answer.
fn receive(router: &mut Outbound, inbound: &mut Inbound, frame: &Frame<'_>) -> Outcome<()> {
    match frame.kind {
        Kind::Accept => {
            inbound.accept()?;
            router.accepted(frame.stream, decode_accept(frame.body)?)?;
        }
        Kind::Prologue => drop(inbound.prologue(frame.body)?),
        Kind::Data => take(inbound, frame)?,
        Kind::End => {
            inbound.end(frame.body)?;
            router.close(frame.stream);
        }
        kind => return Err(format!("{kind:?} is no part of an answer").into()),
    }
    Ok(())
}

/// A link's sending half with as much credit as there can be.
fn configured() -> Outbound {
    let mut out = Outbound::new();
    out.configure(WINDOW_MAX / 2, MESSAGE_MAX_DEFAULT);
    out
}

/// The sending half of a worker with one open stream.
fn worker() -> Outcome<Outbound> {
    let mut out = configured();
    out.accept(1, STREAM_WINDOW_MIN, WINDOW_MAX / 2);
    write(&mut out, |_| ())?;
    Ok(out)
}

/// A decoder behind the preface and HELLO.
fn decoder() -> Outcome<Decoder> {
    let mut decoder = Decoder::new();
    decoder.allow_full_frames();
    if decoder.next(&mut &PREFACE[..])?.is_some() {
        return Err("the preface is no frame".into());
    }
    Ok(decoder)
}

/// Moves everything unwritten into `bytes`, in place of what is there.
fn send(out: &mut Outbound, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.clear();
    write(out, |slice| bytes.extend_from_slice(slice))
}

/// Writes everything into `sink`, as a socket that is never full would take it.
fn write(out: &mut Outbound, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
    out.write_to(|slices| {
        slices.iter().for_each(|slice| sink(slice));
        Ok(slices.iter().map(|slice| slice.len()).sum())
    })?;
    Ok(())
}
