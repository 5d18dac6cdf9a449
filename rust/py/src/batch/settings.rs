//! `BatchSettings`: a batcher's settings, checked.

use headrace::batch::BatchConfig;
use pyo3::prelude::*;

use crate::errors::start_error;
use crate::router::{seconds, whole};

/// A batcher's settings, checked.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct BatchSettings(BatchConfig);

impl BatchSettings {
    pub(crate) const fn config(&self) -> &BatchConfig {
        &self.0
    }
}

#[pymethods]
impl BatchSettings {
    #[new]
    #[pyo3(signature = (*, max_batch_size, max_latency, linger, max_cost, padded_cost, allowed_sizes, workers,
        queue_capacity, queue_cost, max_in_flight_per_client, timeout, response_timeout, predictive_expiry,
        priorities, aging, isolate_failures, startup_timeout, callback_timeout, name))]
    #[expect(clippy::too_many_arguments, reason = "they mirror the keywords of `Batcher`")]
    fn new(
        max_batch_size: &Bound<'_, PyAny>,
        max_latency: f64,
        linger: f64,
        max_cost: Option<Bound<'_, PyAny>>,
        padded_cost: bool,
        allowed_sizes: Vec<usize>,
        workers: &Bound<'_, PyAny>,
        queue_capacity: Option<Bound<'_, PyAny>>,
        queue_cost: Option<Bound<'_, PyAny>>,
        max_in_flight_per_client: Option<Bound<'_, PyAny>>,
        timeout: Option<f64>,
        response_timeout: Option<f64>,
        predictive_expiry: bool,
        priorities: &Bound<'_, PyAny>,
        aging: Option<f64>,
        isolate_failures: bool,
        startup_timeout: f64,
        callback_timeout: Option<f64>,
        name: String,
    ) -> PyResult<Self> {
        let some_seconds = |name, value: Option<f64>| value.map(|value| seconds(name, value)).transpose();
        let config = BatchConfig {
            max_batch_size: whole("max_batch_size", max_batch_size)?,
            max_latency: seconds("max_latency", max_latency)?,
            linger: seconds("linger", linger)?,
            max_cost: max_cost.map(|value| whole("max_cost", &value)).transpose()?,
            padded_cost,
            allowed_sizes,
            workers: whole("workers", workers)?,
            queue_capacity: queue_capacity.map(|value| whole("queue_capacity", &value)).transpose()?,
            queue_cost: queue_cost.map(|value| whole("queue_cost", &value)).transpose()?,
            max_in_flight_per_client: max_in_flight_per_client
                .map(|value| whole("max_in_flight_per_client", &value))
                .transpose()?,
            timeout: some_seconds("timeout", timeout)?,
            response_timeout: some_seconds("response_timeout", response_timeout)?,
            predictive_expiry,
            priorities: whole("priorities", priorities)?,
            aging: some_seconds("aging", aging)?,
            isolate_failures,
            startup_timeout: seconds("startup_timeout", startup_timeout)?,
            callback_timeout: some_seconds("callback_timeout", callback_timeout)?,
            name,
        };
        config.check().map_err(|error| start_error(&error))?;
        Ok(Self(config))
    }
}
