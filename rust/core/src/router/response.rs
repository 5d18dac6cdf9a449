//! The stream that a caller reads. Dropping it before its end tells the worker that nobody reads any more.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use headrace_wire::body::{Fault, FaultCode, KillReason, Reject, RejectReason};
use headrace_wire::error::EncodeError;
use parking_lot::Mutex;

use super::again::Again;
use super::instances::InFlight;
use crate::clock::{NEVER, now_ms};
use crate::error::{CallError, CallErrorKind};
use crate::link::{Ending, Item, Next, Stream};
use crate::metrics::router::ROUTER;

/// What a caller finds without waiting.
#[derive(Debug)]
pub enum Ready {
    /// The next item.
    Item(Item),
    /// Nothing yet.
    Pending,
    /// The stream is complete.
    End,
    /// The stream failed; asked again, it says so again.
    Failed(CallError),
}

/// A response as it arrives.
#[derive(Debug)]
pub struct ResponseStream {
    stream: Arc<Stream>,
    /// Until the caller has found the end or killed the stream: it may keep a finished one.
    in_flight: Mutex<Option<InFlight>>,
    /// Its error, or that its caller left, is among the metrics.
    counted: AtomicBool,
    request_id: String,
    instance_id: Arc<str>,
    began_ms: u64,
    /// For streams that may be continued when they are lost.
    pub(super) again: Option<Box<Again>>,
}

impl ResponseStream {
    pub(super) const fn new(
        stream: Arc<Stream>,
        in_flight: InFlight,
        request_id: String,
        instance_id: Arc<str>,
        began_ms: u64,
        again: Option<Box<Again>>,
    ) -> Self {
        let in_flight = Mutex::new(Some(in_flight));
        Self { stream, in_flight, counted: AtomicBool::new(false), request_id, instance_id, began_ms, again }
    }

    /// The call's request id.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The worker that answers; after [`Self::resume`] the one that goes on.
    #[must_use]
    pub fn instance_id(&self) -> &str {
        &self.last().instance_id
    }

    /// Whether the engine ended because it was asked to stop.
    #[must_use]
    pub fn stopped(&self) -> bool {
        matches!(self.last().stream.ending(), Some(Ending::Clean { stopped: true }))
    }

    /// Takes what is there.
    #[must_use]
    pub fn try_next(&self) -> Ready {
        match self.again.as_deref() {
            None => self.try_own(),
            Some(again) => again.try_next(self),
        }
    }

    /// As [`Self::try_next`]; when nothing is there, registers the waker and is pending.
    pub fn poll_next(&self, cx: &Context<'_>) -> Poll<Ready> {
        match self.again.as_deref() {
            None => self.poll_own(cx),
            Some(again) => again.poll_next(self, cx),
        }
    }

    #[inline]
    pub(super) fn try_own(&self) -> Ready {
        self.found(self.stream.try_next())
    }

    #[inline]
    pub(super) fn poll_own(&self, cx: &Context<'_>) -> Poll<Ready> {
        self.stream.poll_next(cx).map(|next| self.found(next))
    }

    /// The next item; `None` at the end.
    ///
    /// # Errors
    /// The stream failed. One that may be resumed can be, and read on: see [`Self::resume`].
    pub async fn next(&mut self) -> Option<Result<Item, CallError>> {
        match poll_fn(|cx| self.poll_next(cx)).await {
            Ready::Item(item) => Some(Ok(item)),
            Ready::Failed(error) => Some(Err(error)),
            Ready::End | Ready::Pending => None,
        }
    }

    /// Waits for the end and takes the single item.
    ///
    /// # Errors
    /// The stream failed, or had no item or several.
    pub fn poll_single(&self, cx: &Context<'_>) -> Poll<Result<Item, CallError>> {
        match self.again.as_deref() {
            None => self.poll_own_single(cx),
            Some(again) => again.poll_single(self, cx),
        }
    }

