//! What workers count, by endpoint: names that this process serves, never one that a router sent; and by the
//! labels of the worker. A request carries an [`Account`], which costs two plain additions for each item and is
//! folded in when it ends.

use std::sync::atomic::{AtomicU64, Ordering};

use headrace_wire::body::{FaultCode, RejectReason};

use super::labels::{LabelSet, UNLABELLED, label_set, label_sets};
use super::names::{self, Family, OVERFLOW};
use super::numbers::{Counter, Named, PerWord, TimeHistogram, Word};
use super::samples::Samples;
use crate::clock::now_ns;

/// Why an accepted request ended with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorType {
    Deserialization,
    ResponseStream,
    Generate,
    Serialization,
    PublishResponse,
    PublishFinal,
    TooLarge,
    Deadline,
    ItemTimeout,
    SlowConsumer,
    RequestStream,
    Shutdown,
    Refused,
}

const ERROR_TYPES: usize = 13;

impl Word for ErrorType {
    const WORDS: &'static [&'static str] = &[
        "deserialization",
        "response_stream",
        "generate",
        "serialization",
        "publish_response",
        "publish_final",
        "too_large",
        "deadline",
        "item_timeout",
        "slow_consumer",
        "request_stream",
        "shutdown",
        "refused",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

impl ErrorType {
    /// What an engine's failure counts as.
    pub(crate) const fn of(code: FaultCode) -> Self {
        match code {
            FaultCode::Engine => Self::Generate,
            FaultCode::Encode => Self::Serialization,
            FaultCode::Deadline => Self::Deadline,
            FaultCode::SlowConsumer => Self::SlowConsumer,
            FaultCode::Shutdown => Self::Shutdown,
            FaultCode::TooLarge => Self::TooLarge,
            FaultCode::Decode => Self::Deserialization,
            FaultCode::Refused => Self::Refused,
        }
    }
}

const REJECT_REASONS: usize = 7;

impl Word for RejectReason {
    const WORDS: &'static [&'static str] = &[
        "overloaded",
        "draining",
        "no_such_endpoint",
        "too_large",
        "expired",
        "unauthenticated",
        "unsupported_shape",
    ];

    fn index(self) -> usize {
        self as usize - Self::Overloaded as usize
    }
}

/// Who ended a stream at its worker before the engine did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum KilledBy {
    /// The caller, or its router as it closed.
    Caller = 0,
    /// The call's deadline.
    Deadline,
    /// The caller, for whom no item came in time.
    ItemTimeout,
    /// Its router, since the caller read too slowly.
    SlowConsumer,
    /// The link was lost.
    Lost,
    /// The link was lost before ACCEPT.
    Unopened,
    /// The worker, as it closed.
    Shutdown,
    /// The worker, whose process holds too many bytes of requests.
    Unread,
}

impl KilledBy {
    const ALL: [Self; 8] = [
        Self::Caller,
        Self::Deadline,
        Self::ItemTimeout,
        Self::SlowConsumer,
        Self::Lost,
        Self::Unopened,
        Self::Shutdown,
        Self::Unread,
    ];

    /// The one of this number.
    pub(crate) fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Caller)
    }

    /// What the request counts as, when its engine learned of it as it `finished`, or before.
    pub(crate) const fn outcome(self, finished: bool) -> Outcome {
        Outcome::Error(match self {
            Self::Caller => return Outcome::Cancelled,
            Self::Deadline => ErrorType::Deadline,
            Self::ItemTimeout => ErrorType::ItemTimeout,
            Self::SlowConsumer => ErrorType::SlowConsumer,
            Self::Lost if finished => ErrorType::PublishFinal,
            Self::Lost => ErrorType::PublishResponse,
            Self::Unopened => ErrorType::ResponseStream,
            Self::Shutdown => ErrorType::Shutdown,
            Self::Unread => ErrorType::RequestStream,
        })
    }
}

/// How an accepted request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Cancelled,
    Error(ErrorType),
}

/// The numbers of one endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    requests: Counter,
    request_bytes: Counter,
    response_bytes: Counter,
    response_items: Counter,
    cancellations: Counter,
    errors: PerWord<ERROR_TYPES>,
    rejections: PerWord<REJECT_REASONS>,
    duration: TimeHistogram,
    queue: TimeHistogram,
    first_response: TimeHistogram,
    transit: TimeHistogram,
    /// When an engine last answered somebody, in nanoseconds of the runtime's clock; 0 for never.
    answered_ns: AtomicU64,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self::new()
    }
}

impl Endpoint {
    const fn new() -> Self {
        Self {
            requests: Counter::new(),
            request_bytes: Counter::new(),
            response_bytes: Counter::new(),
            response_items: Counter::new(),
            cancellations: Counter::new(),
            errors: PerWord::new(),
            rejections: PerWord::new(),
            duration: TimeHistogram::new(),
            queue: TimeHistogram::new(),
            first_response: TimeHistogram::new(),
            transit: TimeHistogram::new(),
            answered_ns: AtomicU64::new(0),
        }
    }

