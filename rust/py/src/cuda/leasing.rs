//! `Leasing`: the wait for a stream, and its end.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use headrace_cuda::{CudaError, Lease};
use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::pending::{Made, Pending, done};
use super::pool::Pool;
use super::stream::Stream;
use crate::batch::blocking::detached;
use crate::bridge::waiter::already_awaited;
use crate::errors::cuda_error;
use crate::ffi::raise_stop_iteration;
use crate::response::thrown;
use crate::runtime::{check_fork, is_exiting};

/// How often a waiting thread looks for signals.
const SIGNALS_TICK: Duration = Duration::from_millis(50);

/// What `lease` returns: await it for the stream, or enter it with `async with`.
#[pyclass(frozen, weakref, name = "CudaLeasing", module = "headrace._headrace")]
pub(crate) struct Leasing {
    pool: Arc<Pool>,
    key: Option<u64>,
    timeout: Option<Duration>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pending: Option<Arc<Pending>>,
    stream: Option<Py<Stream>>,
    /// Whoever awaited it has its stream.
    is_given: bool,
}

impl Leasing {
    pub(super) fn new(pool: &Arc<Pool>, key: Option<u64>, timeout: Option<Duration>) -> PyResult<Self> {
        Ok(Self { pool: Arc::clone(pool), key, timeout, state: Mutex::default() })
    }

    /// A stream that is free, if nobody waits for one: without a place to wait, which most do not need.
    fn take_free(&self, py: Python<'_>) -> PyResult<Option<Lease>> {
        let native = self.pool.native().map_err(|error| cuda_error(py, &error))?;
        py.detach(|| native.take_free(self.key)).map_err(|error| cuda_error(py, &error))
    }

    fn give(&self, stream: Bound<'_, Stream>) -> PyResult<Option<Py<PyAny>>> {
        {
            let mut state = self.state.lock();
            state.stream = Some(stream.clone().unbind());
            state.is_given = true;
        }
        raise_stop_iteration(stream.into_any())
    }

    fn ask(&self, py: Python<'_>) -> PyResult<Arc<Pending>> {
        let pool = Arc::clone(&self.pool);
        let native = pool.native().map_err(|error| cuda_error(py, &error))?;
        let asked = native.lease(self.key, self.timeout);
        let work = Box::pin(async move {
            let lease = asked.await?;
            let made = move |py: Python<'_>| Ok(Py::new(py, Stream::lent(&pool, lease))?.into_any());
            Ok(Box::new(made) as Made)
        });
        Ok(Arc::new(Pending::new(py, &self.pool.place, "this lease", work)?))
    }
}

#[pymethods]
impl Leasing {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let known = {
            let state = self.state.lock();
            if state.is_given {
                return Err(already_awaited("this lease"));
            }
            state.pending.clone()
        };
        if known.is_none()
            && let Some(lease) = self.take_free(py)?
        {
            let stream = Py::new(py, Stream::lent(&self.pool, lease))?;
            return self.give(stream.into_bound(py));
        }
        let pending = known.map_or_else(|| self.ask(py), Ok)?;
        match pending.step(py)? {
            Ok(stream) => self.give(stream.into_bound(py).cast_into::<Stream>()?),
            Err(waiter) => {
                self.state.lock().pending = Some(pending);
                Ok(Some(waiter))
            }
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
        self.close(py);
        Err(thrown(kind, value))
    }

    fn close(&self, py: Python<'_>) {
        let pending = self.state.lock().pending.clone();
        if let Some(pending) = pending {
            pending.give_up(py);
        }
    }

    fn __aenter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Gives the stream back; what was put into it runs on, and nobody waits for that here.
    fn __aexit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let stream = self.state.lock().stream.take();
        let stream = stream.ok_or_else(|| PyRuntimeError::new_err("this lease was not entered"))?;
        stream.get().give_back(py);
        done(py)
    }
}

/// Waits for a future of the crate on the calling thread, without the interpreter.
///
/// # Errors
/// What it fails with, or a signal's handler raised.
pub(super) fn wait_on_thread<T: Send>(
    py: Python<'_>,
    future: impl Future<Output = Result<T, CudaError>> + Send,
) -> PyResult<T> {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let mut future = Box::pin(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        let polled = detached(py, || {
            let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
            if polled.is_pending() {
                // Woken or not, it looks again.
                std::thread::park_timeout(SIGNALS_TICK);
            }
            polled
        });
        if let Poll::Ready(ended) = polled {
            return ended.map_err(|error| cuda_error(py, &error));
        }
        if let Err(error) = py.check_signals().and_then(|()| check_fork(py)) {
            // It may have been granted a stream meanwhile, which goes back through the driver.
            py.detach(move || drop(future));
            return Err(error);
        }
        if is_exiting() {
            // Only daemon threads are left, and whatever this one did next would be cut short.
            py.detach(|| {
                loop {
                    std::thread::park();
                }
            });
        }
    }
}
