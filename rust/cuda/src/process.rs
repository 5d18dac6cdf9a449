//! What the process is doing with us: whether it was forked after a device was opened, and whether it is
//! ending. In both cases nothing may reach the driver any more: handles are leaked and threads stop.

use std::cell::Cell;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use crate::error::CudaError;

static ENDING: AtomicBool = AtomicBool::new(false);
/// The process that loaded the driver, 0 before.
static LOADED_BY: AtomicU32 = AtomicU32::new(0);

/// Tells every pool that the process ends: its threads stop, and what is dropped from now on is leaked, for
/// the driver may be gone before it. Call it where the process begins to exit.
pub fn end_process() {
    ENDING.store(true, Ordering::Release);
}

pub(crate) fn is_ending() -> bool {
    ENDING.load(Ordering::Acquire)
}

/// Remembers who loaded the driver, and says whether that was another process than this one.
pub(crate) fn is_forked_child() -> bool {
    let this = process::id();
    match LOADED_BY.compare_exchange(0, this, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => false,
        Err(loader) => loader != this,
    }
}

thread_local! {
    static IS_OWN: Cell<bool> = const { Cell::new(false) };
}

#[cfg(test)]
thread_local! {
    static REFUSED: Cell<u32> = const { Cell::new(0) };
}

/// The next so many threads that this one starts are refused, as by a system that has no more of them.
#[cfg(test)]
pub(crate) fn refuse_threads(count: u32) {
    REFUSED.set(count);
}

/// Starts a thread of this crate, which a driver's context may stay bound to.
pub(crate) fn spawn(run: impl FnOnce() + Send + 'static) -> Result<(), CudaError> {
    #[cfg(test)]
    if let Some(left) = REFUSED.get().checked_sub(1) {
        REFUSED.set(left);
        return Err(CudaError::Thread);
    }
    let run = move || {
        IS_OWN.set(true);
        run();
    };
    let thread = thread::Builder::new().name("headrace-cuda".to_owned()).spawn(run);
    thread.map(drop).map_err(|_| CudaError::Thread)
}

/// Whether this thread is one of this crate.
pub(crate) fn is_own_thread() -> bool {
    IS_OWN.get()
}