    pub(crate) fn rejected(&self, reason: RejectReason) {
        self.rejections.count(reason);
    }

    /// When an engine of this endpoint last answered, by the runtime's clock.
    pub(crate) fn answered_ns(&self) -> Option<u64> {
        Some(self.answered_ns.load(Ordering::Relaxed)).filter(|&ns| ns > 0)
    }
}

static ENDPOINTS: Named<Endpoint> = Named::new();

/// What cannot be told of an endpoint that is served here.
#[derive(Debug, Default)]
pub(crate) struct Unknown {
    invalid_messages: Counter,
    rejections: PerWord<REJECT_REASONS>,
}

impl Unknown {
    /// A request was refused that names no endpoint, or none that is served.
    pub(crate) fn refused(&self, reason: RejectReason) {
        self.rejections.count(reason);
    }

    /// A router broke the protocol.
    pub(crate) fn invalid_message(&self) {
        self.invalid_messages.add(1);
    }

    fn collect(&self, samples: &mut Samples) {
        samples.count(&names::WORKER_ERRORS, &["", "invalid_message"], self.invalid_messages.get());
        for (word, count) in self.rejections.each::<RejectReason>() {
            if count > 0 {
                samples.count(&names::WORKER_REJECTIONS, &["", word], count);
            }
        }
    }
}

/// By labels alone: there are fewer sets of them than names, so none is beyond the bound.
static UNKNOWN: Named<Unknown> = Named::new();

const _: () = assert!(super::labels::LABEL_SETS_MAX < names::NAMES_MAX, "and one for those without labels");

/// Where one worker counts.
#[derive(Debug)]
pub(crate) struct OfWorker {
    /// `None`: there are too many in this process.
    labels: Option<&'static LabelSet>,
    pub(crate) unknown: &'static Unknown,
}

impl OfWorker {
    /// For a worker with these labels, which were checked.
    pub(crate) fn new(labels: &[(String, String)]) -> Self {
        let labels = label_set(labels);
        if labels.is_none() {
            tracing::warn!("too many metrics_labels in one process: a worker is counted as {OVERFLOW}");
        }
        Self { labels, unknown: UNKNOWN.labelled(labels.unwrap_or(&UNLABELLED), "") }
    }

    /// The numbers of an endpoint that it serves.
    pub(crate) fn endpoint(&self, name: &str) -> &'static Endpoint {
        match self.labels {
            Some(labels) => ENDPOINTS.labelled(labels, name),
            None => ENDPOINTS.get(OVERFLOW),
        }
    }

    /// What all that it tells of itself carries.
    pub(crate) fn labels(&self) -> &'static LabelSet {
        self.labels.unwrap_or(&UNLABELLED)
    }
}

/// One accepted request, counted from ACCEPT to its end; one that is dropped was cancelled.
#[derive(Debug)]
pub(crate) struct Account {
    endpoint: &'static Endpoint,
    arrived_ns: u64,
    /// Changed only under the lock of the stream's link, so that loads and stores need not be one operation.
    items: AtomicU64,
    bytes: AtomicU64,
    started: bool,
    ended: bool,
}

