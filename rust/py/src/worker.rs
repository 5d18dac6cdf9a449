//! `Worker`, the engines behind it and the sink that their items go into.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use headrace::discovery::Directory;
use headrace::port::Port;
use headrace::wire::body::{Fault, FaultCode, Shape};
use headrace::{Address, Engine, Item, Request, Responder, StartError, Worker as CoreWorker, WorkerConfig};
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tokio::runtime::Handle;

use crate::bridge::driver::HubDriver;
use crate::bridge::hub::{Closes, Event, Hub, Slot, Target};
use crate::bridge::loop_hub::LoopHub;
use crate::errors::start_error;
use crate::ffi::ForkSafe;
use crate::metrics::{HeldPort, PortSetting, address_of, held, labels};
use crate::payload::Codec;
use crate::requests::RequestStream;
use crate::router::{directory, seconds, whole};
use crate::runtime::{check_process, cold, handle};
use crate::sink::Sink;

/// What the Python side gives for one endpoint.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct EngineSlot {
    /// `(request, sink)`: begins to answer.
    start: Py<PyAny>,
    codec: Py<Codec>,
    /// Why it takes no single requests, if so.
    refuses_single: Option<Arc<str>>,
    /// Why it takes no request streams, if so.
    refuses_stream: Option<Arc<str>>,
    /// A request stream is its request, and not only in its context.
    iterator_first: bool,
    /// What it is asked while it is silent, if it can be checked.
    health_check: Option<Item>,
    instance_id: Mutex<Arc<str>>,
    hub: Mutex<Option<Arc<Hub>>>,
}

#[pymethods]
impl EngineSlot {
    #[new]
    #[pyo3(signature = (start, codec, refuses_single, refuses_stream, iterator_first, health_check))]
    fn new(
        start: Py<PyAny>,
        codec: Py<Codec>,
        refuses_single: Option<String>,
        refuses_stream: Option<String>,
        iterator_first: bool,
        health_check: Option<(u8, Vec<u8>)>,
    ) -> Self {
        Self {
            start,
            codec,
            refuses_single: refuses_single.map(Arc::from),
            refuses_stream: refuses_stream.map(Arc::from),
            iterator_first,
            health_check: health_check
                .map(|(encoding, payload)| Item { encoding, payload: Bytes::from(payload) }),
            instance_id: Mutex::new("".into()),
            hub: Mutex::new(None),
        }
    }
}

/// An engine as the core sees it: a slot of a hub. It never touches Python.
#[derive(Debug)]
struct LoopEngine {
    hub: Arc<Hub>,
    slot: Slot,
    refuses_single: Option<Arc<str>>,
    refuses_stream: Option<Arc<str>>,
    health_check: Option<Item>,
}

impl Engine for LoopEngine {
    fn start(&self, request: Request, responder: Responder) {
        if self.hub.is_closed() {
            return responder.fail(shut_down());
        }
        self.hub.push(Event::Start(self.slot, Box::new((request, responder))));
    }

    fn refuses(&self, request_shape: Shape) -> Option<Cow<'_, str>> {
        let refusal = match request_shape {
            Shape::Single => &self.refuses_single,
            Shape::Many => &self.refuses_stream,
        };
        refusal.as_deref().map(Cow::from)
    }

    fn health_check(&self) -> Option<Item> {
        self.health_check.clone()
    }
}

fn shut_down() -> Fault {
    Fault {
        code: FaultCode::Shutdown,
        kind: String::new(),
        message: "the worker's event loop has ended".to_owned(),
        traceback: String::new(),
    }
}

