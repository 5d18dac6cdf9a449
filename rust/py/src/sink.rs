//! Where an engine's items go, and the context that the engine sees. Items are encoded the moment they are
//! pushed and lie in the link's outbound buffer when `push` returns, so the engine may reuse what it yielded.

use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use headrace::engine::{Control, PushError};
use headrace::wire::body::{Fault, FaultCode};
use headrace::wire::limits::REFERENCE_BYTES_MIN;
use headrace::wire::outbound::Pushed;
use headrace::{Request, Responder};
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::bridge::hub::Hub;
use crate::bridge::parking::{Parked, Parking, telling};
use crate::bridge::waiter::{Turn, Waiter};
use crate::errors::{item_too_large, stream_killed};
use crate::ffi::{AsyncGenerator, ForkSafe};
use crate::payload::{Codec, Encoded, share};
use crate::pump::Pump;

/// Items pushed before the loop gets a turn.
const BURST_ITEMS_MAX: u32 = 64;
/// Items that follow each other this closely get as long together before the loop gets a turn.
const BURST_TIME_MAX: Duration = Duration::from_micros(100);
/// The same for items that come slowly, from an engine that computes without ever awaiting.
const SLOW_BURST_TIME_MAX: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct Burst {
    items: u32,
    turn: u64,
    began: Instant,
    last: Instant,
}

/// What has to happen before the next item.
pub(crate) enum Wait {
    None,
    /// The loop should have a turn.
    Turn,
    /// Credit: this is to be awaited.
    For(Py<PyAny>),
}

/// What an engine may know of its request.
#[derive(Debug)]
struct Facts {
    id: String,
    endpoint: Arc<str>,
    metadata: Vec<(String, String)>,
    traceparent: String,
    instance_id: Arc<str>,
    client_id: Arc<str>,
}

/// The state that a sink and its context share.
#[derive(Debug)]
struct Shared {
    hub: Arc<Hub>,
    control: ForkSafe<Control>,
    facts: Facts,
    /// Those who await `ctx.stopped()`.
    stop_waiters: Mutex<Vec<Py<Waiter>>>,
}

/// Where one request's items go. What a push looks at comes first, for the reason given in the core's `Stream`.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Sink {
    hub: Arc<Hub>,
    codec: Py<Codec>,
    responder: ForkSafe<Mutex<Option<Responder>>>,
    burst: Mutex<Burst>,
    shared: Arc<Shared>,
    parking: Mutex<Option<Parking>>,
    /// The waker that STOP and KILL wake, and its slot.
    watch: Mutex<Option<(Waker, Parked)>>,
    /// The engine's task, kept alive until the stream has ended, and whether it was cancelled.
    task: Mutex<Option<(Py<PyAny>, bool)>>,
}

impl Sink {
    pub(crate) fn new(
        hub: Arc<Hub>,
        codec: Py<Codec>,
        instance_id: Arc<str>,
        request: Request,
        responder: Responder,
    ) -> Self {
        let Request { id, endpoint, metadata, traceparent, client_id, .. } = request;
        let facts = Facts { id, endpoint, metadata, traceparent, instance_id, client_id };
        let now = Instant::now();
        let burst = Burst { items: 0, turn: hub.turn(), began: now, last: now };
        let control = ForkSafe::new(responder.control());
        Self {
            hub: Arc::clone(&hub),
            codec,
            responder: ForkSafe::new(Mutex::new(Some(responder))),
            burst: Mutex::new(burst),
            shared: Arc::new(Shared { hub, control, facts, stop_waiters: Mutex::default() }),
            parking: Mutex::new(None),
            watch: Mutex::new(None),
            task: Mutex::new(None),
        }
    }

    /// Has STOP and KILL call [`Self::signalled`].
    pub(crate) fn watch(slf: &Bound<'_, Self>) {
        let this = slf.get();
        let (waker, slot) = telling(&this.hub, slf.clone().unbind());
        this.shared.control.watch(waker.clone());
        *this.watch.lock() = Some((waker, slot));
    }

