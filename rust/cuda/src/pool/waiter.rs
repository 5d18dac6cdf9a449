//! One who waits for a stream: what it was given, once, and whom to wake.

use std::task::Waker;

use parking_lot::Mutex;

use super::lease::Lease;
use crate::error::CudaError;

#[derive(Debug)]
pub(super) struct Waiter {
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Waiting(Option<Waker>),
    Answered(Result<Lease, CudaError>),
    /// The answer was taken, or nobody wants it.
    Gone,
}

impl Waiter {
    pub(super) const fn new(waker: Waker) -> Self {
        Self { state: Mutex::new(State::Waiting(Some(waker))) }
    }

    /// Gives the answer; whom to wake, which is not done here because a lock may be held. An answer that
    /// nobody wants comes back.
    pub(super) fn answer(
        &self,
        answer: Result<Lease, CudaError>,
    ) -> Result<Option<Waker>, Result<Lease, CudaError>> {
        let mut state = self.state.lock();
        match &mut *state {
            State::Waiting(waker) => {
                let waker = waker.take();
                *state = State::Answered(answer);
                Ok(waker)
            }
            State::Answered(_) | State::Gone => Err(answer),
        }
    }

    /// The answer if it is there, else the waker is remembered.
    pub(super) fn poll(&self, new: &Waker) -> Option<Result<Lease, CudaError>> {
        let mut state = self.state.lock();
        match &mut *state {
            State::Waiting(Some(waker)) => waker.clone_from(new),
            State::Waiting(waker) => *waker = Some(new.clone()),
            State::Answered(_) => {
                if let State::Answered(answer) = std::mem::replace(&mut *state, State::Gone) {
                    return Some(answer);
                }
            }
            State::Gone => {}
        }
        None
    }

    /// Wants no answer any more. One that was given already, for the caller to give back outside of any lock.
    pub(super) fn abandon(&self) -> Option<Result<Lease, CudaError>> {
        match std::mem::replace(&mut *self.state.lock(), State::Gone) {
            State::Answered(answer) => Some(answer),
            State::Waiting(_) | State::Gone => None,
        }
    }
}
