//! A worker: listens, admits requests and hands them to engines.
//!
//! | file | what lives there |
//! |---|---|
//! | [`listener`] | accepting connections, handshakes |
//! | [`session`] | one router's link: answering its requests |
//! | [`admission`] | running, queued, refused: places and who gets them |
//! | [`health`] | whether engines answer |
//! | [`report`] | what it tells of itself |
//! | this one | the worker's life: bind, serve, drain, close |

mod admission;
mod health;
mod listener;
mod report;
mod session;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use headrace_wire::body::{FaultCode, Goaway, GoawayReason, Role, Status};
use headrace_wire::limits::{ENDPOINT_MAX, ENDPOINTS_MAX, LINK_WINDOW_DEFAULT};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use self::admission::Admission;
pub(crate) use self::admission::Permit;
pub(crate) use self::health::Pulse;
use self::health::{Checks, Vitals};
use self::listener::Listener;
#[cfg(feature = "metrics-http")]
pub(crate) use self::listener::remove_stale;
use crate::address::Address;
use crate::config::WorkerConfig;
use crate::discovery::{Discovery, DiscoveryError, Listing, Registration};
use crate::engine::Engine;
use crate::error::StartError;
use crate::link::{Driver, Link, Local, Ticker};
use crate::metrics::worker::{Endpoint, OfWorker};
use crate::metrics::{self, Source};

/// How often a drain looks whether the last answers have been written.
const DRAIN_TICK: Duration = Duration::from_millis(5);

const SHUT_DOWN: &str = "the worker shut down";

/// A worker's counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Requests running.
    pub running: usize,
    /// Requests admitted and waiting.
    pub queued: usize,
    /// Routers connected.
    pub links: usize,
    /// Streams open on all links.
    pub streams: usize,
    /// Requests accepted since the start.
    pub accepted_total: u64,
    /// Requests rejected since the start.
    pub rejected_total: u64,
}

/// An engine under its endpoint's name.
#[derive(Debug)]
struct Served {
    endpoint: Arc<str>,
    engine: Arc<dyn Engine>,
    /// What is known of its health, if it can be checked.
    vitals: Option<Arc<Vitals>>,
    metrics: &'static Endpoint,
}

impl Served {
    fn new(endpoint: &str, engine: Arc<dyn Engine>, metrics: &OfWorker) -> Self {
        let endpoint: Arc<str> = endpoint.into();
        let vitals = engine.health_check().map(|check| Arc::new(Vitals::new(Arc::clone(&endpoint), check)));
        let metrics = metrics.endpoint(&endpoint);
        Self { endpoint, engine, vitals, metrics }
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    config: WorkerConfig,
    instance_id: String,
    engines: FxHashMap<String, Served>,
    endpoints: Vec<String>,
    metrics: OfWorker,
    admission: Admission,
    links: Mutex<Vec<Arc<Link>>>,
    ticker: Ticker,
    draining: AtomicBool,
    closing: AtomicBool,
    accepted_total: AtomicU64,
    rejected_total: AtomicU64,
    /// Told whenever a place is freed or a link closes: drains wait for it.
    progress: Notify,
    closed: watch::Sender<bool>,
    /// Where it is listed, as long as it takes requests.
    listed: Mutex<Vec<Registration>>,
    checks: Mutex<Checks>,
    /// Why the owner says that it cannot serve.
    declared: Mutex<Option<String>>,
}

/// A listening worker. Closing it, or dropping the last handle, ends every stream.
#[derive(Clone)]
pub struct Worker {
    shared: Arc<Shared>,
    address: Address,
    listener: Arc<Listener>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("address", &self.address)
            .field("id", &self.shared.instance_id)
            .finish()
    }
}

