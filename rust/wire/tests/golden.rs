//! Golden frames: the bytes of version 1, by name, one per frame kind and flag. This version writes exactly
//! these bytes and reads them; later versions must go on reading them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation fails the test")]

use headrace_wire::body::{
    Fault, FaultCode, Goaway, GoawayReason, Hello, KillReason, Reject, RejectReason, RequestHead, Role,
    Shape, Status, decode_accept, decode_credit, decode_end, decode_error, decode_kill, decode_ping,
    decode_pong, decode_prologue,
};
use headrace_wire::decoder::Decoder;
use headrace_wire::frame::{Frame, Header, PREFACE, split_item};
use headrace_wire::kind::{Encoding, FRAGMENT, IGNORABLE, Kind, LAST, STOPPED};
use headrace_wire::outbound::{Finish, Outbound};
use headrace_wire::stream::{Arrived, Assembly, Inbound};

const V1: &str = include_str!("golden/v1.txt");
const PROTOCOL: &str = include_str!("../../../docs/protocol.md");
const MESSAGE_MAX: usize = 32 << 20;
/// Stream ids of the golden frames use all six bytes of the header's field.
const STREAM: u64 = 0x0605_0403_0201;

/// What the frames of a golden line say.
#[derive(Debug, PartialEq)]
enum Said {
    Hello(Hello),
    Status(Status),
    Request(RequestHead, Vec<u8>),
    Accept(u32),
    Reject(Reject),
    Prologue(Option<Fault>),
    Items(Vec<(u8, Vec<u8>)>),
    End { count: u64, stopped: bool },
    Error(u64, Fault),
    Stop,
    Kill(KillReason),
    Credit { stream: u64, bytes: u64 },
    Ping(u64),
    Pong(u64, u64),
    Goaway(Goaway),
}

struct Golden {
    name: &'static str,
    bytes: Vec<u8>,
    said: Vec<Said>,
}

/// What an outbound half writes; `preface` says whether the bytes begin with it.
fn written(preface: bool, say: impl FnOnce(&mut Outbound)) -> Vec<u8> {
    let mut out = Outbound::new();
    out.configure(1 << 20, MESSAGE_MAX);
    if !preface {
        out.preface();
        drain(&mut out);
    }
    say(&mut out);
    drain(&mut out)
}

fn drain(out: &mut Outbound) -> Vec<u8> {
    let mut bytes = Vec::new();
    out.write_to(|slices| {
        slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        Ok(slices.iter().map(|slice| slice.len()).sum())
    })
    .unwrap();
    bytes
}

/// As [`written`], on a stream that has been accepted with this window.
fn on_stream(window: u32, say: impl FnOnce(&mut Outbound)) -> Vec<u8> {
    written(false, |out| {
        out.accept(STREAM, 4096, window);
        drain(out);
        say(out);
    })
}

fn hello(role: Role) -> Hello {
    let is_worker = role == Role::Worker;
    Hello {
        version_min: 1,
        version_max: 1,
        role,
        features: 0,
        message_max: 33_554_432,
        streams_max: 65_536,
        link_window: 4_194_304,
        instance_id: if is_worker { "w1" } else { "r1" }.into(),
        namespace: "default".into(),
        token: if is_worker { Vec::new() } else { b"secret".to_vec() },
        endpoints: if is_worker { vec!["greet".into()] } else { Vec::new() },
    }
}

fn unary_head() -> RequestHead {
    RequestHead {
        encoding: Encoding::Msgpack as u8,
        window: 262_144,
        deadline_us: Some(5_000_000),
        sent_at_us: 1_000_000,
        request_id: "a1".into(),
        endpoint: "greet".into(),
        ..RequestHead::default()
    }
}

fn full_head() -> RequestHead {
    RequestHead {
        request_shape: Shape::Many,
        response_shape: Shape::Many,
        encoding: Encoding::Raw as u8,
        window: 4096,
        deadline_us: None,
        sent_at_us: 0,
        request_id: "id-é".into(),
        endpoint: String::new(),
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        metadata: vec![("tenant".into(), "a".into()), ("empty".into(), String::new())],
    }
}

fn fault() -> Fault {
    Fault {
        code: FaultCode::Engine,
        kind: "ValueError".into(),
        message: "bad prompt".into(),
        traceback: "line 1".into(),
    }
}

/// msgpack: {"name": "world"} and {"word": "hello"}.
const NAME_WORLD: &[u8] = b"\x81\xa4name\xa5world";
const WORD_HELLO: &[u8] = b"\x81\xa4word\xa5hello";

