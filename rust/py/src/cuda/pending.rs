//! `Pending`: an awaitable for a future of the crate, which knows no Python. It is polled on the loop's thread,
//! with the interpreter released, and woken by whoever finishes it through the loop's hub.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use headrace_cuda::CudaError;
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::release::let_go;
use crate::bridge::hub::Hub;
use crate::bridge::loop_hub::LoopHub;
use crate::bridge::parking::Parking;
use crate::bridge::waiter::already_awaited;
use crate::errors::cuda_error;
use crate::ffi::raise_stop_iteration;
use crate::response::thrown;
use crate::runtime::is_forked;

/// Makes the Python object that somebody awaits. Dropped instead, it gives back what it would be made of.
pub(super) type Made = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;

/// What is awaited.
pub(super) type Work = Pin<Box<dyn Future<Output = Result<Made, CudaError>> + Send>>;

/// What is awaited, if that gives nothing but its end.
pub(super) fn ends(future: impl Future<Output = Result<(), CudaError>> + Send + 'static) -> Work {
    Box::pin(async move {
        future.await?;
        Ok(Box::new(|py: Python<'_>| Ok(py.None())) as Made)
    })
}

/// An awaitable; see the module's text.
#[pyclass(frozen, weakref, name = "CudaPending", module = "headrace._headrace")]
pub(crate) struct Pending {
    hub: Arc<Hub>,
    /// What it is, for whoever awaits it twice.
    what: &'static str,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    work: Option<Work>,
    parking: Option<Parking>,
}

impl Pending {
    pub(super) fn new(py: Python<'_>, place: &LoopPlace, what: &'static str, work: Work) -> PyResult<Self> {
        let state = State { work: Some(work), parking: None };
        Ok(Self { hub: place.hub(py)?, what, state: Mutex::new(state) })
    }

    /// One step of who awaits it: what it has become, or the waiter.
    pub(super) fn step(&self, py: Python<'_>) -> PyResult<Result<Py<PyAny>, Py<PyAny>>> {
        if is_forked() {
            return Err(cuda_error(py, &CudaError::Forked));
        }
        let (work, parking) = {
            let mut state = self.state.lock();
            (state.work.take(), state.parking.take())
        };
        let awaited = parking.as_ref().filter(|parking| parking.is_given());
        let is_free = awaited.map_or(Ok(true), |parking| parking.prepare(py));
        if !matches!(is_free, Ok(true)) {
            *self.state.lock() = State { work, parking };
            return Err(is_free.err().unwrap_or_else(|| already_awaited(self.what)));
        }
        let mut work = work.ok_or_else(|| already_awaited(self.what))?;
        let parking = parking.map_or_else(|| self.hub.parking(py), Ok)?;
        let waker = parking.waker().clone();
        let (polled, work) = py.detach(move || {
            let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
            // What is over is let go of here, without the interpreter.
            let left = polled.is_pending().then_some(work);
            (polled, left)
        });
        match polled {
            Poll::Pending => {
                let (parking, waits) = self.hub.wait(py, Some(parking), self.what);
                *self.state.lock() = State { work, parking };
                waits.map(Err)
            }
            Poll::Ready(made) => {
                self.hub.recycle(parking);
                match made {
                    Ok(made) => made(py).map(Ok),
                    Err(error) => Err(cuda_error(py, &error)),
                }
            }
        }
    }

    /// Gives up: whoever awaited it does not any more.
    pub(super) fn give_up(&self, py: Python<'_>) {
        let work = self.state.lock().work.take();
        if is_forked() {
            std::mem::forget(work);
        } else {
            py.detach(|| drop(work));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(work) = self.state.get_mut().work.take() {
            let_go(work);
        }
    }
}

#[pymethods]
impl Pending {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self.step(py)? {
            Ok(value) => raise_stop_iteration(value.into_bound(py)),
            Err(waiter) => Ok(Some(waiter)),
        }
    }

    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw(
        &self,
        py: Python<'_>,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        drop(traceback);
        self.give_up(py);
        Err(thrown(kind, value))
    }

    fn close(&self, py: Python<'_>) {
        self.give_up(py);
    }
}

/// An awaitable that is done, with this value; for `__aexit__` and the like.
#[pyclass(frozen, name = "CudaDone", module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Done(pub(super) Py<PyAny>);

#[pymethods]
impl Done {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        raise_stop_iteration(self.0.clone_ref(py).into_bound(py))
    }
}

/// The loop on which something is awaited: nearly always the one of last time.
#[derive(Debug, Default)]
pub(super) struct LoopPlace(Mutex<Weak<Hub>>);

impl LoopPlace {
    /// The hub of the running loop.
    pub(super) fn hub(&self, py: Python<'_>) -> PyResult<Arc<Hub>> {
        let known = self.0.lock().upgrade();
        if let Some(hub) = known
            && !hub.is_closed()
            && hub.event_loop(py)?.is(&running_loop(py)?)
        {
            return Ok(hub);
        }
        let found = py.import("headrace._loop")?.getattr("current_hub")?.call0()?;
        let hub = Arc::clone(found.cast::<LoopHub>()?.get().hub());
        *self.0.lock() = Arc::downgrade(&hub);
        Ok(hub)
    }
}

/// The loop that runs on this thread, or `None`.
pub(super) fn running_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static FUNCTION: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let function = FUNCTION
        .get_or_try_init(py, || py.import("asyncio")?.getattr("_get_running_loop").map(Bound::unbind))?;
    function.bind(py).call0()
}

/// The one that gives `None`.
pub(super) fn done(py: Python<'_>) -> PyResult<Py<PyAny>> {
    static DONE: PyOnceLock<Py<Done>> = PyOnceLock::new();
    Ok(DONE.get_or_try_init(py, || Py::new(py, Done(py.None())))?.clone_ref(py).into_any())
}
