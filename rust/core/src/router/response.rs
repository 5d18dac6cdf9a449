//! The stream that a caller reads. Dropping it before its end tells the worker that nobody reads any more.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use headrace_wire::body::{Fault, FaultCode, KillReason};
use parking_lot::Mutex;

use super::instances::InFlight;
use crate::clock::{NEVER, now_ms};
use crate::error::{CallError, CallErrorKind};
use crate::link::{Ending, Item, Next, Stream};

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
    request_id: String,
    instance_id: Arc<str>,
    began_ms: u64,
}

impl ResponseStream {
    pub(super) const fn new(
        stream: Arc<Stream>,
        in_flight: InFlight,
        request_id: String,
        instance_id: Arc<str>,
        began_ms: u64,
    ) -> Self {
        Self { stream, in_flight: Mutex::new(Some(in_flight)), request_id, instance_id, began_ms }
    }

    /// The call's request id.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The worker that answers.
    #[must_use]
    pub fn instance_id(&self) -> &str {
        &self.instance_id
    }

    /// Whether the engine ended because it was asked to stop.
    #[must_use]
    pub fn stopped(&self) -> bool {
        matches!(self.stream.ending(), Some(Ending::Clean { stopped: true }))
    }

    /// Takes what is there.
    #[must_use]
    pub fn try_next(&self) -> Ready {
        self.found(self.stream.try_next())
    }

    /// As [`Self::try_next`]; when nothing is there, registers the waker and is pending.
    pub fn poll_next(&self, cx: &Context<'_>) -> Poll<Ready> {
        self.stream.poll_next(cx).map(|next| self.found(next))
    }

    /// The next item; `None` at the end.
    ///
    /// # Errors
    /// The stream failed.
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
        if self.stream.poll_ended(cx, 1).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(match (self.try_next(), self.stream.is_ready()) {
            (Ready::Failed(error), _) => Err(error),
            (Ready::Item(item), _) => match self.try_next() {
                Ready::End => Ok(item),
                Ready::Failed(error) => Err(error),
                Ready::Item(_) | Ready::Pending => {
                    self.kill();
                    Err(self.error(CallErrorKind::NotUnary { items: 2 }))
                }
            },
            (Ready::End | Ready::Pending, _) => Err(self.error(CallErrorKind::NotUnary { items: 0 })),
        })
    }

    /// Asks the engine to finish; what it still yields arrives, then the stream ends cleanly.
    pub fn stop(&self) {
        self.stream.stop();
    }

    /// Ends the stream at once; unread items are dropped.
    pub fn kill(&self) {
        self.stream.kill(KillReason::Cancelled, Ending::Closed);
        self.landed();
    }

    fn landed(&self) {
        drop(self.in_flight.lock().take());
    }

    fn found(&self, next: Next) -> Ready {
        if matches!(next, Next::End(_)) {
            self.landed();
        }
        match next {
            Next::Item(item) => Ready::Item(item),
            Next::Pending => Ready::Pending,
            Next::End(Ending::Clean { .. } | Ending::Closed) => Ready::End,
            Next::End(ending) => Ready::Failed(self.error(self.kind(ending))),
        }
    }

    fn kind(&self, ending: Ending) -> CallErrorKind {
        kind_of(ending, &self.stream, self.began_ms)
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

/// An ending as the caller's error.
pub(super) fn kind_of(ending: Ending, stream: &Stream, began_ms: u64) -> CallErrorKind {
    let timing = stream.timing;
    let seconds = |ms: u64| if ms == NEVER { Duration::MAX } else { Duration::from_millis(ms) };
    let elapsed = Duration::from_millis(now_ms().saturating_sub(began_ms));
    match ending {
        Ending::Deadline => CallErrorKind::DeadlineExceeded { elapsed },
        Ending::ItemTimeout => CallErrorKind::ItemTimeout { timeout: seconds(timing.item_timeout_ms) },
        Ending::SlowConsumer => CallErrorKind::SlowConsumer { timeout: seconds(timing.slow_consumer_ms) },
        Ending::Lost { reason, maybe_executed } => {
            CallErrorKind::Disconnected { reason: reason.to_string(), maybe_executed }
        }
        Ending::Fault(fault) => match fault.code {
            FaultCode::Deadline => CallErrorKind::DeadlineExceeded { elapsed },
            FaultCode::Shutdown => {
                CallErrorKind::Disconnected { reason: "shutdown".to_owned(), maybe_executed: true }
            }
            FaultCode::TooLarge => item_too_large(&fault),
            _ => CallErrorKind::Engine(fault),
        },
        Ending::Rejected(reject) => CallErrorKind::Refused { detail: reject.detail },
        Ending::Clean { .. } | Ending::Closed => CallErrorKind::Closed,
    }
}
