//! A TCP proxy that injects faults, for tests: delay, jitter, slices as small as a byte, a changed byte, and
//! directions that end in a reset, a half-close or a black hole at a byte of the test's choice. It knows
//! nothing of the protocol that passes through it.
//!
//! | module | what lives there |
//! |---|---|
//! | [`script`] | what happens to one direction of one connection; pure |
//! | [`plan`] | which scripts a connection gets: given, or drawn from a seed |
//! | [`json`] | plans as text, for the program `faultproxy` |
//! | [`proxy`] | the listener, its connections, and how many bytes went each way |
//!
//! Everything random comes from the seeds in scripts and plans: the same seed is the same run, as far as the
//! system's scheduling allows.

#![forbid(unsafe_code)]

pub mod json;
pub mod plan;
pub mod proxy;
mod pump;
pub mod script;

pub use self::plan::{Menu, Plan, Scripts};
pub use self::proxy::{Proxy, Record};
pub use self::script::{Corruption, Cut, Fault, Script};
