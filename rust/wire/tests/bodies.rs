//! The bodies of control frames: what is written is read again, and nothing short, long or wrong is.

#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use headrace_wire::body::{
    Fault, FaultCode, Goaway, GoawayReason, Hello, KillReason, Reject, RejectReason, RequestHead, Role,
    Shape, Status, decode_accept, decode_credit, decode_end, decode_error, decode_kill, decode_ping,
    decode_pong, decode_prologue, encode_error, encode_prologue,
};
use headrace_wire::error::{DecodeError, EncodeError};
use headrace_wire::limits::{
    ENDPOINT_MAX, ENDPOINTS_MAX, FRAME_BODY_MAX, HEAD_MAX, HELLO_BODY_MAX, LINK_WINDOW_MIN,
    METADATA_ENTRIES_MAX, REQUEST_ID_MAX, STREAM_WINDOW_MIN, TEXT_MAX, TOKEN_MAX, TRACEPARENT_MAX,
    WINDOW_MAX,
};
use proptest::collection::vec;
use proptest::prelude::*;

type Check = fn(&[u8]) -> Result<(), DecodeError>;

/// Every decoder by its frame, and whether a later version may append fields to the body.
const DECODERS: [(&str, Check, bool); 13] = [
    ("HELLO", |body| Hello::decode(body).map(drop), true),
    ("STATUS", |body| Status::decode(body).map(drop), true),
    ("REQUEST", |body| RequestHead::decode(body).map(drop), true),
    ("ACCEPT", |body| decode_accept(body).map(drop), false),
    ("REJECT", |body| Reject::decode(body).map(drop), false),
    ("PROLOGUE", |body| decode_prologue(body).map(drop), false),
    ("END", |body| decode_end(body).map(drop), false),
    ("ERROR", |body| decode_error(body).map(drop), false),
    ("KILL", |body| decode_kill(body).map(drop), true),
    ("CREDIT", |body| decode_credit(body).map(drop), false),
    ("PING", |body| decode_ping(body).map(drop), false),
    ("PONG", |body| decode_pong(body).map(drop), false),
    ("GOAWAY", |body| Goaway::decode(body).map(drop), true),
];

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 2,
        role: Role::Worker,
        features: 1 << 63,
        message_max: 32 << 20,
        streams_max: 65_536,
        link_window: LINK_WINDOW_MIN,
        instance_id: "worker-é".into(),
        namespace: "default".into(),
        token: vec![0xff, 0],
        endpoints: vec!["generate".into(), String::new()],
    }
}

fn request() -> RequestHead {
    RequestHead {
        request_shape: Shape::Many,
        response_shape: Shape::Single,
        encoding: 1,
        window: STREAM_WINDOW_MIN,
        deadline_us: Some(0),
        sent_at_us: 7,
        request_id: "r-1".into(),
        endpoint: "generate".into(),
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        metadata: vec![("tenant".into(), "a".into()), ("k".into(), String::new())],
    }
}

fn fault() -> Fault {
    Fault { code: FaultCode::Engine, kind: "ValueError".into(), message: "no".into(), traceback: "t".into() }
}

/// A valid body of every frame, in the order of [`DECODERS`].
fn samples() -> Vec<Vec<u8>> {
    let write = |body: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        body(&mut out);
        out
    };
    let status = Status { ready: true, running: 1, queued: 2, endpoints: hello().endpoints };
    let reject = Reject { reason: RejectReason::Overloaded, retry_after_ms: 250, detail: "full".into() };
    let goaway = Goaway { last_stream: 9, reason: GoawayReason::Draining, detail: "bye".into() };
    vec![
        write(&|out| hello().encode(out)),
        write(&|out| status.encode(out)),
        write(&|out| request().encode(out).unwrap()),
        STREAM_WINDOW_MIN.to_le_bytes().to_vec(),
        write(&|out| reject.encode(out)),
        write(&|out| encode_prologue(out, Some(&fault()))),
        3_u64.to_le_bytes().to_vec(),
        write(&|out| encode_error(out, 3, &fault())),
        vec![2],
        9_u32.to_le_bytes().to_vec(),
        vec![1; 8],
        vec![1; 16],
        write(&|out| goaway.encode(out)),
    ]
}

#[test]
fn every_truncation_of_every_body_is_an_error() {
    for ((name, check, _), body) in DECODERS.iter().zip(samples()) {
        assert_eq!(check(&body), Ok(()), "{name}");
        for cut in 0..body.len() {
            assert!(check(&body[..cut]).is_err(), "{name} cut at {cut}");
        }
    }
}

