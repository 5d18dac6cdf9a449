//! One worker as a router knows it: connecting, up, draining or down, and how busy it is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use headrace_wire::body::{RequestHead, Status};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Shared;
use crate::address::Address;
use crate::clock::now_ns;
use crate::link::{Greeting, HandshakeError, Link, Owner, Peer, connect};

/// First and longest pause between attempts to connect, and how it grows: gRPC's shape, at local scale.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const PAUSE_GROWTH: f64 = 1.6;
const PAUSE_JITTER: f64 = 0.2;
/// A link that lived this long was a success: the next attempt comes at once, with the first pause again. One
/// that did not counts as a failure, or a worker that greets and hangs up would be called without a pause.
const SETTLED: Duration = Duration::from_secs(1);

/// Time constant of the peak-sensitive latency average.
const LATENCY_DECAY_NS: f64 = 10e9;

/// Where an instance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstanceState {
    /// Not connected: the first attempt is under way, or the last one failed.
    Down,
    /// Takes requests.
    Up,
    /// Connected, but takes no new requests.
    Draining,
}

/// What is known of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstanceInfo {
    /// Where it is.
    pub address: String,
    /// Its identity; empty until it was first connected.
    pub instance_id: String,
    /// Where it stands.
    pub state: InstanceState,
    /// Its endpoints.
    pub endpoints: Vec<String>,
    /// Calls of this router in flight there.
    pub in_flight: usize,
    /// Why it is down, if it is.
    pub last_error: Option<String>,
}

/// Why an instance could not be connected to.
#[derive(Clone, Debug)]
pub(super) enum ConnectFailure {
    /// It may work later.
    Unreachable(String),
    /// The token was refused.
    Authentication(String),
    /// The version ranges do not meet.
    Version(String),
}

impl ConnectFailure {
    fn text(&self) -> &str {
        match self {
            Self::Unreachable(text) | Self::Authentication(text) | Self::Version(text) => text,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    link: Option<Arc<Link>>,
    instance_id: String,
    ready: bool,
    endpoints: Vec<String>,
    failure: Option<ConnectFailure>,
}

/// One worker.
#[derive(Debug)]
pub(crate) struct Instance {
    address: Address,
    state: Mutex<State>,
    in_flight: AtomicUsize,
    /// Peak-sensitive moving average of the time to PROLOGUE, in nanoseconds, and when it was updated.
    latency: Mutex<(f64, u64)>,
}

impl Instance {
    pub(super) fn new(address: Address) -> Self {
        Self {
            address,
            state: Mutex::new(State::default()),
            in_flight: AtomicUsize::new(0),
            latency: Mutex::new((0.0, 0)),
        }
    }

    pub(super) const fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn link(&self) -> Option<Arc<Link>> {
        self.state.lock().link.clone()
    }

    pub(super) fn is_up(&self) -> bool {
        let state = self.state.lock();
        state.link.is_some() && state.ready
    }

    /// The link, if the instance takes requests for `endpoint`; an empty one means its only one.
    pub(super) fn link_for(&self, endpoint: &str) -> Option<Arc<Link>> {
        let state = self.state.lock();
        let serves = match endpoint {
            "" => state.endpoints.len() == 1,
            named => state.endpoints.iter().any(|known| known == named),
        };
        state.link.clone().filter(|link| state.ready && serves && !link.is_closed())
    }

    pub(super) fn endpoints(&self) -> Vec<String> {
        self.state.lock().endpoints.clone()
    }

    pub(super) fn failure(&self) -> Option<ConnectFailure> {
        self.state.lock().failure.clone()
    }

    /// Whether it is this instance that a caller named, by id or by address.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.state.lock().instance_id == name || self.address.to_string() == name
    }

    pub(super) fn info(&self) -> InstanceInfo {
        let state = self.state.lock();
        InstanceInfo {
            address: self.address.to_string(),
            instance_id: state.instance_id.clone(),
            state: match (&state.link, state.ready) {
                (None, _) => InstanceState::Down,
                (Some(_), true) => InstanceState::Up,
                (Some(_), false) => InstanceState::Draining,
            },
            endpoints: state.endpoints.clone(),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            last_error: state.failure.as_ref().map(|failure| failure.text().to_owned()),
        }
    }

    /// What one more request there would cost: requests in flight times recent peak latency.
    pub(super) fn cost(&self) -> f64 {
        let (average, at) = *self.latency.lock();
        let age = now_ns().saturating_sub(at) as f64;
        let latency = average * (-age / LATENCY_DECAY_NS).exp();
        (self.in_flight.load(Ordering::Relaxed) as f64 + 1.0) * (latency + 1.0)
    }

    /// The engine has answered after this long. Peaks count at once, better times gradually (Finagle's
    /// peak EWMA).
    pub(super) fn observe(&self, latency_ns: u64, now: u64) {
        let mut latency = self.latency.lock();
        let (average, at) = *latency;
        let seen = latency_ns as f64;
        let keep = (-(now.saturating_sub(at) as f64) / LATENCY_DECAY_NS).exp();
        *latency = (if seen > average { seen } else { average * keep + seen * (1.0 - keep) }, now);
    }

    /// Takes what the worker's HELLO said. Its STATUS and GOAWAY may follow as soon as the link starts.
    fn greeted(&self, peer: &Peer) {
        let mut state = self.state.lock();
        peer.instance_id.as_ref().clone_into(&mut state.instance_id);
        state.endpoints.clone_from(&peer.endpoints);
        state.ready = true;
    }

    fn set_up(&self, link: Arc<Link>) {
        let mut state = self.state.lock();
        state.failure = None;
        state.link = Some(link);
    }

    fn set_down(&self, failure: ConnectFailure) {
        let mut state = self.state.lock();
        state.link = None;
        state.ready = false;
        state.failure = Some(failure);
    }
}

/// A call in flight at an instance; counts until dropped.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Instance>);

impl InFlight {
    pub(super) fn new(instance: &Arc<Instance>) -> Self {
        instance.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(instance))
    }

