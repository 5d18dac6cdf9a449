//! Streams take turns: a large item delays a neighbour's token by one fragment and what is in the buffer.

use headrace_wire::frame::split_item;
use headrace_wire::kind::Kind;
use headrace_wire::limits::{FILL_BYTES, FRAME_BODY_MAX, HEADER_BYTES};

use super::pipe::Pipe;

const LARGE: usize = 16 << 20;

/// A worker's link on which stream 1 sends a large item and streams 3 and up are open.
fn busy(streams: u64) -> Pipe {
    let mut pipe = Pipe::new(1 << 30, LARGE);
    for stream in (0..streams).map(|index| 2 * index + 1) {
        pipe.out.accept(stream, 4096, 1 << 30);
        pipe.out.prologue(stream, None);
    }
    pipe.write(usize::MAX, usize::MAX);
    pipe.deliver(usize::MAX, |_, _| ());
    pipe.out.item_shared(1, 0, vec![0; LARGE].into()).unwrap();
    pipe
}

#[test]
fn a_token_beside_a_large_item_waits_for_one_fragment_and_a_full_buffer_at_most() {
    let mut pipe = busy(2);
    let mut tokens = 0_u64;
    let (mut ahead, mut furthest) = (0, 0);
    let mut tokens_seen = 0;
    let mut large_seen = 0;
    while large_seen < LARGE {
        pipe.out.item(3, 1, b"token").unwrap();
        tokens += 1;
        // The token is the last thing in the buffer, so what is unwritten bounds what comes before it.
        furthest = furthest.max(pipe.out.unwritten());
        pipe.write(100_000, 100_000);
        pipe.deliver(usize::MAX, |frame, _| match (frame.kind, frame.stream) {
            (Kind::Data, 1) => {
                ahead += 1;
                large_seen += frame.body.len();
            }
            (Kind::Data, 3) => {
                let mut rest = frame.body;
                while let Some((_, used)) = split_item(rest).unwrap() {
                    rest = &rest[used..];
                    tokens_seen += 1;
                }
                ahead = 0;
            }
            _ => {}
        });
        assert!(ahead <= FILL_BYTES / FRAME_BODY_MAX + 1, "{ahead} fragments in a row");
    }
    assert!(tokens > 100 && tokens_seen > tokens - 10);
    assert!(furthest <= FILL_BYTES + FRAME_BODY_MAX + 40 * HEADER_BYTES, "{furthest} bytes ahead of a token");
}

#[test]
fn large_items_of_two_streams_alternate_by_frames() {
    let mut pipe = busy(2);
    pipe.out.item_shared(3, 0, vec![0; LARGE].into()).unwrap();
    let mut order = Vec::new();
    while pipe.write(usize::MAX, 65_536) > 0 {
        pipe.deliver(usize::MAX, |frame, _| order.push(frame.stream));
    }
    // Stream 1 was alone until the buffer was full; from there on they take turns to the end.
    let first = order.iter().position(|&stream| stream == 3).unwrap();
    assert!(first <= FILL_BYTES / FRAME_BODY_MAX + 1);
    let both: Vec<_> = order[first..].iter().take(2 * (order.len() / 2 - first)).collect();
    assert!(both.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn an_urgent_frame_beside_a_large_item_waits_for_the_frame_under_way() {
    let mut pipe = busy(1);
    pipe.write(1000, 1000);
    pipe.out.ping(1);
    let mut before = 0;
    let mut seen = false;
    pipe.write(2 * FRAME_BODY_MAX, 2 * FRAME_BODY_MAX);
    pipe.deliver(usize::MAX, |frame, _| {
        seen |= frame.kind == Kind::Ping;
        before += usize::from(!seen);
    });
    assert!(seen && before == 1, "{before} frames went before PING");
}
