//! A worker's stream as its engine is told of it: asked to stop, killed, and by whom.

use std::sync::atomic::Ordering;

use headrace_wire::body::{Fault, FaultCode};

use super::{BY_SHIFT, KILLED, STOPPED, Stream};
use crate::metrics::worker::KilledBy;

impl Stream {
    /// STOP came, or the engine stops itself.
    pub(crate) fn set_stopped(&self) {
        if self.flags.fetch_or(STOPPED, Ordering::Relaxed) & STOPPED == 0 {
            self.wake_watcher();
        }
    }

    /// The engine's work is no longer wanted. It is told wherever it waits: for its watcher, for credit, for
    /// items of the request.
    pub(crate) fn set_killed(&self, by: KilledBy) {
        let killed = KILLED | STOPPED | (by as u8) << BY_SHIFT;
        // Who came first counts; it is no failure to come second.
        let _ = self.flags.fetch_update(Ordering::Release, Ordering::Relaxed, |flags| {
            (flags & KILLED == 0).then_some(flags | killed)
        });
        self.wake_watcher();
        self.wake_producer();
        self.close_requests();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & STOPPED != 0
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.flags.load(Ordering::Acquire) & KILLED != 0
    }

    /// Who killed it; the caller, if nobody has.
    pub(crate) fn killed_by(&self) -> KilledBy {
        KilledBy::from_number(self.flags.load(Ordering::Acquire) >> BY_SHIFT)
    }

    /// The deadline passed at the worker: the caller is answered, whatever the engine does.
    pub(crate) fn expire(&self) {
        self.fail(FaultCode::Deadline, "the deadline passed at the worker");
    }

    /// Ends the stream from the worker's side while its engine may still run.
    pub(crate) fn fail(&self, code: FaultCode, message: &str) {
        let fault =
            Fault { code, kind: String::new(), message: message.to_owned(), traceback: String::new() };
        // Its place in the queue is free before the caller can know.
        self.link.forget(self.id);
        self.set_killed(match code {
            FaultCode::Deadline => KilledBy::Deadline,
            FaultCode::Shutdown => KilledBy::Shutdown,
            _ => KilledBy::Unread,
        });
        self.link.send(|out| out.abandon(self.id, fault));
    }
}
