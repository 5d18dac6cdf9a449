//! One call: pick an instance, send, wait for admission and PROLOGUE, try elsewhere while the request has
//! provably not run.
//!
//! ```text
//!   Begin ──▶ Picking ──▶ Sent ──▶ (ResponseStream)
//!               ▲  │        │
//!               │  └ wait   │ REJECT, or lost before it ran
//!               └───────────┘
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use headrace_wire::body::{RequestHead, Shape};

use super::Shared;
use super::again::{Again, Plan};
use super::attempt::Attempt;
use super::choice::{Candidate, Tried};
use super::instances::{InFlight, Instance};
use super::options::CallOptions;
use super::response::{ResponseStream, encode_error};
use crate::clock::{NEVER, NS_PER_MS, duration_ms, now_ms, now_ns};
use crate::error::{CallError, CallErrorKind, Phase};
use crate::link::{Feed, Item, Link, OpenError, Outgoing, Timing};
use crate::metrics::router::ROUTER;
use crate::requests::RequestSink;

/// A call in progress. Dropping it cancels it.
#[derive(Debug)]
pub struct Call {
    pub(super) router: Arc<Shared>,
    /// What every attempt sends; the link fills in what differs.
    pub(super) head: RequestHead,
    pub(super) payload: Bytes,
    /// What feeds the request stream, if it is one.
    pub(super) feed: Option<Arc<Feed>>,
    timeout: Option<Duration>,
    pub(super) item_timeout: Option<Duration>,
    /// The instance that the caller named; empty for any.
    pub(super) instance: String,
    pub(super) affinity: String,
    pub(super) idempotent: bool,
    pub(super) resumable: bool,
    pub(super) began_ms: u64,
    pub(super) deadline_ms: u64,
    /// When the call began, until its request is first sent; nothing for one that continues another.
    queued_ns: Option<u64>,
    /// It continues another call, and keeps that one's beginning and deadline.
    continues: bool,
    /// When the call last looked at the clock.
    pub(super) now_ns: u64,
    pub(super) state: State,
    /// Instances that have refused or were lost.
    pub(super) tried: Vec<Tried>,
    pub(super) retries: u32,
    /// How far the attempts that may have run had come; `Unsent` when none can have.
    pub(super) reached: Phase,
    /// The router's number for the call, from its first poll on.
    number: Option<u64>,
    /// It is, or was, among the router's waiters.
    waits: bool,
}

#[derive(Debug)]
pub(super) enum State {
    Begin,
    /// No instance was there; until when to wait, and whether a timer wakes the call then.
    Picking {
        until_ms: u64,
        timer: bool,
    },
    Sent(Attempt),
    Done,
}

impl Future for Call {
    type Output = Result<ResponseStream, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_open(cx)
    }
}

impl Call {
    pub(super) fn new(router: Arc<Shared>, options: CallOptions) -> Self {
        let state = State::Begin;
        let CallOptions { payload, endpoint, request_id, metadata, traceparent, .. } = options;
        let head = RequestHead {
            request_shape: Shape::Single,
            response_shape: if options.single { Shape::Single } else { Shape::Many },
            encoding: payload.encoding,
            request_id,
            endpoint,
            traceparent,
            metadata,
            ..RequestHead::default()
        };
        Self {
            router,
            head,
            payload: payload.payload,
            feed: None,
            timeout: options.timeout,
            item_timeout: options.item_timeout,
            instance: options.instance,
            affinity: options.affinity,
            idempotent: options.idempotent,
            resumable: options.resumable,
            began_ms: 0,
            deadline_ms: NEVER,
            queued_ns: None,
            continues: false,
            now_ns: 0,
            state,
            tried: Vec::new(),
            retries: 0,
            reached: Phase::Unsent,
            number: None,
            waits: false,
        }
    }

    /// The call that continues this one's stream with another request.
    pub(super) fn continued(plan: &Plan, request: Item) -> Self {
        let options = CallOptions {
            item_timeout: plan.item_timeout,
            instance: plan.instance.clone(),
            affinity: plan.affinity.clone(),
            idempotent: plan.idempotent,
            resumable: plan.resumable,
            ..CallOptions::new(request)
        };
        let mut call = Self::new(Arc::clone(&plan.router), options);
        let encoding = call.head.encoding;
        call.head = RequestHead { encoding, ..plan.head.clone() };
        (call.began_ms, call.deadline_ms, call.continues) = (plan.began_ms, plan.deadline_ms, true);
        // That stream was open.
        call.reached = Phase::Accepted;
        call
    }