/// Begins a request on the loop's thread.
pub(crate) fn start(
    engine: &Bound<'_, EngineSlot>,
    (mut request, responder): (Request, Responder),
) -> PyResult<()> {
    let py = engine.py();
    let slot = engine.get();
    if responder.is_killed() {
        return Ok(());
    }
    let Some(hub) = slot.hub.lock().clone() else { return Ok(()) };
    let requests = match request.requests.take() {
        Some(items) => {
            let items = RequestStream::new(Arc::clone(&hub), slot.codec.clone_ref(py), items);
            Some(Bound::new(py, items)?)
        }
        None => None,
    };
    let payload = match &requests {
        Some(items) if slot.iterator_first => Ok(items.clone().into_any()),
        Some(_) => Ok(py.None().into_bound(py)),
        None => slot.codec.get().decode(py, &request.payload),
    };
    let payload = match payload {
        Ok(payload) => payload,
        Err(error) => {
            responder.fail(Fault {
                code: FaultCode::Decode,
                kind: error.get_type(py).name()?.to_string(),
                message: format!("the request cannot be decoded: {}", error.value(py)),
                traceback: String::new(),
            });
            return Ok(());
        }
    };
    let instance_id = Arc::clone(&slot.instance_id.lock());
    let (codec, requests) = (slot.codec.clone_ref(py), requests.map(Bound::unbind));
    let sink = Bound::new(py, Sink::new(hub, codec, instance_id, request, requests, responder))?;
    Sink::watch(&sink);
    slot.start.call1(py, (payload, &sink)).map(drop).or_else(|error| sink.get().fail_with(py, &error))
}

/// Where a worker is to be listed.
#[derive(FromPyObject)]
enum Discover {
    Listed(bool),
    In(String),
}

/// A worker's settings, checked.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Clone, Debug)]
pub(crate) struct WorkerSettings {
    address: Address,
    config: WorkerConfig,
    /// Where it tells metrics and health, if it shall.
    port: Option<PortSetting>,
    /// Where it is listed, and whether it was the caller who said so.
    place: Option<(Directory, bool)>,
}

#[pymethods]
impl WorkerSettings {
    #[new]
    #[pyo3(signature = (address, *, namespace, concurrency, queue, drain_timeout, ping_interval, ping_timeout,
        health_interval, health_timeout, max_message_bytes, streams_per_link, stream_window, discovery, metrics,
        metrics_labels, token, insecure))]
    #[expect(clippy::too_many_arguments, reason = "they mirror the keywords of `serve`")]
    fn new(
        address: &str,
        namespace: String,
        concurrency: &Bound<'_, PyAny>,
        queue: &Bound<'_, PyAny>,
        drain_timeout: f64,
        ping_interval: f64,
        ping_timeout: f64,
        health_interval: f64,
        health_timeout: f64,
        max_message_bytes: &Bound<'_, PyAny>,
        streams_per_link: &Bound<'_, PyAny>,
        stream_window: &Bound<'_, PyAny>,
        discovery: Option<Discover>,
        metrics: Option<&str>,
        metrics_labels: Option<&Bound<'_, PyAny>>,
        token: Option<String>,
        insecure: bool,
    ) -> PyResult<Self> {
        let place = match discovery {
            None => Some((Directory::of_user(&namespace), false)),
            Some(Discover::In(url)) => {
                let place = directory(&url).map_err(|error| start_error(&error.into()))?;
                Some((place, true))
            }
            Some(Discover::Listed(true)) => Some((Directory::of_user(&namespace), true)),
            Some(Discover::Listed(false)) => None,
        };
        let config = WorkerConfig {
            namespace,
            concurrency: whole("concurrency", concurrency)?,
            queue: whole("queue", queue)?,
            drain_timeout: seconds("drain_timeout", drain_timeout)?,
            ping_interval: seconds("ping_interval", ping_interval)?,
            ping_timeout: seconds("ping_timeout", ping_timeout)?,
            health_interval: seconds("health_interval", health_interval)?,
            health_timeout: seconds("health_timeout", health_timeout)?,
            max_message_bytes: whole("max_message_bytes", max_message_bytes)?,
            streams_per_link: whole("streams_per_link", streams_per_link)?,
            stream_window: whole("stream_window", stream_window)?,
            metrics_labels: metrics_labels.map(labels).transpose()?.unwrap_or_default(),
            token,
            insecure,
        };
        config.check().map_err(|error| start_error(&error))?;
        let address: Address =
            address.parse().map_err(|error: headrace::address::AddressError| start_error(&error.into()))?;
        address.check(insecure).map_err(|error| start_error(&error.into()))?;
        let port = PortSetting::parse(metrics, insecure)?;
        Ok(Self { address, config, port, place })
    }
}

