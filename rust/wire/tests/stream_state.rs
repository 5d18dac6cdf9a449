//! The receiving half of a stream: every kind in every state, credit, counts and fragments.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation fails the test")]

use headrace_wire::body::{Fault, FaultCode, encode_error, encode_prologue};
use headrace_wire::error::StreamError;
use headrace_wire::kind::{FRAGMENT, LAST};
use headrace_wire::limits::{ASSEMBLY_BYTES_FIRST, HEAD_MAX};
use headrace_wire::stream::{Arrived, Assembly, Inbound, State};

const WINDOW: u32 = 4096;
const MESSAGE_MAX: usize = 1 << 20;
/// One item of one byte: length 2, encoding 0, payload.
const ITEM: [u8; 3] = [2, 0, b'x'];

fn fault() -> Fault {
    Fault { code: FaultCode::Engine, kind: "E".into(), message: "m".into(), traceback: String::new() }
}

fn prologue(fault: Option<&Fault>) -> Vec<u8> {
    let mut body = Vec::new();
    encode_prologue(&mut body, fault);
    body
}

fn error(count: u64) -> Vec<u8> {
    let mut body = Vec::new();
    encode_error(&mut body, count, &fault());
    body
}

/// The first fragment of an item of `total` bytes.
fn first(total: u32, payload: &[u8]) -> Vec<u8> {
    [&total.to_le_bytes()[..], &[0], payload].concat()
}

/// Where a stream can stand, `Open` both between items and inside one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Sent,
    Accepted,
    Open,
    InItem,
    Ended,
}

fn stream_at(at: At) -> Inbound {
    let mut inbound = Inbound::response(WINDOW, MESSAGE_MAX);
    if at == At::Sent {
        return inbound;
    }
    inbound.accept().unwrap();
    if at == At::Accepted {
        return inbound;
    }
    inbound.prologue(&prologue(None)).unwrap();
    inbound.data(0, &ITEM).unwrap();
    match at {
        At::InItem => assert_eq!(inbound.data(FRAGMENT, &first(2, b"x")), Ok(Arrived::Fragment)),
        At::Ended => inbound.end(&1_u64.to_le_bytes()).unwrap(),
        _ => {}
    }
    inbound
}

type Step = fn(&mut Inbound) -> Result<(), StreamError>;

/// A state that allows a frame, and where the frame leads.
type Allowed = (At, State);

/// Every frame, with the states that allow it.
const STEPS: [(&str, Step, &[Allowed]); 12] = [
    ("ACCEPT", |s| s.accept(), &[(At::Sent, State::Accepted)]),
    ("REJECT", |s| s.reject(), &[(At::Sent, State::Ended)]),
    (
        "PROLOGUE",
        |s| s.prologue(&prologue(None)).map(|f| assert_eq!(f, None)),
        &[(At::Accepted, State::Open)],
    ),
    (
        "PROLOGUE with a fault",
        |s| s.prologue(&prologue(Some(&fault()))).map(|f| assert_eq!(f, Some(fault()))),
        &[(At::Accepted, State::Ended)],
    ),
    ("DATA", |s| s.data(0, &ITEM).map(drop), &[(At::Open, State::Open)]),
    ("DATA, first fragment", |s| s.data(FRAGMENT, &first(2, b"x")).map(drop), &[(At::Open, State::Open)]),
    ("DATA, last fragment", |s| s.data(FRAGMENT | LAST, b"y").map(drop), &[(At::InItem, State::Open)]),
    ("END", |s| s.end(&1_u64.to_le_bytes()), &[(At::Open, State::Ended)]),
    ("END with another count", |s| s.end(&2_u64.to_le_bytes()), &[]),
    (
        "ERROR",
        |s| s.error(&error(s.items())).map(|f| assert_eq!(f, fault())),
        &[(At::Accepted, State::Ended), (At::Open, State::Ended), (At::InItem, State::Ended)],
    ),
    ("ERROR with another count", |s| s.error(&error(9)).map(drop), &[]),
    (
        "STOP",
        |s| s.stop(),
        &[(At::Accepted, State::Accepted), (At::Open, State::Open), (At::InItem, State::Open)],
    ),
];