/// An array of two `<f4`, 1.0 and 2.0: its data begins at byte 16.
fn ndarray() -> Vec<u8> {
    [&b"\x03<f4\x01"[..], &2_u64.to_le_bytes(), &[0; 3], &1_f32.to_le_bytes(), &2_f32.to_le_bytes()].concat()
}

fn encoded(head: &RequestHead) -> Vec<u8> {
    let mut bytes = Vec::new();
    head.encode(&mut bytes).unwrap();
    bytes
}

/// A request in two fragments. Real ones fill their frames; the protocol does not ask for it.
fn request_fragments() -> Vec<u8> {
    let message = [encoded(&unary_head()), NAME_WORLD.to_vec()].concat();
    let (first, second) = message.split_at(20);
    let first = [&(message.len() as u32).to_le_bytes()[..], first].concat();
    let mut bytes = Vec::new();
    for (flags, body) in [(FRAGMENT, &first[..]), (FRAGMENT | LAST, second)] {
        bytes.extend(Header::encode(Kind::Request, flags, STREAM, body.len()));
        bytes.extend(body);
    }
    bytes
}

/// An item in three fragments, cut by a window too small to be legal, so that the line stays short.
fn data_fragments() -> Vec<u8> {
    on_stream(16, |out| {
        out.item(STREAM, Encoding::Raw as u8, b"an item of thirty bytes, or so").unwrap();
        out.granted(STREAM, 12).unwrap();
        out.granted(STREAM, 12).unwrap();
    })
}

fn link_frames() -> Vec<Golden> {
    let status =
        Status { ready: true, running: 3, queued: 2, endpoints: vec!["greet".into(), "classify".into()] };
    let goaway =
        Goaway { last_stream: STREAM, reason: GoawayReason::Draining, detail: "shutting down".into() };
    let refusal = Goaway { last_stream: 0, reason: GoawayReason::Version, detail: String::new() };
    let golden = |name, bytes, said| Golden { name, bytes, said: vec![said] };
    let hello_of = |role| (written(true, |out| out.hello(&hello(role))), Said::Hello(hello(role)));
    let (router, worker) = (hello_of(Role::Router), hello_of(Role::Worker));
    vec![
        golden("hello_router", router.0, router.1),
        golden("hello_worker", worker.0, worker.1),
        golden("refusal", written(true, |out| out.goaway(&refusal)), Said::Goaway(refusal)),
        golden("status", written(false, |out| out.status(&status)), Said::Status(status)),
        golden(
            "credit_link",
            written(false, |out| out.credit(0, 2_097_152)),
            Said::Credit { stream: 0, bytes: 2_097_152 },
        ),
        golden(
            "credit",
            written(false, |out| out.credit(STREAM, 131_072)),
            Said::Credit { stream: STREAM, bytes: 131_072 },
        ),
        golden("ping", written(false, |out| out.ping(1_000_000_007)), Said::Ping(1_000_000_007)),
        golden("pong", written(false, |out| out.pong(1_000_000_007, 9)), Said::Pong(1_000_000_007, 9)),
        golden("goaway", written(false, |out| out.goaway(&goaway)), Said::Goaway(goaway)),
    ]
}

fn request_frames() -> Vec<Golden> {
    let request = |head: &RequestHead, payload: &'static [u8]| {
        let head = encoded(head);
        written(false, |out| out.request(STREAM, head, payload.into()).unwrap())
    };
    let golden = |name, bytes, said| Golden { name, bytes, said: vec![said] };
    vec![
        golden(
            "request",
            request(&unary_head(), NAME_WORLD),
            Said::Request(unary_head(), NAME_WORLD.to_vec()),
        ),
        golden("request_full", request(&full_head(), b""), Said::Request(full_head(), Vec::new())),
        golden("request_fragments", request_fragments(), Said::Request(unary_head(), NAME_WORLD.to_vec())),
        golden("stop", written(false, |out| out.stop(STREAM)), Said::Stop),
        golden(
            "kill",
            written(false, |out| assert!(out.kill(STREAM, KillReason::SlowConsumer))),
            Said::Kill(KillReason::SlowConsumer),
        ),
    ]
}

