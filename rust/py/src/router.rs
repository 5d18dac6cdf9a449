//! `Router`: settings in, calls out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headrace::address::AddressError;
use headrace::discovery::{Directory, Discovery, Fixed};
use headrace::wire::kind::Encoding;
use headrace::{
    Address, CallOptions, Choose, InstanceInfo, Item, Policy, Router as CoreRouter, RouterConfig,
};
use parking_lot::Mutex;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::bridge::driver::HubDriver;
use crate::bridge::hub::{Closes, Hub};
use crate::bridge::loop_hub::LoopHub;
use crate::errors::start_error;
use crate::ffi::ForkSafe;
use crate::metrics::{HeldPort, PortSetting, address_of, held};
use crate::payload::{Codec, is_stream, own};
use crate::reading::{Feeding, PythonSide, Reading, Resume};
use crate::response::{Call, UnaryCall};
use crate::runtime::{check_process, cold, handle};

/// A router's settings and targets, checked.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct RouterSettings {
    places: Vec<Arc<dyn Discovery>>,
    config: RouterConfig,
    /// Where it tells metrics and health, if it shall.
    port: Option<PortSetting>,
}

/// Seconds as a duration, refusing what is none.
pub(crate) fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|_| {
        PyValueError::new_err(format!("{name} must be a number of seconds from 0 up, not {value}"))
    })
}

/// A whole number that a setting holds, refusing what does not fit by the setting's name.
pub(crate) fn whole<'py, T>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    value.extract().map_err(|error: PyErr| {
        if !error.is_instance_of::<PyOverflowError>(value.py()) {
            let kind = value.get_type();
            return PyTypeError::new_err(format!("{name} must be a whole number, not {kind}: {value}"));
        }
        PyValueError::new_err(format!(
            "{name} must be a whole number from 0 up that is not too large, not {value}"
        ))
    })
}

/// A time that a call may take, if it is bounded; like a router's own, it is not zero.
fn some_seconds(name: &str, value: Option<f64>) -> PyResult<Option<Duration>> {
    match optional_seconds(name, value)? {
        Some(Duration::ZERO) => Err(PyValueError::new_err(format!("{name} must be positive, not 0"))),
        seconds => Ok(seconds),
    }
}

fn optional_seconds(name: &str, value: Option<f64>) -> PyResult<Option<Duration>> {
    value.map(|value| seconds(name, value)).transpose()
}

#[pymethods]
impl RouterSettings {
    #[new]
    #[pyo3(signature = (targets, *, namespace, policy, timeout, item_timeout, instance_timeout, retries,
        max_resume_bytes, stream_window, link_window, ping_interval, ping_timeout, slow_consumer_timeout, max_message_bytes,
        metrics, token, insecure))]
    #[expect(clippy::too_many_arguments, reason = "they mirror the keywords of the Python class")]
    fn new(
        targets: Option<Vec<String>>,
        namespace: String,
        policy: &Bound<'_, PyAny>,
        timeout: Option<f64>,
        item_timeout: Option<f64>,
        instance_timeout: f64,
        retries: &Bound<'_, PyAny>,
        max_resume_bytes: &Bound<'_, PyAny>,
        stream_window: &Bound<'_, PyAny>,
        link_window: &Bound<'_, PyAny>,
        ping_interval: f64,
        ping_timeout: f64,
        slow_consumer_timeout: Option<f64>,
        max_message_bytes: &Bound<'_, PyAny>,
        metrics: Option<&str>,
        token: Option<String>,
        insecure: bool,
    ) -> PyResult<Self> {
        let policy = routing_policy(policy)?;
        let places = places(targets, &namespace, insecure).map_err(|error| start_error(&error.into()))?;
        let config = RouterConfig {
            namespace,
            policy,
            timeout: optional_seconds("timeout", timeout)?,
            item_timeout: optional_seconds("item_timeout", item_timeout)?,
            instance_timeout: seconds("instance_timeout", instance_timeout)?,
            retries: whole("retries", retries)?,
            max_resume_bytes: whole("max_resume_bytes", max_resume_bytes)?,
            stream_window: whole("stream_window", stream_window)?,
            link_window: whole("link_window", link_window)?,
            ping_interval: seconds("ping_interval", ping_interval)?,
            ping_timeout: seconds("ping_timeout", ping_timeout)?,
            slow_consumer_timeout: optional_seconds("slow_consumer_timeout", slow_consumer_timeout)?,
            max_message_bytes: whole("max_message_bytes", max_message_bytes)?,
            token,
            insecure,
        };
        config.check().map_err(|error| start_error(&error))?;
        let port = PortSetting::parse(metrics, insecure)?;
        Ok(Self { places, config, port })
    }
}

