//! A router: keeps one link to each worker it knows and sends each call to one of them.
//!
//! | file | what lives there |
//! |---|---|
//! | [`set`] | which workers there are, by what discovery lists |
//! | [`instances`], [`ejection`] | one worker: its link, its state, reconnecting; keeping it out of the choice |
//! | [`info`] | what callers are told of an instance |
//! | [`policy`], [`affinity`] | picking one of several; the same one for calls that belong together |
//! | [`retry`] | how many further attempts there may be |
//! | [`options`], [`call`], [`attempt`], [`choice`] | one call, from request to stream, with its attempts; where each goes |
//! | [`report`] | what it tells of itself |
//! | [`response`], [`again`] | the stream that a caller reads; its further runs after a loss |

mod affinity;
mod again;
mod attempt;
mod call;
mod choice;
mod ejection;
mod info;
mod instances;
mod options;
mod policy;
mod report;
mod response;
mod retry;
mod set;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use headrace_wire::body::{GoawayReason, Role};
use headrace_wire::limits::STREAMS_PER_LINK_DEFAULT;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

pub(crate) use self::affinity::seed as name_hash;
pub use self::call::Call;
pub use self::info::{InstanceInfo, InstanceState};
pub use self::options::CallOptions;
use self::policy::Picker;
pub use self::policy::{Choose, Policy};
pub use self::response::{Ready, ResponseStream};
use self::retry::RetryBudget;
use self::set::{InstanceSet, TOMBSTONE_MS};
use crate::address::Address;
use crate::clock::now_ms;
use crate::config::RouterConfig;
use crate::discovery::{Discovery, Fixed, Found, Listing};
use crate::error::StartError;
use crate::link::{Driver, Local, Ticker};
use crate::metrics::{self, Source};
use crate::requests::RequestSink;

/// A router's counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouterStats {
    /// Workers connected.
    pub links: usize,
    /// Streams open on all links.
    pub streams: usize,
    /// Calls whose stream has not opened yet: those that wait for an instance or for PROLOGUE.
    pub in_flight: usize,
    /// Calls begun since the start.
    pub calls_total: u64,
    /// Further attempts since the start.
    pub retries_total: u64,
}

#[derive(Debug)]
pub(crate) struct Shared {
    config: RouterConfig,
    local: Local,
    instances: InstanceSet,
    places: Vec<Arc<dyn Discovery>>,
    picker: Picker,
    budget: Mutex<RetryBudget>,
    runtime: Handle,
    driver: Arc<dyn Driver>,
    ticker: Ticker,
    /// Calls that wait for an instance, by their number: woken in the order they came.
    waiters: Mutex<BTreeMap<u64, Waker>>,
    closed: AtomicBool,
    close_signal: watch::Sender<bool>,
    changed: Notify,
    in_flight: AtomicU64,
    calls_total: AtomicU64,
    retries_total: AtomicU64,
}

/// Sends calls to workers. Dropping the last handle closes it.
#[derive(Clone)]
pub struct Router {
    owner: Arc<Ownership>,
}

/// Closes the router when the last handle is gone; connections hold only [`Shared`].
#[derive(Debug)]
struct Ownership(Arc<Shared>);

impl Drop for Ownership {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("instances", &self.shared().instances.all().len())
            .finish_non_exhaustive()
    }
}

impl Router {
    /// A router to the workers at `targets`. It begins to connect at once and keeps trying.
    ///
    /// # Errors
    /// A setting or an address cannot be used.
    pub fn new(
        targets: &[Address],
        config: RouterConfig,
        runtime: Handle,
        driver: Arc<dyn Driver>,
    ) -> Result<Self, StartError> {
        Self::discovering(vec![Arc::new(Fixed::new(targets))], config, runtime, driver)
    }

    /// A router to all workers that `places` list, now and later.
    ///
    /// # Errors
    /// A setting cannot be used, or an address that a place lists already.
    pub fn discovering(
        places: Vec<Arc<dyn Discovery>>,
        config: RouterConfig,
        runtime: Handle,
        driver: Arc<dyn Driver>,
    ) -> Result<Self, StartError> {
        config.check()?;
        let mut lists: Vec<_> = places.iter().map(|place| place.watch(&runtime)).collect();
        for list in &lists {
            list.borrow()
                .iter()
                .flat_map(|found| found.iter())
                .try_for_each(|listing| listing.address.check(config.insecure))?;
        }
        let local = Local {
            role: Role::Router,
            instance_id: format!("{:016x}", fastrand::u64(..)),
            namespace: config.namespace.clone(),
            token: config.token.clone(),
            endpoints: Vec::new(),
            message_max: config.max_message_bytes,
            streams_max: STREAMS_PER_LINK_DEFAULT,
            link_window: config.link_window,
            stream_window: config.stream_window,
        };
        let shared = Arc::new(Shared {
            picker: Picker::new(config.policy.clone()),
            config,
            local,
            instances: InstanceSet::new(places.len()),
            places,
            budget: Mutex::new(RetryBudget::new(now_ms())),
            ticker: Ticker::new(runtime.clone()),
            runtime,
            driver,
            waiters: Mutex::new(BTreeMap::new()),
            closed: AtomicBool::new(false),
            close_signal: watch::Sender::new(false),
            changed: Notify::new(),
            in_flight: AtomicU64::new(0),
            calls_total: AtomicU64::new(0),
            retries_total: AtomicU64::new(0),
        });
        metrics::register(Arc::downgrade(&shared) as Weak<dyn Source>);
        for (place, list) in lists.iter_mut().enumerate() {
            if let Some(now) = list.borrow_and_update().clone() {
                shared.update(place, now);
            }
        }
        for (place, list) in lists.into_iter().enumerate() {
            let closing = shared.close_signal.subscribe();
            shared.runtime.spawn(follow(Arc::downgrade(&shared), place, list, closing));
        }
        Ok(Self { owner: Arc::new(Ownership(shared)) })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.0
    }

