//! Whether there is CUDA, and what it finds. Nothing is loaded before one of these is called.

use headrace_cuda::{CudaError, DeviceInfo, Unavailable};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors::cuda_error;

/// Why CUDA cannot be used; `None` if it can.
#[pyfunction]
pub(crate) fn _cuda_unavailable_reason(py: Python<'_>) -> Option<String> {
    py.detach(headrace_cuda::unavailable_reason).map(|reason| reason.to_string())
}

/// How many devices there are.
#[pyfunction]
pub(crate) fn _cuda_device_count(py: Python<'_>) -> PyResult<usize> {
    match py.detach(headrace_cuda::device_count) {
        Err(CudaError::Unavailable(Unavailable::NoDevice)) => Ok(0),
        count => count.map_err(|error| cuda_error(py, &error)),
    }
}

/// What each of them says of itself, as keyword arguments of `headrace.cuda.Device`.
#[pyfunction]
pub(crate) fn _cuda_devices(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let devices = py.detach(headrace_cuda::devices).map_err(|error| cuda_error(py, &error))?;
    let facts = devices.iter().map(|device| facts(py, device)).collect::<PyResult<Vec<_>>>()?;
    PyList::new(py, facts)
}

pub(super) fn facts<'py>(py: Python<'py>, device: &DeviceInfo) -> PyResult<Bound<'py, PyDict>> {
    let facts = PyDict::new(py);
    facts.set_item("ordinal", device.ordinal)?;
    facts.set_item("name", &device.name)?;
    facts.set_item("memory_bytes", device.memory_bytes)?;
    facts.set_item("compute_capability", device.compute_capability)?;
    facts.set_item("copy_engines", device.copy_engines)?;
    facts.set_item("memory_pools", device.memory_pools)?;
    Ok(facts)
}

/// The budget that pools plan with, in bytes; see `headrace.cuda.planned_pool_budget_bytes`.
#[pyfunction]
#[pyo3(signature = (streams, budget_mb=None))]
pub(crate) fn _cuda_planned_budget(py: Python<'_>, streams: u64, budget_mb: Option<u64>) -> PyResult<u64> {
    let mb = budget_mb.map_or_else(headrace_cuda::budget_mb_from_environment, Ok);
    let mb = mb.map_err(|error| cuda_error(py, &CudaError::Invalid(error)))?;
    Ok(headrace_cuda::planned_pool_budget_bytes(streams, mb))
}