#[test]
fn bytes_after_the_last_field_are_refused_unless_a_later_version_may_have_put_them() {
    for ((name, check, extensible), mut body) in DECODERS.iter().zip(samples()) {
        body.push(0);
        assert_eq!(check(&body).is_ok(), *extensible, "{name}");
    }
}

#[test]
fn every_flipped_bit_is_read_or_refused() {
    for ((_, check, _), body) in DECODERS.iter().zip(samples()) {
        for bit in 0..body.len() * 8 {
            let mut changed = body.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let _read_or_refused = check(&changed);
        }
    }
}

#[test]
fn the_largest_hello_fits_the_limit_before_hello() {
    let longest = |bytes| "x".repeat(bytes);
    let largest = Hello {
        instance_id: longest(REQUEST_ID_MAX),
        namespace: longest(ENDPOINT_MAX),
        token: vec![0; TOKEN_MAX],
        endpoints: vec![longest(ENDPOINT_MAX); ENDPOINTS_MAX],
        ..hello()
    };
    let mut body = Vec::new();
    largest.encode(&mut body);
    assert_eq!(Hello::decode(&body), Ok(largest.clone()));
    assert!((34_000..=HELLO_BODY_MAX).contains(&body.len()), "{}", body.len());
    let mut status = Vec::new();
    Status { endpoints: largest.endpoints, ..Status::default() }.encode(&mut status);
    assert!(status.len() <= FRAME_BODY_MAX);
}

#[test]
fn text_that_is_too_long_is_cut_by_the_sender_and_fits_a_frame() {
    let text = "é".repeat(TEXT_MAX);
    let long =
        Fault { code: FaultCode::Engine, kind: text.clone(), message: text.clone(), traceback: text.clone() };
    let mut body = Vec::new();
    encode_error(&mut body, 1, &long);
    assert!(body.len() <= FRAME_BODY_MAX);
    let (_, read) = decode_error(&body).unwrap();
    assert_eq!(
        (read.kind.len(), read.message.len(), read.traceback.len()),
        (ENDPOINT_MAX, TEXT_MAX, TEXT_MAX)
    );
    let mut body = Vec::new();
    Goaway { last_stream: 0, reason: GoawayReason::Limit, detail: text.clone() }.encode(&mut body);
    assert_eq!(Goaway::decode(&body).unwrap().detail.len(), TEXT_MAX);
    let mut body = Vec::new();
    Reject { reason: RejectReason::Expired, retry_after_ms: 0, detail: text }.encode(&mut body);
    assert_eq!(Reject::decode(&body).unwrap().detail.len(), TEXT_MAX);
}

#[test]
fn a_request_head_over_a_limit_is_refused_by_the_sender_and_leaves_nothing() {
    let text = |bytes: usize| "x".repeat(bytes);
    let entries = vec![(String::new(), String::new()); METADATA_ENTRIES_MAX + 1];
    let refused: [(&str, usize, RequestHead); 6] = [
        (
            "request id in bytes",
            REQUEST_ID_MAX,
            RequestHead { request_id: text(REQUEST_ID_MAX + 1), ..request() },
        ),
        (
            "endpoint name in bytes",
            ENDPOINT_MAX,
            RequestHead { endpoint: text(ENDPOINT_MAX + 1), ..request() },
        ),
        (
            "traceparent in bytes",
            TRACEPARENT_MAX,
            RequestHead { traceparent: text(TRACEPARENT_MAX + 1), ..request() },
        ),
        ("number of metadata entries", METADATA_ENTRIES_MAX, RequestHead { metadata: entries, ..request() }),
        (
            "metadata in bytes",
            HEAD_MAX,
            RequestHead { metadata: vec![(text(1), text(HEAD_MAX))], ..request() },
        ),
        (
            "request head in bytes",
            HEAD_MAX,
            RequestHead { metadata: vec![(text(10), text(HEAD_MAX - 10))], ..request() },
        ),
    ];
    for (part, most, head) in refused {
        let mut out = vec![1, 2, 3];
        let result = head.encode(&mut out);
        assert!(
            matches!(result, Err(EncodeError::HeadTooLarge { what, limit, actual })
                if what == part && limit == most && actual > most),
            "{part}: {result:?}"
        );
        assert_eq!(out, [1, 2, 3], "{part}");
    }
}

/// `body` with the bytes at `at` replaced by `bytes`.
fn with(body: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut changed = body.to_vec();
    changed[at..at + bytes.len()].copy_from_slice(bytes);
    changed
}

