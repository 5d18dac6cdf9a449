//! One router's link as the worker sees it: each request is admitted and started, or refused at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use headrace_wire::body::{RejectReason, RequestHead, Shape, Status};
use headrace_wire::limits::STREAM_WINDOW_MIN;
use headrace_wire::stream::Inbound;

use super::admission::{self, Admitted, Job, Permit};
use super::health::Pulse;
use super::{Served, Shared};
use crate::budget::Claim;
use crate::clock::{NEVER, after_ms};
use crate::engine::{Request, Responder};
use crate::link::{Item, Link, Owner, Stream, Timing};
use crate::metrics;
use crate::metrics::link::LinkMetrics;
use crate::metrics::worker::Account;
use crate::requests::RequestStream;

/// A request that is not admitted.
struct Refused<'a> {
    id: u64,
    reason: RejectReason,
    retry_after_ms: u32,
    detail: &'a str,
}

/// The worker as the owner of one link.
#[derive(Debug)]
pub(super) struct Session {
    shared: Arc<Shared>,
    /// It is the worker's own link to itself: what comes there are health checks, which no count tells of.
    checks: bool,
}

impl Session {
    pub(super) const fn of_router(shared: Arc<Shared>) -> Self {
        Self { shared, checks: false }
    }

    pub(super) const fn of_checks(shared: Arc<Shared>) -> Self {
        Self { shared, checks: true }
    }

    fn refuse(&self, link: &Arc<Link>, refused: &Refused<'_>, served: Option<&Served>) {
        let Refused { id, reason, retry_after_ms, detail } = *refused;
        match served {
            _ if self.checks => {}
            Some(served) => {
                self.shared.rejected_total.fetch_add(1, Ordering::Relaxed);
                served.metrics.rejected(reason);
            }
            None => self.on_refused(reason),
        }
        link.reject(id, reason, retry_after_ms, detail);
    }
}

impl Owner for Session {
    fn on_request(&self, link: &Arc<Link>, id: u64, head: RequestHead, payload: Bytes) {
        let shared = &self.shared;
        let found = shared.served(&head.endpoint);
        let refuse = |reason, retry_after_ms, detail: &str| {
            self.refuse(link, &Refused { id, reason, retry_after_ms, detail }, found);
        };
        if shared.is_draining() {
            return refuse(RejectReason::Draining, 0, "the worker is draining");
        }
        let Some(served) = found else {
            return refuse(RejectReason::NoSuchEndpoint, 0, &shared.endpoints.join(", "));
        };
        if let Some(detail) = served.engine.refuses(head.request_shape) {
            return refuse(RejectReason::UnsupportedShape, 0, &detail);
        }
        if head.deadline_us == Some(0) {
            return refuse(RejectReason::Expired, 0, "the deadline passed on the way");
        }
        if link.streams() >= shared.config.streams_per_link as usize {
            return refuse(RejectReason::Overloaded, 100, "too many streams on this link");
        }
        let timing = Timing {
            deadline_ms: after_ms(head.deadline_us.map(Duration::from_micros)),
            item_timeout_ms: NEVER,
            slow_consumer_ms: NEVER,
        };
        let (stream, granted) = shared.receiving(link, id, head.request_shape, timing);
        let requests = (head.request_shape == Shape::Many).then(|| RequestStream::new(Arc::clone(&stream)));
        let (bytes, sent_ns) = (payload.len(), head.sent_at_us.saturating_mul(1_000));
        let request = Request {
            id: head.request_id,
            endpoint: Arc::clone(&served.endpoint),
            payload: Item { encoding: head.encoding, payload },
            requests,
            metadata: head.metadata,
            traceparent: head.traceparent,
            client_id: Arc::clone(&link.peer().instance_id),
        };
        let pulse = served.vitals.as_ref().map(|vitals| Pulse::new(vitals, self.checks));
        let job = Job { engine: Arc::clone(&served.engine), request, stream, pulse, account: None };
        let accept = |job: &mut Job| {
            if !self.checks {
                shared.accepted_total.fetch_add(1, Ordering::Relaxed);
                let (arrived_ns, transit_ns) = (link.heard_ns(), link.transit_ns(sent_ns));
                job.account = Some(Account::accepted(served.metrics, arrived_ns, bytes, transit_ns));
            }
            link.accept_stream(&job.stream, granted, head.window);
        };
        match shared.admission.admit(shared, job, accept) {
            Admitted::Run(job, permit) => admission::start_in_turn(job, permit),
            Admitted::Queued => {}
            Admitted::Full { retry_after_ms, running, queued } => {
                let detail = format!("{running} requests running and {queued} queued");
                refuse(RejectReason::Overloaded, retry_after_ms, &detail);
            }
        }
    }

    fn on_status(&self, _status: Status) {}

    fn on_goaway(&self) {}

    fn on_broken(&self) {
        if !self.checks {
            self.shared.metrics.unknown.invalid_message();
        }
    }

    fn on_refused(&self, reason: RejectReason) {
        if !self.checks {
            self.shared.rejected_total.fetch_add(1, Ordering::Relaxed);
            self.shared.metrics.unknown.refused(reason);
        }
    }

    fn metrics(&self) -> &'static LinkMetrics {
        if self.checks { &metrics::link::CHECKS } else { &metrics::link::WORKER_SIDE }
    }

    fn on_closed(&self, reason: &str, _lost: usize) {
        tracing::debug!(instance = self.shared.instance_id, reason, "a router's link closed");
        self.shared.prune_links();
    }
}

/// Hands a request to its engine.
pub(super) fn start(job: Job, permit: Permit) {
    let Job { engine, request, stream, pulse, account } = job;
    let responder = Responder::new(stream, permit, pulse, account);
    // A panic is that request's failure, not its link's: the responder answers as it is dropped.
    let started = catch_unwind(AssertUnwindSafe(|| engine.start(request, responder)));
    if started.is_err() {
        tracing::error!(?engine, "an engine panicked as it was started");
    }
}

impl Shared {
    /// Finds the engine of an endpoint; an empty name means the only one there is.
    fn served(&self, endpoint: &str) -> Option<&Served> {
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
}