    /// What a second run takes, if this call permits one.
    fn again(&self) -> Option<Box<Again>> {
        if !self.idempotent && !self.resumable {
            return None;
        }
        Some(Box::new(Again::new(Plan {
            router: Arc::clone(&self.router),
            head: self.head.clone(),
            payload: self.payload.clone(),
            item_timeout: self.item_timeout,
            instance: self.instance.clone(),
            affinity: self.affinity.clone(),
            idempotent: self.idempotent,
            resumable: self.resumable,
            began_ms: self.began_ms,
            deadline_ms: self.deadline_ms,
        })))
    }

    /// As its `poll`; a call may be moved between polls.
    pub fn poll_open(&mut self, cx: &Context<'_>) -> Poll<Result<ResponseStream, CallError>> {
        let result = self.drive(cx);
        if let Poll::Ready(result) = &result {
            if let Err(error) = result {
                ROUTER.failed(&error.kind);
            }
            self.state = State::Done;
        }
        result
    }

    /// A call whose request is a stream, with the sink for its items. Nobody keeps these, so that it never
    /// runs again.
    pub(super) fn streaming(router: Arc<Shared>, options: CallOptions) -> (RequestSink, Self) {
        let once = CallOptions { idempotent: false, resumable: false, ..options };
        let mut call = Self::new(router, once);
        call.head.request_shape = Shape::Many;
        let feed = call.feed.insert(Arc::default());
        (RequestSink::new(Arc::clone(feed)), call)
    }