impl Account {
    /// A request with so many bytes has been accepted. `transit_ns` is what it took from its router to here.
    pub(crate) fn accepted(
        endpoint: &'static Endpoint,
        arrived_ns: u64,
        bytes: usize,
        transit_ns: Option<u64>,
    ) -> Self {
        endpoint.requests.add(1);
        endpoint.request_bytes.add(bytes as u64);
        if let Some(transit_ns) = transit_ns {
            endpoint.transit.observe_ns(transit_ns);
        }
        let (items, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { endpoint, arrived_ns, items, bytes, started: false, ended: false }
    }

    /// It is handed to its engine, having waited for a place until this time, or not at all: 0.
    pub(crate) fn started(&mut self, waited_until_ns: u64) {
        self.started = true;
        self.endpoint.queue.observe_ns(self.age_ns(waited_until_ns));
    }

    /// An item was pushed. The lock of the stream's link is held.
    #[inline]
    pub(crate) fn pushed(&self, bytes: usize) {
        let items = self.items.load(Ordering::Relaxed);
        if items == 0 {
            self.answered(now_ns());
        }
        self.items.store(items + 1, Ordering::Relaxed);
        self.bytes.store(self.bytes.load(Ordering::Relaxed) + bytes as u64, Ordering::Relaxed);
    }

    /// Further bytes of the request came.
    pub(crate) fn requested(&self, bytes: u64) {
        if bytes > 0 {
            self.endpoint.request_bytes.add(bytes);
        }
    }

    /// The request has ended.
    pub(crate) fn ended(mut self, outcome: Outcome) {
        self.end(outcome, now_ns());
    }

    /// The last item was pushed, and the stream has ended with it.
    pub(crate) fn ended_with(mut self, bytes: usize) {
        let now = now_ns();
        let items = self.items.get_mut();
        *items += 1;
        *self.bytes.get_mut() += bytes as u64;
        if *items == 1 {
            self.answered(now);
        }
        self.end(Outcome::Done, now);
    }

    fn answered(&self, now_ns: u64) {
        self.endpoint.first_response.observe_ns(self.age_ns(now_ns));
        self.endpoint.answered_ns.store(now_ns, Ordering::Relaxed);
    }

    const fn age_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.arrived_ns)
    }

    fn end(&mut self, outcome: Outcome, now_ns: u64) {
        let endpoint = self.endpoint;
        self.ended = true;
        if !self.started {
            endpoint.queue.observe_ns(self.age_ns(now_ns));
        }
        let (items, bytes) = (*self.items.get_mut(), *self.bytes.get_mut());
        if items > 0 {
            endpoint.response_items.add(items);
            endpoint.response_bytes.add(bytes);
        }
        match outcome {
            Outcome::Done => endpoint.answered_ns.store(now_ns, Ordering::Relaxed),
            Outcome::Cancelled => endpoint.cancellations.add(1),
            Outcome::Error(kind) => endpoint.errors.count(kind),
        }
        endpoint.duration.observe_ns(self.age_ns(now_ns));
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Outcome::Cancelled, now_ns());
        }
    }
}

pub(super) fn collect(samples: &mut Samples) {
    for labels in label_sets() {
        samples.labelled(labels, |samples| {
            // They are there from the first scrape on, and when the last worker has gone.
            for family in [&names::WORKER_READY, &names::WORKER_CONCURRENCY, &names::WORKER_QUEUE_LIMIT] {
                samples.count(family, &[], 0);
            }
            UNKNOWN.labelled(labels, "").collect(samples);
        });
    }
    for (labels, name, endpoint) in ENDPOINTS.each() {
        samples.labelled(labels, |samples| endpoint.collect(&name, samples));
    }
}

impl Endpoint {
    /// Requests that an engine has.
    pub(crate) fn inflight(&self) -> u64 {
        // In this order: a request that goes on meanwhile is not taken for one less.
        let ended = self.duration.count();
        self.queue.count().saturating_sub(ended)
    }

    /// Accepted requests that wait for a place.
    pub(crate) fn queued(&self) -> u64 {
        let started = self.queue.count();
        self.requests.get().saturating_sub(started)
    }

    fn collect(&self, name: &str, samples: &mut Samples) {
        let mut count = |family: &'static Family, count| samples.count(family, &[name], count);
        count(&names::WORKER_INFLIGHT, self.inflight());
        count(&names::WORKER_QUEUED, self.queued());
        count(&names::WORKER_REQUESTS, self.requests.get());
        count(&names::WORKER_REQUEST_BYTES, self.request_bytes.get());
        count(&names::WORKER_RESPONSE_BYTES, self.response_bytes.get());
        count(&names::WORKER_RESPONSE_ITEMS, self.response_items.get());
        count(&names::WORKER_CANCELLATION, self.cancellations.get());
        for (word, count) in self.errors.each::<ErrorType>() {
            samples.count(&names::WORKER_ERRORS, &[name, word], count);
        }
        for (word, count) in self.rejections.each::<RejectReason>() {
            samples.count(&names::WORKER_REJECTIONS, &[name, word], count);
        }
        samples.times(&names::WORKER_DURATION, &[name], &self.duration);
        samples.times(&names::WORKER_QUEUE, &[name], &self.queue);
        samples.times(&names::WORKER_FIRST_RESPONSE, &[name], &self.first_response);
        samples.times(&names::WORKER_TRANSIT, &[name], &self.transit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_those_who_kill_are_their_places() {
        for (number, by) in KilledBy::ALL.into_iter().enumerate() {
            assert_eq!((by as usize, KilledBy::from_number(number as u8)), (number, by));
        }
        assert!(KilledBy::ALL.len() <= 16, "four bits of a stream's flags hold it");
    }

    #[test]
    fn a_request_that_is_dropped_was_cancelled() {
        static ENDPOINT: Endpoint = Endpoint::new();
        drop(Account::accepted(&ENDPOINT, now_ns(), 3, None));
        let ended = (ENDPOINT.cancellations.get(), ENDPOINT.duration.count(), ENDPOINT.queue.count());
        assert_eq!(ended, (1, 1, 1));
        assert_eq!(ENDPOINT.errors.each::<ErrorType>().map(|(_, count)| count).sum::<u64>(), 0);
    }
}
