//! Rules of the sending half, each on its own: every one of these was broken once, or easily is.

use bytes::Bytes;
use headrace_wire::body::{
    Fault, FaultCode, Goaway, GoawayReason, Hello, KillReason, RequestHead, Role, Status, decode_error,
};
use headrace_wire::decoder::Decoder;
use headrace_wire::error::EncodeError;
use headrace_wire::kind::Kind;
use headrace_wire::limits::FRAME_BODY_MAX;
use headrace_wire::outbound::{Finish, Outbound, Pushed};

use super::pipe::Pipe;

const LINK_WINDOW: u32 = 256 * 1024;
const MESSAGE_MAX: usize = 1 << 20;

fn head() -> Vec<u8> {
    let mut head = Vec::new();
    RequestHead { window: 4096, ..RequestHead::default() }.encode(&mut head).unwrap();
    head
}

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        role: Role::Worker,
        features: 0,
        message_max: 1,
        streams_max: 1,
        link_window: LINK_WINDOW,
        instance_id: String::new(),
        namespace: String::new(),
        token: Vec::new(),
        endpoints: Vec::new(),
    }
}

/// The kinds that `out` writes from its beginning.
fn kinds(out: &mut Outbound) -> Vec<Kind> {
    let mut bytes = Vec::new();
    out.write_to(|slices| {
        slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        Ok(slices.iter().map(|slice| slice.len()).sum())
    })
    .unwrap();
    let mut decoder = Decoder::new();
    let mut input = &bytes[..];
    let mut kinds = Vec::new();
    while let Some(frame) = decoder.next(&mut input).unwrap() {
        kinds.push(frame.kind);
    }
    kinds
}

/// The kinds that `pipe` delivers when everything is written.
fn delivered(pipe: &mut Pipe) -> Vec<(Kind, u64)> {
    let mut kinds = Vec::new();
    pipe.write(usize::MAX, usize::MAX);
    pipe.deliver(usize::MAX, |frame, _| kinds.push((frame.kind, frame.stream)));
    kinds
}

#[test]
fn hello_comes_before_everything_however_urgent() {
    let mut out = Outbound::new();
    out.hello(&hello());
    out.status(&Status::default());
    out.ping(1);
    assert_eq!(kinds(&mut out), [Kind::Hello, Kind::Status, Kind::Ping]);
}

#[test]
fn a_refusal_says_the_preface_once_and_then_goaway() {
    let goaway = Goaway { last_stream: 0, reason: GoawayReason::Version, detail: String::new() };
    let mut out = Outbound::new();
    out.goaway(&goaway);
    assert_eq!(kinds(&mut out), [Kind::Goaway]);
    let mut out = Outbound::new();
    out.preface();
    out.goaway(&goaway);
    out.goaway(&goaway);
    assert_eq!(kinds(&mut out), [Kind::Goaway, Kind::Goaway]);
}

#[test]
fn a_link_without_credit_does_not_ask_to_be_written() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    pipe.out.request(1, head(), vec![0; MESSAGE_MAX].into()).unwrap();
    while pipe.write(usize::MAX, usize::MAX) > 0 {}
    assert!(!pipe.out.wants_write());
    assert!(!pipe.out.request_written(1));
    pipe.out.granted(0, u64::from(LINK_WINDOW / 2)).unwrap();
    assert!(pipe.out.wants_write());
}

#[test]
fn stop_follows_a_request_that_waits_for_the_links_credit() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    pipe.out.request(1, head(), vec![0; LINK_WINDOW as usize].into()).unwrap();
    pipe.out.request(3, head(), Bytes::from_static(b"x")).unwrap();
    pipe.out.request(5, head(), vec![0; FRAME_BODY_MAX].into()).unwrap();
    for stream in [1, 3, 5] {
        pipe.out.stop(stream);
        pipe.out.stop(stream);
    }
    let mut seen = delivered(&mut pipe);
    pipe.out.granted(0, u64::from(LINK_WINDOW / 2)).unwrap();
    seen.extend(delivered(&mut pipe));
    for stream in [1, 3, 5] {
        let of_stream: Vec<_> = seen.iter().filter(|frame| frame.1 == stream).map(|frame| frame.0).collect();
        let stops = of_stream.iter().filter(|&&kind| kind == Kind::Stop).count();
        assert_eq!(of_stream[0], Kind::Request);
        assert_eq!(of_stream[of_stream.len() - stops..], vec![Kind::Stop; stops]);
        assert!((1..=2).contains(&stops), "{of_stream:?}");
    }
}

