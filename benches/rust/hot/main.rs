//! The hot loops of the Rust crates, to be counted: `hot CASE COUNT`. `benches/guard` runs this under callgrind
//! with two counts and takes the difference, so that what is done once costs nothing.
//!
//! Everything runs on one thread: no scheduler decides who comes next.

mod link;
mod wire;

use std::error::Error;

/// A token with a little framing around it, as msgpack has it.
const TOKEN: &[u8] = b"\x81\xa5token\xa6 world";

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(case), Some(count)) = (arguments.next(), arguments.next()) else {
        return Err("usage: hot CASE COUNT".into());
    };
    let count = count.parse()?;
    match case.as_str() {
        "wire-encode" => wire::encode(count),
        "wire-decode" => wire::decode(count, 1),
        "wire-decode-bursts" => wire::decode(count, wire::BURST_ITEMS),
        "wire-calls" => wire::calls(count),
        "link-stream" => link::run(link::Load::Stream, count),
        "link-calls" => link::run(link::Load::Calls, count),
        _ => Err(format!("there is no case {case}").into()),
    }
}
