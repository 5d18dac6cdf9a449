//! A worker: listens, admits requests and hands them to engines.
//!
//! | file | what lives there |
//! |---|---|
//! | [`listener`] | accepting connections, handshakes |
//! | [`admission`] | running, queued, refused: places and who gets them |
//! | this one | the worker's life: bind, serve, drain, close |

mod admission;
mod listener;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use headrace_wire::body::{FaultCode, Goaway, GoawayReason, RejectReason, RequestHead, Role, Shape, Status};
use headrace_wire::limits::{ENDPOINT_MAX, ENDPOINTS_MAX, LINK_WINDOW_DEFAULT, STREAM_WINDOW_MIN};
use headrace_wire::stream::Inbound;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

pub(crate) use self::admission::Permit;
use self::admission::{Admission, Admitted, Job};
use self::listener::Listener;
use crate::address::Address;
use crate::budget::Claim;
use crate::clock::{NEVER, after_ms};
use crate::config::WorkerConfig;
use crate::discovery::{Discovery, DiscoveryError, Listing, Registration};
use crate::engine::{Engine, Request, Responder};
use crate::error::StartError;
use crate::link::Local;
use crate::link::{Driver, Item, Link, Owner, Stream, Ticker, Timing};
use crate::requests::RequestStream;

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

#[derive(Debug)]
pub(crate) struct Shared {
    config: WorkerConfig,
    instance_id: String,
    engines: FxHashMap<String, (Arc<str>, Arc<dyn Engine>)>,
    endpoints: Vec<String>,
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
        let engines = engines
            .into_iter()
            .map(|(name, engine)| (name.clone(), (Arc::from(name.as_str()), engine)))
            .collect();
        let shared = Arc::new(Shared {
            instance_id: format!("{:016x}", fastrand::u64(..)),
            engines,
            endpoints,
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
            config,
        });
        let (listener, address) = Listener::bind(address, Arc::clone(&shared), runtime, driver).await?;
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
        let (running, queued) = self.shared.admission.load();
        let links = self.shared.links.lock();
        WorkerStats {
            running,
            queued,
            links: links.len(),
            streams: links.iter().map(|link| link.streams()).sum(),
            accepted_total: self.shared.accepted_total.load(Ordering::Relaxed),
            rejected_total: self.shared.rejected_total.load(Ordering::Relaxed),
        }
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
            ready: !self.is_draining(),
            running: running as u32,
            queued: queued as u32,
            endpoints: self.endpoints.clone(),
        }
    }

    /// Adds a greeted link; a draining worker says so at once.
    fn add_link(&self, link: Arc<Link>) {
        self.links.lock().push(Arc::clone(&link));
        // Looked at after the link is listed, so that either the drain's round or this sees the other.
        if self.is_draining() {
            link.announce_drain(&self.status());
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

    /// Finds the engine of an endpoint; an empty name means the only one there is.
    fn engine(&self, endpoint: &str) -> Option<&(Arc<str>, Arc<dyn Engine>)> {
        if endpoint.is_empty() && self.engines.len() == 1 {
            return self.engines.values().next();
        }
        self.engines.get(endpoint)
    }

    /// What receives the rest of a request, and its first credit.
    fn receiving(&self, link: &Arc<Link>, id: u64, shape: Shape, timing: Timing) -> (Arc<Stream>, u32) {
        let link = Arc::clone(link);
        match shape {
            Shape::Single => {
                let stream = Stream::new(id, link, Inbound::single_request(), Claim::none(), timing);
                // ACCEPT names a window although nothing will come.
                (Arc::new(stream), STREAM_WINDOW_MIN)
            }
            Shape::Many => {
                let window = Claim::window(self.config.stream_window);
                let granted = window.bytes();
                let inbound = Inbound::request_stream(granted, self.config.max_message_bytes);
                (Arc::new(Stream::new(id, link, inbound, window, timing).with_requests()), granted)
            }
        }
    }

    fn refuse(&self, link: &Arc<Link>, id: u64, reason: RejectReason, retry_after_ms: u32, detail: &str) {
        self.rejected_total.fetch_add(1, Ordering::Relaxed);
        link.reject(id, reason, retry_after_ms, detail);
    }
}

/// The worker as the owner of one link.
#[derive(Debug)]
pub(super) struct Session(pub(super) Arc<Shared>);

impl Owner for Session {
    fn on_request(&self, link: &Arc<Link>, id: u64, head: RequestHead, payload: Bytes) {
        let shared = &self.0;
        if shared.is_draining() {
            return shared.refuse(link, id, RejectReason::Draining, 0, "the worker is draining");
        }
        let Some((endpoint, engine)) = shared.engine(&head.endpoint) else {
            return shared.refuse(link, id, RejectReason::NoSuchEndpoint, 0, &shared.endpoints.join(", "));
        };
        if let Some(detail) = engine.refuses(head.request_shape) {
            return shared.refuse(link, id, RejectReason::UnsupportedShape, 0, &detail);
        }
        if head.deadline_us == Some(0) {
            return shared.refuse(link, id, RejectReason::Expired, 0, "the deadline passed on the way");
        }
        if link.streams() >= shared.config.streams_per_link as usize {
            return shared.refuse(link, id, RejectReason::Overloaded, 100, "too many streams on this link");
        }
        let timing = Timing {
            deadline_ms: after_ms(head.deadline_us.map(Duration::from_micros)),
            item_timeout_ms: NEVER,
            slow_consumer_ms: NEVER,
        };
        let (stream, granted) = shared.receiving(link, id, head.request_shape, timing);
        let requests = (head.request_shape == Shape::Many).then(|| RequestStream::new(Arc::clone(&stream)));
        let request = Request {
            id: head.request_id,
            endpoint: Arc::clone(endpoint),
            payload: Item { encoding: head.encoding, payload },
            requests,
            metadata: head.metadata,
            traceparent: head.traceparent,
            client_id: Arc::clone(&link.peer().instance_id),
        };
        let job = Job { engine: Arc::clone(engine), request, stream };
        let accept = |stream: &Arc<Stream>| {
            shared.accepted_total.fetch_add(1, Ordering::Relaxed);
            link.accept_stream(stream, granted, head.window);
        };
        match shared.admission.admit(shared, job, accept) {
            Admitted::Run(job, permit) => admission::start_in_turn(job, permit),
            Admitted::Queued => {}
            Admitted::Full { retry_after_ms, running, queued } => {
                let detail = format!("{running} requests running and {queued} queued");
                shared.refuse(link, id, RejectReason::Overloaded, retry_after_ms, &detail);
            }
        }
    }

    fn on_status(&self, _status: Status) {}

    fn on_goaway(&self) {}

    fn on_closed(&self, reason: &str, _lost: usize) {
        tracing::debug!(instance = self.0.instance_id, reason, "a router's link closed");
        self.0.prune_links();
    }
}

/// Hands a request to its engine.
fn start(job: Job, permit: Permit) {
    let Job { engine, request, stream } = job;
    let responder = Responder::new(stream, permit);
    // A panic is that request's failure, not its link's: the responder answers as it is dropped.
    let started = catch_unwind(AssertUnwindSafe(|| engine.start(request, responder)));
    if started.is_err() {
        tracing::error!(?engine, "an engine panicked as it was started");
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