impl Worker {
    /// Listens on `address` and serves `engines` by endpoint name.
    ///
    /// # Errors
    /// A setting, an engine's name or the address cannot be used.
    pub async fn bind(
        address: &Address,
        engines: Vec<(String, Arc<dyn Engine>)>,
        config: WorkerConfig,
        runtime: Handle,
        driver: Arc<dyn Driver>,
    ) -> Result<Self, StartError> {
        config.check()?;
        check_names(&engines)?;
        address.check(config.insecure)?;
        let mut endpoints: Vec<String> = engines.iter().map(|(name, _)| name.clone()).collect();
        endpoints.sort();
        let metrics = OfWorker::new(&config.metrics_labels);
        let engines = engines
            .into_iter()
            .map(|(name, engine)| {
                let served = Served::new(&name, engine, &metrics);
                (name, served)
            })
            .collect();
        let shared = Arc::new(Shared {
            instance_id: format!("{:016x}", fastrand::u64(..)),
            engines,
            endpoints,
            metrics,
            admission: Admission::new(config.concurrency, config.queue),
            links: Mutex::new(Vec::new()),
            ticker: Ticker::new(runtime.clone()),
            draining: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            accepted_total: AtomicU64::new(0),
            rejected_total: AtomicU64::new(0),
            progress: Notify::new(),
            closed: watch::Sender::new(false),
            listed: Mutex::new(Vec::new()),
            checks: Mutex::new(Checks::default()),
            declared: Mutex::new(None),
            config,
        });
        let checks = (runtime.clone(), Arc::clone(&driver));
        let (listener, address) = Listener::bind(address, Arc::clone(&shared), runtime, driver).await?;
        metrics::register(Arc::downgrade(&shared) as Weak<dyn Source>);
        *shared.checks.lock() = Checks::start(&shared, &checks.0, &checks.1);
        Ok(Self { shared, address, listener: Arc::new(listener) })
    }

    /// Where it listens; the real port when 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// The worker's identity: new for each worker object.
    #[must_use]
    pub fn instance_id(&self) -> &str {
        &self.shared.instance_id
    }

    /// Names of its endpoints, sorted.
    #[must_use]
    pub fn endpoints(&self) -> &[String] {
        &self.shared.endpoints
    }

    /// Its counts now.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        self.shared.stats()
    }

    /// Whether routers are told to send requests: it does not drain, its engines answer, and its owner has not
    /// said otherwise.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.status().ready
    }

    /// Why it is not ready, if it is not.
    #[must_use]
    pub fn unready_reason(&self) -> Option<String> {
        if self.shared.is_draining() {
            return Some("it is draining".to_owned());
        }
        self.shared.unhealthy()
    }

    /// Says that it cannot serve, and why, or with `None` that it can again: routers pass it over meanwhile, as
    /// one whose engine does not answer. For what the owner knows and no health check would find out.
    pub fn declare_unready(&self, reason: Option<String>) {
        self.shared.declare(reason);
    }

    /// Lists the worker in `place`, until it drains or closes, or its process ends.
    ///
    /// # Errors
    /// The place cannot be used; the worker serves all the same.
    pub async fn list_in(&self, place: Arc<dyn Discovery>) -> Result<(), DiscoveryError> {
        let listing = Listing {
            address: self.address.clone(),
            instance_id: self.shared.instance_id.clone(),
            endpoints: self.shared.endpoints.clone(),
        };
        let name = place.place();
        // Writing the entry may take a while, and the threads of the runtime serve links.
        let registered = tokio::task::spawn_blocking(move || place.register(&listing)).await;
        let registration = registered
            .map_err(|lost| DiscoveryError::Io { place: name, source: std::io::Error::other(lost) })??;
        let mut listed = self.shared.listed.lock();
        listed.push(registration);
        // Looked at with the list held, so that either this or the drain takes the entry away.
        if self.shared.is_draining() {
            listed.clear();
        }
        Ok(())
    }

    /// Takes no new requests, waits for those in flight up to `timeout` (`None`: the configured
    /// `drain_timeout`), then closes. Those that are left end with an error that says `shutdown`.
    pub async fn drain(&self, timeout: Option<Duration>) {
        self.shared.start_draining();
        self.listener.stop();
        let timeout = timeout.unwrap_or(self.shared.config.drain_timeout);
        // Running out of time is no failure: what is left is told so by `close`.
        let _ = tokio::time::timeout(timeout, self.shared.idle()).await;
        self.close();
    }

    /// Closes at once: streams in flight end with an error that says `shutdown`.
    pub fn close(&self) {
        self.listener.stop();
        self.shared.close();
    }

    /// Resolves when the worker is closed.
    pub async fn wait_closed(&self) {
        // An error means that the worker is gone altogether.
        let _ = self.shared.closed.subscribe().wait_for(|&closed| closed).await;
    }
}

