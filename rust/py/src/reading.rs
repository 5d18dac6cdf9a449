//! One call as tasks of the loop wait for it: the core's call or stream, a place to wait, and the end of both.
//! What Python sees of it is in [`crate::response`].

use std::sync::Arc;
use std::task::{Context, Poll};

use headrace::{Call as CoreCall, CallError, Item, Ready, ResponseStream as CoreStream};
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::bridge::hub::Hub;
use crate::bridge::parking::Parking;
use crate::bridge::waiter::already_awaited;
use crate::ffi::ForkSafe;
use crate::payload::Codec;
use crate::router::RouterHandle;
use crate::runtime::is_forked;

/// Ready items handed over before the loop gets a turn, so that a fast producer starves nobody.
const READY_RUN_MAX: u32 = 64;

#[derive(Debug)]
enum State {
    Opening(Box<CoreCall>),
    Open(CoreStream),
    /// The call failed: what it failed with, to be raised again.
    Failed(CallError),
    /// Closed before it was open.
    Closed,
}

#[derive(Debug)]
struct Inner {
    state: State,
    parking: Option<Parking>,
    ready_run: u32,
}

/// What one step of an awaitable leads to.
pub(crate) enum Step {
    /// Wait for this.
    Wait(Py<PyAny>),
    /// Give the loop a turn.
    Turn,
    Item(Item),
    End,
    Failed(CallError),
    /// Opened.
    Opened,
}

/// One call and what it has become: how a task waits for it, and how it ends when nobody does any more.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) hub: Arc<Hub>,
    pub(crate) codec: Py<Codec>,
    request_id: String,
    inner: ForkSafe<Mutex<Inner>>,
    /// The router, which must not close while a stream of it is read.
    _router: Arc<RouterHandle>,
}

impl Reading {
    pub(crate) fn new(
        hub: Arc<Hub>,
        codec: Py<Codec>,
        request_id: String,
        call: CoreCall,
        router: Arc<RouterHandle>,
    ) -> Self {
        let inner = Inner { state: State::Opening(Box::new(call)), parking: None, ready_run: 0 };
        Self { hub, codec, request_id, inner: ForkSafe::new(Mutex::new(inner)), _router: router }
    }

    /// Runs one step of whatever is awaited. `what` is polled with the stream once it is open.
    pub(crate) fn step(
        &self,
        py: Python<'_>,
        what: impl Fn(&CoreStream, &Context<'_>) -> Poll<Step>,
    ) -> PyResult<Step> {
        self.hub.check(py)?;
        let mut inner = self.inner.lock();
        let Inner { state, parking, .. } = &mut *inner;
        let place = match parking {
            Some(place) => place,
            none => none.insert(self.hub.parking(py)?),
        };
        if place.is_awaited() {
            return Err(already_awaited("this response"));
        }
        let mut cx = Context::from_waker(place.waker());
        if let State::Opening(call) = state {
            match std::pin::Pin::new(&mut **call).poll(&mut cx) {
                Poll::Pending => return Ok(Step::Wait(place.arm(py))),
                Poll::Ready(Ok(stream)) => *state = State::Open(stream),
                Poll::Ready(Err(error)) => *state = State::Failed(error),
            }
        }
        Ok(match state {
            State::Open(stream) => match what(stream, &cx) {
                Poll::Ready(step) => step,
                Poll::Pending => Step::Wait(place.arm(py)),
            },
            State::Failed(error) => Step::Failed(error.clone()),
            State::Opening(_) | State::Closed => Step::End,
        })
    }

    /// The fast path of `__next__`: what is there already.
    pub(crate) fn take_ready(&self) -> Option<Step> {
        let mut inner = self.inner.lock();
        let Inner { state: State::Open(stream), ready_run, .. } = &mut *inner else { return None };
        if *ready_run >= READY_RUN_MAX {
            *ready_run = 0;
            return Some(Step::Turn);
        }
        *ready_run += 1;
        match stream.try_next() {
            Ready::Item(item) => Some(Step::Item(item)),
            Ready::End => Some(Step::End),
            Ready::Failed(error) => Some(Step::Failed(error)),
            Ready::Pending => {
                *ready_run = 0;
                None
            }
        }
    }

    pub(crate) fn kill_now(&self) {
        if is_forked() {
            return;
        }
        let previous = {
            let mut inner = self.inner.lock();
            match &inner.state {
                State::Open(stream) => {
                    stream.kill();
                    None
                }
                State::Opening(_) => Some(std::mem::replace(&mut inner.state, State::Closed)),
                State::Failed(_) | State::Closed => None,
            }
        };
        drop(previous);
    }

    pub(crate) fn with_open<T>(&self, look: impl FnOnce(&CoreStream) -> T) -> Option<T> {
        match &self.inner.lock().state {
            State::Open(stream) => Some(look(stream)),
            _ => None,
        }
    }

    /// The call's request id; empty before it began, unless the caller gave it.
    pub(crate) fn request_id(&self) -> String {
        self.with_open(|stream| stream.request_id().to_owned()).unwrap_or_else(|| self.request_id.clone())
    }

    /// Where it stands, in a word.
    pub(crate) fn state(&self) -> &'static str {
        match &self.inner.lock().state {
            State::Opening(_) => "opening",
            State::Open(_) => "open",
            State::Failed(_) => "failed",
            State::Closed => "closed",
        }
    }

    /// A task that awaits this was cancelled or closed: nobody reads on.
    pub(crate) fn abandon(&self, py: Python<'_>) -> PyResult<()> {
        self.kill_now();
        self.hub.settle(py)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if !is_forked() {
            // The KILL that this may send is flushed by the loop, which has to be told.
            self.kill_now();
            self.hub.flush_later();
            let parking = self.inner.lock().parking.take();
            if let Some(parking) = parking {
                self.hub.recycle(parking);
            }
        }
    }
}

pub(crate) fn found(ready: Ready) -> Step {
    match ready {
        Ready::Item(item) => Step::Item(item),
        Ready::End | Ready::Pending => Step::End,
        Ready::Failed(error) => Step::Failed(error),
    }
}
