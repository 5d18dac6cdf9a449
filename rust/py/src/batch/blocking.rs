//! Waiting for an item's answer on a thread of one's own, and the threads that wait below a native frame.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;

use super::reply::{Ended, Thing};
use crate::runtime::check_process;

/// How often a waiting thread looks for signals: only Python's main thread finds any.
const SIGNALS_TICK: Duration = Duration::from_millis(50);

/// Threads that wait without the interpreter and will want it back.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Held by a thread that will want the interpreter: its exit waits for that. In one order with the mark that it
/// exits, so that whoever enters and does not find that mark is waited for.
pub(crate) struct Inside(());

impl Inside {
    pub(crate) fn enter() -> Self {
        WAITING.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits without the interpreter.
pub(crate) fn detached<T: Send>(py: Python<'_>, wait: impl FnOnce() -> T + Send) -> T {
    let _inside = Inside::enter();
    py.detach(wait)
}

/// The interpreter exits, and everything that is waited for here has been closed: waits until the threads have
/// left. CPython would end them by unwinding, which native frames do not survive.
pub(crate) fn wait_until_left(py: Python<'_>, most: Duration) {
    let until = Instant::now() + most;
    py.detach(|| {
        while WAITING.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// One item's answer, for a thread.
#[derive(Debug, Default)]
pub(crate) struct Blocked {
    answer: Mutex<Option<(Ended, Option<Thing>)>>,
    answered: Condvar,
}

impl Blocked {
    pub(super) fn settle(&self, ended: Ended, item: Option<Thing>) {
        *self.answer.lock() = Some((ended, item));
        self.answered.notify_all();
    }

    /// Waits for the answer, with the interpreter detached.
    ///
    /// # Errors
    /// A signal's handler raised, or the interpreter exits.
    pub(super) fn wait(&self, py: Python<'_>) -> PyResult<Ended> {
        loop {
            let answer = detached(py, || {
                let mut answer = self.answer.lock();
                if answer.is_none() {
                    self.answered.wait_for(&mut answer, SIGNALS_TICK);
                }
                answer.take()
            });
            if let Some((ended, item)) = answer {
                drop(item);
                return Ok(ended);
            }
            py.check_signals()?;
            // Whoever still waited then would be ended inside this frame.
            check_process(py)?;
        }
    }
}
