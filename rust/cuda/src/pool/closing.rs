//! The end of a pool: nobody gets a stream any more, and who wants to know is told when all are back, or that the
//! device is lost.

use std::sync::Arc;

use super::keeper;
use super::shared::{Later, Shared, State};
use crate::completion::{Completion, Ticket};
use crate::error::CudaError;
use crate::open::OnPoison;

impl Shared {
    /// Refuses those in line and whoever comes, with that error.
    fn refuse_all(state: &mut State, later: &mut Later, error: &CudaError) {
        for waiting in state.queue.close() {
            if let Some((waiter, _)) = state.waiters.remove(&waiting) {
                later.answer(&waiter, Err(error.clone()));
            }
        }
    }

    /// Lends nothing any more; nobody wants to know when all streams are back.
    pub(super) fn abandon_all(&self) {
        if self.check().is_err() {
            return;
        }
        let mut later = Later::default();
        {
            let mut state = self.state.lock();
            state.closed = true;
            Self::refuse_all(&mut state, &mut later, &CudaError::PoolClosed);
        }
        self.keeper_wake.notify_one();
        later.run();
    }

    pub(super) fn close(self: &Arc<Self>) -> Completion {
        if let Err(error) = self.check() {
            return Completion::ready(Err(error));
        }
        // A stream may drain that no thread could be started for.
        self.runtime.reactor.retry();
        let mut later = Later::default();
        let ticket = Arc::new(Ticket::new());
        let kept = {
            let mut state = self.state.lock();
            state.closed = true;
            state.closing.push(Arc::clone(&ticket));
            Self::refuse_all(&mut state, &mut later, &CudaError::PoolClosed);
            self.look_whether_quiet(&mut state, &mut later);
            // It tries the same again, and looks whether the device is lost, as long as streams are away.
            if state.closing.is_empty() { Ok(()) } else { keeper::ensure(self, &mut state) }
        };
        self.keeper_wake.notify_one();
        later.run();
        // A device that was lost meanwhile has told those that were there before.
        if let Some(error) = self.runtime.device.lost().or(kept.err()) {
            ticket.complete(Err(error));
        }
        Completion::new(ticket)
    }

    pub(super) fn is_closed(&self) -> bool {
        !self.runtime.device.is_foreign() && self.state.lock().closed
    }

    pub(super) fn look_whether_quiet(&self, state: &mut State, later: &mut Later) {
        if state.closed && state.queue.is_quiet() {
            later.quiet.append(&mut state.closing);
        }
    }
}

impl OnPoison for Shared {
    fn poisoned(&self, error: &CudaError) {
        let mut later = Later::default();
        let closing = {
            let mut state = self.state.lock();
            Self::refuse_all(&mut state, &mut later, error);
            std::mem::take(&mut state.closing)
        };
        self.keeper_wake.notify_one();
        later.run();
        closing.iter().for_each(|ticket| ticket.complete(Err(error.clone())));
    }
}
