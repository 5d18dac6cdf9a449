//! Whether engines answer. Whatever a caller gets from an engine proves it; an engine that declares a health
//! check and has answered nobody for `health_interval` is sent that check, over a link of the worker to
//! itself: it takes the way of every request, through admission, a place and the engine. What has answered
//! nothing `health_timeout` later makes the worker not ready, until it answers again.
//!
//! A worker has at most one check of an engine in flight, so that an engine that is stuck is not stuck more
//! often for being asked.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use headrace_wire::body::{Fault, KillReason, RejectReason, RequestHead, Role, Shape, Status};
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Shared;
use super::session::Session;
use crate::clock::{NEVER, after_ms, now_ns};
use crate::link::{
    Driver, Ending, HandshakeError, Incoming, Item, Link, Local, Next, Outgoing, Owner, Stream, Timing,
    TokioDriver, accept, greet_over,
};
use crate::metrics::link::{CHECKS, LinkMetrics};

/// The request id of a check: engines may tell it by that.
const REQUEST_ID: &str = "health-check";

/// What is known of an engine that can be checked.
#[derive(Debug)]
pub(super) struct Vitals {
    endpoint: Arc<str>,
    check: Item,
    /// It has answered somebody since this was last looked at.
    answered: AtomicBool,
    /// Checks that wait for a place or hold one.
    checks: AtomicUsize,
    /// Why it counts as not answering, if it does.
    failure: Mutex<Option<String>>,
}

impl Vitals {
    pub(super) fn new(endpoint: Arc<str>, check: Item) -> Self {
        Self {
            endpoint,
            check,
            answered: AtomicBool::new(false),
            checks: AtomicUsize::new(0),
            failure: Mutex::new(None),
        }
    }

    /// Why the engine counts as not answering, if it does.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    fn take_answered(&self) -> bool {
        self.answered.swap(false, Ordering::Relaxed)
    }
}

/// What one request tells of its engine. The guard of a check, which is in flight until this is dropped.
#[derive(Debug)]
pub(crate) struct Pulse {
    vitals: Arc<Vitals>,
    is_check: bool,
}

impl Pulse {
    pub(super) fn new(vitals: &Arc<Vitals>, is_check: bool) -> Self {
        if is_check {
            vitals.checks.fetch_add(1, Ordering::Relaxed);
        }
        Self { vitals: Arc::clone(vitals), is_check }
    }

