//! What can go wrong, as a caller or an operator meets it: one type for calls, one for starting.

use std::fmt;
use std::time::Duration;

use headrace_wire::body::Fault;
use thiserror::Error;

use crate::address::AddressError;
use crate::discovery::DiscoveryError;
use crate::metrics::LabelError;

/// How far a call had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Nothing was written: it cannot have run.
    Unsent,
    /// Written, not yet answered: it may have run unless the error says otherwise.
    Sent,
    /// Admitted by the worker: queued or running, no item yet.
    Accepted,
    /// At least one item arrived.
    Streaming,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsent => "unsent",
            Self::Sent => "sent",
            Self::Accepted => "accepted",
            Self::Streaming => "streaming",
        })
    }
}

/// What went wrong with a call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallErrorKind {
    /// No worker could be connected to.
    CannotConnect {
        /// Each address with its reason.
        reason: String,
    },
    /// No worker takes requests.
    NoInstances {
        /// How long the call waited.
        waited: Duration,
        /// What is known of those there are.
        reason: String,
    },
    /// No worker has this endpoint, or it was left out and there are several.
    NoSuchEndpoint {
        /// The endpoint asked for; empty when it was left out.
        endpoint: String,
        /// Those there are.
        available: Vec<String>,
    },
    /// A call that wants one item got none or several.
    NotUnary {
        /// Items that came; 2 stands for "more than one".
        items: u64,
    },
    /// Every worker that was asked is at its limits.
    Overloaded {
        /// When the worker expects to have room; zero when it did not say.
        retry_after: Duration,
        /// What the worker said.
        detail: String,
    },
    /// The policy picked none.
    Policy {
        /// Why.
        detail: String,
    },
    /// The worker refused the request for another reason.
    Refused {
        /// What the worker said.
        detail: String,
    },
    /// The link was lost.
    Disconnected {
        /// Why.
        reason: String,
        /// Whether the request may have run.
        maybe_executed: bool,
    },
    /// The deadline passed.
    DeadlineExceeded {
        /// Time since the call began.
        elapsed: Duration,
    },
    /// The caller waited on an empty stream for too long.
    ItemTimeout {
        /// The timeout in force.
        timeout: Duration,
    },
    /// The caller left items unread for too long.
    SlowConsumer {
        /// The timeout in force.
        timeout: Duration,
    },
    /// Request or item are over a limit.
    PayloadTooLarge {
        /// The limit in force.
        limit: u64,
        /// The size, 0 when only the worker knows.
        actual: u64,
        /// The setting that raises the limit.
        setting: &'static str,
        /// Which part.
        what: String,
    },
    /// The version ranges of the two sides do not meet.
    VersionMismatch {
        /// Both ranges.
        detail: String,
    },
    /// The worker did not accept this router.
    Authentication {
        /// What the worker said.
        detail: String,
    },
    /// The caller's own request stream failed, and the engine was killed for it.
    RequestFailed {
        /// Why, in the words of whoever made the items.
        reason: String,
    },
    /// The engine failed.
    Engine(Fault),
    /// The router was closed.
    Closed,
}

/// A call that failed: what, where, and how far it had come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// What went wrong.
    pub kind: CallErrorKind,
    /// The worker it was sent to, if it was.
    pub instance: Option<String>,
    /// How far the call had come: of an attempt that cannot have run nothing is counted, of the others the
    /// one that came furthest.
    pub phase: Phase,
    /// The call's request id.
    pub request_id: String,
    /// Items that the caller took before.
    pub items: u64,
}

impl std::error::Error for CallError {}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (phase {}, request {}", self.kind, self.phase, self.request_id)?;
        if let Some(instance) = &self.instance {
            write!(f, ", instance {instance}")?;
        }
        if self.items > 0 {
            write!(f, ", after {} items", self.items)?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for CallErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CannotConnect { reason } => {
                write!(
                    f,
                    "cannot connect to any worker: {reason}; check the addresses, or raise instance_timeout"
                )
            }
            Self::NoInstances { waited, reason } => write!(
                f,
                "no worker takes requests after waiting {:.1} s: {reason}; start a worker, or raise instance_timeout",
                waited.as_secs_f64()
            ),
            Self::NoSuchEndpoint { endpoint, available } if endpoint.is_empty() => {
                write!(
                    f,
                    "endpoint= was left out and there is not exactly one; there are: {}",
                    list(available)
                )
            }
            Self::NoSuchEndpoint { endpoint, available } => {
                write!(f, "no worker has endpoint {endpoint:?}; there are: {}", list(available))
            }
            Self::NotUnary { items: 0 } => f.write_str(
                "the engine ended without an item; call() wants exactly one, use generate() for streams",
            ),
            Self::NotUnary { .. } => f.write_str(
                "the engine yielded more than one item; call() wants exactly one, use generate() for streams",
            ),
            Self::Overloaded { retry_after, detail } => write!(
                f,
                "every worker is at its limits: {detail}; try again in {:.3} s, or raise concurrency= or queue=",
                retry_after.as_secs_f64()
            ),
            Self::Policy { detail } => write!(f, "no worker was picked: {detail}"),
            Self::Refused { detail } => write!(f, "the worker refused the request: {detail}"),
            Self::Disconnected { reason, maybe_executed } => write!(
                f,
                "the worker was lost: {reason}; the request {}",
                if *maybe_executed { "may have run" } else { "did not run" }
            ),
            Self::DeadlineExceeded { elapsed } => {
                write!(f, "the deadline passed after {:.3} s; raise timeout=", elapsed.as_secs_f64())
            }
            Self::ItemTimeout { timeout } => {
                write!(f, "no item came within {:.3} s; raise item_timeout=", timeout.as_secs_f64())
            }
            Self::SlowConsumer { timeout } => write!(
                f,
                "items were left unread for {:.3} s; read faster, or raise slow_consumer_timeout=",
                timeout.as_secs_f64()
            ),
            Self::PayloadTooLarge { limit, actual, setting, what } => {
                write!(f, "{what}: {actual} exceeds the limit of {limit}; raise {setting}=")
            }
            Self::VersionMismatch { detail } => write!(f, "{detail}; upgrade the older side"),
            Self::Authentication { detail } => write!(f, "{detail}; check token="),
            Self::RequestFailed { reason } => write!(f, "the request stream failed: {reason}"),
            Self::Engine(fault) if fault.kind.is_empty() => f.write_str(&fault.message),
            Self::Engine(fault) => write!(f, "{}: {}", fault.kind, fault.message),
            Self::Closed => f.write_str("the router is closed"),
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Why a worker or a router could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address cannot be used.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The system refused to listen there.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address of metrics and health cannot be used.
    #[error("metrics: {source}")]
    MetricsAddress {
        /// Why.
        source: AddressError,
    },
    /// The system refused to listen there.
    #[error(
        "metrics: cannot listen on {address}: {source}; the port is for this process alone, so give another \
         one with metrics=, or port 0 for any"
    )]
    MetricsBind {
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A setting is out of range.
    #[error("{setting} must be {expected}, not {given}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What was given.
        given: String,
    },
    /// The worker cannot be listed where routers look.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// Labels that its metrics cannot have.
    #[error("metrics_labels: {0}")]
    MetricsLabels(#[from] LabelError),
    /// A worker without engines, or with two of one name.
    #[error("{0}")]
    Engines(String),
}
