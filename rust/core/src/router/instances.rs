//! One worker as a router knows it: connecting, up, not ready, draining or down, ejected, tombstoned, and how
//! busy it is.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use headrace_wire::body::{GoawayReason, RejectReason, RequestHead, Status};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::ejection::{Ejection, Standing};
use super::info::{InstanceInfo, InstanceState};
use super::{Shared, affinity};
use crate::address::Address;
use crate::clock::{now_ms, now_ns};
use crate::discovery::Listing;
use crate::link::{Greeting, HandshakeError, Link, Owner, Peer, connect};
use crate::metrics::link::{LinkMetrics, ROUTER_SIDE};
use crate::metrics::router::ROUTER;

/// First and longest pause between attempts to connect, and how it grows: gRPC's shape, at local scale.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const PAUSE_GROWTH: f64 = 1.6;
const PAUSE_JITTER: f64 = 0.2;
/// A link that lived this long was a success: the next attempt comes at once, with the first pause again. One
/// that did not counts as a failure, or a worker that greets and hangs up would be called without a pause.
const SETTLED: Duration = Duration::from_secs(1);
/// How often it is looked whether the last stream of an instance that is gone has ended.
const PARTING_TICK: Duration = Duration::from_millis(50);

/// Time constant of the peak-sensitive latency average.
const LATENCY_DECAY_NS: f64 = 10e9;

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

/// Whether discovery lists an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    Yes,
    /// Not at the moment.
    Removed,
    /// Not for so long that the router has forgotten it.
    Gone,
}

#[derive(Debug, Default)]
struct State {
    link: Option<Arc<Link>>,
    instance_id: String,
    ready: bool,
    /// GOAWAY came.
    draining: bool,
    endpoints: Vec<String>,
    failure: Option<ConnectFailure>,
    ejection: Ejection,
    /// Since when it is not listed, in milliseconds.
    removed_ms: Option<u64>,
}

/// One worker.
#[derive(Debug)]
pub(crate) struct Instance {
    address: Address,
    /// The address as text, which calls and policies compare and see.
    name: String,
    /// What hashing by affinity knows it by.
    seed: u64,
    state: Mutex<State>,
    listed: watch::Sender<Listed>,
    in_flight: AtomicUsize,
    /// Whether losses are remembered, so that a stream that ends well need not look.
    marked: AtomicBool,
    /// Peak-sensitive moving average of the time to PROLOGUE, in nanoseconds, and when it was updated.
    latency: Mutex<(f64, u64)>,
}

impl Instance {
    pub(super) fn new(listing: &Listing) -> Self {
        let Listing { address, instance_id, endpoints } = listing.clone();
        let name = address.to_string();
        Self {
            seed: affinity::seed(&name),
            address,
            name,
            state: Mutex::new(State { instance_id, endpoints, ..State::default() }),
            listed: watch::Sender::new(Listed::Yes),
            in_flight: AtomicUsize::new(0),
            marked: AtomicBool::new(false),
            latency: Mutex::new((0.0, 0)),
        }
    }

    pub(super) const fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn instance_id(&self) -> String {
        self.state.lock().instance_id.clone()
    }

    pub(super) fn is_removed(&self) -> bool {
        self.state.lock().removed_ms.is_some()
    }

