//! How it is learned that a stream has come to a point, and who is told.
//!
//! A [`Watch`] is an event that was recorded, what is to be told when it is reached, and what may be used
//! again from then on. The [`Reactor`] of a pool takes watches and finishes each exactly once: when its event
//! is reached, when the device is lost, or when the process ends (then not at all). Three ways to wait are
//! behind it, one file each; `benches/gpu` measures what they cost beside each other.
//!
//! Invariant: a watch is finished without any lock held, and what it keeps from being used again is let go
//! only after the event, or never if the device is lost.

mod host;
mod owner;
mod poll;
mod threads;
mod ticket;

use std::sync::Arc;
use std::time::Duration;

use self::host::HostCalls;
use self::poll::Poller;
use self::threads::WaiterThreads;
pub use self::ticket::Completion;
pub(crate) use self::ticket::Ticket;
use crate::error::{CudaError, Unavailable};
use crate::event::Event;
use crate::open::OpenDevice;

/// How completion is learned of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompletionMode {
    /// A thread for each stream that is waited for spins a little and then blocks in the driver. The default.
    #[default]
    Event,
    /// One thread asks about everything in flight, first at once and then each 50 microseconds.
    Poll,
    /// The driver calls back. Errors do not call back, so that a thread asks about everything in flight each
    /// 5 ms.
    HostFn,
}

impl CompletionMode {
    /// `"event"`, `"poll"` or `"hostfn"`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Poll => "poll",
            Self::HostFn => "hostfn",
        }
    }
}

type After = Box<dyn FnOnce(&Result<(), CudaError>) + Send>;

/// Something that waits for an event.
pub(crate) struct Watch {
    pub(crate) event: Event,
    /// Who is told, if anybody is.
    pub(crate) ticket: Option<Arc<Ticket>>,
    /// What is done then. It may call the driver, and is dropped undone only if the process ends.
    pub(crate) after: Option<After>,
}

impl Watch {
    /// Finishes all of them with an error.
    fn fail_all(watches: impl IntoIterator<Item = Self>, error: &CudaError) {
        watches.into_iter().for_each(|watch| watch.finish(&Err(error.clone())));
    }

    fn finish(mut self, result: &Result<(), CudaError>) {
        // First what is used again, so that whoever is told finds it.
        if let Some(after) = self.after.take() {
            after(result);
        }
        if let Some(ticket) = self.ticket.take() {
            ticket.complete(result.clone());
        }
    }
}

/// Finishes the watches of one pool.
pub(crate) enum Reactor {
    Event(WaiterThreads),
    Poll(Poller),
    HostFn(HostCalls),
}

impl Reactor {
    /// Fails only if the driver cannot call back and is to.
    pub(crate) fn new(device: OpenDevice, mode: CompletionMode, spin: Duration) -> Result<Self, CudaError> {
        Ok(match mode {
            CompletionMode::Event => Self::Event(WaiterThreads::new(device, spin)),
            CompletionMode::Poll => Self::Poll(Poller::new(device, spin)),
            CompletionMode::HostFn if device.call(|device| Ok(device.can_call_host()))? => {
                Self::HostFn(HostCalls::new(device))
            }
            CompletionMode::HostFn => {
                return Err(Unavailable::MissingSymbol { symbol: "cuLaunchHostFunc" }.into());
            }
        })
    }

    /// Takes a watch whose event was recorded. One that is reached already is finished here.
    pub(crate) fn watch(&self, watch: Watch) {
        match watch.event.query() {
            Ok(false) => {}
            Ok(true) => return watch.finish(&Ok(())),
            Err(CudaError::Driver(_)) => {} // Whoever waits meets it again, if it stays.
            Err(error) => return watch.finish(&Err(error)),
        }
        match self {
            Self::Event(threads) => threads.watch(watch),
            Self::Poll(poller) => poller.watch(watch),
            Self::HostFn(calls) => calls.watch(watch),
        }
    }

    /// Tries again to start the thread that watches wait for, if there is none.
    pub(crate) fn retry(&self) {
        match self {
            Self::Event(threads) => threads.retry(),
            Self::Poll(poller) => poller.retry(),
            Self::HostFn(calls) => calls.retry(),
        }
    }

    /// Finishes everything with this error.
    pub(crate) fn fail_all(&self, error: &CudaError) {
        match self {
            Self::Event(threads) => threads.fail_all(error),
            Self::Poll(poller) => poller.fail_all(error),
            Self::HostFn(calls) => calls.fail_all(error),
        }
    }
}

#[cfg(test)]
#[path = "starved_tests.rs"]
mod tests;
