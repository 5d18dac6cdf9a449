//! The loading side: the loads of `load_unary.py` and `one_stream` of `load_streams.py`, with their figures.

use std::net::TcpStream;
use std::time::Instant;

use serde_json::{Value, json};

use super::frame::{ECHO, Reader, STREAM, USAGE, Writer};
use super::{Outcome, gather, tell, usage};

const SMALL_BYTES: usize = 64;
const LARGE_BYTES: usize = 1024 * 1024;

/// Runs the job's scenario, and prints its figures.
pub(super) fn run(job: &Value) -> Outcome<()> {
    usage::pin(number(job, "/cpu")?)?;
    let arm = job.pointer("/arm").and_then(Value::as_str).ok_or("the job names no arm")?;
    let address = job.pointer("/servers/0/address").and_then(Value::as_str).ok_or("the job has no server")?;
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let mut client = Client { socket, reader: Reader::new(), writer: Writer::new(gather(arm)?) };
    let mut figures = match job.pointer("/scenario").and_then(Value::as_str) {
        Some("S1" | "S1-shared") => client.one_in_flight(job)?,
        Some("S2") => client.many_in_flight(job)?,
        Some("S3-bytes") => client.one_stream(job)?,
        Some("S6") => client.large_echo(job)?,
        other => return Err(format!("{other:?} is no scenario of this program").into()),
    };
    if let (Some(figures), Some(kib)) = (figures.as_object_mut(), usage::read()?["peak_rss_kib"].as_f64()) {
        figures.insert("client_peak_rss_mib".to_owned(), json!(kib / 1024.0));
    }
    tell(&figures)
}

fn number(job: &Value, pointer: &str) -> Outcome<usize> {
    let number = job.pointer(pointer).and_then(Value::as_u64);
    Ok(usize::try_from(number.ok_or_else(|| format!("the job has no {pointer}"))?)?)
}

/// CPU seconds so far, of this side and of the other.
#[derive(Clone, Copy, Debug)]
struct Used(f64, f64);

/// One connection.
#[derive(Debug)]
struct Client {
    socket: TcpStream,
    reader: Reader,
    writer: Writer,
}

impl Client {
    /// Calls again and again with 64 bytes, and times every call.
    fn one_in_flight(&mut self, job: &Value) -> Outcome<Value> {
        let body = [7; SMALL_BYTES];
        for _ in 0..number(job, "/params/warm_up")? {
            self.echo(&body)?;
        }
        let before = self.used()?;
        let mut took_us = Vec::new();
        for _ in 0..number(job, "/params/calls")? {
            let start = Instant::now();
            self.echo(&body)?;
            took_us.push(start.elapsed().as_nanos() as f64 / 1e3);
        }
        took_us.sort_by(f64::total_cmp);
        let p50 = percentile(&took_us, 50);
        self.figures(before, json!({ "p50_us": p50, "p99_us": percentile(&took_us, 99) }))
    }

    /// Keeps a number of calls in flight, and counts what gets done.
    fn many_in_flight(&mut self, job: &Value) -> Outcome<Value> {
        let in_flight = number(job, "/params/in_flight")?;
        self.echo_many(in_flight, in_flight * number(job, "/params/warm_up")?)?;
        let calls = in_flight * number(job, "/params/calls_each")?;
        let before = self.used()?;
        let start = Instant::now();
        self.echo_many(in_flight, calls)?;
        let took_s = start.elapsed().as_secs_f64();
        self.figures(before, json!({ "requests_per_s": calls as f64 / took_s }))
    }

    /// Reads one stream to its end, several times.
    fn one_stream(&mut self, job: &Value) -> Outcome<Value> {
        let items = number(job, "/params/items")?;
        self.read_stream(items)?;
        let before = self.used()?;
        let mut rates = Vec::new();
        for _ in 0..number(job, "/params/streams")? {
            let start = Instant::now();
            self.read_stream(items)?;
            rates.push(items as f64 / start.elapsed().as_secs_f64());
        }
        rates.sort_by(f64::total_cmp);
        self.figures(before, json!({ "items_per_s": median(&rates) }))
    }

    /// Echoes 1 MiB again and again; an echo counts its payload once.
    fn large_echo(&mut self, job: &Value) -> Outcome<Value> {
        let body = vec![7; LARGE_BYTES];
        for _ in 0..number(job, "/params/warm_up")? {
            self.echo(&body)?;
        }
        let calls = number(job, "/params/calls")?;
        let before = self.used()?;
        let start = Instant::now();
        for _ in 0..calls {
            self.echo(&body)?;
        }
        let took_s = start.elapsed().as_secs_f64();
        self.figures(before, json!({ "mb_per_s": (calls * LARGE_BYTES) as f64 / 1e6 / took_s }))
    }

    fn echo(&mut self, body: &[u8]) -> Outcome<()> {
        self.send(ECHO, body)?;
        self.receive(body.len())
    }

    /// Sends `calls` requests, so many ahead of their answers, and reads every answer.
    fn echo_many(&mut self, in_flight: usize, calls: usize) -> Outcome<()> {
        let body = [7; SMALL_BYTES];
        let (mut sent, mut answered) = (0, 0);
        while answered < calls {
            while sent < calls && sent - answered < in_flight {
                self.writer.put(&mut self.socket, ECHO, &body)?;
                sent += 1;
            }
            self.writer.flush(&mut self.socket)?;
            self.receive(SMALL_BYTES)?;
            answered += 1;
            // All that the same read brought, before anything is sent for it.
            while let Some((_, answer)) = self.reader.next() {
                check(answer.len(), SMALL_BYTES)?;
                answered += 1;
            }
        }
        Ok(())
    }

    fn read_stream(&mut self, items: usize) -> Outcome<()> {
        self.send(STREAM, &u32::try_from(items)?.to_le_bytes())?;
        (0..items).try_for_each(|_| self.receive(SMALL_BYTES))
    }

    fn used(&mut self) -> Outcome<Used> {
        self.send(USAGE, &[])?;
        let theirs_s = loop {
            if let Some((_, body)) = self.reader.next() {
                let bits = body.first_chunk().ok_or("the server's usage is not a number")?;
                break f64::from_bits(u64::from_le_bytes(*bits));
            }
            self.fill()?;
        };
        Ok(Used(usage::cpu_s(), theirs_s))
    }

    /// Adds to a load's figures what both sides used since `before`.
    fn figures(&mut self, before: Used, mut figures: Value) -> Outcome<Value> {
        let after = self.used()?;
        if let Some(figures) = figures.as_object_mut() {
            figures.insert("client_cpu_s".to_owned(), json!(after.0 - before.0));
            figures.insert("server_cpu_s".to_owned(), json!(after.1 - before.1));
        }
        Ok(figures)
    }

    fn send(&mut self, kind: u32, body: &[u8]) -> Outcome<()> {
        self.writer.put(&mut self.socket, kind, body)?;
        Ok(self.writer.flush(&mut self.socket)?)
    }

    /// Waits for a message of this size.
    fn receive(&mut self, size: usize) -> Outcome<()> {
        loop {
            if let Some((_, body)) = self.reader.next() {
                return check(body.len(), size);
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Outcome<()> {
        if self.reader.fill(&mut self.socket)? { Ok(()) } else { Err("the server has closed".into()) }
    }
}

fn check(found: usize, expected: usize) -> Outcome<()> {
    if found == expected { Ok(()) } else { Err(format!("{found} bytes came, not {expected}").into()) }
}

/// The smallest of the sorted values that `percent` of them do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

/// The middle of the sorted values, or the mean of the two in the middle.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get(sorted.len().saturating_sub(1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}