    fn encode_and_push(&self, object: &Bound<'_, PyAny>) -> PyResult<Pushed> {
        self.push_encoded(&self.codec.get().encode(object)?)
    }

    /// Pushes an item; says what to wait for before the next.
    pub(crate) fn push_item(&self, object: &Bound<'_, PyAny>) -> PyResult<Wait> {
        Ok(match self.encode_and_push(object)? {
            Pushed::Waiting => self.await_drained(object.py())?.map_or(Wait::None, Wait::For),
            Pushed::Buffered if self.wants_turn() => Wait::Turn,
            Pushed::Buffered => Wait::None,
        })
    }

    fn push_encoded(&self, encoded: &Encoded<'_>) -> PyResult<Pushed> {
        let py = encoded.bytes.py();
        let pushed = self.push_bytes(encoded);
        self.hub.settle(py)?;
        pushed.map_err(|error| push_error(py, &error))
    }

    fn push_bytes(&self, encoded: &Encoded<'_>) -> Result<Pushed, PushError> {
        let responder = self.responder.lock();
        let Some(responder) = &*responder else { return Err(PushError::Killed) };
        let bytes = encoded.bytes.as_bytes();
        if bytes.len() < REFERENCE_BYTES_MIN {
            responder.push(encoded.encoding, bytes)
        } else {
            responder.push_shared(encoded.encoding, share(&self.hub, &encoded.bytes))
        }
    }

    /// Whether the loop should have a turn before the next item.
    fn wants_turn(&self) -> bool {
        let mut burst = self.burst.lock();
        let turn = self.hub.turn();
        burst.items += 1;
        if burst.items < BURST_ITEMS_MAX && burst.items % 8 != 1 {
            // The clock is read for the first of every eight.
            return false;
        }
        let now = Instant::now();
        let gap = now - burst.last;
        burst.last = now;
        if turn != burst.turn {
            *burst = Burst { items: 1, turn, began: now, last: now };
            return false;
        }
        let limit = if gap < BURST_TIME_MAX { BURST_TIME_MAX } else { SLOW_BURST_TIME_MAX };
        if burst.items >= BURST_ITEMS_MAX || now - burst.began >= limit {
            *burst = Burst { items: 0, turn, began: now, last: now };
            return true;
        }
        false
    }

    /// Answers with an exception that no pump caught.
    pub(crate) fn fail_with(&self, py: Python<'_>, error: &PyErr) -> PyResult<()> {
        let kind = error.get_type(py).name()?.to_string();
        self.fail(py, "engine", &kind, &error.value(py).to_string(), "")
    }

    /// Forgets everything that refers back to the engine's task.
    fn release(&self) {
        let (watch, task, parking) =
            (self.watch.lock().take(), self.task.lock().take(), self.parking.lock().take());
        drop((watch, task, parking));
    }

    fn finish_responder(&self, py: Python<'_>, finish: impl FnOnce(Responder)) -> PyResult<()> {
        let responder = self.responder.lock().take();
        if let Some(responder) = responder {
            finish(responder);
        }
        self.release();
        self.hub.settle(py)
    }
}

#[pymethods]
impl Sink {
    /// Pushes an item. Returns `None`, or something to await before the next: credit, or the loop's turn.
    fn push(&self, object: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
        Ok(match self.push_item(object)? {
            Wait::None => None,
            Wait::Turn => Some(Py::new(object.py(), Turn::default())?.into_any()),
            Wait::For(waiter) => Some(waiter),
        })
    }

    /// Something to await that pushes all items of an asynchronous generator; `None` for any other object.
    fn pump(slf: Py<Self>, stream: Bound<'_, PyAny>) -> PyResult<Option<Pump>> {
        Ok(AsyncGenerator::new(stream)?.map(|generator| Pump::new(slf, generator)))
    }

