//! Messages on the socket: `length u32 | kind u32 | body`, little-endian. The reader keeps one buffer, which
//! grows to the largest message and is used again, so that nothing is allocated for a message.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;

/// Answer with the same body.
pub(super) const ECHO: u32 = 0;
/// Answer with as many items as the body's `u32` says.
pub(super) const STREAM: u32 = 1;
/// Answer with the CPU seconds used so far, as the bits of an `f64`.
pub(super) const USAGE: u32 = 2;

const HEADER_BYTES: usize = 8;
/// What one read takes at most, unless a larger message is expected: as the other arms.
const READ_BYTES: usize = 256 * 1024;
/// A body of this size is written from where it lies; joining would copy it.
const UNJOINED_BYTES: usize = 64 * 1024;

/// Splits a socket's bytes into messages.
#[derive(Debug)]
pub(super) struct Reader {
    buffer: Vec<u8>,
    /// Where the bytes begin that have not been taken, and where they end.
    begin: usize,
    end: usize,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; READ_BYTES], begin: 0, end: 0 }
    }

    /// Takes the next message that has arrived whole: its kind and its body.
    pub(super) fn next(&mut self) -> Option<(u32, &[u8])> {
        let (length, kind) = self.header()?;
        let body = self.begin + HEADER_BYTES;
        if self.end - body < length {
            return None;
        }
        self.begin = body + length;
        Some((kind, self.buffer.get(body..body + length)?))
    }

    /// Waits for more bytes, and reads what there is. False when the peer has closed.
    pub(super) fn fill(&mut self, socket: &mut TcpStream) -> io::Result<bool> {
        self.buffer.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        let needed = self.header().map_or(0, |(length, _)| HEADER_BYTES + length);
        if needed > self.buffer.len() {
            self.buffer.resize(needed, 0);
        }
        loop {
            match socket.read(self.buffer.get_mut(self.end..).unwrap_or_default()) {
                Ok(read) => {
                    self.end += read;
                    return Ok(read > 0);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Length and kind of the next message, if its header has arrived.
    fn header(&self) -> Option<(usize, u32)> {
        let header = self.buffer.get(self.begin..self.end)?.first_chunk::<HEADER_BYTES>()?;
        let [l0, l1, l2, l3, k0, k1, k2, k3] = *header;
        Some((u32::from_le_bytes([l0, l1, l2, l3]) as usize, u32::from_le_bytes([k0, k1, k2, k3])))
    }
}

/// Gathers messages into writes.
#[derive(Debug)]
pub(super) struct Writer {
    gather: usize,
    waiting: usize,
    bytes: Vec<u8>,
}

impl Writer {
    /// Lets so many messages share a write.
    pub(super) const fn new(gather: usize) -> Self {
        Self { gather, waiting: 0, bytes: Vec::new() }
    }

    /// Sends a message, or keeps it until as many wait as share a write.
    pub(super) fn put(&mut self, socket: &mut TcpStream, kind: u32, body: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&kind.to_le_bytes());
        if body.len() >= UNJOINED_BYTES {
            return self.write_with(socket, body);
        }
        self.bytes.extend_from_slice(body);
        self.waiting += 1;
        if self.waiting >= self.gather { self.flush(socket) } else { Ok(()) }
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self, socket: &mut TcpStream) -> io::Result<()> {
        socket.write_all(&self.bytes)?;
        self.bytes.clear();
        self.waiting = 0;
        Ok(())
    }

    /// Sends what waits and a body behind it, in one system call if the socket takes all of it.
    fn write_with(&mut self, socket: &mut TcpStream, body: &[u8]) -> io::Result<()> {
        let written = socket.write_vectored(&[IoSlice::new(&self.bytes), IoSlice::new(body)])?;
        if let Some(rest) = self.bytes.get(written..) {
            socket.write_all(rest)?;
        }
        socket.write_all(body.get(written.saturating_sub(self.bytes.len())..).unwrap_or_default())?;
        self.bytes.clear();
        self.waiting = 0;
        Ok(())
    }
}