#[test]
fn windows_out_of_range_are_refused() {
    let [hello, _, request, ..] = &samples()[..] else { return };
    let ranges: [(&dyn Fn(u32) -> bool, u32); 4] = [
        (&|bytes| Hello::decode(&with(hello, 21, &bytes.to_le_bytes())).is_ok(), LINK_WINDOW_MIN),
        (&|bytes| RequestHead::decode(&with(request, 6, &bytes.to_le_bytes())).is_ok(), STREAM_WINDOW_MIN),
        (&|bytes| decode_accept(&bytes.to_le_bytes()).is_ok(), STREAM_WINDOW_MIN),
        (&|bytes| decode_credit(&bytes.to_le_bytes()).is_ok(), 1),
    ];
    for (accepts, least) in ranges {
        assert!(accepts(least) && accepts(WINDOW_MAX));
        assert!(!accepts(least - 1) && !accepts(WINDOW_MAX + 1) && !accepts(u32::MAX));
    }
}

#[test]
fn unknown_numbers_are_refused_except_kill_reasons() {
    let samples = samples();
    let sample = |name| {
        let index = DECODERS.iter().position(|decoder| decoder.0 == name).unwrap();
        (DECODERS[index].1, &samples[index])
    };
    // Frame, where the number is, and the largest that is known; all start at 1 but two.
    for (name, at, least, most) in [
        ("HELLO", 4, 1, 2),
        ("REQUEST", 4, 0, 3),
        ("REJECT", 0, 1, 7),
        ("PROLOGUE", 1, 1, 8),
        ("ERROR", 8, 1, 8),
        ("GOAWAY", 8, 1, 7),
    ] {
        let (check, body) = sample(name);
        for number in 0..=u8::MAX {
            let known = (least..=most).contains(&number);
            assert_eq!(check(&with(body, at, &[number])).is_ok(), known, "{name} {number}");
        }
    }
    let reasons =
        [KillReason::Cancelled, KillReason::Deadline, KillReason::ItemTimeout, KillReason::SlowConsumer];
    for number in 0..=u8::MAX {
        let known = usize::from(number).checked_sub(1).and_then(|index| reasons.get(index));
        assert_eq!(decode_kill(&[number]), Ok(*known.unwrap_or(&KillReason::Cancelled)));
    }
}

#[test]
fn lengths_over_their_limits_are_refused_before_anything_is_read() {
    // The instance id's length follows 25 bytes of numbers, and is one byte in the sample.
    let hello = &samples()[0];
    let too_long = [&hello[..25], &[0x81, 0x01]].concat();
    assert_eq!(
        Hello::decode(&too_long),
        Err(DecodeError::TooLong { what: "instance_id", length: REQUEST_ID_MAX + 1, limit: REQUEST_ID_MAX })
    );
    let not_text = with(hello, 26, &[0xff]);
    assert_eq!(Hello::decode(&not_text), Err(DecodeError::NotUtf8 { what: "instance_id" }));
    let many = [&[1, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0x81, 0x01]].concat();
    assert!(matches!(Status::decode(&many), Err(DecodeError::TooLong { what: "endpoints", .. })));
    let endless = [&many[..9], &[0xff; 4]].concat();
    assert!(matches!(Status::decode(&endless), Err(DecodeError::InvalidValue { what: "endpoints", .. })));
    // The sample's token follows two texts; its two bytes are all it has.
    let token = hello.windows(3).position(|bytes| bytes == [2, 0xff, 0]).unwrap();
    let too_long = [&hello[..token], &[0x81, 0x08], &[0; TOKEN_MAX + 1], &hello[token + 3..]].concat();
    assert!(matches!(Hello::decode(&too_long), Err(DecodeError::TooLong { what: "token", .. })));
    let mut entries = Vec::new();
    RequestHead { metadata: Vec::new(), ..request() }.encode(&mut entries).unwrap();
    entries.splice(entries.len() - 1.., [&[0x81, 0x01][..], &[0; 2 * (METADATA_ENTRIES_MAX + 1)]].concat());
    let length = (entries.len() - 4) as u32;
    let entries = with(&entries, 0, &length.to_le_bytes());
    assert!(matches!(RequestHead::decode(&entries), Err(DecodeError::TooLong { what: "metadata", .. })));
    let head = ((HEAD_MAX + 1) as u32).to_le_bytes();
    assert!(matches!(RequestHead::decode(&head), Err(DecodeError::TooLong { what: "request head", .. })));
}