fn check_names(engines: &[(String, Arc<dyn Engine>)]) -> Result<(), StartError> {
    if engines.is_empty() || engines.len() > ENDPOINTS_MAX {
        let count = engines.len();
        return Err(StartError::Engines(format!("a worker needs 1 to {ENDPOINTS_MAX} engines, not {count}")));
    }
    for (index, (name, _)) in engines.iter().enumerate() {
        if name.is_empty() || name.len() > ENDPOINT_MAX {
            return Err(StartError::Engines(format!(
                "endpoint name {name:?} must have 1 to {ENDPOINT_MAX} bytes"
            )));
        }
        if engines.iter().skip(index + 1).any(|(other, _)| other == name) {
            return Err(StartError::Engines(format!("two engines are named {name:?}")));
        }
    }
    Ok(())
}

impl Shared {
    fn stats(&self) -> WorkerStats {
        let (running, queued) = self.admission.load();
        let links = self.links.lock();
        WorkerStats {
            running,
            queued,
            links: links.len(),
            streams: links.iter().map(|link| link.streams()).sum(),
            accepted_total: self.accepted_total.load(Ordering::Relaxed),
            rejected_total: self.rejected_total.load(Ordering::Relaxed),
        }
    }

    fn local(&self) -> Local {
        Local {
            role: Role::Worker,
            instance_id: self.instance_id.clone(),
            namespace: self.config.namespace.clone(),
            token: self.config.token.clone(),
            endpoints: self.endpoints.clone(),
            message_max: self.config.max_message_bytes,
            streams_max: self.config.streams_per_link,
            link_window: LINK_WINDOW_DEFAULT,
            stream_window: self.config.stream_window,
        }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    fn status(&self) -> Status {
        let (running, queued) = self.admission.load();
        Status {
            ready: !self.is_draining() && self.unhealthy().is_none(),
            running: running as u32,
            queued: queued as u32,
            endpoints: self.endpoints.clone(),
        }
    }

    /// Takes charge of a greeted link, on which nothing has happened: whoever closes the worker from here on
    /// ends what its peer begins.
    fn list_link(&self, link: &Arc<Link>) {
        self.links.lock().push(Arc::clone(link));
    }

    /// A link has started; a draining worker says so at once.
    fn started(&self, link: &Arc<Link>) {
        // Looked at after the link is listed, so that either the drain's round or this sees the other.
        if self.is_draining() {
            link.announce_drain(&self.status());
        } else if !self.status().ready {
            self.tell_status(link);
        }
        if self.closing.load(Ordering::Acquire) {
            link.close_with(GoawayReason::Closed, SHUT_DOWN);
        }
        if link.is_closed() {
            self.prune_links();
        }
    }

    fn prune_links(&self) {
        self.links.lock().retain(|link| !link.is_closed());
        self.progress.notify_waiters();
    }

    fn start_draining(&self) {
        if self.draining.swap(true, Ordering::AcqRel) {
            return;
        }
        let listed = std::mem::take(&mut *self.listed.lock());
        drop(listed);
        // An engine that is stuck in its check shall not be waited for.
        drop(std::mem::take(&mut *self.checks.lock()));
        let status = self.status();
        let links = self.links.lock().clone();
        for link in links {
            link.announce_drain(&status);
        }
    }

    /// Resolves when nothing runs, nothing waits, and every answer has been written.
    async fn idle(&self) {
        loop {
            let progress = self.progress.notified();
            let links = self.links.lock().clone();
            if self.admission.load() == (0, 0) && links.iter().all(|link| link.is_quiet()) {
                return;
            }
            // Nobody is told when a socket has taken the last bytes.
            let _ = tokio::time::timeout(DRAIN_TICK, progress).await;
        }
    }

    fn close(&self) {
        self.start_draining();
        self.closing.store(true, Ordering::Release);
        // What waits shall not start in the places that the failing streams free.
        self.admission.clear();
        let links = std::mem::take(&mut *self.links.lock());
        for link in links {
            link.fail_streams(FaultCode::Shutdown, SHUT_DOWN);
            link.close_with(GoawayReason::Closed, SHUT_DOWN);
        }
        self.closed.send_replace(true);
    }

    /// Called when a place is freed.
    pub(crate) fn progressed(&self) {
        if self.is_draining() {
            self.progress.notify_waiters();
        }
    }

    pub(crate) const fn admission(&self) -> &Admission {
        &self.admission
    }
}

impl Link {
    fn announce_drain(self: &Arc<Self>, status: &Status) {
        self.send(|out| out.status(status));
        let last_stream = self.last_stream();
        let detail = "the worker is draining".to_owned();
        self.send(|out| out.goaway(&Goaway { last_stream, reason: GoawayReason::Draining, detail }));
        self.flush();
    }
}
