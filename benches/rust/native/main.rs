//! The physical limit: what two processes reach that move the same bytes with blocking sockets, one thread
//! each, and do nothing else. No streams, no flow control, no errors, no Python.
//!
//! `native server ARM CPU` and `native client JOB` take the arguments of `benches/python/server.py` and
//! `client.py`, print the same lines, and are the arms `native` (one write for each message) and
//! `native-gathered` (one for all that are ready, 64 at most).

mod client;
mod frame;
mod server;
mod usage;

use std::error::Error;
use std::io::{Write, stdout};

use serde_json::Value;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Messages that share a write in the arm `native-gathered`.
const GATHERED: usize = 64;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["server", arm, cpu] => server::run(gather(arm)?, cpu.parse()?),
        ["client", job] => client::run(&serde_json::from_str(job)?),
        _ => Err("usage: native server ARM CPU | native client JOB".into()),
    }
}

/// How many messages share a write in this arm.
fn gather(arm: &str) -> Outcome<usize> {
    match arm {
        "native" => Ok(1),
        "native-gathered" => Ok(GATHERED),
        _ => Err(format!("{arm} is no arm of this program").into()),
    }
}

/// Prints one line for the runner.
fn tell(message: &Value) -> Outcome<()> {
    let mut out = stdout().lock();
    writeln!(out, "{message}")?;
    Ok(out.flush()?)
}
