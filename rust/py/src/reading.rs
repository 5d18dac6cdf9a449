//! How tasks of the loop wait for items, and one call as they wait for it: the core's call or stream, a place
//! to wait, and the end of both. What Python sees of it is in [`crate::response`].

use std::sync::Arc;
use std::task::{Context, Poll};

use headrace::{
    Call as CoreCall, CallError, CallErrorKind, Item, Ready, RequestSink as CoreSink,
    ResponseStream as CoreStream,
};
use parking_lot::{Mutex, MutexGuard};
use pyo3::prelude::*;

use crate::bridge::hub::Hub;
use crate::bridge::parking::Parking;
use crate::bridge::waiter::already_awaited;
use crate::errors::call_error;
use crate::ffi::ForkSafe;
use crate::payload::{Codec, own};
use crate::requests::{Failure, RequestSink};
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
    place: Place,
}

impl AsMut<Place> for Inner {
    fn as_mut(&mut self) -> &mut Place {
        &mut self.place
    }
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
    /// A request stream was cut off.
    Cut,
    /// Opened.
    Opened,
}

/// How a lost stream is continued: the caller's function `(request, items) -> request`, and the request.
#[derive(Debug)]
pub(crate) struct Resume {
    pub(crate) function: Py<PyAny>,
    pub(crate) request: Py<PyAny>,
}

/// Where one task at a time waits for items, and how many it has taken since it last waited.
#[derive(Debug, Default)]
pub(crate) struct Place {
    parking: Option<Parking>,
    ready_run: u32,
}

impl Place {
    /// The fast path: what `try_next` finds, if that is anything.
    pub(crate) fn take_ready(&mut self, try_next: impl FnOnce() -> Option<Step>) -> Option<Step> {
        if self.ready_run >= READY_RUN_MAX {
            self.ready_run = 0;
            return Some(Step::Turn);
        }
        self.ready_run += 1;
        let found = try_next();
        if found.is_none() {
            self.ready_run = 0;
        }
        found
    }

    /// Makes the place in what is `locked` ready for who waits. Two cannot wait for the same `what`.
    pub(crate) fn ready<'a, T: AsMut<Self>>(
        py: Python<'_>,
        hub: &Arc<Hub>,
        mut locked: MutexGuard<'a, T>,
        what: &str,
    ) -> PyResult<MutexGuard<'a, T>> {
        let here = locked.as_mut();
        if here.parking.as_ref().is_some_and(Parking::is_free) {
            return Ok(locked);
        }
        let kept = here.parking.take();
        // What follows may run Python.
        let owner = MutexGuard::mutex(&locked);
        drop(locked);
        let parking = kept.map_or_else(|| hub.parking(py), Ok)?;
        let is_ready = parking.prepare(py);
        let mut locked = owner.lock();
        locked.as_mut().parking = Some(parking);
        if is_ready? { Ok(locked) } else { Err(already_awaited(what)) }
    }

    /// Polls; while that is pending, the step is to wait. The place is ready.
    pub(crate) fn step(
        &self,
        py: Python<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<Step>,
    ) -> PyResult<Step> {
        // `ready` has put it there.
        let Some(parking) = &self.parking else { return Ok(Step::Turn) };
        match poll(&mut Context::from_waker(parking.waker())) {
            Poll::Ready(step) => Ok(step),
            Poll::Pending => parking.give(py).map(Step::Wait),
        }
    }

    /// Lets another use the place.
    pub(crate) fn give_back(&mut self, hub: &Arc<Hub>) {
        if let Some(parking) = self.parking.take() {
            hub.recycle(parking);
        }
    }
}

/// A caller's request stream, from the call to the task that sends it.
#[derive(Debug)]
pub(crate) struct Feeding {
    /// The caller's iterator and the sink for its items, until the call begins.
    waiting: Mutex<Option<(Py<PyAny>, Py<RequestSink>)>>,
    failure: Arc<Failure>,
}

impl Feeding {
    pub(crate) fn new(
        requests: &Bound<'_, PyAny>,
        hub: Arc<Hub>,
        codec: Py<Codec>,
        sink: CoreSink,
    ) -> PyResult<Self> {
        let failure = Arc::<Failure>::default();
        let sink = Py::new(requests.py(), RequestSink::new(hub, codec, sink, Arc::clone(&failure)))?;
        Ok(Self { waiting: Mutex::new(Some((requests.clone().unbind(), sink))), failure })
    }

    /// The call begins, and with it the task that sends the items.
    fn begin(&self, py: Python<'_>) -> PyResult<()> {
        let waiting = self.waiting.lock().take();
        waiting.map_or(Ok(()), |(requests, sink)| RequestSink::start(sink.bind(py), requests))
    }
}

/// What the caller has in Python beside the request.
#[derive(Debug)]
pub(crate) struct PythonSide {
    /// What sends the request, if it is a stream.
    pub(crate) feeding: Option<Feeding>,
    pub(crate) resume: Option<Resume>,
    /// A step may run a routing policy in Python: then no lock is held meanwhile.
    pub(crate) asks: bool,
}

