//! `StreamPool`: streams of one device, each lent to one user at a time.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use headrace_cuda::pool::WAIT_BOUNDS_US;
use headrace_cuda::{CudaError, SimCall, SimFault, Simulation, SpinKernel, When};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList};
use tokio::sync::oneshot;

use super::leasing::{Leasing, wait_on_thread};
use super::pending::{Done, LoopPlace, Made, Pending, Work, ends, running_loop};
use super::probe::facts;
use super::release::Released;
use super::settings::{Given, Opened, open};
use super::stream::Stream;
use super::taken::Shown;
use crate::errors::cuda_error;

/// A pool and what is made once for all its streams. Streams and buffers hold it too, so that what they need
/// of it is there.
pub(super) struct Pool {
    native: Released<headrace_cuda::StreamPool>,
    simulation: Option<Simulation>,
    /// The process that made it.
    made_by: u32,
    spin: OnceLock<SpinKernel>,
    shown: Released<Shown>,
    pub(super) place: LoopPlace,
}

impl Pool {
    /// The pool; it is there until nobody holds this.
    ///
    /// # Errors
    /// This is a fork of the process that made it, where threads that are not there may hold its locks.
    pub(super) fn native(&self) -> Result<&headrace_cuda::StreamPool, CudaError> {
        if std::process::id() != self.made_by {
            return Err(CudaError::Forked);
        }
        self.native.get().ok_or(CudaError::PoolClosed)
    }

    /// The kernel that takes a given time, loaded at its first use.
    pub(super) fn spin_kernel(&self) -> Result<&SpinKernel, CudaError> {
        if let Some(kernel) = self.spin.get() {
            return Ok(kernel);
        }
        let kernel = SpinKernel::load(self.native()?.device())?;
        // Another thread may have been faster; then its kernel is used.
        Ok(self.spin.get_or_init(|| kernel))
    }

    /// Its streams that others may name.
    pub(super) fn shown(&self) -> Option<&Shown> {
        self.shown.get()
    }

    pub(super) fn ordinal(&self) -> usize {
        self.native().map_or(0, |pool| pool.device().info().ordinal)
    }

    pub(super) fn is_simulated(&self) -> bool {
        self.simulation.is_some()
    }

    /// A pool for streams that others have made, which lends none.
    pub(super) fn of_others(py: Python<'_>, ordinal: usize) -> PyResult<Arc<Self>> {
        let Opened { device, simulation } = open(py, ordinal, "cuda")?;
        Self::start(py, Opened { device, simulation }, headrace_cuda::PoolSettings::default())
    }

    fn start(py: Python<'_>, opened: Opened, settings: headrace_cuda::PoolSettings) -> PyResult<Arc<Self>> {
        let Opened { device, simulation } = opened;
        let native = py
            .detach(|| headrace_cuda::StreamPool::new(device, settings))
            .map_err(|error| cuda_error(py, &error))?;
        Ok(Arc::new(Self {
            native: Released::new(native),
            simulation,
            made_by: std::process::id(),
            spin: OnceLock::new(),
            shown: Released::new(Shown::default()),
            place: LoopPlace::default(),
        }))
    }
}

/// Streams of one device, each lent to one user at a time, first come, first served.
#[pyclass(frozen, weakref, name = "StreamPool", module = "headrace.cuda")]
pub(crate) struct StreamPool {
    pool: Arc<Pool>,
}

impl StreamPool {
    fn native(&self, py: Python<'_>) -> PyResult<&headrace_cuda::StreamPool> {
        self.pool.native().map_err(|error| cuda_error(py, &error))
    }

    fn closing(&self, py: Python<'_>) -> PyResult<headrace_cuda::Completion> {
        let pool = self.native(py)?;
        Ok(py.detach(|| pool.close()))
    }

    fn pending(&self, py: Python<'_>, work: Work) -> PyResult<Pending> {
        Pending::new(py, &self.pool.place, "this close", work)
    }
}

