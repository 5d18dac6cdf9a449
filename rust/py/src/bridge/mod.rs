//! Between tokio and an event loop.
//!
//! | file | what lives there |
//! |---|---|
//! | [`hub`] | one per loop: what threads want of it, delivered in one callback |
//! | [`event`] | what may be wanted, and whom it is for |
//! | [`at_hand`] | what the loop's thread keeps while it is inside a callback |
//! | [`loop_hub`] | the hub as the loop sees it: its callbacks |
//! | [`wake`] | the descriptor that makes a loop call back |
//! | [`waiter`] | what a task awaits while nothing is ready |
//! | [`parking`] | a waker and a waiter as one place to wait |
//! | [`reader`], [`driver`] | the callback of a link's socket; who watches and flushes links |

mod at_hand;
pub(crate) mod driver;
mod event;
pub(crate) mod hub;
pub(crate) mod loop_hub;
pub(crate) mod parking;
pub(crate) mod reader;
pub(crate) mod waiter;
mod wake;
