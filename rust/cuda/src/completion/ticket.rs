//! One completion, from both ends: what the reactor fulfils and what a caller awaits.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::CudaError;

type Hook = Box<dyn FnOnce(Result<(), CudaError>) + Send>;

/// The reactor's end.
pub(crate) struct Ticket {
    state: Mutex<State>,
    done: Condvar,
}

enum State {
    Pending { waker: Option<Waker>, hook: Option<Hook> },
    Done(Result<(), CudaError>),
}

impl Ticket {
    pub(crate) const fn new() -> Self {
        Self { state: Mutex::new(State::Pending { waker: None, hook: None }), done: Condvar::new() }
    }

    /// Tells whoever waits. Only the first call counts.
    pub(crate) fn complete(&self, result: Result<(), CudaError>) {
        let (waker, hook) = {
            let mut state = self.state.lock();
            let State::Pending { waker, hook } = &mut *state else { return };
            let told = (waker.take(), hook.take());
            *state = State::Done(result.clone());
            told
        };
        self.done.notify_all();
        if let Some(hook) = hook {
            hook(result);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn result(&self) -> Option<Result<(), CudaError>> {
        match &*self.state.lock() {
            State::Done(result) => Some(result.clone()),
            State::Pending { .. } => None,
        }
    }
}

/// The end of work on a stream, which can be awaited, waited for, or told to a function. Dropping it gives
/// nothing up but the news.
#[must_use = "nothing waits for the work unless this is awaited"]
pub struct Completion {
    ticket: Arc<Ticket>,
}

impl Completion {
    pub(crate) const fn new(ticket: Arc<Ticket>) -> Self {
        Self { ticket }
    }

    pub(crate) fn ready(result: Result<(), CudaError>) -> Self {
        let ticket = Ticket { state: Mutex::new(State::Done(result)), done: Condvar::new() };
        Self::new(Arc::new(ticket))
    }

    /// How the work has ended, if it has.
    #[must_use]
    pub fn result(&self) -> Option<Result<(), CudaError>> {
        self.ticket.result()
    }

    /// Has the function called with the result: at once if it is there, else from the thread that learns of
    /// it. There the function must neither block nor call CUDA, nor wait for a lock that is held by somebody
    /// who does. A second call replaces the function.
    pub fn on_complete(&self, function: impl FnOnce(Result<(), CudaError>) + Send + 'static) {
        let result = {
            let mut state = self.ticket.state.lock();
            match &mut *state {
                State::Pending { hook, .. } => {
                    let replaced = hook.replace(Box::new(function));
                    drop(state);
                    drop(replaced);
                    return;
                }
                State::Done(result) => result.clone(),
            }
        };
        function(result);
    }

    /// Blocks until the work has ended, at most that long; none then.
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> Option<Result<(), CudaError>> {
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.ticket.state.lock();
        loop {
            if let State::Done(result) = &*state {
                return Some(result.clone());
            }
            match until {
                Some(until) => {
                    if self.ticket.done.wait_until(&mut state, until).timed_out() {
                        return if let State::Done(result) = &*state { Some(result.clone()) } else { None };
                    }
                }
                None => self.ticket.done.wait(&mut state),
            }
        }
    }
}

impl Future for Completion {
    type Output = Result<(), CudaError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.ticket.state.lock();
        match &mut *state {
            State::Done(result) => Poll::Ready(result.clone()),
            State::Pending { waker, .. } => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").field("result", &self.result()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_is_told_once_whoever_comes_first() {
        let ticket = Arc::new(Ticket::new());
        let completion = Completion::new(Arc::clone(&ticket));
        let (told, heard) = std::sync::mpsc::channel();
        completion.on_complete({
            let told = told.clone();
            move |result| told.send(result).unwrap()
        });
        assert_eq!(completion.wait(Some(Duration::ZERO)), None);
        ticket.complete(Ok(()));
        ticket.complete(Err(CudaError::Thread));
        assert_eq!(heard.try_recv(), Ok(Ok(())));
        completion.on_complete(move |result| told.send(result).unwrap());
        assert_eq!(heard.try_recv(), Ok(Ok(())));
        assert_eq!(completion.wait(None), Some(Ok(())));
    }
}