fn answer_frames() -> Vec<Golden> {
    let reject =
        Reject { reason: RejectReason::Overloaded, retry_after_ms: 250, detail: "64 running".into() };
    let golden = |name, bytes, said| Golden { name, bytes, said: vec![said] };
    let end = |stopped| on_stream(4096, |out| out.finish(STREAM, Finish::End { stopped }));
    let items = [
        (Encoding::Msgpack as u8, WORD_HELLO.to_vec()),
        (Encoding::Raw as u8, Vec::new()),
        (Encoding::Ndarray as u8, ndarray()),
        (Encoding::Raw as u8, vec![0x55; 130]),
    ];
    let push = |out: &mut Outbound, count: usize| {
        items.iter().take(count).for_each(|(encoding, payload)| {
            out.item(STREAM, *encoding, payload).unwrap();
        });
    };
    vec![
        golden("accept", written(false, |out| out.accept(STREAM, 262_144, 4096)), Said::Accept(262_144)),
        golden("reject", written(false, |out| out.reject(STREAM, &reject)), Said::Reject(reject)),
        golden("prologue", on_stream(4096, |out| out.prologue(STREAM, None)), Said::Prologue(None)),
        golden(
            "prologue_fault",
            on_stream(4096, |out| out.prologue(STREAM, Some(&fault()))),
            Said::Prologue(Some(fault())),
        ),
        golden("data", on_stream(4096, |out| push(out, 1)), Said::Items(items[..1].to_vec())),
        golden("data_joined", on_stream(4096, |out| push(out, 4)), Said::Items(items.to_vec())),
        golden(
            "data_fragments",
            data_fragments(),
            Said::Items(vec![(Encoding::Raw as u8, b"an item of thirty bytes, or so".to_vec())]),
        ),
        golden("end", end(false), Said::End { count: 0, stopped: false }),
        golden("end_stopped", end(true), Said::End { count: 0, stopped: true }),
        golden(
            "error",
            on_stream(4096, |out| out.finish(STREAM, Finish::Error(fault()))),
            Said::Error(0, fault()),
        ),
    ]
}

/// The worked example of `docs/protocol.md`: one unary call, as each side writes it.
fn unary_call() -> Vec<Golden> {
    let request = written(false, |out| {
        out.request(1, encoded(&unary_head()), NAME_WORLD.into()).unwrap();
    });
    let response = written(false, |out| {
        out.accept(1, 262_144, 262_144);
        out.prologue(1, None);
        out.item(1, Encoding::Msgpack as u8, WORD_HELLO).unwrap();
        out.finish(1, Finish::End { stopped: false });
    });
    let said = vec![
        Said::Accept(262_144),
        Said::Prologue(None),
        Said::Items(vec![(Encoding::Msgpack as u8, WORD_HELLO.to_vec())]),
        Said::End { count: 1, stopped: false },
    ];
    vec![
        Golden {
            name: "unary_request",
            bytes: request,
            said: vec![Said::Request(unary_head(), NAME_WORLD.to_vec())],
        },
        Golden { name: "unary_response", bytes: response, said },
    ]
}

fn goldens() -> Vec<Golden> {
    let ignorable = [&[5, 0, 0, 0, 200, IGNORABLE, 0, 0, 0, 0, 0, 0][..], b"later"].concat();
    let mut all = link_frames();
    all.extend(request_frames());
    all.extend(answer_frames());
    all.push(Golden { name: "ignorable", bytes: ignorable, said: Vec::new() });
    all.extend(unary_call());
    all
}

/// Reads golden bytes as a peer would.
fn read(bytes: &[u8]) -> Vec<Said> {
    let mut decoder = Decoder::new();
    let mut input = bytes;
    if !bytes.starts_with(&PREFACE) {
        decoder.allow_full_frames();
        decoder.next(&mut &PREFACE[..]).unwrap();
    }
    let mut request = None;
    let mut inbound = Inbound::request_stream(4096, MESSAGE_MAX);
    let mut said = Vec::new();
    while let Some(frame) = decoder.next(&mut input).unwrap() {
        said.extend(match frame.kind {
            Kind::Request => read_request(frame, &mut request),
            Kind::Data => read_data(frame, &mut inbound),
            _ => Some(read_control(frame)),
        });
    }
    assert!(input.is_empty());
    said
}

fn read_request(frame: Frame<'_>, partial: &mut Option<Assembly>) -> Option<Said> {
    if frame.flags & FRAGMENT == 0 {
        let (head, payload) = RequestHead::decode(frame.body).unwrap();
        return Some(Said::Request(head, payload.to_vec()));
    }
    match partial {
        None => *partial = Some(Assembly::request(frame.body, MESSAGE_MAX).unwrap()),
        Some(assembly) => assembly.push(frame.body).unwrap(),
    }
    if frame.flags & LAST == 0 {
        return None;
    }
    let message = partial.take()?.finish().unwrap();
    let (head, payload) = RequestHead::decode(&message).unwrap();
    Some(Said::Request(head, payload.to_vec()))
}