    /// The engine has sent an item, or ended well.
    pub(crate) fn answered(&self) {
        // Looked at first: engines on several threads would take the cache line from each other.
        if !self.vitals.answered.load(Ordering::Relaxed) {
            self.vitals.answered.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        if self.is_check {
            self.vitals.checks.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The tasks that check a worker's engines; dropping it ends them.
#[derive(Debug, Default)]
pub(super) struct Checks(Vec<AbortHandle>);

impl Drop for Checks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

impl Checks {
    /// Begins to check the engines that can be.
    pub(super) fn start(shared: &Arc<Shared>, runtime: &Handle, driver: &Arc<dyn Driver>) -> Self {
        let checked = shared.engines.values().filter_map(|served| served.vitals.as_ref());
        let tasks = checked.map(|vitals| {
            let checker = Checker {
                shared: Arc::clone(shared),
                vitals: Arc::clone(vitals),
                runtime: runtime.clone(),
                driver: Arc::clone(driver),
                loopback: None,
            };
            runtime.spawn(checker.run()).abort_handle()
        });
        Self(tasks.collect())
    }
}

impl Shared {
    /// Why the worker is not ready although it does not drain: what its owner says, or the first of its engines
    /// that does not answer.
    pub(super) fn unhealthy(&self) -> Option<String> {
        if let Some(reason) = self.declared.lock().clone() {
            return Some(reason);
        }
        let mut failures: Vec<_> = self
            .engines
            .values()
            .filter_map(|served| served.vitals.as_ref())
            .filter_map(|vitals| Some((&vitals.endpoint, vitals.failure()?)))
            .collect();
        failures.sort();
        failures.into_iter().next().map(|(_, reason)| reason)
    }

    /// Takes what was found of an engine; routers are told when that changes whether the worker is ready.
    fn found(&self, vitals: &Vitals, failure: Option<String>) {
        let was_well = {
            let mut known = vitals.failure.lock();
            std::mem::replace(&mut *known, failure.clone()).is_none()
        };
        if was_well == failure.is_none() {
            return;
        }
        let instance = self.instance_id.as_str();
        match failure {
            Some(reason) => tracing::warn!(instance, reason, "the worker is not ready"),
            None => tracing::warn!(instance, endpoint = %vitals.endpoint, "the engine answers again"),
        }
        self.tell_all();
    }

    /// Takes what the owner says.
    pub(super) fn declare(&self, reason: Option<String>) {
        let was_well = {
            let mut known = self.declared.lock();
            std::mem::replace(&mut *known, reason.clone()).is_none()
        };
        if was_well == reason.is_none() {
            return;
        }
        let instance = self.instance_id.as_str();
        match reason {
            Some(reason) => tracing::warn!(instance, reason, "the worker is not ready"),
            None => tracing::warn!(instance, "the worker can serve again"),
        }
        self.tell_all();
    }

    fn tell_all(&self) {
        let links = self.links.lock().clone();
        for link in links {
            self.tell_status(&link);
        }
    }

    /// Sends STATUS as it is at this moment: under the link's lock, so that the last one sent is true.
    pub(super) fn tell_status(&self, link: &Arc<Link>) {
        link.send(|out| out.status(&self.status()));
        link.flush();
    }
}

/// Checks one engine, again and again.
struct Checker {
    shared: Arc<Shared>,
    vitals: Arc<Vitals>,
    runtime: Handle,
    driver: Arc<dyn Driver>,
    loopback: Option<Loopback>,
}

impl Checker {
    async fn run(mut self) {
        loop {
            tokio::time::sleep(self.shared.config.health_interval).await;
            let failure = if self.vitals.take_answered() { None } else { self.check().await };
            self.shared.found(&self.vitals, failure);
        }
    }

    /// Gives the engine `health_timeout` to answer somebody; says what is wrong if it has answered nobody.
    async fn check(&mut self) -> Option<String> {
        let endpoint = Arc::clone(&self.vitals.endpoint);
        let until = Instant::now() + self.shared.config.health_timeout;
        if self.vitals.checks.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep_until(until).await;
            let reason = || format!("engine {endpoint:?} is stuck: its last health check has not ended yet");
            return (!self.vitals.take_answered()).then(reason);
        }
        let ending = match self.ask().await {
            Ok(asked) => tokio::time::timeout_at(until, asked.ending()).await.ok(),
            Err(reason) => Some(Ending::Lost { reason, maybe_executed: false }),
        };
        if self.vitals.take_answered() {
            return None;
        }
        let reason = match ending {
            Some(Ending::Fault(fault)) => {
                let Fault { kind, message, .. } = fault;
                return Some(format!("engine {endpoint:?} failed its health check: {kind}: {message}"));
            }
            Some(Ending::Rejected(reject)) => format!("; its health check was refused: {}", reject.detail),
            Some(Ending::Lost { reason, .. }) => format!("; its health check was lost: {reason}"),
            _ => ", nor its health check".to_owned(),
        };
        // A worker without a free place refuses the check, but what runs there may answer yet.
        tokio::time::sleep_until(until).await;
        if self.vitals.take_answered() {
            return None;
        }
        let silent = self.shared.config.health_interval + self.shared.config.health_timeout;
        Some(format!("engine {endpoint:?} has answered nobody for {:.3} s{reason}", silent.as_secs_f64()))
    }

    async fn ask(&mut self) -> Result<Asked, Arc<str>> {
        let link = match &self.loopback {
            Some(Loopback(link)) if !link.is_closed() => link,
            _ => &self.loopback.insert(self.connect().await.map_err(|error| error.to_string())?).0,
        };
        let Item { encoding, payload } = self.vitals.check.clone();
        let mut head = RequestHead {
            response_shape: Shape::Many,
            encoding,
            deadline_us: Some(self.shared.config.health_timeout.as_micros() as u64),
            request_id: REQUEST_ID.to_owned(),
            endpoint: self.vitals.endpoint.as_ref().to_owned(),
            ..RequestHead::default()
        };
        let timing = Timing {
            deadline_ms: after_ms(Some(self.shared.config.health_timeout)),
            item_timeout_ms: NEVER,
            slow_consumer_ms: NEVER,
        };
        let outgoing = Outgoing { head: &mut head, payload, feed: None, timing, now_ns: now_ns() };
        link.open(outgoing).map(Asked).map_err(|error| format!("{error:?}").into())
    }

    /// A link of the worker to itself; both ends are in this process.
    async fn connect(&self) -> Result<Loopback, HandshakeError> {
        let shared = &self.shared;
        let worker = shared.local();
        let router = Local { role: Role::Router, endpoints: Vec::new(), ..shared.local() };
        let (near, far) = UnixStream::pair()?;
        let (near, far) = tokio::try_join!(greet_over(near, &router), accept(Incoming::Unix(far), &worker))?;
        let liveness = shared.config.liveness();
        let session = Arc::new(Session::of_checks(Arc::clone(shared)));
        let driver = Arc::new(TokioDriver::new(self.runtime.clone()));
        Link::start(far, session, Arc::clone(&self.driver), &shared.ticker, liveness, &worker, |_| {});
        Ok(Loopback(Link::start(near, Arc::new(Prober), driver, &shared.ticker, liveness, &router, |_| {})))
    }
}

/// The near end of a worker's link to itself; dropping it closes both.
#[derive(Debug)]
struct Loopback(Arc<Link>);

impl Drop for Loopback {
    fn drop(&mut self) {
        self.0.close("the worker checks its engines no more");
    }
}

/// A check in flight; dropping it ends the check, so that the engine is cancelled.
struct Asked(Arc<Stream>);

impl Asked {
    /// Reads all that the engine answers; its items have done their work by arriving.
    async fn ending(&self) -> Ending {
        loop {
            if let Next::End(ending) = poll_fn(|cx| self.0.poll_next(cx)).await {
                return ending;
            }
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.kill(KillReason::Deadline, Ending::Closed);
    }
}

/// The owner of the near end. What it is told of, it learns from its streams.
#[derive(Debug)]
struct Prober;

impl Owner for Prober {
    fn on_request(&self, link: &Arc<Link>, _id: u64, _head: RequestHead, _payload: Bytes) {
        debug_assert!(!link.peer().is_worker, "requests are decoded only from routers");
    }

    fn on_status(&self, _status: Status) {}

    fn on_goaway(&self) {}

    fn on_broken(&self) {}

    fn on_refused(&self, _reason: RejectReason) {}

    fn on_closed(&self, _reason: &str, _lost: usize) {}

    fn metrics(&self) -> &'static LinkMetrics {
        &CHECKS
    }
}