#[derive(Debug)]
struct Owned {
    worker: ForkSafe<CoreWorker>,
    hub: Arc<Hub>,
    slots: Vec<Slot>,
    closed: AtomicU64,
    port: HeldPort,
}

impl Closes for Owned {
    fn close(&self) {
        self.worker.close();
        let port = self.port.lock().take();
        drop(port);
        if self.closed.swap(1, Ordering::Relaxed) == 0 {
            self.slots.iter().for_each(|slot| self.hub.remove_target(*slot));
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !crate::runtime::is_forked() {
            Closes::close(self);
        }
    }
}

/// A listening worker.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Worker {
    owned: Arc<Owned>,
    unlisted: Option<String>,
}

/// A worker that has been bound, or not: made into Python on the loop's thread.
struct Bind {
    result: Result<CoreWorker, StartError>,
    unlisted: Option<String>,
    port: HeldPort,
    hub: Arc<Hub>,
    slots: Vec<Slot>,
    engines: Vec<Py<EngineSlot>>,
}

impl<'py> IntoPyObject<'py> for Bind {
    type Target = Worker;
    type Output = Bound<'py, Worker>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        let Self { result, unlisted, port, hub, slots, engines } = self;
        let worker = match result {
            Ok(worker) => worker,
            Err(error) => {
                slots.iter().for_each(|slot| hub.remove_target(*slot));
                return Err(start_error(&error));
            }
        };
        for engine in engines {
            *engine.get().instance_id.lock() = worker.instance_id().into();
        }
        let closed = AtomicU64::new(0);
        let worker = ForkSafe::new(worker);
        let owned = Arc::new(Owned { worker, hub: Arc::clone(&hub), slots, closed, port });
        let weak = Arc::downgrade(&owned);
        hub.close_with_loop(weak);
        Bound::new(py, Worker { owned, unlisted })
    }
}

/// A future with a worker that listens.
#[pyfunction]
pub(crate) fn bind<'py>(
    py: Python<'py>,
    settings: &WorkerSettings,
    engines: Vec<(String, Py<EngineSlot>)>,
    hub: &LoopHub,
) -> PyResult<Bound<'py, PyAny>> {
    let hub = Arc::clone(hub.hub());
    hub.check(py)?;
    let runtime = handle(py)?;
    let mut slots = Vec::new();
    let mut served: Vec<(String, Arc<dyn Engine>)> = Vec::new();
    let mut kept = Vec::new();
    for (name, engine) in engines {
        *engine.get().hub.lock() = Some(Arc::clone(&hub));
        let slot = hub.add_target(Target::Engine(engine.clone_ref(py)));
        slots.push(slot);
        let known = engine.get();
        let its_slot = LoopEngine {
            hub: Arc::clone(&hub),
            slot,
            refuses_single: known.refuses_single.clone(),
            refuses_stream: known.refuses_stream.clone(),
            health_check: known.health_check.clone(),
        };
        served.push((name, Arc::new(its_slot)));
        kept.push(engine);
    }
    let driver = Arc::new(HubDriver(Arc::clone(&hub)));
    let WorkerSettings { address, config, port, place } = settings.clone();
    let event_loop = hub.event_loop(py)?;
    let inner = Arc::clone(&hub);
    cold(&event_loop, &hub, async move {
        let frozen_after = config.ping_interval;
        let bound = CoreWorker::bind(&address, served, config, runtime.clone(), driver).await;
        let (bound, port) = match (bound, port) {
            (Ok(worker), Some(port)) => watched(worker, &port, frozen_after, &runtime),
            (bound, _) => (bound, None),
        };
        let (result, unlisted) = match (bound, place) {
            (Ok(worker), Some((place, asked))) => list(worker, place, asked).await,
            (bound, _) => (bound, None),
        };
        let port = held(port.filter(|_| result.is_ok()));
        Ok(Bind { result, unlisted, port, hub: inner, slots, engines: kept })
    })
}

