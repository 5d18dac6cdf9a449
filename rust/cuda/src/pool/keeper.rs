//! The thread of a pool that knows the time: it refuses those in line whose time is over, and asks the driver
//! now and then whether the device is lost, which a waiter would otherwise learn only from who has the
//! streams. It tries again to start threads that could not be started. It runs while somebody waits for a stream
//! or for the pool's end, and a little longer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::shared::{Later, Shared, State};
use crate::error::CudaError;
use crate::process::{is_ending, spawn};

/// Between two looks at the device's health while somebody waits: within a second a lost device is known.
const HEALTH: Duration = Duration::from_millis(250);
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Starts the thread if it does not run.
pub(super) fn ensure(shared: &Arc<Shared>, state: &mut State) -> Result<(), CudaError> {
    if !state.has_keeper {
        let keeper = Arc::clone(shared);
        spawn(move || run(&keeper))?;
        state.has_keeper = true;
    }
    Ok(())
}

fn run(shared: &Shared) {
    let mut looked = Instant::now();
    let mut state = shared.state.lock();
    while !is_ending() {
        if !state.is_waited_for() {
            let ends =
                state.queue.is_closed() || shared.keeper_wake.wait_for(&mut state, IDLE_MAX).timed_out();
            if ends && !state.is_waited_for() {
                break;
            }
            continue;
        }
        let later = expire(shared, &mut state);
        if let Some(later) = later {
            MutexGuard::unlocked(&mut state, || later.run());
        } else if looked.elapsed() >= HEALTH {
            // An error that stays is remembered where it is met, and tells everybody in line.
            let _ = MutexGuard::unlocked(&mut state, || {
                // A stream may drain that no thread could be started for.
                shared.runtime.reactor.retry();
                shared.look_at_health()
            });
            looked = Instant::now();
        } else {
            let deadline = state
                .queue
                .next_deadline_us()
                .map_or(HEALTH, |deadline| Duration::from_micros(deadline.saturating_sub(shared.now_us())));
            shared.keeper_wake.wait_for(&mut state, deadline.min(HEALTH.saturating_sub(looked.elapsed())));
        }
    }
    state.has_keeper = false;
}

fn expire(shared: &Shared, state: &mut State) -> Option<Later> {
    let over = state.queue.expire(shared.now_us());
    if over.is_empty() {
        return None;
    }
    let mut later = Later::default();
    for ticket in over {
        if let Some((waiter, since)) = state.waiters.remove(&ticket) {
            state.timeouts += 1;
            later.answer(&waiter, Err(CudaError::LeaseTimeout { waited: since.elapsed() }));
        }
    }
    Some(later)
}