    pub(super) fn poll_own_single(&self, cx: &Context<'_>) -> Poll<Result<Item, CallError>> {
        if self.stream.poll_ended(cx, 1).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(match (self.try_own(), self.stream.is_ready()) {
            (Ready::Failed(error), _) => Err(error),
            (Ready::Item(item), _) => match self.try_own() {
                Ready::End => Ok(item),
                Ready::Failed(error) => Err(error),
                Ready::Item(_) | Ready::Pending => {
                    // Only this run: whoever polls it holds the lock of all runs.
                    self.stream.kill(KillReason::Cancelled, Ending::Closed);
                    // The caller is told of an error, so that it counts as no cancellation.
                    drop(self.in_flight.lock().take());
                    Err(self.not_unary(2))
                }
            },
            (Ready::End | Ready::Pending, _) => Err(self.not_unary(0)),
        })
    }

    /// Asks the engine to finish; what it still yields arrives, then the stream ends cleanly.
    pub fn stop(&self) {
        if let Some(again) = self.again.as_deref() {
            again.stop();
        }
        self.last().stream.stop();
    }

    /// Ends the stream at once; unread items are dropped.
    pub fn kill(&self) {
        if let Some(again) = self.again.as_deref() {
            again.close();
        }
        self.last().kill_own();
    }

    pub(super) fn kill_own(&self) {
        self.stream.kill(KillReason::Cancelled, Ending::Closed);
        self.landed(&Ending::Closed);
    }

    /// Asks this run's engine to finish.
    pub(super) fn stop_own(&self) {
        self.stream.stop();
    }

    /// The run that is read now: this one, or the last that continued it.
    fn last(&self) -> &Self {
        self.again.as_deref().and_then(Again::last).unwrap_or(self)
    }

    fn landed(&self, ending: &Ending) {
        let in_flight = self.in_flight.lock().take();
        let Some(in_flight) = in_flight else { return };
        match ending {
            Ending::Clean { .. } => {}
            Ending::Closed => {
                ROUTER.cancellations.add(1);
                self.counted.store(true, Ordering::Relaxed);
            }
            ending => self.failed(&self.kind(ending.clone())),
        }
        if !matches!(ending, Ending::Lost { .. } | Ending::Closed) {
            in_flight.instance().ended_well();
        }
    }

    /// Counts an error, once. Of a stream that may be continued only those count that its caller is told of,
    /// and [`Again`] counts them.
    fn failed(&self, kind: &CallErrorKind) {
        if self.again.is_none() && !self.counted.swap(true, Ordering::Relaxed) {
            ROUTER.failed(kind);
        }
    }

    fn not_unary(&self, items: u64) -> CallError {
        let error = self.error(CallErrorKind::NotUnary { items });
        self.failed(&error.kind);
        error
    }

    #[inline]
    fn found(&self, next: Next) -> Ready {
        match next {
            Next::Item(item) => Ready::Item(item),
            Next::Pending => Ready::Pending,
            Next::End(ending) => self.ended(ending),
        }
    }

    fn ended(&self, ending: Ending) -> Ready {
        self.landed(&ending);
        match ending {
            Ending::Clean { .. } | Ending::Closed => Ready::End,
            ending => Ready::Failed(self.error(self.kind(ending))),
        }
    }

    fn kind(&self, ending: Ending) -> CallErrorKind {
        kind_of(ending, &self.stream, self.began_ms, "")
    }

    fn error(&self, kind: CallErrorKind) -> CallError {
        CallError {
            kind,
            instance: Some(self.instance_id.to_string()),
            phase: self.stream.phase(),
            request_id: self.request_id.clone(),
            items: self.stream.taken(),
        }
    }