/// Opens a worker's port, or closes the worker.
fn watched(
    worker: CoreWorker,
    port: &PortSetting,
    frozen_after: Duration,
    runtime: &Handle,
) -> (Result<CoreWorker, StartError>, Option<Arc<Port>>) {
    match port.open(runtime) {
        Ok(port) => {
            port.watch(worker.reports(), frozen_after);
            (Ok(worker), Some(port))
        }
        Err(error) => {
            worker.close();
            (Err(error), None)
        }
    }
}

/// Lists a worker. Where that fails and nobody has asked for it, the worker serves all the same.
async fn list(
    worker: CoreWorker,
    place: Directory,
    asked: bool,
) -> (Result<CoreWorker, StartError>, Option<String>) {
    match worker.list_in(Arc::new(place)).await {
        Ok(()) => (Ok(worker), None),
        Err(error) if asked => {
            worker.close();
            (Err(error.into()), None)
        }
        Err(error) => (Ok(worker), Some(error.to_string())),
    }
}

#[pymethods]
impl Worker {
    /// Why it is not listed in the user's directory, if it is not.
    #[getter]
    fn unlisted(&self) -> Option<&str> {
        self.unlisted.as_deref()
    }

    /// Where it listens.
    #[getter]
    fn address(&self) -> String {
        self.owned.worker.address().to_string()
    }

    /// Where it tells metrics and health, if it does.
    #[getter]
    fn metrics_address(&self) -> Option<String> {
        address_of(&self.owned.port)
    }

    /// Its identity.
    #[getter]
    fn instance_id(&self) -> String {
        self.owned.worker.instance_id().to_owned()
    }

    /// Names of its endpoints.
    #[getter]
    fn endpoints<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.owned.worker.endpoints())
    }

    /// Whether routers are told to send requests.
    #[getter]
    fn ready(&self) -> bool {
        self.owned.worker.is_ready()
    }

    /// Why they are not.
    #[getter]
    fn unready_reason(&self) -> Option<String> {
        self.owned.worker.unready_reason()
    }

    /// Says why it cannot serve, or with `None` that it can again.
    #[pyo3(signature = (reason))]
    fn declare_unready(&self, py: Python<'_>, reason: Option<String>) -> PyResult<()> {
        check_process(py)?;
        self.owned.worker.declare_unready(reason);
        self.owned.hub.settle(py)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        check_process(py)?;
        let stats = self.owned.worker.stats();
        let dict = PyDict::new(py);
        dict.set_item("running", stats.running)?;
        dict.set_item("queued", stats.queued)?;
        dict.set_item("links", stats.links)?;
        dict.set_item("streams", stats.streams)?;
        dict.set_item("accepted_total", stats.accepted_total)?;
        dict.set_item("rejected_total", stats.rejected_total)?;
        Ok(dict)
    }

    /// A future that is done when requests in flight have finished, or `timeout` seconds have passed, and
    /// the worker is closed.
    #[pyo3(signature = (timeout=None))]
    fn drain<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        check_process(py)?;
        let timeout = timeout.map(|timeout| seconds("timeout", timeout)).transpose()?;
        let (worker, port) = ((*self.owned.worker).clone(), Arc::clone(&self.owned.port));
        cold(&self.owned.hub.event_loop(py)?, &self.owned.hub, async move {
            worker.drain(timeout).await;
            // Until now it has told that the worker drains.
            let port = port.lock().take();
            drop(port);
            Ok(())
        })
    }

    /// Closes at once.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        check_process(py)?;
        Closes::close(&*self.owned);
        self.owned.hub.settle(py)
    }

    /// A future that is done when the worker is closed.
    fn wait_closed<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        check_process(py)?;
        let worker = (*self.owned.worker).clone();
        cold(&self.owned.hub.event_loop(py)?, &self.owned.hub, async move {
            worker.wait_closed().await;
            Ok(())
        })
    }
}
