//! The descriptor that makes an event loop call back: an eventfd on Linux, a pipe elsewhere. Writing to it
//! needs no interpreter.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::{read, write};

/// A descriptor that becomes readable when woken.
#[derive(Debug)]
pub(super) struct Wake {
    readable: OwnedFd,
    /// The pipe's other end; an eventfd has none.
    writable: Option<OwnedFd>,
}

impl Wake {
    #[cfg(target_os = "linux")]
    pub(super) fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let readable = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { readable, writable: None })
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn new() -> io::Result<Self> {
        use rustix::fs::{OFlags, fcntl_setfl};
        use rustix::io::{FdFlags, fcntl_setfd};
        let (readable, writable) = rustix::pipe::pipe()?;
        for end in [&readable, &writable] {
            fcntl_setfd(end, FdFlags::CLOEXEC)?;
            fcntl_setfl(end, OFlags::NONBLOCK)?;
        }
        Ok(Self { readable, writable: Some(writable) })
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.readable.as_raw_fd()
    }

    /// Makes it readable. A full counter or pipe is readable already, so failing is as good.
    pub(super) fn wake(&self) {
        let end = self.writable.as_ref().unwrap_or(&self.readable);
        while write(end, &1_u64.to_ne_bytes()) == Err(rustix::io::Errno::INTR) {}
    }

    /// Makes it unreadable again.
    pub(super) fn clear(&self) {
        let mut counter = [0; 64];
        // One read empties an eventfd; a pipe is read until it is empty.
        while matches!(read(&self.readable, &mut counter), Ok(count) if count == counter.len()) {}
    }
}