fn read_data(frame: Frame<'_>, inbound: &mut Inbound) -> Option<Said> {
    match inbound.data(frame.flags, frame.body).unwrap() {
        Arrived::Fragment => None,
        Arrived::Whole { encoding, payload, .. } => Some(Said::Items(vec![(encoding, payload)])),
        Arrived::Items { .. } => {
            let (mut items, mut rest) = (Vec::new(), frame.body);
            while let Some((item, used)) = split_item(rest).unwrap() {
                items.push((item.encoding, item.payload.to_vec()));
                rest = &rest[used..];
            }
            Some(Said::Items(items))
        }
    }
}

fn read_control(frame: Frame<'_>) -> Said {
    let Frame { kind, flags, stream, body } = frame;
    match kind {
        Kind::Hello => Said::Hello(Hello::decode(body).unwrap()),
        Kind::Status => Said::Status(Status::decode(body).unwrap()),
        Kind::Accept => Said::Accept(decode_accept(body).unwrap()),
        Kind::Reject => Said::Reject(Reject::decode(body).unwrap()),
        Kind::Prologue => Said::Prologue(decode_prologue(body).unwrap()),
        Kind::End => Said::End { count: decode_end(body).unwrap(), stopped: flags & STOPPED != 0 },
        Kind::Error => {
            let (count, fault) = decode_error(body).unwrap();
            Said::Error(count, fault)
        }
        Kind::Stop => Said::Stop,
        Kind::Kill => Said::Kill(decode_kill(body).unwrap()),
        Kind::Credit => Said::Credit { stream, bytes: decode_credit(body).unwrap() },
        Kind::Ping => Said::Ping(decode_ping(body).unwrap()),
        Kind::Pong => {
            let (echo, stamp) = decode_pong(body).unwrap();
            Said::Pong(echo, stamp)
        }
        Kind::Goaway => Said::Goaway(Goaway::decode(body).unwrap()),
        Kind::Request | Kind::Data => panic!("read elsewhere"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    assert_eq!(text.len() % 2, 0);
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn lines() -> Vec<(&'static str, Vec<u8>)> {
    V1.lines().map(|line| line.split_once(' ').unwrap()).map(|(name, text)| (name, unhex(text))).collect()
}

#[test]
fn this_version_writes_exactly_the_golden_bytes() {
    let expected = goldens();
    for golden in &expected {
        let line = lines().into_iter().find(|line| line.0 == golden.name);
        assert_eq!(line.map(|line| hex(&line.1)), Some(hex(&golden.bytes)), "{}", golden.name);
    }
    assert_eq!(lines().len(), expected.len());
}

#[test]
fn this_version_reads_the_golden_bytes() {
    for (name, bytes) in lines() {
        let golden = goldens().into_iter().find(|golden| golden.name == name).unwrap();
        assert_eq!(read(&bytes), golden.said, "{name}");
    }
}

#[test]
fn every_kind_and_flag_has_a_golden_frame() {
    let mut seen = [0_u8; 256];
    for (_, bytes) in lines() {
        let mut rest = bytes.strip_prefix(&PREFACE).unwrap_or(&bytes);
        while let Some(header) = rest.first_chunk() {
            let header = Header::decode(*header);
            seen[usize::from(header.kind)] |= header.flags | 0x40;
            rest = &rest[12 + header.length..];
        }
    }
    let missing: Vec<_> =
        (0..=u8::MAX).filter_map(Kind::from_u8).filter(|&kind| seen[kind as usize] == 0).collect();
    assert_eq!(missing, []);
    assert_eq!(seen[Kind::Data as usize] & (FRAGMENT | LAST), FRAGMENT | LAST);
    assert_eq!(seen[Kind::Request as usize] & (FRAGMENT | LAST), FRAGMENT | LAST);
    assert_eq!((seen[Kind::End as usize] & STOPPED, seen[200] & IGNORABLE), (STOPPED, IGNORABLE));
}

#[test]
fn the_worked_example_in_the_documentation_is_these_bytes() {
    for name in ["hello_router", "hello_worker", "unary_request", "unary_response"] {
        let marker = format!("```text {name}\n");
        let (_, block) = PROTOCOL.split_once(&marker).unwrap();
        let (block, _) = block.split_once("```").unwrap();
        let digits = block.lines().filter_map(|line| line.split('#').next()).flat_map(str::split_whitespace);
        let text: String = digits.collect();
        let golden = lines().into_iter().find(|line| line.0 == name).unwrap();
        assert_eq!(text, hex(&golden.1), "{name}");
    }
}
