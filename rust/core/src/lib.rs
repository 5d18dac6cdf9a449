//! Streams requests to engines in other processes, and their answers back, over one multiplexed link per
//! pair. This crate knows nothing of Python and nothing of GPUs; the Python package `headrace` is a binding
//! over it.
//!
//! | module | what lives there |
//! |---|---|
//! | [`Worker`] | listens, admits requests, runs engines |
//! | [`Router`] | keeps links to workers, sends calls |
//! | [`engine`] | what a worker runs, and how it answers |
//! | [`batch`] | micro-batching: items come one at a time and reach a function many at a time |
//! | [`requests`] | requests that are streams: the caller's end and the engine's |
//! | [`link`] | one connection, and who drives its socket |
//! | [`discovery`] | where routers learn of workers |
//! | [`health`] | whether the process is of use |
//! | [`metrics`] | what runs, how fast, how full and how well |
//! | `port` | both over HTTP; with the feature `metrics-http` |
//! | [`config`], [`error`], [`address`] | settings, failures, targets |
//! | [`budget`] | the process ceiling on buffered bytes |
//!
//! The protocol itself is in `headrace_wire`, without I/O.

#![forbid(unsafe_code)]

pub mod address;
pub mod batch;
pub mod budget;
mod clock;
pub mod config;
pub mod discovery;
pub mod engine;
pub mod error;
pub mod health;
pub mod link;
pub mod metrics;
#[cfg(feature = "metrics-http")]
pub mod port;
pub mod requests;
mod router;
mod worker;

pub use headrace_wire as wire;

pub use self::address::Address;
pub use self::config::{RouterConfig, WorkerConfig};
pub use self::discovery::Discovery;
pub use self::engine::{AsyncEngine, Engine, Request, Responder};
pub use self::error::{CallError, CallErrorKind, Phase, StartError};
pub use self::link::Item;
pub use self::requests::{RequestSink, RequestStream};
pub use self::router::{
    Call, CallOptions, Choose, InstanceInfo, InstanceState, Policy, Ready, ResponseStream, Router,
    RouterStats,
};
pub use self::worker::{Worker, WorkerStats};
