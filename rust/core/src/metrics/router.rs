//! What routers count, all of a process together: what they would be told apart by, endpoints and addresses,
//! comes from outside.

use super::names;
use super::numbers::{Counter, PerWord, TimeHistogram, Word};
use super::samples::Samples;
use crate::error::CallErrorKind;

/// Why there was a further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryReason {
    Overloaded,
    Draining,
    NoSuchEndpoint,
    Unsent,
    Lost,
    Shutdown,
    Resumed,
}

const RETRY_REASONS: usize = 7;

impl Word for RetryReason {
    const WORDS: &'static [&'static str] =
        &["overloaded", "draining", "no_such_endpoint", "unsent", "lost", "shutdown", "resumed"];

    fn index(self) -> usize {
        self as usize
    }
}

/// What a call failed with; the names of the variants of [`CallErrorKind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallFailure {
    CannotConnect,
    NoInstances,
    NoSuchEndpoint,
    NotUnary,
    Overloaded,
    Policy,
    Refused,
    Disconnected,
    Deadline,
    ItemTimeout,
    SlowConsumer,
    PayloadTooLarge,
    VersionMismatch,
    Authentication,
    RequestFailed,
    Engine,
    Closed,
}

const CALL_FAILURES: usize = 17;

impl Word for CallFailure {
    const WORDS: &'static [&'static str] = &[
        "cannot_connect",
        "no_instances",
        "no_such_endpoint",
        "not_unary",
        "overloaded",
        "policy",
        "refused",
        "disconnected",
        "deadline",
        "item_timeout",
        "slow_consumer",
        "payload_too_large",
        "version_mismatch",
        "authentication",
        "request_failed",
        "engine",
        "closed",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

impl From<&CallErrorKind> for CallFailure {
    fn from(kind: &CallErrorKind) -> Self {
        match kind {
            CallErrorKind::CannotConnect { .. } => Self::CannotConnect,
            CallErrorKind::NoInstances { .. } => Self::NoInstances,
            CallErrorKind::NoSuchEndpoint { .. } => Self::NoSuchEndpoint,
            CallErrorKind::NotUnary { .. } => Self::NotUnary,
            CallErrorKind::Overloaded { .. } => Self::Overloaded,
            CallErrorKind::Policy { .. } => Self::Policy,
            CallErrorKind::Refused { .. } => Self::Refused,
            CallErrorKind::Disconnected { .. } => Self::Disconnected,
            CallErrorKind::DeadlineExceeded { .. } => Self::Deadline,
            CallErrorKind::ItemTimeout { .. } => Self::ItemTimeout,
            CallErrorKind::SlowConsumer { .. } => Self::SlowConsumer,
            CallErrorKind::PayloadTooLarge { .. } => Self::PayloadTooLarge,
            CallErrorKind::VersionMismatch { .. } => Self::VersionMismatch,
            CallErrorKind::Authentication { .. } => Self::Authentication,
            CallErrorKind::RequestFailed { .. } => Self::RequestFailed,
            CallErrorKind::Engine(_) => Self::Engine,
            CallErrorKind::Closed => Self::Closed,
        }
    }
}

/// The numbers of all routers of the process.
#[derive(Debug)]
pub(crate) struct RouterMetrics {
    pub(crate) requests: Counter,
    pub(crate) cancellations: Counter,
    pub(crate) ejections: Counter,
    pub(crate) queue: TimeHistogram,
    pub(crate) send: TimeHistogram,
    pub(crate) ttft: TimeHistogram,
    errors: PerWord<CALL_FAILURES>,
    retries: PerWord<RETRY_REASONS>,
}

pub(crate) static ROUTER: RouterMetrics = RouterMetrics {
    requests: Counter::new(),
    cancellations: Counter::new(),
    ejections: Counter::new(),
    queue: TimeHistogram::new(),
    send: TimeHistogram::new(),
    ttft: TimeHistogram::new(),
    errors: PerWord::new(),
    retries: PerWord::new(),
};

impl RouterMetrics {
    pub(crate) fn failed(&self, kind: &CallErrorKind) {
        self.errors.count(CallFailure::from(kind));
    }

    pub(crate) fn retried(&self, reason: RetryReason) {
        self.retries.count(reason);
    }
}

pub(super) fn collect(samples: &mut Samples) {
    samples.count(&names::ROUTER_REQUESTS, &[], ROUTER.requests.get());
    samples.count(&names::ROUTER_CANCELLATION, &[], ROUTER.cancellations.get());
    samples.count(&names::ROUTER_EJECTIONS, &[], ROUTER.ejections.get());
    samples.times(&names::ROUTER_QUEUE, &[], &ROUTER.queue);
    samples.times(&names::ROUTER_SEND, &[], &ROUTER.send);
    samples.times(&names::ROUTER_TTFT, &[], &ROUTER.ttft);
    for (word, count) in ROUTER.errors.each::<CallFailure>() {
        samples.count(&names::ROUTER_ERRORS, &[word], count);
    }
    for (word, count) in ROUTER.retries.each::<RetryReason>() {
        samples.count(&names::ROUTER_RETRIES, &[word], count);
    }
}