/// One call and what it has become: how a task waits for it, and how it ends when nobody does any more.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) hub: Arc<Hub>,
    pub(crate) codec: Py<Codec>,
    request_id: String,
    inner: ForkSafe<Mutex<Inner>>,
    python: PythonSide,
    /// The router, which must not close while a stream of it is read.
    _router: Arc<RouterHandle>,
}

impl Reading {
    pub(crate) fn new(
        hub: Arc<Hub>,
        codec: Py<Codec>,
        request_id: String,
        call: CoreCall,
        python: PythonSide,
        router: Arc<RouterHandle>,
    ) -> Self {
        let inner = Inner { state: State::Opening(Box::new(call)), place: Place::default() };
        let inner = ForkSafe::new(Mutex::new(inner));
        Self { hub, codec, request_id, inner, python, _router: router }
    }

    /// Runs one step of whatever is awaited. `what` is polled with the stream once it is open.
    pub(crate) fn step(
        &self,
        py: Python<'_>,
        what: impl Fn(&CoreStream, &Context<'_>) -> Poll<Step>,
    ) -> PyResult<Step> {
        self.hub.check(py)?;
        if let Some(feeding) = &self.python.feeding {
            feeding.begin(py)?;
        }
        let mut inner = Place::ready(py, &self.hub, self.inner.lock(), "this response")?;
        if !self.python.asks {
            let Inner { state, place } = &mut *inner;
            return place.step(py, |cx| advance(state, cx, what));
        }
        if matches!(inner.state, State::Stepping) {
            return Err(already_awaited("this response"));
        }
        let mut state = std::mem::replace(&mut inner.state, State::Stepping);
        let place = std::mem::take(&mut inner.place);
        drop(inner);
        let step = place.step(py, |cx| advance(&mut state, cx, what));
        let mut inner = self.inner.lock();
        inner.place = place;
        if matches!(inner.state, State::Stepping) {
            inner.state = state;
            return step;
        }
        // Closed meanwhile: what the state held is killed as it is dropped.
        drop(inner);
        drop(state);
        Ok(Step::End)
    }

    /// The fast path of `__next__`: what is there already.
    pub(crate) fn take_ready(&self) -> Option<Step> {
        let mut inner = self.inner.lock();
        let Inner { state: State::Open(stream), place } = &mut *inner else { return None };
        place.take_ready(|| match stream.try_next() {
            Ready::Item(item) => Some(Step::Item(item)),
            Ready::End => Some(Step::End),
            Ready::Failed(error) => Some(Step::Failed(error)),
            Ready::Pending => None,
        })
    }

    /// The exception for a call's failure: what the caller's own iterator raised, if that is what failed.
    pub(crate) fn error(&self, py: Python<'_>, error: &CallError) -> PyErr {
        let raised = match (&error.kind, &self.python.feeding) {
            (CallErrorKind::RequestFailed { .. }, Some(feeding)) => feeding.failure.take(),
            _ => None,
        };
        raised.map_or_else(|| call_error(py, error), |raised| PyErr::from_value(raised.into_bound(py)))
    }

    /// The stream has failed: continues it if the caller has said how, else raises what it failed with.
    pub(crate) fn go_on(&self, py: Python<'_>, lost: CallError) -> PyResult<()> {
        let Some(Resume { function, request }) = &self.python.resume else {
            return Err(self.error(py, &lost));
        };
        let Some(kept) = self.with_open(CoreStream::kept).flatten() else {
            return Err(self.error(py, &lost));
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
        if let Some(feeding) = &self.python.feeding {
            feeding.failure.report(&self.hub.event_loop(py)?)?;
        }
        self.hub.settle(py)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if !is_forked() {
            // The KILL that this may send is flushed by the loop, which has to be told.
            self.kill_now();
            self.hub.flush_later();
            self.inner.lock().place.give_back(&self.hub);
        }
    }
}

/// One step of a state. `what` is polled with the stream once it is open.
fn advance(
    state: &mut State,
    cx: &Context<'_>,
    what: impl Fn(&CoreStream, &Context<'_>) -> Poll<Step>,
) -> Poll<Step> {
    if let State::Opening(call) = state {
        match call.poll_open(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(stream)) => *state = State::Open(stream),
            Poll::Ready(Err(error)) => *state = State::Failed(error),
        }
    }
    match state {
        State::Open(stream) => what(stream, cx),
        State::Failed(error) => Poll::Ready(Step::Failed(error.clone())),
        State::Opening(_) | State::Stepping | State::Closed => Poll::Ready(Step::End),
    }
}

pub(crate) fn found(ready: Ready) -> Step {
    match ready {
        Ready::Item(item) => Step::Item(item),
        Ready::End | Ready::Pending => Step::End,
        Ready::Failed(error) => Step::Failed(error),
    }
}