    /// Pushes an item from an engine's own thread, waiting there for credit.
    /// False when nobody wants it any more. Nothing here runs Python: such a thread is a daemon, which
    /// CPython ends as it exits by unwinding its stack, and native frames do not survive that.
    fn push_blocking(&self, py: Python<'_>, encoding: u8, payload: Bound<'_, PyBytes>) -> PyResult<bool> {
        let pushed = self.push_bytes(&Encoded { encoding, bytes: payload });
        self.hub.settle(py)?;
        match pushed {
            Ok(Pushed::Buffered) => Ok(true),
            Ok(Pushed::Waiting) => {
                py.detach(|| self.wait_drained());
                Ok(true)
            }
            Err(error @ PushError::TooLarge { .. }) => Err(push_error(py, &error)),
            Err(_) => Ok(false),
        }
    }

    /// Ends the stream cleanly.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        self.finish_responder(py, Responder::finish)
    }

    /// Pushes the last item and ends the stream.
    fn finish_with(&self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = object.py();
        let encoded = self.codec.get().encode(object)?;
        let bytes = encoded.bytes.as_bytes();
        if bytes.len() >= REFERENCE_BYTES_MIN {
            self.push_encoded(&encoded)?;
            return self.finish(py);
        }
        let responder = self.responder.lock().take();
        let Some(responder) = responder else { return Err(stream_killed(py)) };
        match responder.finish_with(encoded.encoding, bytes) {
            Ok(()) => {
                self.release();
                self.hub.settle(py)
            }
            Err((error, responder)) => {
                *self.responder.lock() = Some(responder);
                Err(push_error(py, &error))
            }
        }
    }

    /// Says that the engine has returned its stream.
    fn open(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(responder) = &*self.responder.lock() {
            responder.open();
        }
        self.hub.settle(py)
    }

    /// Ends the stream with the engine's failure.
    #[pyo3(signature = (code, kind, message, traceback=""))]
    fn fail(&self, py: Python<'_>, code: &str, kind: &str, message: &str, traceback: &str) -> PyResult<()> {
        let code = match code {
            "encode" => FaultCode::Encode,
            "too_large" => FaultCode::TooLarge,
            "shutdown" => FaultCode::Shutdown,
            _ => FaultCode::Engine,
        };
        let fault = Fault {
            code,
            kind: kind.to_owned(),
            message: message.to_owned(),
            traceback: traceback.to_owned(),
        };
        self.finish_responder(py, |responder| responder.fail(fault))
    }

    /// Takes the engine's task; it is cancelled at once if nobody wants the answer any more.
    fn bind(slf: &Bound<'_, Self>, task: Py<PyAny>) -> PyResult<()> {
        let this = slf.get();
        *this.task.lock() = Some((task, false));
        if this.shared.control.is_killed() { Self::cancel_task(slf) } else { Ok(()) }
    }

    /// A cancelled task is done. One that was cancelled before its first step has run nothing that could
    /// have ended the stream.
    fn _task_done(&self, py: Python<'_>, _task: &Bound<'_, PyAny>) -> PyResult<()> {
        self.fail(py, "engine", "Killed", "nobody reads any more", "")
    }

    #[getter]
    fn is_killed(&self) -> bool {
        self.shared.control.is_killed()
    }

    #[getter]
    fn is_stopped(&self) -> bool {
        self.shared.control.is_stopped()
    }

    /// The context that the engine is given.
    fn context(&self) -> Context {
        Context { shared: Arc::clone(&self.shared) }
    }
}

impl Sink {
    /// STOP or KILL came.
    pub(crate) fn signalled(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        let killed = this.shared.control.is_killed();
        if !killed && let Some((waker, _)) = &*this.watch.lock() {
            this.shared.control.watch(waker.clone());
        }
        // Looked at again: KILL may have come before the waker was back in place.
        if this.shared.control.is_killed() {
            Self::cancel_task(slf)?;
        }
        if this.shared.control.is_stopped() {
            this.shared.wake_stopped(slf.py())?;
        }
        Ok(())
    }

    /// Cancels the engine's task, once.
    fn cancel_task(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let task = match &mut *slf.get().task.lock() {
            Some((task, cancelled @ false)) => {
                *cancelled = true;
                task.clone_ref(py)
            }
            _ => return Ok(()),
        };
        task.call_method0(py, pyo3::intern!(py, "cancel"))?;
        let done = slf.getattr(pyo3::intern!(py, "_task_done"))?;
        task.call_method1(py, pyo3::intern!(py, "add_done_callback"), (done,)).map(drop)
    }