#[pymethods]
impl StreamPool {
    #[new]
    #[pyo3(signature = (device=0, max_streams=4, *, priority="normal", budget_mb=None, completion="event",
        spin_us=None, warm_streams=0, pinned_mb=None, backend="cuda"))]
    #[expect(clippy::too_many_arguments, reason = "settings of the Python class")]
    fn new(
        py: Python<'_>,
        device: usize,
        max_streams: usize,
        priority: &str,
        budget_mb: Option<u64>,
        completion: &str,
        spin_us: Option<f64>,
        warm_streams: usize,
        pinned_mb: Option<u64>,
        backend: &str,
    ) -> PyResult<Self> {
        let given = Given { max_streams, warm_streams, priority, budget_mb, completion, spin_us, pinned_mb };
        let settings = given.checked(py)?;
        Ok(Self { pool: Pool::start(py, open(py, device, backend)?, settings)? })
    }

    /// Borrow a stream: something to await, or to enter with `async with`.
    #[pyo3(signature = (*, timeout=None, key=None))]
    fn lease(&self, timeout: Option<f64>, key: Option<&Bound<'_, PyAny>>) -> PyResult<Leasing> {
        Leasing::new(&self.pool, number_of(key)?, limit(timeout)?)
    }

    /// Borrow a stream if one is free now.
    #[pyo3(signature = (*, key=None))]
    fn try_lease(&self, py: Python<'_>, key: Option<&Bound<'_, PyAny>>) -> PyResult<Stream> {
        let (pool, key) = (self.native(py)?, number_of(key)?);
        let lease = py.detach(|| pool.try_lease(key)).map_err(|error| cuda_error(py, &error))?;
        Ok(Stream::lent(&self.pool, lease))
    }

    /// Borrow a stream, and block the calling thread until there is one.
    #[pyo3(signature = (*, timeout=None, key=None))]
    fn lease_blocking(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        key: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Stream> {
        refuse_on_loop(py, "lease_blocking", "lease")?;
        let lease = wait_on_thread(py, self.native(py)?.lease(number_of(key)?, limit(timeout)?))?;
        Ok(Stream::lent(&self.pool, lease))
    }

    /// The stream of that number; 0 is the device's default stream.
    fn resolve(&self, py: Python<'_>, id: u32) -> PyResult<Option<Stream>> {
        let pool = self.native(py)?;
        let found = py.detach(|| pool.resolve(id));
        Ok(found.map(|stream| Stream::foreign(&self.pool, stream)))
    }

    /// A stream that others have made and keep alive.
    fn wrap(&self, stream: &Bound<'_, PyAny>) -> PyResult<Stream> {
        let (py, handle) = (stream.py(), handle_of(stream)?);
        Ok(Stream::foreign(&self.pool, self.native(py)?.external(handle)))
    }

    #[getter]
    fn max_streams(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.native(py)?.settings().max_streams)
    }

    #[getter]
    fn backend(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(self.native(py)?.device().backend().name())
    }

    #[getter]
    fn completion(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(self.native(py)?.settings().completion.name())
    }

    /// What the device says of itself.
    #[getter]
    fn device<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let facts = facts(py, self.native(py)?.device().info())?;
        py.import("headrace.cuda")?.getattr("Device")?.call((), Some(&facts))
    }

    /// Whether the device can be used.
    #[getter]
    fn healthy(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.native(py)?.is_healthy())
    }

    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.native(py)?.is_closed())
    }

    /// The error that the device is lost by, if it is.
    #[getter]
    fn lost(&self, py: Python<'_>) -> PyResult<Option<PyErr>> {
        Ok(self.native(py)?.device().lost().map(|error| cuda_error(py, &error)))
    }

    /// Done when the device is lost, with the error.
    fn wait_lost(&self, py: Python<'_>) -> PyResult<Pending> {
        let (sender, lost) = oneshot::channel();
        let device = self.native(py)?.device().clone();
        let hook = py.detach(|| device.on_lost(move |error| drop(sender.send(error.clone()))));
        let work: Work = Box::pin(async move {
            // Without the hook nobody sends anything; it is taken back when nobody waits any more.
            let error = lost.await.unwrap_or(CudaError::PoolClosed);
            drop(hook);
            Ok(Box::new(move |py: Python<'_>| Ok(cuda_error(py, &error).into_value(py).into_any())) as Made)
        });
        Pending::new(py, &self.pool.place, "this wait", work)
    }

    /// Counts at this moment.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let stats = self.native(py)?.stats();
        let fields = PyDict::new(py);
        fields.set_item("backend", stats.backend.name())?;
        for (name, count) in [
            ("max_streams", stats.max_streams as u64),
            ("created", stats.created as u64),
            ("idle", stats.idle as u64),
            ("in_use", stats.in_use as u64),
            ("draining", stats.draining as u64),
            ("waiting", stats.waiting as u64),
            ("leases", stats.leases),
            ("timeouts", stats.timeouts),
            ("bytes_to_device", stats.bytes_to_device),
            ("bytes_to_host", stats.bytes_to_host),
            ("device_bytes", stats.device_bytes),
            ("pinned_bytes", stats.pinned_bytes),
            ("errors", stats.errors),
        ] {
            fields.set_item(name, count)?;
        }
        fields.set_item("busy", stats.busy_us as f64 / 1e6)?;
        fields.set_item("poisoned", stats.poisoned)?;
        fields.set_item("waited", stats.wait_times.sum_us as f64 / 1e6)?;
        let bounds = WAIT_BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(stats.wait_times.counts).collect();
        fields.set_item("wait_times", PyList::new(py, buckets)?.to_tuple())?;
        py.import("headrace.cuda")?.getattr("PoolStats")?.call((), Some(&fields))
    }

    /// Lend nothing more, and wait until all streams have come back and are done.
    #[pyo3(signature = (timeout=None))]
    fn close(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Pending> {
        let timeout = limit(timeout)?;
        let closed = self.closing(py)?;
        let runtime = timeout.map(|_| crate::runtime::handle(py)).transpose()?;
        let work = async move {
            let drained = match timeout.zip(runtime) {
                None => closed.await.map(|()| true)?,
                Some((timeout, runtime)) => {
                    let drained = {
                        let _inside = runtime.enter();
                        tokio::time::timeout(timeout, closed)
                    };
                    drained.await.map_or(Ok(false), |ended| ended.map(|()| true))?
                }
            };
            Ok(Box::new(move |py: Python<'_>| truth(py, drained)) as Made)
        };
        self.pending(py, Box::pin(work))
    }

    fn __aenter__(slf: Py<Self>, py: Python<'_>) -> Done {
        Done(slf.clone_ref(py).into_any())
    }

    /// Awaits to `None`: what is true would stand for an exception that was dealt with.
    fn __aexit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) -> PyResult<Pending> {
        let closed = self.closing(py)?;
        self.pending(py, ends(closed))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let stats = self.native(py)?.stats();
        let (device, backend) = (self.pool.ordinal(), stats.backend);
        Ok(format!(
            "<headrace.cuda.StreamPool device={device} backend={backend} in_use={} of {}>",
            stats.in_use, stats.max_streams
        ))
    }

    /// The simulated device loses everything now, with this code of the driver.
    fn _lose(&self, code: u32) -> PyResult<()> {
        self.simulation()?.lose(code);
        Ok(())
    }

    /// Stops the time of the simulated device, or has it pass again.
    fn _stop(&self, stopped: bool) -> PyResult<()> {
        let simulation = self.simulation()?;
        if stopped {
            simulation.stop();
        } else {
            simulation.go_on();
        }
        Ok(())
    }

    /// The `nth` next call of a kind fails on the simulated device.
    #[pyo3(signature = (call, code, *, nth=1, executed=false))]
    fn _fail(&self, call: &str, code: u32, nth: u32, executed: bool) -> PyResult<()> {
        let calls = [
            ("create_stream", SimCall::CreateStream),
            ("record_event", SimCall::RecordEvent),
            ("allocate", SimCall::Allocate),
            ("copy_to_device", SimCall::CopyToDevice),
            ("copy_to_host", SimCall::CopyToHost),
            ("launch", SimCall::Launch),
        ];
        let known = calls.iter().find(|(name, _)| *name == call).map(|(_, call)| *call);
        let call = known.ok_or_else(|| PyValueError::new_err(format!("no call {call:?}")))?;
        let when = if executed { When::Executed } else { When::Called };
        self.simulation()?.fail(SimFault { call, nth, code, when });
        Ok(())
    }
}

impl StreamPool {
    fn simulation(&self) -> PyResult<&Simulation> {
        let none = || PyValueError::new_err("this device is not simulated");
        self.pool.simulation.as_ref().ok_or_else(none)
    }
}

/// A stream that others have made and keep alive, outside any pool.
#[pyfunction]
#[pyo3(signature = (stream, device=0))]
pub(crate) fn _cuda_external_stream(stream: &Bound<'_, PyAny>, device: usize) -> PyResult<Stream> {
    let (py, handle) = (stream.py(), handle_of(stream)?);
    let pool = Pool::of_others(py, device)?;
    let native = pool.native().map_err(|error| cuda_error(py, &error))?.external(handle);
    Ok(Stream::foreign(&pool, native))
}

fn truth(py: Python<'_>, value: bool) -> PyResult<Py<PyAny>> {
    Ok(PyBool::new(py, value).to_owned().into_any().unbind())
}

/// Seconds, `None` for ever.
fn limit(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    let Some(seconds) = seconds else { return Ok(None) };
    if seconds.is_nan() || seconds < 0.0 {
        return Err(PyValueError::new_err(format!("timeout must be 0 or more, not {seconds}")));
    }
    // What is out of reach is no bound.
    Ok(Duration::try_from_secs_f64(seconds).ok())
}

/// A key as a number. Two keys of one number share what they prefer, and nothing else.
fn number_of(key: Option<&Bound<'_, PyAny>>) -> PyResult<Option<u64>> {
    key.map(|key| key.hash().map(|hash| hash as u64)).transpose()
}

/// The handle of a stream of any library: one with `__cuda_stream__`, or the number itself.
fn handle_of(stream: &Bound<'_, PyAny>) -> PyResult<usize> {
    let py = stream.py();
    let protocol = pyo3::intern!(py, "__cuda_stream__");
    if !stream.hasattr(protocol)? {
        return stream.extract();
    }
    let (version, handle): (usize, usize) = stream.call_method0(protocol)?.extract()?;
    if version != 0 {
        let message = format!("__cuda_stream__ of version {version} is not known here, which knows 0");
        return Err(PyValueError::new_err(message));
    }
    Ok(handle)
}

/// Refuses to block a thread on which a loop runs.
pub(super) fn refuse_on_loop(py: Python<'_>, blocking: &str, instead: &str) -> PyResult<()> {
    if running_loop(py)?.is_none() {
        return Ok(());
    }
    let message = format!("{blocking} would block this thread's event loop; use `await` ({instead})");
    Err(PyRuntimeError::new_err(message))
}
