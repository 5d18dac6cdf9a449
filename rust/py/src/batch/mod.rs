//! Batching as Python sees it: a queue for each batcher, what its submitters await, and the batches that its
//! function gets. What is decided about an item is decided in `headrace::batch`; which kinds of function there
//! are, and how each is run, is in `headrace/_batch/`.
//!
//! | module | what lives there |
//! |---|---|
//! | [`settings`] | checked settings |
//! | [`queue`] | `BatchQueue`, the Python class |
//! | [`asked`] | what submitters say, and how it becomes an item |
//! | [`within`] | whether it is the function itself that submits |
//! | [`core`] | one queue with its loop: what the coordinator tells, and who is told |
//! | [`reply`] | an item, whom it is for, and what became of it as a value or an exception |
//! | [`submission`], [`gathered`], [`stream`], [`blocking`] | who waits: for one item, for many, for the items of one, on a thread |
//! | [`taken`] | a batch in a function's hands |
//! | [`seat`] | where a task that runs batches waits for its next one |
//! | [`numbers`] | numbers for keys and clients, which the core knows no objects of |
//! | [`flag`] | an awaitable that somebody sets |
//!
//! An item costs one Python object beyond its own, the submission, and no task, future or turn of the loop of
//! its own: what was resolved together is woken in one callback of the hub.

mod asked;
pub(crate) mod blocking;
pub(crate) mod core;
pub(crate) mod flag;
pub(crate) mod gathered;
mod numbers;
pub(crate) mod queue;
mod reply;
pub(crate) mod seat;
pub(crate) mod settings;
pub(crate) mod stream;
pub(crate) mod submission;
pub(crate) mod taken;
pub(crate) mod within;

pub(crate) use self::core::{Core, Task};
pub(crate) use self::reply::Told;