/// Where to look for workers: addresses, directories, or the user's own directory.
fn places(
    targets: Option<Vec<String>>,
    namespace: &str,
    insecure: bool,
) -> Result<Vec<Arc<dyn Discovery>>, AddressError> {
    let Some(targets) = targets else { return Ok(vec![Arc::new(Directory::of_user(namespace))]) };
    let (mut addresses, mut places): (Vec<Address>, Vec<Arc<dyn Discovery>>) = (Vec::new(), Vec::new());
    for target in targets {
        if target.starts_with("file:") {
            places.push(Arc::new(directory(&target)?));
        } else {
            let address: Address = target.parse()?;
            address.check(insecure)?;
            addresses.push(address);
        }
    }
    if !addresses.is_empty() || places.is_empty() {
        places.insert(0, Arc::new(Fixed::new(&addresses)));
    }
    Ok(places)
}

/// The directory that a URL names.
pub(crate) fn directory(url: &str) -> Result<Directory, AddressError> {
    Directory::from_url(url).ok_or_else(|| AddressError::NoDirectory { given: url.to_owned() })
}

fn routing_policy(policy: &Bound<'_, PyAny>) -> PyResult<Policy> {
    let Ok(name) = policy.extract::<String>() else {
        return Ok(Policy::Custom(Arc::new(PythonPolicy(policy.clone().unbind()))));
    };
    Ok(match name.as_str() {
        "p2c" => Policy::PowerOfTwo,
        "round_robin" => Policy::RoundRobin,
        "random" => Policy::Random,
        "least_loaded" => Policy::LeastLoaded,
        "hash" => Policy::Hash,
        "direct" => Policy::Direct,
        other => {
            let message = format!(
                "policy must be \"p2c\", \"round_robin\", \"random\", \"least_loaded\", \"hash\", \"direct\" \
                 or a function of a list of instances, not {other:?}"
            );
            return Err(PyValueError::new_err(message));
        }
    })
}

/// A policy in Python: given what is known of each instance, it returns the index of one.
#[derive(Debug)]
struct PythonPolicy(Py<PyAny>);

impl Choose for PythonPolicy {
    fn choose(&self, candidates: &[InstanceInfo]) -> Result<usize, String> {
        #[expect(
            clippy::disallowed_methods,
            reason = "calls are polled by their loop's thread, which is attached"
        )]
        Python::attach(|py| {
            let known = candidates.iter().map(|info| entry(py, info)).collect::<PyResult<Vec<_>>>();
            known.and_then(|known| self.0.call1(py, (known,))?.extract(py)).map_err(|error| error.to_string())
        })
    }
}

/// What is known of an instance, as a dictionary.
fn entry<'py>(py: Python<'py>, info: &InstanceInfo) -> PyResult<Bound<'py, PyDict>> {
    let entry = PyDict::new(py);
    entry.set_item("address", &info.address)?;
    entry.set_item("instance_id", &info.instance_id)?;
    entry.set_item("state", info.state.name())?;
    entry.set_item("endpoints", &info.endpoints)?;
    entry.set_item("in_flight", info.in_flight)?;
    entry.set_item("last_error", info.last_error.as_deref())?;
    Ok(entry)
}

/// The core's router, closed with its loop, or when neither a router object nor a stream of it is left.
#[derive(Debug)]
pub(crate) struct RouterHandle {
    router: ForkSafe<Mutex<Option<CoreRouter>>>,
    port: HeldPort,
}

impl Closes for RouterHandle {
    fn close(&self) {
        let (router, port) = (self.router.lock().take(), self.port.lock().take());
        drop(port);
        if let Some(router) = router {
            router.close();
        }
    }
}

/// A router on one event loop.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Router {
    hub: Arc<Hub>,
    owned: Arc<RouterHandle>,
    /// Its policy is in Python.
    asks_python: bool,
}

#[pymethods]
impl Router {
    #[new]
    fn new(py: Python<'_>, settings: &RouterSettings, hub: &LoopHub) -> PyResult<Self> {
        let hub = Arc::clone(hub.hub());
        hub.check(py)?;
        let driver = Arc::new(HubDriver(Arc::clone(&hub)));
        let runtime = handle(py)?;
        let (places, config) = (settings.places.clone(), settings.config.clone());
        let port = settings.port.as_ref().map(|port| port.open(&runtime)).transpose();
        let port = port.map_err(|error| start_error(&error))?;
        let frozen_after = config.ping_interval;
        let router = CoreRouter::discovering(places, config, runtime, driver);
        let router = router.map_err(|error| start_error(&error))?;
        if let Some(port) = &port {
            port.watch(router.reports(), frozen_after);
        }
        let router = ForkSafe::new(Mutex::new(Some(router)));
        let owned = Arc::new(RouterHandle { router, port: held(port) });
        let weak = Arc::downgrade(&owned);
        hub.close_with_loop(weak);
        let asks_python = matches!(settings.config.policy, Policy::Custom(_));
        Ok(Self { hub, owned, asks_python })
    }

