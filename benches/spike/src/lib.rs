//! A toy multiplexed link, written three ways, to measure who should own a link's socket.
//!
//! Frame: `u32 length | u32 stream id | u8 kind | payload`, little endian; the length counts
//! what follows it. The arms differ only in which thread makes the socket calls:
//!
//! * `a`: a tokio task writes and a tokio task reads.
//! * `b`: the event loop's thread writes with a non-blocking try; tokio reads, and finishes a
//!   write that hit a full socket buffer.
//! * `c`: as `b`, and the loop's thread reads too. A tokio task, the guardian, looks every few
//!   milliseconds whether bytes wait that the loop has not read, and reads in its place.
//!
//! In every arm PING is answered where it is decoded, and no tokio thread attaches to Python.

mod frame;
mod link;
mod shared;
mod socket;
mod tasks;

use std::io;
use std::os::fd::RawFd;

use pyo3::prelude::*;

/// A timerfd that fires every `ns` nanoseconds. Both event loops round their timers to whole
/// milliseconds, so a scenario that wants items 78 us apart cannot get them from `asyncio.sleep`.
#[pyfunction]
fn pacer_fd(ns: i64) -> PyResult<RawFd> {
    let step = libc::timespec {
        tv_sec: ns / 1_000_000_000,
        tv_nsec: ns % 1_000_000_000,
    };
    let spec = libc::itimerspec {
        it_interval: step,
        it_value: step,
    };
    // SAFETY: plain system calls on a local structure; results are checked.
    unsafe {
        let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC);
        if fd < 0 || libc::timerfd_settime(fd, 0, &spec, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(fd)
    }
}

#[pymodule]
fn headrace_spike(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<link::Link>()?;
    m.add_function(wrap_pyfunction!(pacer_fd, m)?)
}
