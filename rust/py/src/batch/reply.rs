//! An item, whom its answer is for, and what became of it as a value or an exception.

use std::sync::Arc;

use headrace::batch::{Outcome, Reply as CoreReply};
use pyo3::exceptions::asyncio::CancelledError;
use pyo3::prelude::*;

use super::blocking::Blocked;
use super::core::Core;
use super::gathered::Gather;
use super::stream::Yielded;
use super::submission::Answer;
use crate::bridge::hub::{Event, Hub};
use crate::errors::batch_error;

/// An item as it waits.
#[derive(Debug)]
pub(crate) struct Thing {
    pub(super) object: Py<PyAny>,
    /// What only items with an equal one share a batch with.
    pub(super) key: Option<Py<PyAny>>,
    /// Who reads what the function yields for it, if that is more than one value.
    pub(super) stream: Option<Arc<Yielded>>,
}

/// The numbers of an item's key and client; 0 without one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbered {
    pub(super) key: u64,
    pub(super) client: u64,
}

/// How a function fails.
#[derive(Debug)]
pub(crate) enum Failure {
    /// By an exception in the item's place: raised as it is.
    Own(Py<PyAny>),
    /// By an exception that several share: each caller gets a `BatchFailed` of its own with this as its cause.
    Shared { cause: Py<PyAny>, size: usize },
    /// Its stream was not read for too long.
    Unread { items: usize },
}

/// What became of an item.
pub(super) type Ended = Outcome<Py<PyAny>, Failure>;

/// An answer as Python sees it.
///
/// # Errors
/// What the caller is to be told instead.
pub(super) fn read(py: Python<'_>, ended: &Ended) -> PyResult<Py<PyAny>> {
    Err(match ended {
        Outcome::Completed(value) => return Ok(value.clone_ref(py)),
        Outcome::Failed(Failure::Own(error)) => PyErr::from_value(error.bind(py).clone()),
        Outcome::Failed(Failure::Shared { cause, size }) => {
            let cause = PyErr::from_value(cause.bind(py).clone());
            let items = if *size == 1 { "an item".to_owned() } else { format!("a batch of {size} items") };
            let message = format!("the function failed for {items}: {cause}");
            let error = batch_error(py, "BatchFailed", &message, |fields| fields.set_item("size", size));
            error.set_cause(py, Some(cause));
            error
        }
        Outcome::Failed(Failure::Unread { items }) => {
            let message = format!("{items} items of the stream were not read; read faster, or yield less");
            batch_error(py, "SlowConsumer", &message, |_| Ok(()))
        }
        Outcome::Expired { waited, predicted } => {
            let waited = waited.as_secs_f64();
            let why = if *predicted { "would have missed its deadline" } else { "was not reached in time" };
            let message = format!(
                "the item {why}: it waited {waited:.3} s and the function has not seen it (timeout=)"
            );
            batch_error(py, "Expired", &message, |fields| {
                fields.set_item("waited", waited)?;
                fields.set_item("predicted", predicted)
            })
        }
        Outcome::TimedOut { waited, ran, limit } => {
            let (waited, ran) = (waited.as_secs_f64(), ran.as_secs_f64());
            let message = format!(
                "no answer for {ran:.3} s from the function, after {waited:.3} s in the queue ({limit}=); it may \
                 still finish"
            );
            batch_error(py, "ResponseTimeout", &message, |fields| {
                fields.set_item("waited", waited)?;
                fields.set_item("ran", ran)?;
                fields.set_item("limit", limit.to_string())
            })
        }
        Outcome::Cancelled { .. } => CancelledError::new_err(()),
        Outcome::Closed => {
            batch_error(py, "Closed", "the batcher was closed while the item waited", |_| Ok(()))
        }
        Outcome::WorkerLost { ran, hung } => {
            let ran = ran.as_secs_f64();
            let why =
                if *hung { "did not return within callback_timeout=" } else { "ended without an answer" };
            let message = format!("the function {why}; it had the item for {ran:.3} s");
            batch_error(py, "WorkerLost", &message, |fields| {
                fields.set_item("ran", ran)?;
                fields.set_item("hung", hung)
            })
        }
        Outcome::WrongCount { expected, actual } => {
            let message = format!("the function returned {actual} results for a batch of {expected} items");
            batch_error(py, "WrongResultCount", &message, |fields| {
                fields.set_item("expected", expected)?;
                fields.set_item("actual", actual)
            })
        }
        // The core's list may grow.
        _ => batch_error(py, "BatchError", "the item was not answered", |_| Ok(())),
    })
}

/// Who waits for an item.
#[derive(Debug)]
pub(super) enum Waits {
    One(Arc<Answer>),
    /// One of many, by its place among them.
    Part(Arc<Gather>, usize),
    Stream(Arc<Yielded>),
    Thread(Arc<Blocked>),
}

/// Whom an item's answer is for.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(super) core: Arc<Core>,
    pub(super) waits: Waits,
    pub(super) numbered: Numbered,
}

/// Whose answer is there, for the loop to wake.
#[derive(Debug)]
pub(crate) enum Told {
    One(Arc<Answer>),
    Many(Arc<Gather>),
    Stream(Arc<Yielded>),
}

impl Told {
    pub(crate) fn wake(self, py: Python<'_>, hub: &Hub) -> PyResult<()> {
        match self {
            Self::One(answer) => answer.wake(py, hub),
            Self::Many(gather) => gather.wake(py),
            Self::Stream(stream) => stream.wake(py),
        }
    }
}

impl CoreReply<Thing> for Reply {
    type Output = Py<PyAny>;
    type Error = Failure;

    /// Perhaps on a thread that must not enter Python: what Python owns is kept where the loop finds it.
    fn resolve(self, outcome: Ended, item: Option<Thing>) {
        let Self { core, waits, numbered } = self;
        core.release(&numbered);
        let told = match waits {
            Waits::One(answer) => {
                answer.settle(outcome, item);
                Some(Told::One(answer))
            }
            Waits::Part(gather, index) => {
                let is_last = gather.settle(index, outcome, item);
                // On another thread no reference to it may end.
                (is_last || !core.hub.is_loop_thread()).then(|| Told::Many(gather))
            }
            Waits::Stream(stream) => {
                stream.settle(outcome, item);
                Some(Told::Stream(stream))
            }
            Waits::Thread(blocked) => {
                blocked.settle(outcome, item);
                None
            }
        };
        if let Some(told) = told {
            core.hub.put(Event::Answered(told));
        }
    }
}
