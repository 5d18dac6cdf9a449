//! The serving side: one thread that answers one connection after the other, and the main thread, which waits
//! for its standard input to close. The runner holds that input, so a server never outlives it.

use std::io::{Read, stdin};
use std::net::{TcpListener, TcpStream};
use std::thread;

use serde_json::json;

use super::frame::{ECHO, Reader, STREAM, USAGE, Writer};
use super::{Outcome, tell, usage};

/// An item of a stream: 64 bytes, as in `benches/python/engines.py`.
const ITEM: [u8; 64] = [7; 64];

/// Serves until told to stop.
pub(super) fn run(gather: usize, cpu: usize) -> Outcome<()> {
    usage::pin(cpu)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    tell(&json!({ "address": listener.local_addr()?.to_string(), "pid": std::process::id() }))?;
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            // What goes wrong with a connection is seen by the client, whose figures then fail.
            let _ = answer_all(socket, gather);
        }
    });
    stdin().read_to_end(&mut Vec::new())?;
    tell(&usage::read()?)
}

fn answer_all(mut socket: TcpStream, gather: usize) -> Outcome<()> {
    socket.set_nodelay(true)?;
    let mut reader = Reader::new();
    let mut out = Writer::new(gather);
    loop {
        while let Some((kind, body)) = reader.next() {
            match kind {
                ECHO => out.put(&mut socket, ECHO, body)?,
                STREAM => {
                    let count = body.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                    for _ in 0..count {
                        out.put(&mut socket, STREAM, &ITEM)?;
                    }
                }
                _ => out.put(&mut socket, USAGE, &usage::cpu_s().to_bits().to_le_bytes())?,
            }
        }
        out.flush(&mut socket)?;
        if !reader.fill(&mut socket)? {
            return Ok(());
        }
    }
}