    pub(super) fn observe_open(&self, began_ns: u64, now_ns: u64) {
        if let Some(in_flight) = &*self.in_flight.lock() {
            in_flight.instance().observe(now_ns.saturating_sub(began_ns), now_ns);
        }
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A fault whose type field holds `limit/actual` in bytes.
fn item_too_large(fault: &Fault) -> CallErrorKind {
    let (limit, actual) = fault.kind.split_once('/').unwrap_or_default();
    CallErrorKind::PayloadTooLarge {
        limit: limit.parse().unwrap_or(0),
        actual: actual.parse().unwrap_or(0),
        setting: "max_message_bytes",
        what: "item size in bytes".to_owned(),
    }
}

/// A fault whose type field holds milliseconds after which to try again.
fn retry_after(fault: &Fault) -> Duration {
    Duration::from_millis(fault.kind.parse::<u32>().unwrap_or(0).into())
}

/// A worker's answer that its engine had no room, as the refusal that it is: nothing has run.
pub(super) fn refusal_of(ending: Ending) -> Ending {
    match ending {
        Ending::Fault(fault) if fault.code == FaultCode::Refused => {
            let retry_after_ms = u32::try_from(retry_after(&fault).as_millis()).unwrap_or(u32::MAX);
            Ending::Rejected(Reject {
                reason: RejectReason::Overloaded,
                retry_after_ms,
                detail: fault.message,
            })
        }
        ending => ending,
    }
}

/// An ending as the caller's error; `untried` says why nobody else was asked, if somebody could have been.
pub(super) fn kind_of(ending: Ending, stream: &Stream, began_ms: u64, untried: &str) -> CallErrorKind {
    let timing = stream.timing;
    let seconds = |ms: u64| if ms == NEVER { Duration::MAX } else { Duration::from_millis(ms) };
    let elapsed = Duration::from_millis(now_ms().saturating_sub(began_ms));
    match ending {
        Ending::Deadline => CallErrorKind::DeadlineExceeded { elapsed },
        Ending::ItemTimeout => CallErrorKind::ItemTimeout { timeout: seconds(timing.item_timeout_ms) },
        Ending::SlowConsumer => CallErrorKind::SlowConsumer { timeout: seconds(timing.slow_consumer_ms) },
        Ending::Lost { reason, maybe_executed } => {
            CallErrorKind::Disconnected { reason: format!("{reason}{untried}"), maybe_executed }
        }
        Ending::Fault(fault) => match fault.code {
            FaultCode::Deadline => CallErrorKind::DeadlineExceeded { elapsed },
            FaultCode::Shutdown => {
                CallErrorKind::Disconnected { reason: "shutdown".to_owned(), maybe_executed: true }
            }
            FaultCode::TooLarge => item_too_large(&fault),
            FaultCode::Refused => {
                CallErrorKind::Overloaded { retry_after: retry_after(&fault), detail: fault.message }
            }
            _ => CallErrorKind::Engine(fault),
        },
        Ending::Rejected(reject) => CallErrorKind::Refused { detail: reject.detail },
        Ending::RequestFailed(reason) => CallErrorKind::RequestFailed { reason: reason.to_string() },
        Ending::RequestTooLarge { limit, actual } => CallErrorKind::PayloadTooLarge {
            limit: limit as u64,
            actual: actual as u64,
            setting: "max_message_bytes",
            what: "size in bytes of an item of the request".to_owned(),
        },
        Ending::Clean { .. } | Ending::Closed => CallErrorKind::Closed,
    }
}

/// A request that cannot be sent as the caller's error.
pub(super) fn encode_error(error: &EncodeError) -> CallErrorKind {
    match *error {
        EncodeError::PayloadTooLarge { limit, actual } => CallErrorKind::PayloadTooLarge {
            limit: limit as u64,
            actual: actual as u64,
            setting: "max_message_bytes",
            what: "request size in bytes".to_owned(),
        },
        EncodeError::HeadTooLarge { what, limit, actual } => CallErrorKind::PayloadTooLarge {
            limit: limit as u64,
            actual: actual as u64,
            setting: "metadata",
            what: what.to_owned(),
        },
        _ => CallErrorKind::Closed,
    }
}
