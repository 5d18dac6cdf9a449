//! Flow control and order, by simulation: a real [`Outbound`] sends to real receiving halves over a byte
//! vector, while writes fall short, grants are late and streams end at any moment.
//!
//! [`Outbound`]: headrace_wire::outbound::Outbound

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation fails the test"
)]

mod fairness;
mod pipe;
mod requests;
mod responses;
mod rules;