#[test]
fn every_frame_in_every_state_is_allowed_or_refused() {
    for at in [At::Sent, At::Accepted, At::Open, At::InItem, At::Ended] {
        for (name, step, allowed) in STEPS {
            let mut inbound = stream_at(at);
            let before = inbound.state();
            let result = step(&mut inbound);
            match allowed.iter().find(|(state, _)| *state == at) {
                Some((_, after)) => {
                    assert_eq!((result, inbound.state()), (Ok(()), *after), "{name} at {at:?}");
                }
                None => {
                    assert!(result.is_err(), "{name} at {at:?}");
                    assert_eq!(inbound.state(), before, "{name} at {at:?} changes nothing");
                }
            }
        }
    }
}

#[test]
fn a_request_stream_is_open_from_the_start() {
    let mut inbound = Inbound::request_stream(WINDOW, MESSAGE_MAX);
    assert_eq!(inbound.state(), State::Open);
    assert!(inbound.accept().is_err() && inbound.reject().is_err() && inbound.prologue(&[0]).is_err());
    assert_eq!(inbound.data(0, &[ITEM, ITEM].concat()), Ok(Arrived::Items { count: 2 }));
    assert_eq!(inbound.end(&2_u64.to_le_bytes()), Ok(()));
}

#[test]
fn nothing_may_follow_a_single_request() {
    let single = Inbound::single_request;
    assert_eq!(single().state(), State::Ended);
    assert_eq!((single().window().size(), single().grant()), (0, None));
    for (name, step, _) in STEPS {
        assert!(matches!(step(&mut single()), Err(StreamError::OutOfOrder { .. })), "{name}");
    }
}

#[test]
fn counts_that_differ_are_named() {
    let mut inbound = stream_at(At::Open);
    let mismatch = StreamError::CountMismatch { counted: 3, received: 1 };
    assert_eq!(inbound.end(&3_u64.to_le_bytes()), Err(mismatch.clone()));
    assert_eq!(inbound.error(&error(3)), Err(mismatch));
}

#[test]
fn an_item_cut_off_by_an_error_does_not_count() {
    let mut inbound = stream_at(At::InItem);
    assert_eq!(inbound.error(&error(1)), Ok(fault()));
}

#[test]
fn more_than_the_credit_is_refused_whole_or_in_fragments() {
    for flags in [0, FRAGMENT] {
        let mut inbound = Inbound::request_stream(WINDOW, MESSAGE_MAX);
        let body = vec![1; WINDOW as usize + 1];
        let refused = StreamError::CreditExceeded { sent: u64::from(WINDOW) + 1, credit: u64::from(WINDOW) };
        assert_eq!(inbound.data(flags, &body), Err(refused));
    }
}

#[test]
fn credit_comes_back_when_items_are_taken_and_not_after_the_end() {
    let mut inbound = Inbound::request_stream(WINDOW, MESSAGE_MAX);
    let body = ITEM.repeat(1000);
    assert_eq!(inbound.data(0, &body), Ok(Arrived::Items { count: 1000 }));
    assert_eq!(inbound.grant(), None, "nobody has taken anything");
    assert_eq!(inbound.take(1500), None, "less than half a window");
    assert_eq!(inbound.take(600), Some(2100));
    assert_eq!(inbound.data(0, &body), Ok(Arrived::Items { count: 1000 }));
    inbound.end(&2000_u64.to_le_bytes()).unwrap();
    assert_eq!(inbound.take(3900), None, "nothing more can come");
}