    /// A call with these options; nothing is sent before it is awaited.
    #[pyo3(signature = (request, codec, endpoint, timeout, item_timeout, metadata, instance, affinity,
        idempotent, resume, request_id, traceparent, single))]
    #[expect(clippy::too_many_arguments, reason = "they mirror the keywords of the Python method")]
    fn call(
        &self,
        request: &Bound<'_, PyAny>,
        codec: Py<Codec>,
        endpoint: Option<String>,
        timeout: Option<f64>,
        item_timeout: Option<f64>,
        metadata: Option<Vec<(String, String)>>,
        instance: Option<String>,
        affinity: Option<String>,
        idempotent: bool,
        resume: Option<Py<PyAny>>,
        request_id: Option<String>,
        traceparent: Option<String>,
        single: bool,
    ) -> PyResult<Py<PyAny>> {
        let py = request.py();
        check_process(py)?;
        self.hub.check(py)?;
        let streams = is_stream(request)?;
        if streams && (idempotent || resume.is_some()) {
            return Err(PyValueError::new_err(
                "a request stream is sent once and not kept: idempotent= and resume= do not go with it",
            ));
        }
        let payload = if streams {
            Item { encoding: Encoding::Raw as u8, payload: Bytes::new() }
        } else {
            let encoded = codec.get().encode(request)?;
            Item { encoding: encoded.encoding, payload: own(&self.hub, &encoded.bytes) }
        };
        let mut options = CallOptions::new(payload);
        options.endpoint = endpoint.unwrap_or_default();
        options.timeout = some_seconds("timeout", timeout)?;
        options.item_timeout = some_seconds("item_timeout", item_timeout)?;
        options.metadata = metadata.unwrap_or_default();
        options.instance = instance.unwrap_or_default();
        options.affinity = affinity.unwrap_or_default();
        options.idempotent = idempotent;
        options.resumable = resume.is_some();
        options.request_id = request_id.unwrap_or_default();
        options.traceparent = traceparent.unwrap_or_default();
        options.single = single;
        let request_id = options.request_id.clone();
        let (hub, owned) = (Arc::clone(&self.hub), Arc::clone(&self.owned));
        let (call, feeding) = if streams {
            let (sink, call) = self.with(py, |router| router.call_streaming(options))?;
            (call, Some(Feeding::new(request, Arc::clone(&hub), codec.clone_ref(py), sink)?))
        } else {
            (self.with(py, |router| router.call(options))?, None)
        };
        let resume = resume.map(|function| Resume { function, request: request.clone().unbind() });
        let python = PythonSide { feeding, resume, asks: self.asks_python };
        let reading = Reading::new(hub, codec, request_id, call, python, owned);
        Ok(if single {
            Py::new(py, UnaryCall::new(reading))?.into_any()
        } else {
            Py::new(py, Call::new(py, reading)?)?.into_any()
        })
    }

    /// Where it tells metrics and health, if it does.
    #[getter]
    fn metrics_address(&self) -> Option<String> {
        address_of(&self.owned.port)
    }

    /// What is known of each instance, as dictionaries.
    fn instances<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let infos = self.with(py, CoreRouter::instances)?;
        let entries = infos.iter().map(|info| entry(py, info)).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, entries)
    }

    /// A future that says whether `count` instances took requests within `timeout` seconds.
    fn wait_for_instances<'py>(
        &self,
        py: Python<'py>,
        count: usize,
        timeout: f64,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.hub.check(py)?;
        let router = self.with(py, Clone::clone)?;
        let timeout = seconds("timeout", timeout)?;
        let event_loop = self.hub.event_loop(py)?;
        cold(&event_loop, &self.hub, async move { Ok(router.wait_for_instances(count, timeout).await) })
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        check_process(py)?;
        let stats = self.with(py, CoreRouter::stats).unwrap_or_default();
        let dict = PyDict::new(py);
        dict.set_item("links", stats.links)?;
        dict.set_item("streams", stats.streams)?;
        dict.set_item("in_flight", stats.in_flight)?;
        dict.set_item("calls_total", stats.calls_total)?;
        dict.set_item("retries_total", stats.retries_total)?;
        Ok(dict)
    }

    /// Closes every link. Streams that are open fail, calls that wait too.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        check_process(py)?;
        self.owned.close();
        self.hub.settle(py)
    }
}

impl Router {
    fn with<T>(&self, py: Python<'_>, look: impl FnOnce(&CoreRouter) -> T) -> PyResult<T> {
        check_process(py)?;
        match &*self.owned.router.lock() {
            Some(router) => Ok(look(router)),
            None => Err(pyo3::exceptions::PyRuntimeError::new_err("the router is closed")),
        }
    }
}
