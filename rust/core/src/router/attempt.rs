//! One attempt of a call: a request on its way to one worker, and what follows from how it ended.

use std::sync::Arc;
use std::time::Duration;

use headrace_wire::body::{FaultCode, KillReason, Reject, RejectReason};

use super::call::{Call, State};
use super::choice::Tried;
use super::instances::{InFlight, Instance};
use super::response::{kind_of, refusal_of};
use crate::clock::{now_ms, now_ns};
use crate::error::{CallError, CallErrorKind};
use crate::link::{Ending, Stream};
use crate::metrics::router::{ROUTER, RetryReason};

/// A request on its way. Dropping it kills its stream.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) stream: Option<Arc<Stream>>,
    pub(super) in_flight: Option<InFlight>,
    pub(super) instance: Arc<Instance>,
    pub(super) instance_id: Arc<str>,
    pub(super) began_ns: u64,
    /// It shows whether an instance that was ejected is back.
    pub(super) is_trial: bool,
}

impl Attempt {
    /// The worker has answered.
    pub(super) fn end_trial(&mut self, answered: bool) {
        if std::mem::take(&mut self.is_trial) {
            self.instance.end_trial(answered);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.end_trial(false);
        if let Some(stream) = self.stream.take() {
            stream.kill(KillReason::Cancelled, Ending::Closed);
        }
    }
}

impl Call {
    /// The attempt ended without a stream: the caller's error, or `None` when another attempt follows.
    pub(super) fn ended(&mut self, ending: Ending) -> Option<CallError> {
        let State::Sent(attempt) = &mut self.state else { return None };
        let (instance, instance_id) = (Arc::clone(&attempt.instance), Arc::clone(&attempt.instance_id));
        let stream = attempt.stream.take()?;
        let ending = refusal_of(ending);
        let is_lost = matches!(ending, Ending::Lost { .. });
        let is_shut_down = matches!(&ending, Ending::Fault(fault) if fault.code == FaultCode::Shutdown);
        if !is_lost {
            // Whatever it answered, it is there.
            attempt.end_trial(true);
            instance.ended_well();
        }
        let may_go_on = match &ending {
            Ending::Rejected(reject) => matches!(
                reject.reason,
                RejectReason::Overloaded | RejectReason::Draining | RejectReason::NoSuchEndpoint
            ),
            Ending::Lost { maybe_executed: false, .. } => true,
            // It may have run.
            Ending::Lost { .. } => self.idempotent || self.resumable,
            _ => is_shut_down && (self.idempotent || self.resumable),
        };
        // Items of an accepted request stream may have gone, and nobody has kept them.
        let may_go_on = may_go_on && !self.feed.as_ref().is_some_and(|feed| feed.is_accepted());
        let mut untried = "";
        if may_go_on && self.retries < self.router.config.retries && now_ms() < self.deadline_ms {
            let another = self.avoid(Tried { instance, instance_id: Arc::clone(&instance_id) });
            if is_lost && !another {
                // With no other there is, the same one may do once it is connected again.
                self.tried.pop();
            }
            if another || is_lost {
                if self.router.may_retry() {
                    ROUTER.retried(retry_reason(&ending));
                    self.retries += 1;
                    if is_shut_down || matches!(ending, Ending::Lost { maybe_executed: true, .. }) {
                        self.reached = self.reached.max(stream.phase());
                    }
                    self.now_ns = now_ns();
                    self.state = self.picking();
                    return None;
                }
                untried = "; the retry budget is used up";
            }
        }
        let phase = stream.phase();
        let kind = match ending {
            Ending::Rejected(reject) => self.rejected(reject, untried),
            ending => kind_of(ending, &stream, self.began_ms, untried),
        };
        Some(self.error(kind, phase, Some(instance_id.to_string())))
    }

    /// Goes elsewhere from now on; whether there is another that could take the call.
    fn avoid(&mut self, tried: Tried) -> bool {
        self.tried.push(tried);
        let all = self.router.instances.all();
        all.iter().any(|other| self.may_try(other) && other.link_for(&self.head.endpoint).is_some())
    }

    fn rejected(&self, reject: Reject, untried: &str) -> CallErrorKind {
        let Reject { reason, retry_after_ms, mut detail } = reject;
        let retry_after = Duration::from_millis(u64::from(retry_after_ms));
        match reason {
            RejectReason::Overloaded | RejectReason::Draining => {
                detail.push_str(untried);
                CallErrorKind::Overloaded { retry_after, detail }
            }
            RejectReason::NoSuchEndpoint => {
                let names = detail.split(", ").filter(|name| !name.is_empty());
                let available = names.map(str::to_owned).collect();
                CallErrorKind::NoSuchEndpoint { endpoint: self.head.endpoint.clone(), available }
            }
            RejectReason::Expired => CallErrorKind::DeadlineExceeded { elapsed: self.elapsed() },
            RejectReason::TooLarge => CallErrorKind::PayloadTooLarge {
                limit: 0,
                actual: self.payload.len() as u64,
                setting: "max_message_bytes",
                what: detail,
            },
            RejectReason::Unauthenticated => CallErrorKind::Authentication { detail },
            RejectReason::UnsupportedShape => CallErrorKind::Refused { detail },
        }
    }
}

/// Why there is a further attempt after one that ended so.
const fn retry_reason(ending: &Ending) -> RetryReason {
    match ending {
        Ending::Rejected(reject) => match reject.reason {
            RejectReason::Draining => RetryReason::Draining,
            RejectReason::NoSuchEndpoint => RetryReason::NoSuchEndpoint,
            _ => RetryReason::Overloaded,
        },
        Ending::Lost { maybe_executed: false, .. } => RetryReason::Unsent,
        Ending::Lost { .. } => RetryReason::Lost,
        _ => RetryReason::Shutdown,
    }
}
