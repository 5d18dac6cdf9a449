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
use crate::errors::call_error;
use crate::ffi::ForkSafe;
use crate::payload::{Codec, own};
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
    /// A step is being taken, with the state in its hands.
    Stepping,
    /// Closed before it was open, or during a step.
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

/// How a lost stream is continued: the caller's function `(request, items) -> request`, and the request.
#[derive(Debug)]
pub(crate) struct Resume {
    pub(crate) function: Py<PyAny>,
    pub(crate) request: Py<PyAny>,
}

/// One call and what it has become: how a task waits for it, and how it ends when nobody does any more.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) hub: Arc<Hub>,
    pub(crate) codec: Py<Codec>,
    request_id: String,
    resume: Option<Resume>,
    /// A step may run a routing policy in Python: then no lock is held meanwhile.
    asks_python: bool,
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
        resume: Option<Resume>,
        asks_python: bool,
        router: Arc<RouterHandle>,
    ) -> Self {
        let inner = Inner { state: State::Opening(Box::new(call)), parking: None, ready_run: 0 };
        Self {
            hub,
            codec,
            request_id,
            resume,
            asks_python,
            inner: ForkSafe::new(Mutex::new(inner)),
            _router: router,
        }
    }

    /// Runs one step of whatever is awaited. `what` is polled with the stream once it is open.
    pub(crate) fn step(
        &self,
        py: Python<'_>,
        what: impl Fn(&CoreStream, &Context<'_>) -> Poll<Step>,
    ) -> PyResult<Step> {
        self.hub.check(py)?;
        let mut inner = self.inner.lock();
        let place = match inner.parking.take() {
            Some(place) => place,
            None if matches!(inner.state, State::Stepping) => return Err(already_awaited("this response")),
            None => self.hub.parking(py)?,
        };
        if place.is_awaited() {
            inner.parking = Some(place);
            return Err(already_awaited("this response"));
        }
        let cx = Context::from_waker(place.waker());
        let step = if self.asks_python {
            let mut state = std::mem::replace(&mut inner.state, State::Stepping);
            drop(inner);
            let step = advance(&mut state, &cx, what);
            inner = self.inner.lock();
            if !matches!(inner.state, State::Stepping) {
                // Closed meanwhile: what the state held is killed as it is dropped.
                inner.parking = Some(place);
                drop(inner);
                drop(state);
                return Ok(Step::End);
            }
            inner.state = state;
            step
        } else {
            advance(&mut inner.state, &cx, what)
        };
        let step = step.unwrap_or_else(|| Step::Wait(place.arm(py)));
        inner.parking = Some(place);
        Ok(step)
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

    /// The stream has failed: continues it if the caller has said how, else raises what it failed with.
    pub(crate) fn go_on(&self, py: Python<'_>, lost: CallError) -> PyResult<()> {
        let Some(Resume { function, request }) = &self.resume else { return Err(call_error(py, &lost)) };
        let Some(kept) = self.with_open(CoreStream::kept).flatten() else {
            return Err(call_error(py, &lost));
        };
        let codec = self.codec.get();
        // No lock is held while the caller's function runs.
        let asked = || -> PyResult<Item> {
            let items = kept.iter().map(|item| codec.decode(py, item)).collect::<PyResult<Vec<_>>>()?;
            let encoded = codec.encode(function.bind(py).call1((request, items))?.as_ref())?;
            Ok(Item { encoding: encoded.encoding, payload: own(&self.hub, &encoded.bytes) })
        };
        let request = asked().inspect_err(|error| {
            error.set_context(py, Some(call_error(py, &lost)));
        })?;
        match self.with_open(|stream| stream.resume(request, lost)) {
            Some(Err(error)) => Err(call_error(py, &error)),
            Some(Ok(())) | None => Ok(()),
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
                State::Opening(_) | State::Stepping => {
                    Some(std::mem::replace(&mut inner.state, State::Closed))
                }
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
            State::Opening(_) | State::Stepping => "opening",
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

/// One step of a state; `None` when it has to wait. `what` is polled with the stream once it is open.
fn advance(
    state: &mut State,
    cx: &Context<'_>,
    what: impl Fn(&CoreStream, &Context<'_>) -> Poll<Step>,
) -> Option<Step> {
    if let State::Opening(call) = state {
        match call.poll_open(cx) {
            Poll::Pending => return None,
            Poll::Ready(Ok(stream)) => *state = State::Open(stream),
            Poll::Ready(Err(error)) => *state = State::Failed(error),
        }
    }
    match state {
        State::Open(stream) => match what(stream, cx) {
            Poll::Ready(step) => Some(step),
            Poll::Pending => None,
        },
        State::Failed(error) => Some(Step::Failed(error.clone())),
        State::Opening(_) | State::Stepping | State::Closed => Some(Step::End),
    }
}

pub(crate) fn found(ready: Ready) -> Step {
    match ready {
        Ready::Item(item) => Step::Item(item),
        Ready::End | Ready::Pending => Step::End,
        Ready::Failed(error) => Step::Failed(error),
    }
}
