//! What may be wanted of a loop, and whom it is for.

use std::sync::{Arc, Weak};

use headrace::link::Link;
use headrace::{Request, Responder};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use super::waiter::Waiter;
use crate::batch;
use crate::requests::RequestSink;
use crate::sink::Sink;

/// What a thread wants of the loop.
pub(crate) enum Event {
    /// What waits in this slot may go on.
    Wake(Slot),
    /// A request for the engine in this slot.
    Start(Slot, Box<(Request, Responder)>),
    /// A link whose socket the loop shall watch.
    Attach(Arc<Link>),
    /// A link with gathered bytes.
    Flush(Arc<Link>),
    /// Something to be done for a batcher.
    Batch(Weak<batch::Core>, batch::Task),
    /// An item of a batcher has its answer.
    Answered(batch::Told),
    /// A Python object that was freed on another thread.
    Trash(PyBackedBytes),
    /// Anything else.
    Run(Box<dyn FnOnce() + Send>),
}

/// A place in the hub's table; the second number tells a later user of the same place apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(super) index: usize,
    pub(super) generation: u64,
}

/// What an event in a slot is for. These Python objects stay with the hub; other threads know the slot.
pub(crate) enum Target {
    /// A task waits.
    Waiter(Arc<Waiter>),
    /// A request that STOP or KILL came for.
    Sink(Py<Sink>),
    /// A caller's request stream of which no more items are wanted.
    Requests(Py<RequestSink>),
    /// An engine: called with a request's payload and its sink.
    Engine(Py<crate::worker::EngineSlot>),
}