#[test]
fn kill_goes_ahead_of_a_request_streams_unwritten_items() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    pipe.out.request(1, head(), Bytes::new()).unwrap();
    assert_eq!(delivered(&mut pipe), [(Kind::Request, 1)]);
    pipe.out.accepted(1, 4096).unwrap();
    assert_eq!(pipe.out.item(1, 0, &[0; 1000]), Ok(Pushed::Buffered));
    assert_eq!(pipe.out.item(1, 0, &[0; 9000]), Ok(Pushed::Waiting));
    assert!(pipe.out.kill(1, KillReason::Cancelled));
    assert_eq!(delivered(&mut pipe)[0], (Kind::Kill, 1));
}

#[test]
fn a_request_that_is_killed_unsent_lets_the_next_one_go() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    pipe.out.accept(1, 4096, 1 << 20);
    pipe.out.prologue(1, None);
    for _ in 0..4 {
        pipe.out.item(1, 0, &[0; 60_000]).unwrap();
    }
    pipe.out.request(3, head(), vec![0; 60_000].into()).unwrap();
    pipe.out.request(5, head(), Bytes::new()).unwrap();
    delivered(&mut pipe);
    assert!(!pipe.out.wants_write());
    assert!(!pipe.out.kill(3, KillReason::Cancelled));
    assert!(pipe.out.wants_write(), "it stood first in line");
    assert_eq!(delivered(&mut pipe), [(Kind::Request, 5)]);
}

#[test]
fn nothing_is_pushed_after_the_end_and_the_end_is_said_once() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    pipe.out.request(1, head(), Bytes::new()).unwrap();
    pipe.out.accepted(1, 4096).unwrap();
    pipe.out.item(1, 0, b"last").unwrap();
    pipe.out.finish(1, Finish::HalfClose);
    pipe.out.finish(1, Finish::HalfClose);
    assert_eq!(pipe.out.item(1, 0, b"late"), Err(EncodeError::Closed));
    assert_eq!(delivered(&mut pipe), [(Kind::Request, 1), (Kind::Data, 1), (Kind::End, 1)]);
    assert!(pipe.out.kill(1, KillReason::Cancelled), "the stream is known until it is closed");
    assert_eq!(delivered(&mut pipe), [(Kind::Kill, 1)]);
}

#[test]
fn kill_follows_a_request_that_is_unwritten_and_has_half_closed() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    pipe.out.request(1, head(), Bytes::new()).unwrap();
    pipe.out.finish(1, Finish::HalfClose);
    assert!(pipe.out.kill(1, KillReason::Cancelled));
    assert_eq!(delivered(&mut pipe), [(Kind::Request, 1), (Kind::End, 1), (Kind::Kill, 1)]);
}

#[test]
fn items_that_a_worker_no_longer_wants_are_dropped_and_let_others_go() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    for stream in [1, 3] {
        pipe.out.request(stream, head(), Bytes::new()).unwrap();
        pipe.out.accepted(stream, 1 << 20).unwrap();
    }
    delivered(&mut pipe);
    for _ in 0..5 {
        // More than the link's credit, the last of them in fragments.
        pipe.out.item(1, 0, &[0; 60_000]).unwrap();
    }
    assert_eq!(pipe.out.item(1, 0, &[0; 100_000]), Ok(Pushed::Waiting));
    pipe.out.finish(1, Finish::HalfClose);
    assert_eq!(pipe.out.item(3, 0, b"x"), Ok(Pushed::Buffered));
    assert_eq!(pipe.out.item(3, 0, &[0; 60_000]), Ok(Pushed::Waiting));
    delivered(&mut pipe);
    pipe.out.requests_unwanted(1);
    pipe.out.granted(0, u64::from(LINK_WINDOW / 2)).unwrap();
    let seen = delivered(&mut pipe);
    assert_eq!(seen, [(Kind::Data, 3)], "the neighbour goes on; nothing of the first comes, no END either");
    assert_eq!(pipe.out.item(1, 0, b"late"), Err(EncodeError::Closed));
    pipe.out.finish(1, Finish::HalfClose);
    assert!(pipe.out.kill(1, KillReason::Cancelled), "the stream itself is known until it is closed");
    assert_eq!(delivered(&mut pipe), [(Kind::Kill, 1)]);
}

#[test]
fn no_more_items_wanted_of_an_unknown_stream_or_before_its_request_changes_nothing() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    pipe.out.requests_unwanted(1);
    pipe.out.request(1, head(), vec![0; LINK_WINDOW as usize].into()).unwrap();
    pipe.out.stop(1);
    pipe.out.requests_unwanted(1);
    let mut seen = delivered(&mut pipe);
    pipe.out.granted(0, u64::from(LINK_WINDOW / 2)).unwrap();
    seen.extend(delivered(&mut pipe));
    assert_eq!(seen.last(), Some(&(Kind::Stop, 1)));
    assert!(
        seen.len() > 2 && seen[..seen.len() - 1].iter().all(|frame| frame.0 == Kind::Request),
        "{seen:?}"
    );
}

