//! The bytes of a link: decoding them never panics, and does not depend on how they are cut.

#![no_main]

use headrace_wire::body::{
    Goaway, Hello, Reject, RequestHead, Status, decode_accept, decode_credit, decode_end, decode_error,
    decode_kill, decode_ping, decode_pong, decode_prologue,
};
use headrace_wire::decoder::Decoder;
use headrace_wire::error::DecodeError;
use headrace_wire::frame::{Frame, PREFACE, count_items, split_item};
use headrace_wire::kind::{FRAGMENT, Kind};
use headrace_wire::limits::MESSAGE_MAX;
use headrace_wire::stream::Assembly;
use libfuzzer_sys::fuzz_target;

type Seen = (u8, u8, u64, Vec<u8>);

fuzz_target!(|data: &[u8]| {
    let Some((cut, bytes)) = data.split_first() else { return };
    let bytes = [&PREFACE[..], bytes].concat();
    let whole = decode(&bytes, bytes.len());
    assert_eq!(decode(&bytes, usize::from(*cut) + 1), whole, "any cut gives the same frames");
});

fn decode(bytes: &[u8], piece: usize) -> (Vec<Seen>, Option<DecodeError>) {
    let mut decoder = Decoder::new();
    decoder.allow_full_frames();
    let mut seen = Vec::new();
    for mut input in bytes.chunks(piece) {
        loop {
            match decoder.next(&mut input) {
                Ok(Some(frame)) => {
                    seen.push((frame.kind as u8, frame.flags, frame.stream, frame.body.to_vec()));
                    read(frame);
                }
                Ok(None) => break,
                Err(error) => return (seen, Some(error)),
            }
        }
    }
    (seen, None)
}

fn read(frame: Frame<'_>) {
    let body = frame.body;
    let fragment = frame.flags & FRAGMENT != 0;
    let _read_or_refused = match frame.kind {
        Kind::Hello => Hello::decode(body).map(|hello| hello.encode(&mut Vec::new())),
        Kind::Status => Status::decode(body).map(|status| status.encode(&mut Vec::new())),
        Kind::Request if fragment => return drop(Assembly::request(body, MESSAGE_MAX)),
        Kind::Request => RequestHead::decode(body).map(|(head, _)| {
            head.encode(&mut Vec::new()).expect("what was decoded is within the limits");
        }),
        Kind::Accept => decode_accept(body).map(drop),
        Kind::Reject => Reject::decode(body).map(drop),
        Kind::Prologue => decode_prologue(body).map(drop),
        Kind::Data if fragment => return,
        Kind::Data => count_items(body).map(|count| split(body, count)),
        Kind::End => decode_end(body).map(drop),
        Kind::Error => decode_error(body).map(drop),
        Kind::Stop => return,
        Kind::Kill => decode_kill(body).map(drop),
        Kind::Credit => decode_credit(body).map(drop),
        Kind::Ping => decode_ping(body).map(drop),
        Kind::Pong => decode_pong(body).map(drop),
        Kind::Goaway => Goaway::decode(body).map(drop),
    };
}

fn split(body: &[u8], count: u64) {
    let mut rest = body;
    for _ in 0..count {
        let (_, used) = split_item(rest).expect("counted items can be split").expect("and are there");
        rest = &rest[used..];
    }
    assert!(rest.is_empty());
}