    fn drive(&mut self, cx: &Context<'_>) -> Poll<Result<ResponseStream, CallError>> {
        loop {
            match &mut self.state {
                State::Begin => self.begin(),
                State::Picking { .. } => match self.pick(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(attempt)) => self.state = State::Sent(attempt),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                },
                State::Sent(attempt) => {
                    let Some(stream) = &attempt.stream else { return self.fail(CallErrorKind::Closed) };
                    match stream.poll_open(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(())) => return self.opened(),
                        Poll::Ready(Err(ending)) => {
                            if let Some(error) = self.ended(ending) {
                                return Poll::Ready(Err(error));
                            }
                        }
                    }
                }
                // Polled after it was done: there is no second stream.
                State::Done => return self.fail(CallErrorKind::Closed),
            }
        }
    }

    fn begin(&mut self) {
        // One look at the clock serves all that follows until the call waits.
        self.now_ns = now_ns();
        if !self.continues {
            ROUTER.requests.add(1);
            self.queued_ns = Some(self.now_ns);
            self.began_ms = self.now_ns / NS_PER_MS;
            self.deadline_ms = self.timeout.map_or(NEVER, |timeout| {
                let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(NEVER);
                self.now_ns.saturating_add(timeout_ns).div_ceil(NS_PER_MS)
            });
        }
        if self.head.request_id.is_empty() {
            self.head.request_id = random_id();
        }
        self.router.in_flight.fetch_add(1, Ordering::Relaxed);
        self.number = Some(self.router.calls_total.fetch_add(1, Ordering::Relaxed));
        self.state = self.picking();
    }

    pub(super) fn picking(&self) -> State {
        let wait_ms = duration_ms(Some(self.router.config.instance_timeout));
        State::Picking { until_ms: self.now_ms().saturating_add(wait_ms).min(self.deadline_ms), timer: false }
    }

    fn fail<T>(&self, kind: CallErrorKind) -> Poll<Result<T, CallError>> {
        Poll::Ready(Err(self.error(kind, Phase::Unsent, None)))
    }

    /// What the caller is told when the last attempt had come to `phase`: of all attempts.
    pub(super) fn error(&self, mut kind: CallErrorKind, phase: Phase, instance: Option<String>) -> CallError {
        let phase = phase.max(self.reached);
        if let CallErrorKind::Disconnected { maybe_executed, .. } = &mut kind {
            *maybe_executed |= self.reached != Phase::Unsent;
        }
        CallError { kind, instance, phase, request_id: self.head.request_id.clone(), items: 0 }
    }

    // --- picking ---

    fn pick(&mut self, cx: &Context<'_>) -> Poll<Result<Attempt, CallError>> {
        if self.waits {
            // The last look at the clock was before the wait.
            self.now_ns = now_ns();
        }
        let found = self.try_pick();
        if found.is_ready() {
            return found;
        }
        let number = self.number.unwrap_or_default();
        self.router.await_change(number, cx.waker());
        self.waits = true;
        // Once more, so that a change before the waker was in place is not missed.
        let found = self.try_pick();
        if found.is_ready() {
            return found;
        }
        let State::Picking { until_ms, timer } = &mut self.state else { return Poll::Pending };
        let now = now_ms();
        if now < *until_ms {
            if !std::mem::replace(timer, true) {
                self.router.wake_after(Duration::from_millis(*until_ms - now), number);
            }
            return Poll::Pending;
        }
        let kind = if now >= self.deadline_ms {
            CallErrorKind::DeadlineExceeded { elapsed: self.elapsed() }
        } else {
            self.no_instance()
        };
        self.fail(kind)
    }

    /// An attempt on the best instance there is, or why none will ever do.
    fn try_pick(&mut self) -> Poll<Result<Attempt, CallError>> {
        if self.router.is_closed() {
            return self.fail(CallErrorKind::Closed);
        }
        if let Some(reason) = self.feed.as_ref().and_then(|feed| feed.failed()) {
            return self.fail(CallErrorKind::RequestFailed { reason: reason.to_string() });
        }
        let mut full = None;
        loop {
            let Candidate { instance, link } = match self.choose() {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(kind) => return self.fail(kind),
            };
            match self.open(&instance, &link) {
                Ok(attempt) => return Poll::Ready(Ok(attempt)),
                // It closed just now, so it is no choice any more; its next link will be.
                Err(OpenError::Closed) => {}
                Err(OpenError::TooManyStreams(limit)) => {
                    let detail = format!("its limit of {limit} streams per link is reached");
                    full = Some(CallErrorKind::Overloaded { retry_after: Duration::ZERO, detail });
                    let instance_id = Arc::clone(&link.peer().instance_id);
                    self.tried.push(Tried { instance, instance_id });
                }
                Err(OpenError::Encode(error)) => return self.fail(encode_error(&error)),
            }
        }
        full.or_else(|| self.hopeless()).map_or(Poll::Pending, |kind| self.fail(kind))
    }

    pub(super) fn elapsed(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.began_ms))
    }

    pub(super) const fn now_ms(&self) -> u64 {
        self.now_ns / NS_PER_MS
    }

    fn open(&mut self, instance: &Arc<Instance>, link: &Arc<Link>) -> Result<Attempt, OpenError> {
        let left_ms = self.deadline_ms.saturating_sub(self.now_ns / NS_PER_MS);
        self.head.deadline_us = (self.deadline_ms != NEVER).then(|| left_ms.max(1).saturating_mul(1_000));
        let timing = Timing {
            deadline_ms: self.deadline_ms,
            item_timeout_ms: duration_ms(self.item_timeout),
            slow_consumer_ms: duration_ms(self.router.config.slow_consumer_timeout),
        };
        let began_ns = self.now_ns;
        let (payload, feed) = (self.payload.clone(), self.feed.as_ref());
        let stream = link.open(Outgoing { head: &mut self.head, payload, feed, timing, now_ns: began_ns })?;
        if let Some(queued_ns) = self.queued_ns.take() {
            ROUTER.queue.observe_ns(began_ns.saturating_sub(queued_ns));
        }
        Ok(Attempt {
            stream: Some(stream),
            in_flight: Some(InFlight::new(instance)),
            instance: Arc::clone(instance),
            instance_id: Arc::clone(&link.peer().instance_id),
            began_ns,
            is_trial: instance.begin_trial(began_ns / NS_PER_MS),
        })
    }

    // --- sent ---

    fn opened(&mut self) -> Poll<Result<ResponseStream, CallError>> {
        let State::Sent(attempt) = &mut self.state else { return self.fail(CallErrorKind::Closed) };
        let (Some(stream), Some(in_flight)) = (attempt.stream.take(), attempt.in_flight.take()) else {
            return self.fail(CallErrorKind::Closed);
        };
        attempt.end_trial(true);
        let instance_id = Arc::clone(&attempt.instance_id);
        let began_ns = attempt.began_ns;
        let again = self.again();
        let request_id = std::mem::take(&mut self.head.request_id);
        let response = ResponseStream::new(stream, in_flight, request_id, instance_id, self.began_ms, again);
        response.observe_open(began_ns, now_ns());
        Poll::Ready(Ok(response))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            if !matches!(self.state, State::Done) {
                ROUTER.cancellations.add(1);
            }
            self.router.in_flight.fetch_sub(1, Ordering::Relaxed);
            if self.waits {
                self.router.stop_waiting(number);
            }
        }
        if let Some(feed) = &self.feed {
            feed.close();
        }
    }
}

/// Sixteen hexadecimal digits; without the formatting machinery, since every call needs one.
fn random_id() -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let drawn = fastrand::u64(..);
    (0..16).map(|digit| char::from(DIGITS[(drawn >> (60 - 4 * digit)) as usize & 15])).collect()
}