    /// What the pump awaits until its items have found their place; nothing if they have already.
    fn await_drained(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let mut parking = self.parking.lock();
        let place = match &mut *parking {
            Some(place) => place,
            none => none.insert(Parking::new(py, &self.hub)?),
        };
        let waiter = place.arm(py);
        let cx = std::task::Context::from_waker(place.waker());
        let waits =
            matches!(&*self.responder.lock(), Some(responder) if responder.poll_drained(&cx).is_pending());
        Ok(waits.then_some(waiter))
    }

    fn wait_drained(&self) {
        struct Unpark(std::thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            let ready = match &*self.responder.lock() {
                Some(responder) => responder.poll_drained(&std::task::Context::from_waker(&waker)),
                None => Poll::Ready(()),
            };
            if ready.is_ready() {
                return;
            }
            std::thread::park();
        }
    }
}

fn push_error(py: Python<'_>, error: &PushError) -> PyErr {
    match error {
        PushError::TooLarge { limit, actual } => item_too_large(py, *limit, *actual),
        _ => stream_killed(py),
    }
}

/// What an engine is given beside the request.
#[pyclass(frozen, weakref, module = "headrace")]
#[derive(Debug)]
pub(crate) struct Context {
    shared: Arc<Shared>,
}

#[pymethods]
impl Context {
    /// The caller's request id.
    #[getter]
    fn id(&self) -> &str {
        &self.shared.facts.id
    }

    /// The endpoint that the request came for.
    #[getter]
    fn endpoint(&self) -> &str {
        &self.shared.facts.endpoint
    }

    /// The worker's identity.
    #[getter]
    fn instance_id(&self) -> &str {
        &self.shared.facts.instance_id
    }

    /// The calling router's identity.
    #[getter]
    fn client_id(&self) -> &str {
        &self.shared.facts.client_id
    }

    /// W3C trace context, or `None`.
    #[getter]
    fn traceparent(&self) -> Option<&str> {
        Some(self.shared.facts.traceparent.as_str()).filter(|text| !text.is_empty())
    }

    /// The caller's metadata.
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (key, value) in &self.shared.facts.metadata {
            dict.set_item(key, value)?;
        }
        Ok(dict)
    }

    /// Whether the caller, or the engine itself, asked to finish.
    #[getter]
    fn is_stopped(&self) -> bool {
        self.shared.control.is_stopped()
    }

    /// Whether nobody wants the answer any more.
    #[getter]
    fn is_killed(&self) -> bool {
        self.shared.control.is_killed()
    }

    /// Seconds until the caller's deadline; `None` without one.
    fn remaining(&self) -> Option<f64> {
        self.shared.control.remaining().map(|left| left.as_secs_f64())
    }

    /// The engine asks itself to finish: the stream ends as stopped.
    fn stop_generating(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.control.stop_generating();
        if self.shared.hub.is_loop_thread() { self.shared.wake_stopped(py) } else { Ok(()) }
    }

    /// An awaitable that is done when the stream is stopped or killed.
    fn stopped<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.shared.hub.check(py)?;
        let waiter = Bound::new(py, Waiter::new(Arc::clone(&self.shared.hub)))?;
        if self.shared.control.is_stopped() {
            Waiter::complete(&waiter)?;
        } else {
            let mut waiters = self.shared.stop_waiters.lock();
            // An engine may race it against something else, again and again.
            waiters.retain(|waiter| !waiter.get().done());
            waiters.push(waiter.clone().unbind());
        }
        Ok(waiter.into_any())
    }

    fn __repr__(&self) -> String {
        format!("<headrace.Context id={:?} endpoint={:?}>", self.shared.facts.id, self.shared.facts.endpoint)
    }
}

impl Shared {
    fn wake_stopped(&self, py: Python<'_>) -> PyResult<()> {
        let waiters = std::mem::take(&mut *self.stop_waiters.lock());
        for waiter in waiters {
            Waiter::complete_soon(waiter.bind(py))?;
        }
        Ok(())
    }
}