#[test]
fn the_newest_common_version_is_taken() {
    let common = |version_min, version_max| Hello { version_min, version_max, ..hello() }.common_version();
    assert_eq!((common(1, 1), common(0, 9), common(1, 2)), (Some(1), Some(1), Some(1)));
    assert_eq!((common(2, 3), common(0, 0), common(3, 1)), (None, None, None));
}

fn text(most: usize) -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..most / 4).prop_map(|chars| chars.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hello_and_status_round_trip(
        numbers in any::<(u16, u16, bool, u64, u32, u32)>(),
        link_window in LINK_WINDOW_MIN..=WINDOW_MAX,
        instance_id in text(REQUEST_ID_MAX),
        namespace in text(ENDPOINT_MAX),
        token in vec(any::<u8>(), 0..TOKEN_MAX),
        endpoints in vec(text(ENDPOINT_MAX), 0..8),
    ) {
        let (version_min, version_max, is_router, features, message_max, streams_max) = numbers;
        let role = if is_router { Role::Router } else { Role::Worker };
        let status = Status { ready: is_router, running: message_max, queued: streams_max, endpoints: endpoints.clone() };
        let hello = Hello {
            version_min, version_max, role, features, message_max, streams_max, link_window, instance_id, namespace,
            token, endpoints,
        };
        let mut body = Vec::new();
        hello.encode(&mut body);
        prop_assert_eq!(Hello::decode(&body), Ok(hello));
        body.clear();
        status.encode(&mut body);
        prop_assert_eq!(Status::decode(&body), Ok(status));
    }

    #[test]
    fn requests_round_trip(
        numbers in any::<(bool, bool, u8, u64)>(),
        window in STREAM_WINDOW_MIN..=WINDOW_MAX,
        deadline_us in prop_oneof![Just(None), (0..u64::MAX).prop_map(Some)],
        texts in (text(REQUEST_ID_MAX), text(ENDPOINT_MAX), text(TRACEPARENT_MAX)),
        metadata in vec((text(100), text(1000)), 0..8),
        payload in vec(any::<u8>(), 0..100),
    ) {
        let many = |many| if many { Shape::Many } else { Shape::Single };
        let head = RequestHead {
            request_shape: many(numbers.0),
            response_shape: many(numbers.1),
            encoding: numbers.2,
            window,
            deadline_us,
            sent_at_us: numbers.3,
            request_id: texts.0,
            endpoint: texts.1,
            traceparent: texts.2,
            metadata,
        };
        let mut message = Vec::new();
        head.encode(&mut message).unwrap();
        message.extend(&payload);
        prop_assert_eq!(RequestHead::decode(&message), Ok((head, &payload[..])));
    }

    #[test]
    fn failures_round_trip(code in 0..8_usize, count: u64, texts in (text(200), text(500), text(500))) {
        use FaultCode::{Deadline, Decode, Encode, Engine, Refused, Shutdown, SlowConsumer, TooLarge};
        let codes = [Engine, Encode, Deadline, SlowConsumer, Shutdown, TooLarge, Decode, Refused];
        let fault = Fault { code: codes[code], kind: texts.0, message: texts.1, traceback: texts.2 };
        let mut body = Vec::new();
        encode_error(&mut body, count, &fault);
        prop_assert_eq!(decode_error(&body), Ok((count, fault.clone())));
        body.clear();
        encode_prologue(&mut body, Some(&fault));
        prop_assert_eq!(decode_prologue(&body), Ok(Some(fault)));
        body.clear();
        encode_prologue(&mut body, None);
        prop_assert_eq!(decode_prologue(&body), Ok(None));
    }

    #[test]
    fn refusals_round_trip(number in 1..=7_u8, retry_after_ms: u32, last_stream: u64, detail in text(TEXT_MAX / 8)) {
        let body = [&[number][..], &retry_after_ms.to_le_bytes(), &[0]].concat();
        let reject = Reject { detail: detail.clone(), ..Reject::decode(&body).unwrap() };
        let body = [&last_stream.to_le_bytes()[..], &[number, 0]].concat();
        let goaway = Goaway { detail, ..Goaway::decode(&body).unwrap() };
        let mut body = Vec::new();
        reject.encode(&mut body);
        prop_assert_eq!((reject.reason as u8, Reject::decode(&body)), (number, Ok(reject)));
        body.clear();
        goaway.encode(&mut body);
        prop_assert_eq!((goaway.reason as u8, Goaway::decode(&body)), (number, Ok(goaway)));
    }
}
