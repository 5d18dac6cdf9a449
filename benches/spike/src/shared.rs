//! What the loop's thread and the tokio tasks of one link share.
//!
//! Nothing here touches Python. No lock is held over a wait; the order is `rx`, `inbox`, `out`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::frame::{Frame, KIND_CLOSED, KIND_PING, KIND_PONG, decode, encode};
use crate::socket::{recv_some, send_some};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arm {
    A,
    B,
    C,
}

/// When the loop's thread puts a frame on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Always at the end of the loop's turn, by `call_soon`.
    Soon,
    /// The first item at once, what follows within `BURST` by `call_soon`.
    Direct,
    /// As `Direct` while items come singly, as `Soon` while they come in bursts.
    Adaptive,
}

pub(crate) struct Out {
    pub(crate) buf: Vec<u8>,
    /// The tokio writer has bytes that are not yet on the socket. Whoever queues meanwhile only
    /// appends: a direct write would overtake them.
    pub(crate) tokio_owns: bool,
    pub(crate) flush_scheduled: bool,
    pub(crate) last_direct: Option<Instant>,
    /// Frames gathered since the last first one.
    pub(crate) gathered: usize,
    /// The last scheduled flush had more than one frame, so the next likely has too.
    pub(crate) bursty: bool,
}

#[derive(Default)]
pub(crate) struct Stats {
    pub(crate) loop_writes: AtomicU64,
    pub(crate) tokio_writes: AtomicU64,
    pub(crate) loop_reads: AtomicU64,
    pub(crate) tokio_reads: AtomicU64,
    pub(crate) writer_kicks: AtomicU64,
    pub(crate) loop_wakes: AtomicU64,
    pub(crate) flushes_scheduled: AtomicU64,
    pub(crate) guardian_ticks: AtomicU64,
    pub(crate) guardian_reads: AtomicU64,
}

pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

pub(crate) struct Shared {
    pub(crate) arm: Arm,
    pub(crate) policy: Flush,
    pub(crate) sock: Arc<OwnedFd>,
    pub(crate) wake_fd: OwnedFd,
    pub(crate) wake_pending: AtomicBool,
    pub(crate) out: Mutex<Out>,
    pub(crate) kick: Notify,
    /// Frames decoded and not yet taken by the loop.
    pub(crate) inbox: Mutex<Vec<Frame>>,
    /// Arm `c` only: the buffer of undecoded bytes. Its lock is the right to read the socket, and
    /// it is never held while Python code runs, or a blocked callback would lock the guardian out.
    pub(crate) rx: Mutex<BytesMut>,
    pub(crate) closed: AtomicBool,
    pub(crate) stats: Stats,
}

impl Shared {
    /// Puts what has gathered on its way, on the loop's thread.
    pub(crate) fn emit(&self, out: &mut Out) {
        if out.tokio_owns || out.buf.is_empty() {
            return;
        }
        if self.arm != Arm::A {
            bump(&self.stats.loop_writes);
            match send_some(self.sock.as_raw_fd(), &out.buf) {
                Ok(n) if n == out.buf.len() => {
                    out.buf.clear();
                    return;
                }
                Ok(n) => drop(out.buf.drain(..n)),
                // A full socket is tokio's to wait for; a broken one is its to notice.
                Err(_) => {}
            }
        }
        self.hand_to_tokio(out);
    }

    pub(crate) fn hand_to_tokio(&self, out: &mut Out) {
        if !out.tokio_owns {
            out.tokio_owns = true;
            bump(&self.stats.writer_kicks);
            self.kick.notify_one();
        }
    }

    pub(crate) fn wake_loop(&self) {
        if !self.wake_pending.swap(true, AcqRel) {
            bump(&self.stats.loop_wakes);
            let one: u64 = 1;
            // SAFETY: eight bytes from a live integer. A counter that is already set is enough.
            unsafe { libc::write(self.wake_fd.as_raw_fd(), (&raw const one).cast(), 8) };
        }
    }

    /// Sorts decoded frames: PING is answered here, whatever Python is doing; the rest waits for
    /// the loop. Returns whether anything was left for the loop.
    pub(crate) fn sort(&self, buf: &mut BytesMut, on_loop: bool) -> io::Result<bool> {
        let mut inbox = lock(&self.inbox);
        let result = decode(buf, |frame| {
            if frame.kind == KIND_PING {
                let mut out = lock(&self.out);
                encode(&mut out.buf, frame.stream, KIND_PONG, &frame.body);
                if on_loop {
                    self.emit(&mut out);
                } else {
                    self.hand_to_tokio(&mut out);
                }
            } else {
                inbox.push(frame);
            }
        });
        result.map(|()| !inbox.is_empty())
    }

    pub(crate) fn close(&self) {
        if !self.closed.swap(true, AcqRel) {
            lock(&self.inbox).push(Frame {
                stream: 0,
                kind: KIND_CLOSED,
                body: Bytes::new(),
            });
            self.wake_loop();
        }
    }

    /// Arm `c`: one read of whatever waits, by the loop or by the guardian.
    pub(crate) fn read_here(&self, rx: &mut BytesMut, on_loop: bool) -> bool {
        let counter = if on_loop {
            &self.stats.loop_reads
        } else {
            &self.stats.tokio_reads
        };
        loop {
            bump(counter);
            match recv_some(self.sock.as_raw_fd(), rx) {
                Ok((0, _)) => {
                    self.close();
                    return false;
                }
                Ok((_, more)) => match self.sort(rx, on_loop) {
                    Err(_) => {
                        self.close();
                        return false;
                    }
                    Ok(_) if more => continue,
                    Ok(pending) => return pending,
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {
                    self.close();
                    return false;
                }
            }
        }
    }
}

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}
