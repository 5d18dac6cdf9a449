//! Whether the process is of use, for whoever asks: what workers and routers report of themselves, and what
//! else makes a process unfit. `port` tells it over HTTP.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

/// What a worker or a router reports of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// `"worker"` or `"router"`.
    pub kind: &'static str,
    /// Its instance id.
    pub instance_id: String,
    /// Where a worker listens; empty for a router.
    pub address: String,
    /// Why it takes no requests, or can send none. Empty when it can.
    pub reasons: Vec<String>,
    /// A worker's endpoints.
    pub endpoints: Vec<EndpointReport>,
}

/// What is known of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointReport {
    /// Its name.
    pub name: String,
    /// How long ago an engine of this name last answered somebody in this process; `None` if it never has.
    pub answered_ago: Option<Duration>,
    /// Whether anybody looks if it answers: it declares a health check. Of one that does not, nobody can say: what
    /// takes minutes for its first item and what is stuck look the same.
    pub is_checked: bool,
    /// Why it counts as not answering, if it does.
    pub failure: Option<String>,
    /// Requests that engines of this name and these labels have in this process.
    pub inflight: u64,
    /// Accepted requests that wait for a place.
    pub queued: u64,
}

/// Something of which a process's readiness depends.
pub trait Reports: Send + Sync {
    /// How it is at this moment; `None` once it is closed.
    fn report(&self) -> Option<Report>;
}

/// Most things that are remembered as failed for good; those that fail after so many add nothing.
const UNFIT_MAX: usize = 64;

static UNFIT: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// Says that something the process works with has failed for good, such as a CUDA device whose context is
/// lost: the process is not ready until [`set_fit`] takes it back.
pub fn set_unfit(what: &str, why: &str) {
    let mut unfit = UNFIT.lock();
    if unfit.len() < UNFIT_MAX || unfit.contains_key(what) {
        unfit.insert(what.to_owned(), why.to_owned());
    }
}

/// Takes [`set_unfit`] back.
pub fn set_fit(what: &str) {
    UNFIT.lock().remove(what);
}

/// What has failed for good, each with why.
#[must_use]
pub fn unfit() -> Vec<(String, String)> {
    UNFIT.lock().iter().map(|(what, why)| (what.clone(), why.clone())).collect()
}