    pub(super) fn instance(&self) -> &Instance {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The router as the owner of one link.
#[derive(Debug)]
struct Session {
    instance: Arc<Instance>,
    router: Weak<Shared>,
}

impl Session {
    fn changed(&self) {
        if let Some(router) = self.router.upgrade() {
            router.changed();
        }
    }
}

impl Owner for Session {
    fn on_request(&self, link: &Arc<Link>, _id: u64, _head: RequestHead, _payload: Bytes) {
        debug_assert!(!link.peer().is_worker, "requests are decoded only from routers");
    }

    fn on_status(&self, status: Status) {
        let mut state = self.instance.state.lock();
        state.ready = status.ready;
        state.endpoints = status.endpoints;
        drop(state);
        self.changed();
    }

    fn on_goaway(&self) {
        self.instance.state.lock().ready = false;
        self.changed();
    }

    fn on_closed(&self, reason: &str) {
        self.instance.set_down(ConnectFailure::Unreachable(reason.to_owned()));
        self.changed();
    }
}

/// Connects, and again whenever the link is lost, until the router closes. The task does not keep the router
/// alive: what it needs of it is taken anew each round.
pub(super) async fn keep_connected(
    instance: Arc<Instance>,
    router: Weak<Shared>,
    mut closing: watch::Receiver<bool>,
) {
    let mut pause = PAUSE_FIRST;
    loop {
        let Some(shared) = router.upgrade() else { return };
        let connected = tokio::select! {
            connected = connect(&instance.address, &shared.local, shared.config.insecure) => connected,
            _ = closing.wait_for(|&closed| closed) => return,
        };
        match connected {
            Ok(greeting) => {
                let mut closed = start_link(&instance, &shared, greeting).closed();
                drop(shared);
                let since = Instant::now();
                closed.wait().await;
                if since.elapsed() >= SETTLED {
                    pause = PAUSE_FIRST;
                    continue;
                }
            }
            Err(error) => {
                tracing::debug!(address = %instance.address, %error, "connecting failed");
                instance.set_down(failure(&error));
                shared.changed();
                drop(shared);
            }
        }
        let jitter = 1.0 + PAUSE_JITTER * (fastrand::f64() * 2.0 - 1.0);
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
            _ = closing.wait_for(|&closed| closed) => return,
        }
        pause = pause.mul_f64(PAUSE_GROWTH).min(PAUSE_MAX);
    }
}

fn start_link(instance: &Arc<Instance>, shared: &Arc<Shared>, greeting: Greeting) -> Arc<Link> {
    let session = Arc::new(Session { instance: Arc::clone(instance), router: Arc::downgrade(shared) });
    instance.greeted(greeting.peer());
    let driver = Arc::clone(&shared.driver);
    let link =
        Link::start(greeting, session, driver, &shared.ticker, shared.config.liveness(), &shared.local);
    instance.set_up(Arc::clone(&link));
    if shared.is_closed() {
        link.close("the router was closed");
    }
    if link.is_closed() {
        // It closed between its start and `set_up`, which must not stand.
        instance.set_down(ConnectFailure::Unreachable("the link closed at once".to_owned()));
    }
    shared.changed();
    link
}

fn failure(error: &HandshakeError) -> ConnectFailure {
    let text = error.to_string();
    match error {
        HandshakeError::Unauthenticated(_) => ConnectFailure::Authentication(text),
        HandshakeError::Version { .. } | HandshakeError::VersionRefused(_) => ConnectFailure::Version(text),
        _ => ConnectFailure::Unreachable(text),
    }
}
