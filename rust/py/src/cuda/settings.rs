//! What a pool is made with, from Python's words and units.

use std::time::Duration;

use headrace_cuda::{CompletionMode, CudaError, OpenDevice, PoolSettings, Priority, SimSettings, Simulation};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::cuda_error;

/// The device of a pool; a simulated one can be told to fail.
pub(super) struct Opened {
    pub(super) device: OpenDevice,
    pub(super) simulation: Option<Simulation>,
}

/// Opens the device. Loads the driver, which takes a while the first time.
pub(super) fn open(py: Python<'_>, ordinal: usize, backend: &str) -> PyResult<Opened> {
    match backend {
        "cuda" => {
            let device = py.detach(|| OpenDevice::open(ordinal)).map_err(|error| cuda_error(py, &error))?;
            Ok(Opened { device, simulation: None })
        }
        "sim" => {
            let simulation = Simulation::new(SimSettings { ordinal, ..SimSettings::default() });
            Ok(Opened { device: OpenDevice::simulated(&simulation), simulation: Some(simulation) })
        }
        other => Err(PyValueError::new_err(format!("backend must be \"cuda\" or \"sim\", not {other:?}"))),
    }
}

/// Settings as they are given; what is left out is the crate's default.
pub(super) struct Given<'a> {
    pub(super) max_streams: usize,
    pub(super) warm_streams: usize,
    pub(super) priority: &'a str,
    pub(super) budget_mb: Option<u64>,
    pub(super) completion: &'a str,
    pub(super) spin_us: Option<f64>,
    pub(super) pinned_mb: Option<u64>,
}

impl Given<'_> {
    pub(super) fn checked(&self, py: Python<'_>) -> PyResult<PoolSettings> {
        let defaults = PoolSettings::default();
        let invalid = |error| cuda_error(py, &CudaError::Invalid(error));
        let priority = match self.priority {
            "normal" => Priority::Normal,
            "high" => Priority::High,
            other => {
                let message = format!("priority must be \"normal\" or \"high\", not {other:?}");
                return Err(PyValueError::new_err(message));
            }
        };
        let modes = [CompletionMode::Event, CompletionMode::Poll, CompletionMode::HostFn];
        let completion = modes.into_iter().find(|mode| mode.name() == self.completion).ok_or_else(|| {
            let other = self.completion;
            PyValueError::new_err(format!(
                "completion must be \"event\", \"poll\" or \"hostfn\", not {other:?}"
            ))
        })?;
        let spin = match self.spin_us {
            None => defaults.spin,
            Some(us) => Duration::try_from_secs_f64(us / 1e6)
                .map_err(|_| PyValueError::new_err(format!("spin_us must be 0 or more, not {us}")))?,
        };
        let budget_mb = self.budget_mb.map_or_else(headrace_cuda::budget_mb_from_environment, Ok);
        let settings = PoolSettings {
            max_streams: self.max_streams,
            warm_streams: self.warm_streams,
            priority,
            budget_mb: budget_mb.map_err(invalid)?,
            completion,
            spin,
            pinned_mb: self.pinned_mb.unwrap_or(defaults.pinned_mb),
        };
        settings.validate().map_err(invalid)?;
        Ok(settings)
    }
}