    /// Whether it has not been listed for so long.
    pub(super) fn is_removed_for(&self, ms: u64, now_ms: u64) -> bool {
        self.state.lock().removed_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= ms)
    }

    /// It is not listed from this moment on, or it is again.
    pub(super) fn set_removed(&self, removed_ms: Option<u64>) {
        self.state.lock().removed_ms = removed_ms;
        self.listed.send_replace(if removed_ms.is_some() { Listed::Removed } else { Listed::Yes });
    }

    /// Discovery has not listed it for so long that its link is closed once its last stream has ended.
    pub(super) fn set_gone(&self) {
        self.listed.send_replace(Listed::Gone);
    }

    pub(super) const fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn link(&self) -> Option<Arc<Link>> {
        self.state.lock().link.clone()
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.lock().usable_link().is_some()
    }

    /// The link, if the instance takes requests for `endpoint`; an empty one means its only one.
    pub(super) fn link_for(&self, endpoint: &str) -> Option<Arc<Link>> {
        self.state.lock().link_for(endpoint).cloned()
    }

    /// As [`Self::link_for`], unless the instance is ejected.
    pub(super) fn sound_link_for(&self, endpoint: &str, now_ms: u64) -> Option<Arc<Link>> {
        let state = self.state.lock();
        let sound = state.ejection.standing(now_ms) != Standing::Out;
        state.link_for(endpoint).filter(|_| sound).cloned()
    }

    /// Begins the trial of an instance that was ejected, if it is time for one and none is under way.
    pub(super) fn begin_trial(&self, now_ms: u64) -> bool {
        if !self.marked.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state.lock();
        state.ejection.standing(now_ms) == Standing::Probe && state.ejection.probe()
    }

    /// A trial ended: with an answer, or given up before one.
    pub(super) fn end_trial(&self, answered: bool) {
        let mut state = self.state.lock();
        if answered {
            state.ejection.answered();
        } else {
            state.ejection.probe_dropped();
        }
    }

    /// A stream from there ended otherwise than by a loss.
    pub(super) fn ended_well(&self) {
        if self.marked.load(Ordering::Relaxed) {
            let mut state = self.state.lock();
            state.ejection.ended_well();
            self.marked.store(!state.ejection.is_clean(), Ordering::Relaxed);
        }
    }

    /// The link was lost with calls on it. True when that ejects the instance.
    fn lost(&self) -> bool {
        self.marked.store(true, Ordering::Relaxed);
        self.state.lock().ejection.lost(now_ms())
    }

    /// Whether the instance takes requests, but none for `endpoint`. One that is just being lost lacks
    /// nothing: its next link may serve it.
    pub(super) fn lacks(&self, endpoint: &str) -> bool {
        let state = self.state.lock();
        state.usable_link().is_some() && !state.serves(endpoint)
    }

    pub(super) fn endpoints(&self) -> Vec<String> {
        self.state.lock().endpoints.clone()
    }

    pub(super) fn failure(&self) -> Option<ConnectFailure> {
        self.state.lock().failure.clone()
    }

    /// Whether it is this instance that a caller named, by id or by address.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name == name || self.state.lock().instance_id == name
    }

    pub(super) fn info(&self) -> InstanceInfo {
        let state = self.state.lock();
        InstanceInfo {
            address: self.name.clone(),
            instance_id: state.instance_id.clone(),
            state: match &state.link {
                _ if state.removed_ms.is_some() => InstanceState::Tombstoned,
                None => InstanceState::Down,
                Some(_) if state.draining => InstanceState::Draining,
                Some(_) if !state.ready => InstanceState::Unready,
                _ if state.ejection.standing(now_ms()) != Standing::In => InstanceState::Ejected,
                Some(_) => InstanceState::Up,
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
        state.draining = false;
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

impl State {
    fn link_for(&self, endpoint: &str) -> Option<&Arc<Link>> {
        self.usable_link().filter(|_| self.serves(endpoint))
    }

    fn usable_link(&self) -> Option<&Arc<Link>> {
        let takes_requests = self.ready && !self.draining && self.removed_ms.is_none();
        self.link.as_ref().filter(|link| takes_requests && !link.is_closed())
    }

    fn serves(&self, endpoint: &str) -> bool {
        match endpoint {
            "" => self.endpoints.len() == 1,
            named => self.endpoints.iter().any(|known| known == named),
        }
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

    pub(super) const fn instance(&self) -> &Arc<Instance> {
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
    /// The worker has said that it takes no more requests: that its link ends then is no loss.
    parted: AtomicBool,
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
        self.parted.store(true, Ordering::Relaxed);
        self.instance.state.lock().draining = true;
        self.changed();
    }

    fn on_broken(&self) {}

    fn on_refused(&self, _reason: RejectReason) {}

    fn metrics(&self) -> &'static LinkMetrics {
        &ROUTER_SIDE
    }

    fn on_closed(&self, reason: &str, lost: usize) {
        let under_calls = lost > 0 && !self.parted.load(Ordering::Relaxed);
        if under_calls && self.instance.lost() {
            ROUTER.ejections.add(1);
            tracing::warn!(address = %self.instance.address, "this worker keeps losing calls and is ejected");
        }
        self.instance.set_down(ConnectFailure::Unreachable(reason.to_owned()));
        self.changed();
    }
}

/// Connects, and again whenever the link is lost, until the router closes or has forgotten the instance. The
/// task does not keep the router alive: what it needs of it is taken anew each round.
pub(super) async fn keep_connected(
    instance: Arc<Instance>,
    router: Weak<Shared>,
    mut closing: watch::Receiver<bool>,
) {
    let mut listed = instance.listed.subscribe();
    let mut pause = PAUSE_FIRST;
    loop {
        tokio::select! {
            listed = listed.wait_for(|&listed| listed != Listed::Removed) => {
                if listed.is_ok_and(|listed| *listed == Listed::Gone) {
                    return;
                }
            }
            _ = closing.wait_for(|&closed| closed) => return,
        }
        let Some(shared) = router.upgrade() else { return };
        let connected = tokio::select! {
            connected = connect(&instance.address, &shared.local, shared.config.insecure) => connected,
            _ = closing.wait_for(|&closed| closed) => return,
            _ = listed.wait_for(|&listed| listed != Listed::Yes) => continue,
        };
        match connected {
            Ok(greeting) => {
                let link = start_link(&instance, &shared, greeting);
                drop(shared);
                let since = Instant::now();
                let mut closed = link.closed();
                let gone = tokio::select! {
                    () = closed.wait() => false,
                    _ = listed.wait_for(|&listed| listed == Listed::Gone) => true,
                };
                if gone {
                    return part(&link, closing).await;
                }
                drop(link);
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
            _ = listed.wait_for(|&listed| listed != Listed::Yes) => {}
        }
        pause = pause.mul_f64(PAUSE_GROWTH).min(PAUSE_MAX);
    }
}

/// Closes the link to an instance that is gone, when its last stream has ended.
async fn part(link: &Arc<Link>, mut closing: watch::Receiver<bool>) {
    while link.streams() > 0 && !link.is_closed() {
        tokio::select! {
            () = tokio::time::sleep(PARTING_TICK) => {}
            _ = closing.wait_for(|&closed| closed) => return,
        }
    }
    link.close_with(GoawayReason::Closed, "the worker is no longer listed");
}

fn start_link(instance: &Arc<Instance>, shared: &Arc<Shared>, greeting: Greeting) -> Arc<Link> {
    let session = Arc::new(Session {
        instance: Arc::clone(instance),
        router: Arc::downgrade(shared),
        parted: AtomicBool::new(false),
    });
    instance.greeted(greeting.peer());
    let driver = Arc::clone(&shared.driver);
    let liveness = shared.config.liveness();
    let link = Link::start(greeting, session, driver, &shared.ticker, liveness, &shared.local, |_| {});
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
