//! The socket calls, all non-blocking.

use std::io;
use std::os::fd::RawFd;

use bytes::BytesMut;

pub(crate) const READ_CHUNK: usize = 64 * 1024;
/// Below this much room the read buffer gets a fresh chunk; above it, a read uses what is left,
/// so that small reads do not allocate 64 KiB each.
pub(crate) const READ_MIN: usize = 8 * 1024;

pub(crate) fn check(n: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

pub(crate) fn send_some(fd: RawFd, data: &[u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the pointer and the length describe a live slice.
        let n = check(unsafe {
            libc::send(
                fd,
                data.as_ptr().cast(),
                data.len(),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        });
        match n {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => return other,
        }
    }
}

/// One read into the buffer's free room. The flag says whether the room was filled, so that more
/// may wait; after a short read the socket is known to be empty without asking again.
pub(crate) fn recv_some(fd: RawFd, buf: &mut BytesMut) -> io::Result<(usize, bool)> {
    if buf.capacity() - buf.len() < READ_MIN {
        buf.reserve(READ_CHUNK);
    }
    let room = buf.spare_capacity_mut();
    let size = room.len();
    loop {
        // SAFETY: `room` is writable memory of `size` bytes that `buf` owns.
        let n = check(unsafe { libc::recv(fd, room.as_mut_ptr().cast(), size, libc::MSG_DONTWAIT) });
        match n {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
            Ok(n) => {
                // SAFETY: the kernel has just initialised `n` bytes of the spare room.
                unsafe { buf.set_len(buf.len() + n) };
                return Ok((n, n == size));
            }
        }
    }
}

/// Whether a read would return something: bytes, the end of the stream or an error. The last two
/// matter. After a reset uvloop calls the reader once and then stops polling the socket, so a
/// callback that took the last bytes in that call never hears of the reset.
pub(crate) fn read_is_due(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live structure.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}