#[test]
fn the_rest_of_a_fragmented_item_is_granted_when_its_first_fragment_comes() {
    let mut inbound = Inbound::request_stream(WINDOW, MESSAGE_MAX);
    let payload = vec![7; 100_000];
    let mut sent = 0;
    while sent < payload.len() {
        let prefix = if sent == 0 { 5 } else { 0 };
        let room = inbound.window().unused() as usize - prefix;
        let chunk = &payload[sent..(sent + room.min(2048)).min(payload.len())];
        let body = if sent == 0 { first(100_000, chunk) } else { chunk.to_vec() };
        sent += chunk.len();
        if sent == payload.len() {
            let whole = Arrived::Whole { encoding: 0, payload: payload.clone(), credit: 100_005 };
            assert_eq!(inbound.data(FRAGMENT | LAST, &body), Ok(whole));
        } else {
            assert_eq!(inbound.data(FRAGMENT, &body), Ok(Arrived::Fragment));
            assert!(inbound.unfinished() >= sent, "what has come is held");
            let left = (payload.len() - sent) as u64;
            let granted = inbound.grant();
            assert_eq!(granted.is_some(), sent == 2048, "once, with the first fragment");
            assert_eq!(inbound.window().expected(), left);
            assert!(inbound.window().unused() + inbound.window().buffered() <= u64::from(WINDOW) + left);
            assert!(inbound.window().unused() >= left, "nothing of it waits for credit");
        }
    }
    assert_eq!(inbound.unfinished(), 0);
    assert_eq!(inbound.grant(), None, "the item waits and is larger than the window");
    inbound.take(100_005);
    assert!((2048..=u64::from(WINDOW)).contains(&inbound.window().unused()));
    assert_eq!(inbound.window().buffered(), 0);
}

#[test]
fn fragments_must_add_up() {
    let open = || Inbound::request_stream(WINDOW, 10);
    let too_large = StreamError::MessageTooLarge { length: 11, limit: 10 };
    assert_eq!(open().data(FRAGMENT, &first(11, b"x")), Err(too_large));
    let mismatch = |declared, received| Err(StreamError::FragmentMismatch { declared, received });
    assert_eq!(open().data(FRAGMENT, &first(3, b"four")), mismatch(3, 4));
    assert_eq!(open().data(FRAGMENT | LAST, &first(3, b"tw")), mismatch(3, 2));
    let mut inbound = open();
    inbound.data(FRAGMENT, &first(3, b"x")).unwrap();
    assert_eq!(inbound.data(FRAGMENT | LAST, b"abc"), mismatch(3, 4));
    let mut inbound = open();
    inbound.data(FRAGMENT, &first(3, b"x")).unwrap();
    assert!(inbound.data(FRAGMENT, b"").is_err(), "an empty fragment uses no credit");
    assert!(open().data(0, b"").is_err(), "nor does an empty frame");
    for cut in 0..5 {
        assert!(open().data(FRAGMENT, &first(3, b"x")[..cut]).is_err());
    }
}

#[test]
fn whole_items_do_not_interrupt_a_fragmented_one() {
    let mut inbound = stream_at(At::InItem);
    assert!(matches!(inbound.data(0, &ITEM), Err(StreamError::OutOfOrder { .. })));
}

#[test]
fn a_fragmented_request_holds_head_and_payload() {
    let limit = 4 * ASSEMBLY_BYTES_FIRST + HEAD_MAX + 4;
    let total = (ASSEMBLY_BYTES_FIRST * 3) as u32;
    let mut assembly = Assembly::request(&[&total.to_le_bytes()[..], b"x"].concat(), limit).unwrap();
    let chunk = vec![1; 60_000];
    while assembly.received() + chunk.len() <= total as usize {
        assembly.push(&chunk).unwrap();
    }
    assembly.push(&chunk[..total as usize - assembly.received()]).unwrap();
    assert_eq!(assembly.finish().unwrap().len(), total as usize);
    let length = limit + 1;
    let refused = Assembly::request(&(length as u32).to_le_bytes(), limit).unwrap_err();
    assert_eq!(refused, StreamError::MessageTooLarge { length, limit });
}