#[test]
fn a_workers_stop_goes_ahead_of_its_unwritten_items_and_behind_accept() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    pipe.out.accept(1, 4096, 1 << 20);
    pipe.out.prologue(1, None);
    pipe.out.item(1, 0, b"x").unwrap();
    pipe.out.stop(1);
    let expected = [(Kind::Accept, 1), (Kind::Prologue, 1), (Kind::Stop, 1), (Kind::Data, 1)];
    assert_eq!(delivered(&mut pipe), expected);
}

#[test]
fn an_abandoned_stream_ends_at_once_and_does_not_count_what_was_cut() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    for stream in [1, 3] {
        pipe.out.accept(stream, 4096, 1 << 20);
        pipe.out.prologue(stream, None);
    }
    // An item and some fragments go; the rest waits for the link.
    pipe.out.item(1, 0, &[0; 60_000]).unwrap();
    pipe.out.item(1, 0, &[0; 300_000]).unwrap();
    pipe.out.item(3, 0, &[0; 50_000]).unwrap();
    pipe.out.item(3, 0, &[0; 1000]).unwrap();
    while pipe.write(usize::MAX, usize::MAX) > 0 {}
    assert!(pipe.out.has_backlog(1));
    let fault = Fault {
        code: FaultCode::Shutdown,
        kind: String::new(),
        message: String::new(),
        traceback: String::new(),
    };
    pipe.out.abandon(1, fault);
    let mut counts = Vec::new();
    pipe.write(usize::MAX, usize::MAX);
    pipe.deliver(usize::MAX, |frame, _| {
        if frame.kind == Kind::Error {
            counts.push((frame.stream, decode_error(frame.body).unwrap().0));
        }
    });
    assert_eq!(counts, [(1, 1)], "the item that was cut off does not count");
    assert_eq!(pipe.out.streams(), 1);
}

#[test]
fn nothing_is_pushed_behind_an_end_that_waits() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    pipe.out.accept(1, 4096, 4096);
    pipe.out.prologue(1, None);
    assert_eq!(pipe.out.item(1, 0, &[0; 9000]), Ok(Pushed::Waiting));
    pipe.out.finish(1, Finish::End { stopped: true });
    assert_eq!(pipe.out.item(1, 0, b"late"), Err(EncodeError::Closed));
    assert_eq!(pipe.out.items(1), 1);
}

#[test]
fn only_producers_that_were_told_to_wait_are_unblocked() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    pipe.out.request(1, head(), Bytes::new()).unwrap();
    pipe.out.accepted(1, 4096).unwrap();
    assert_eq!(pipe.out.take_unblocked(), [0_u64; 0]);
    assert_eq!(pipe.out.item(1, 0, &[0; 4090]), Ok(Pushed::Buffered));
    assert_eq!(pipe.out.item(1, 0, &[0; 4090]), Ok(Pushed::Waiting));
    pipe.out.granted(1, 4096).unwrap();
    assert_eq!(pipe.out.take_unblocked(), [1]);
}

#[test]
fn over_the_message_limit_nothing_is_written() {
    let mut pipe = Pipe::new(LINK_WINDOW, 100);
    delivered(&mut pipe);
    let refused = EncodeError::PayloadTooLarge { limit: 100, actual: 101 };
    assert_eq!(pipe.out.request(1, head(), vec![0; 101].into()), Err(refused.clone()));
    pipe.out.accept(3, 4096, 4096);
    delivered(&mut pipe);
    assert_eq!(pipe.out.item(3, 0, &[0; 101]), Err(refused.clone()));
    assert_eq!(pipe.out.item_shared(3, 0, vec![0; 101].into()), Err(refused));
    assert_eq!((pipe.out.items(3), pipe.out.unwritten()), (0, 0));
    assert_eq!(pipe.out.item(3, 0, &[0; 100]), Ok(Pushed::Buffered));
}

#[test]
fn answers_that_nobody_reads_are_counted() {
    let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
    delivered(&mut pipe);
    for stamp in 0..1000 {
        pipe.out.pong(stamp, stamp);
        pipe.write(5, 5);
    }
    assert_eq!(pipe.out.unwritten_control(), 1000 * 28 - 5000);
}

#[test]
fn a_window_below_the_smallest_sends_nothing_and_breaks_nothing() {
    for window in 0..12 {
        let mut pipe = Pipe::new(LINK_WINDOW, MESSAGE_MAX);
        pipe.out.accept(1, 4096, window);
        delivered(&mut pipe);
        assert_eq!(pipe.out.item(1, 0, &[0; 100]), Ok(Pushed::Waiting));
        assert!(delivered(&mut pipe).len() <= 1);
    }
}
