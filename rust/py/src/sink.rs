//! Where an engine's items go: one sink for each request, with the engine's task and how it learns of STOP
//! and KILL.

use std::sync::Arc;
use std::task::{Context as TaskContext, Wake, Waker};

use headrace::engine::PushError;
use headrace::wire::body::{Fault, FaultCode};
use headrace::wire::limits::REFERENCE_BYTES_MIN;
use headrace::wire::outbound::Pushed;
use headrace::{Request, Responder};
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::bridge::hub::{Hub, Target};
use crate::bridge::parking::{Parked, telling};
use crate::context::{Context, Facts, Shared};
use crate::errors::stream_killed;
use crate::ffi::AsyncGenerator;
use crate::payload::{Codec, Encoded};
use crate::pump::{Pump, PumpsInto};
use crate::pushing::{Pushing, Wait, push_error};
use crate::requests::RequestStream;

/// Where one request's items go. What a push looks at comes first, for the reason given in the core's
/// `Stream`.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Sink {
    pushing: Pushing<Responder>,
    shared: Arc<Shared>,
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
        requests: Option<Py<RequestStream>>,
        responder: Responder,
    ) -> Self {
        let Request { id, endpoint, metadata, traceparent, client_id, .. } = request;
        let facts = Facts { id, endpoint, metadata, traceparent, instance_id, client_id, requests };
        let shared = Arc::new(Shared::new(Arc::clone(&hub), responder.control(), facts));
        Self {
            pushing: Pushing::new(hub, codec, responder),
            shared,
            watch: Mutex::new(None),
            task: Mutex::new(None),
        }
    }

    /// Has STOP and KILL call [`Self::signalled`].
    pub(crate) fn watch(slf: &Bound<'_, Self>) {
        let this = slf.get();
        let (waker, slot) = telling(&this.pushing.hub, Target::Sink(slf.clone().unbind()));
        this.shared.control.watch(waker.clone());
        *this.watch.lock() = Some((waker, slot));
    }

    /// Pushes an item; says what to wait for before the next.
    pub(crate) fn push_item(&self, object: &Bound<'_, PyAny>) -> PyResult<Wait> {
        self.pushing.push_item(object)
    }

    /// Answers with an exception that no pump caught.
    pub(crate) fn fail_with(&self, py: Python<'_>, error: &PyErr) -> PyResult<()> {
        let kind = error.get_type(py).name()?.to_string();
        self.fail(py, "engine", &kind, &error.value(py).to_string(), "")
    }

    /// Forgets everything that refers back to the engine's task.
    fn release(&self) {
        let (watch, task) = (self.watch.lock().take(), self.task.lock().take());
        drop((watch, task));
        self.pushing.release();
    }

    fn finish_responder(&self, py: Python<'_>, finish: impl FnOnce(Responder)) -> PyResult<()> {
        if let Some(responder) = self.pushing.take() {
            finish(responder);
        }
        self.release();
        self.pushing.hub.settle(py)
    }
}

#[pymethods]
impl Sink {
    /// Pushes an item. Returns `None`, or something to await before the next: credit, or the loop's turn.
    fn push(&self, object: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
        self.push_item(object)?.awaitable(object.py())
    }

    /// Something to await that pushes all items of an asynchronous generator; `None` for any other object.
    fn pump(slf: Py<Self>, stream: Bound<'_, PyAny>) -> PyResult<Option<Pump>> {
        Ok(AsyncGenerator::new(stream)?.map(|generator| Pump::new(PumpsInto::Answer(slf), generator)))
    }

    /// Pushes an item from an engine's own thread, waiting there for credit.
    /// False when nobody wants it any more. Nothing here runs Python: such a thread is a daemon, which
    /// CPython ends as it exits by unwinding its stack, and native frames do not survive that.
    fn push_blocking(&self, py: Python<'_>, encoding: u8, payload: Bound<'_, PyBytes>) -> PyResult<bool> {
        let pushed = self.pushing.push_bytes(&Encoded { encoding, bytes: payload });
        self.pushing.hub.settle(py)?;
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
    pub(crate) fn finish_with(&self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = object.py();
        let encoded = self.pushing.codec.get().encode(object)?;
        let bytes = encoded.bytes.as_bytes();
        if bytes.len() >= REFERENCE_BYTES_MIN {
            self.pushing.push_encoded(&encoded)?;
            return self.finish(py);
        }
        let Some(responder) = self.pushing.take() else { return Err(stream_killed(py)) };
        match responder.finish_with(encoded.encoding, bytes) {
            Ok(()) => {
                self.release();
                self.pushing.hub.settle(py)
            }
            Err((error, responder)) => {
                self.pushing.put_back(responder);
                Err(push_error(py, &error))
            }
        }
    }

    /// Says that the engine has returned its stream.
    fn open(&self, py: Python<'_>) -> PyResult<()> {
        self.pushing.with(Responder::open);
        self.pushing.hub.settle(py)
    }

    /// Ends the stream with the engine's failure.
    #[pyo3(signature = (code, kind, message, traceback=""))]
    fn fail(&self, py: Python<'_>, code: &str, kind: &str, message: &str, traceback: &str) -> PyResult<()> {
        let code = match code {
            "encode" => FaultCode::Encode,
            "too_large" => FaultCode::TooLarge,
            "shutdown" => FaultCode::Shutdown,
            "refused" => FaultCode::Refused,
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
    pub(crate) fn bind(slf: &Bound<'_, Self>, task: Py<PyAny>) -> PyResult<()> {
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
        Context::new(Arc::clone(&self.shared))
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

    fn wait_drained(&self) {
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            let cx = TaskContext::from_waker(&waker);
            let drained = self.pushing.with(|responder| responder.poll_drained(&cx));
            if drained.is_none_or(|drained| drained.is_ready()) {
                return;
            }
            std::thread::park();
        }
    }
}