    /// A call; it begins when it is first polled.
    #[must_use]
    pub fn call(&self, options: CallOptions) -> Call {
        Call::new(Arc::clone(self.shared()), options)
    }

    /// A call whose request is a stream of items, and the sink that takes them; `options.payload` goes ahead
    /// of them, in the request itself. Once a worker has accepted it, it is never sent to another: nobody keeps
    /// its items, so that [`CallOptions::idempotent`] and [`CallOptions::resumable`] are ignored.
    #[must_use]
    pub fn call_streaming(&self, options: CallOptions) -> (RequestSink, Call) {
        Call::streaming(Arc::clone(self.shared()), options)
    }

    /// The router's settings.
    #[must_use]
    pub fn config(&self) -> &RouterConfig {
        &self.shared().config
    }

    /// What is known of each worker.
    #[must_use]
    pub fn instances(&self) -> Vec<InstanceInfo> {
        self.shared().instances.all().iter().map(|instance| instance.info()).collect()
    }

    /// Waits until `count` instances take requests; false when they did not within `timeout`.
    pub async fn wait_for_instances(&self, count: usize, timeout: Duration) -> bool {
        let enough = async {
            loop {
                let changed = self.shared().changed.notified();
                let all = self.shared().instances.all();
                if all.iter().filter(|instance| instance.is_up()).count() >= count {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(timeout, enough).await.is_ok()
    }

    /// Its counts now.
    #[must_use]
    pub fn stats(&self) -> RouterStats {
        let shared = self.shared();
        let links: Vec<_> = shared.instances.all().iter().filter_map(|instance| instance.link()).collect();
        RouterStats {
            links: links.len(),
            streams: links.iter().map(|link| link.streams()).sum(),
            in_flight: shared.in_flight.load(Ordering::Relaxed) as usize,
            calls_total: shared.calls_total.load(Ordering::Relaxed),
            retries_total: shared.retries_total.load(Ordering::Relaxed),
        }
    }

    /// Closes every link: streams that are open are lost to their readers, calls that wait fail.
    pub fn close(&self) {
        self.shared().close();
    }
}

impl Shared {
    /// Takes one further attempt out of the budget.
    fn may_retry(&self) -> bool {
        let allowed = self.budget.lock().take(now_ms(), self.calls_total.load(Ordering::Relaxed));
        if allowed {
            self.retries_total.fetch_add(1, Ordering::Relaxed);
        }
        allowed
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes what a place lists now: connects to what is new, and forgets in a while what is gone.
    fn update(self: &Arc<Self>, place: usize, mut list: Arc<[Listing]>) {
        let usable = |listing: &Listing| listing.address.check(self.config.insecure);
        if let Some(refused) = list.iter().find_map(|listing| usable(listing).err()) {
            tracing::warn!("a worker that is listed is not used: {refused}");
            list = list.iter().filter(|listing| usable(listing).is_ok()).cloned().collect();
        }
        let was_complete = self.instances.is_complete();
        let changes = self.instances.update(place, list, now_ms());
        if was_complete && changes.is_nothing() {
            return;
        }
        for instance in changes.added {
            let closing = self.close_signal.subscribe();
            self.runtime.spawn(instances::keep_connected(instance, Arc::downgrade(self), closing));
        }
        for instance in changes.removed {
            let router = Arc::downgrade(self);
            self.runtime.spawn(async move {
                // One more, since both clocks count in whole milliseconds.
                tokio::time::sleep(Duration::from_millis(TOMBSTONE_MS + 1)).await;
                if let Some(router) = router.upgrade()
                    && router.instances.forget(&instance, now_ms())
                {
                    router.changed();
                }
            });
        }
        self.changed();
    }

    fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.close_signal.send_replace(true);
        for instance in self.instances.all().iter() {
            if let Some(link) = instance.link() {
                link.close_with(GoawayReason::Closed, "the router was closed");
            }
        }
        self.changed();
    }

    /// Something about an instance changed: whoever waits for one looks again.
    fn changed(&self) {
        let waiters = std::mem::take(&mut *self.waiters.lock());
        waiters.into_values().for_each(Waker::wake);
        self.changed.notify_waiters();
    }

    /// Registers a call to be woken by the next change, or by [`Self::wake_after`].
    fn await_change(&self, call: u64, waker: &Waker) {
        self.waiters.lock().insert(call, waker.clone());
    }

    fn stop_waiting(&self, call: u64) {
        self.waiters.lock().remove(&call);
    }

    /// Wakes a waiting call after `delay`, by whatever waker it has registered by then.
    fn wake_after(self: &Arc<Self>, delay: Duration, call: u64) {
        let router = Arc::downgrade(self);
        self.runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            let waker = router.upgrade().and_then(|router| router.waiters.lock().remove(&call));
            waker.into_iter().for_each(Waker::wake);
        });
    }
}

/// Brings every change of a place's list to the router, until that closes.
async fn follow(
    router: Weak<Shared>,
    place: usize,
    mut list: watch::Receiver<Found>,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            changed = list.changed() => if changed.is_err() { return },
            _ = closing.wait_for(|&closed| closed) => return,
        }
        let Some(router) = router.upgrade() else { return };
        let now = list.borrow_and_update().clone();
        if let Some(now) = now {
            router.update(place, now);
        }
    }
}
