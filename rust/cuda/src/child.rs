//! A forked child, for tests of what is refused there.

#![allow(unsafe_code, reason = "a process is forked and waited for by calls of C")]

use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes that does not hang.
const GUARD: Duration = Duration::from_secs(20);
const NO_HANG: i32 = 1;
const KILL: i32 = 9;

unsafe extern "C" {
    safe fn fork() -> i32;
    safe fn _exit(status: i32) -> !;
    safe fn kill(process: i32, signal: i32) -> i32;
    fn waitpid(process: i32, status: *mut i32, options: i32) -> i32;
}

/// What the function gives in a child, from 0 to 127. A child that hangs is killed, and gives the signal's number
/// below zero. Nothing that it does is seen here.
pub(crate) fn in_child(work: impl FnOnce() -> i32) -> i32 {
    let child = fork();
    if child == 0 {
        _exit(work());
    }
    let (begun, mut status) = (Instant::now(), 0);
    // SAFETY: the pointer is valid during the call.
    while unsafe { waitpid(child, &raw mut status, NO_HANG) } == 0 {
        if begun.elapsed() > GUARD {
            kill(child, KILL);
        }
        thread::sleep(Duration::from_millis(1));
    }
    let signal = status & 0x7f;
    if signal == 0 { status >> 8 } else { -signal }
}
