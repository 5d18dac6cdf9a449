//! Metrics: the process's numbers as text and as values, and the port that tells them over HTTP.

use std::path::PathBuf;
use std::sync::Arc;

use headrace::port::Port;
use headrace::{Address, StartError, metrics};
use parking_lot::Mutex;
use prometheus::proto::{Metric, MetricFamily, MetricType};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyMapping;
use tokio::runtime::Handle;

use crate::errors::start_error;
use crate::ffi::ForkSafe;
use crate::runtime::{check_process, handle, started};

/// Where a worker or router shall tell metrics and health, if anywhere.
#[derive(Clone, Debug)]
pub(crate) struct PortSetting {
    address: Address,
    insecure: bool,
}

impl PortSetting {
    /// Reads the setting `metrics=`.
    pub(crate) fn parse(given: Option<&str>, insecure: bool) -> PyResult<Option<Self>> {
        let refused = |source| start_error(&StartError::MetricsAddress { source });
        let parse = |given: &str| {
            let address: Address = given.parse().map_err(refused)?;
            address.check(insecure).map_err(refused)?;
            Ok(Self { address, insecure })
        };
        given.map(parse).transpose()
    }

    /// Opens the port, or shares the one that is there.
    pub(crate) fn open(&self, runtime: &Handle) -> Result<Arc<Port>, StartError> {
        Port::open(&self.address, self.insecure, runtime)
    }
}

/// Reads the setting `metrics_labels=`; whether they can be labels, the core says.
pub(crate) fn labels(given: &Bound<'_, PyAny>) -> PyResult<Vec<(String, String)>> {
    let Ok(given) = given.cast::<PyMapping>() else {
        let kind = given.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "metrics_labels must be a dictionary of names and values, not {kind}"
        )));
    };
    let text = |whose: &str, text: &Bound<'_, PyAny>| {
        let kind = text.get_type().name()?;
        text.extract::<String>()
            .map_err(|_| PyTypeError::new_err(format!("metrics_labels: {whose} must be a str, not {kind}")))
    };
    let pair = |item: Bound<'_, PyAny>| {
        let (name, value) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
        let name = text("a label's name", &name)?;
        let value = text(&format!("the value of {name:?}"), &value)?;
        Ok((name, value))
    };
    given.items()?.iter().map(pair).collect()
}

/// A port that is held until it is let go.
pub(crate) type HeldPort = Arc<ForkSafe<Mutex<Option<Arc<Port>>>>>;

pub(crate) fn held(port: Option<Arc<Port>>) -> HeldPort {
    Arc::new(ForkSafe::new(Mutex::new(port)))
}

/// Where a held port listens.
pub(crate) fn address_of(port: &HeldPort) -> Option<String> {
    port.lock().as_ref().map(|port| port.address().to_string())
}

/// The port of a parent of worker processes.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct MergedPort(HeldPort);

#[pymethods]
impl MergedPort {
    /// Opens it: one scrape of it is one of all worker processes, which answer at these Unix sockets.
    #[new]
    fn new(py: Python<'_>, address: &str, insecure: bool, sockets: Vec<PathBuf>) -> PyResult<Self> {
        let runtime = handle(py)?;
        let Some(PortSetting { address, .. }) = PortSetting::parse(Some(address), insecure)? else {
            return Ok(Self(held(None)));
        };
        let opened = Port::open_merged(&address, insecure, sockets, &runtime);
        Ok(Self(held(Some(opened.map_err(|error| start_error(&error))?))))
    }

    /// Where it listens; `None` once it is closed.
    #[getter]
    fn address(&self) -> Option<String> {
        address_of(&self.0)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        check_process(py)?;
        let port = self.0.lock().take();
        drop(port);
        Ok(())
    }
}

/// The metrics of this process as text, in Prometheus' format.
#[pyfunction]
pub(crate) fn render_metrics(py: Python<'_>) -> PyResult<String> {
    check_process(py)?;
    ask_loops();
    Ok(py.detach(metrics::render))
}

/// A series: its name, its labels and its value.
type Sample = (String, Vec<(String, String)>, f64);

/// A family: its name, help, type and series.
type Family = (String, String, &'static str, Vec<Sample>);

/// The same as values.
#[pyfunction]
pub(crate) fn metric_families(py: Python<'_>) -> PyResult<Vec<Family>> {
    check_process(py)?;
    ask_loops();
    let families = py.detach(metrics::families);
    Ok(families
        .iter()
        .map(|family| (family.name().to_owned(), family.help().to_owned(), kind(family), samples(family)))
        .collect())
}

/// Loops are asked for turns by tokio, once there are any.
fn ask_loops() {
    if let Some(runtime) = started() {
        metrics::ask_loops(&runtime);
    }
}

fn kind(family: &MetricFamily) -> &'static str {
    match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::HISTOGRAM => "histogram",
        _ => "gauge",
    }
}

fn samples(family: &MetricFamily) -> Vec<Sample> {
    family.get_metric().iter().flat_map(|metric| samples_of(family, metric)).collect()
}

fn samples_of(family: &MetricFamily, metric: &Metric) -> Vec<Sample> {
    let name = family.name();
    let labels: Vec<_> =
        metric.get_label().iter().map(|label| (label.name().to_owned(), label.value().to_owned())).collect();
    let single = |value| vec![(name.to_owned(), labels.clone(), value)];
    match family.get_field_type() {
        MetricType::COUNTER => single(metric.get_counter().get_value()),
        MetricType::HISTOGRAM => {
            let histogram = metric.get_histogram();
            let bucket = |bound: String, count: u64| {
                let labels = [labels.clone(), vec![("le".to_owned(), bound)]].concat();
                (format!("{name}_bucket"), labels, count as f64)
            };
            let finite = histogram.get_bucket().iter();
            let mut samples: Vec<_> =
                finite.map(|each| bucket(each.upper_bound().to_string(), each.cumulative_count())).collect();
            samples.push(bucket("+Inf".to_owned(), histogram.get_sample_count()));
            samples.push((format!("{name}_sum"), labels.clone(), histogram.get_sample_sum()));
            samples.push((format!("{name}_count"), labels.clone(), histogram.get_sample_count() as f64));
            samples
        }
        _ => single(metric.get_gauge().get_value()),
    }
}
