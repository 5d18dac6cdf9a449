//! The non-blocking socket under a link, usable from any thread.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

use tokio::io::Interest;

/// A connected stream socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&mut &*stream).read(into),
            Self::Unix(stream) => (&mut &*stream).read(into),
        }
    }

    pub(crate) fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self, slices) {
            // One slice is the usual case and `write` is the cheaper call.
            (Self::Tcp(stream), [one]) => (&mut &*stream).write(one),
            (Self::Unix(stream), [one]) => (&mut &*stream).write(one),
            (Self::Tcp(stream), many) => (&mut &*stream).write_vectored(many),
            (Self::Unix(stream), many) => (&mut &*stream).write_vectored(many),
        }
    }

    /// A second descriptor of the same socket, registered with tokio, to wait for readiness with.
    pub(crate) fn watch(&self) -> io::Result<Watch> {
        Ok(match self {
            Self::Tcp(stream) => Watch::Tcp(tokio::net::TcpStream::from_std(stream.try_clone()?)?),
            Self::Unix(stream) => Watch::Unix(tokio::net::UnixStream::from_std(stream.try_clone()?)?),
        })
    }

    /// Ends both directions; whoever waits for the socket is woken. The descriptor stays open until the
    /// last owner drops it, so that it cannot be reused while a loop still watches it.
    pub(crate) fn shut_down(&self) {
        // It fails only when the peer has gone already, which is what this wants.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// Waits for a socket on tokio. As long as one exists, tokio is woken by every arrival, so whoever reads on
/// another thread keeps one only while it needs it.
#[derive(Debug)]
pub(crate) enum Watch {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Watch {
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    /// Runs `work` and, when it finds the socket not ready (it says so by returning false), forgets the
    /// readiness that was known before `work` began: an event that comes meanwhile still counts.
    pub(crate) fn attempt(&self, interest: Interest, work: impl FnOnce() -> bool) {
        let work = || if work() { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) };
        // The result only carries that answer.
        let _ = match self {
            Self::Tcp(stream) => stream.try_io(interest, work),
            Self::Unix(stream) => stream.try_io(interest, work),
        };
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
