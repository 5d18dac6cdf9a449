//! Micro-batching: items that are submitted one at a time reach a function many at a time.
//!
//! | file | what lives there |
//! |---|---|
//! | [`config`] | the settings, checked in one place |
//! | [`terms`] | what a submitter says of an item, and why it may be refused |
//! | [`outcome`] | what becomes of an item, and who is told |
//! | `queue`, `admission`, `dispatch`, `slab`, `lanes`, `deadlines`, `policy`, `estimate` | every decision, as pure logic: no clock, no thread, no lock |
//! | [`coordinator`], [`taken`] | the queue behind one lock; a batch in a function's hands |
//! | [`notice`], [`clock`], `timer` | who is told that something can be done; time; the one thread that waits for it |
//! | [`handle`], [`answer`], [`threads`] | a batcher with threads of its own, for Rust programs |
//! | [`lease`] | something that is lent to each batch in flight, such as a CUDA stream |
//! | [`stats`] | counts and histograms |
//!
//! An item's life:
//!
//! ```text
//!            submit                     take                    the function answers
//!  (nothing) ------> QUEUED ------------------> DISPATCHED -------------------------> COMPLETED | FAILED
//!      |               |                            |
//!      | refused       | deadline, or it would be   | time-out, or the caller cancels:
//!      v               | missed: EXPIRED            v the caller is told at once
//!   REJECTED           | the caller cancels:     ABANDONED --- the function returns ---> (forgotten)
//!                      |   CANCELLED
//!                      | close: CLOSED
//!                      v
//! ```
//!
//! Each item is resolved exactly once, by whoever moves it on under the queue's lock; its reply is called
//! after the lock has been released. At every quiet point `submitted = rejected + completed + failed +
//! expired + cancelled + closed + timed_out + queued + dispatched`, where an abandoned item counts under what
//! its caller was told.

mod admission;
pub mod answer;
pub mod clock;
pub mod config;
pub mod coordinator;
mod deadlines;
mod dispatch;
mod estimate;
pub mod handle;
mod lanes;
pub mod lease;
pub mod notice;
pub mod outcome;
mod policy;
mod queue;
mod shared;
mod slab;
pub mod stats;
mod sync;
pub mod taken;
pub mod terms;
pub mod threads;
mod timer;

pub use self::answer::{BatchError, Waiting, WorkBatch};
pub use self::clock::BatchClock;
pub use self::config::BatchConfig;
pub use self::coordinator::{Coordinator, Taken};
pub use self::handle::{BatchStartError, Batcher, Submission};
pub use self::lease::{LeaseError, LeaseSource, NoLeases};
pub use self::notice::{Cause, Notice};
pub use self::outcome::{Outcome, Reply, TimeLimit};
pub use self::stats::{BatchStats, DispatchReason, Histogram, Rejections};
pub use self::taken::{Batch, Finished};
pub use self::terms::{Refused, RejectReason, Terms, Ticket, Timeout};
pub use self::threads::BatchFunction;
