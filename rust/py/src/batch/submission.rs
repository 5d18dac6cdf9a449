//! `Submission`: what `submit` returns, one item's answer as an awaitable.

use std::sync::Arc;

use headrace::batch::Ticket;
use parking_lot::Mutex;
use pyo3::prelude::*;

use super::core::Core;
use super::reply::{Ended, Thing, read};
use crate::bridge::parking::Parking;
use crate::bridge::waiter::{Waiter, already_awaited};
use crate::ffi::raise_stop_iteration;
use crate::response::thrown;
use crate::runtime::check_fork;
use crate::sink::Sink;

#[derive(Debug, Default)]
struct State {
    ticket: Option<Ticket>,
    ended: Option<Ended>,
    /// An item that its function did not take, for the loop to drop.
    item: Option<Thing>,
    parking: Option<Parking>,
    answering: Option<Answering>,
}

/// A request that the item is the answer to: nobody awaits it here.
#[derive(Debug)]
pub(super) struct Answering {
    pub(super) sink: Py<Sink>,
    /// `(sink, error)`: tells the caller why there is no answer.
    pub(super) failed: Py<PyAny>,
}

impl Answering {
    /// Answers the request.
    fn answer(self, py: Python<'_>, ended: &Ended) -> PyResult<()> {
        let answered = read(py, ended).and_then(|value| self.sink.get().finish_with(value.bind(py)));
        match answered {
            Err(error) => self.failed.call1(py, (self.sink, error.into_value(py))).map(drop),
            Ok(()) => Ok(()),
        }
    }
}

/// One item's answer. `await` gives it or raises what became of the item; whoever waits and is cancelled
/// cancels the item.
#[pyclass(frozen, weakref, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Submission {
    core: Arc<Core>,
    state: Mutex<State>,
}

impl Submission {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core), state: Mutex::default() }
    }

    /// The answer of a request, which has no other.
    pub(super) fn answering(core: &Arc<Core>, answering: Answering) -> Self {
        let state = State { answering: Some(answering), ..State::default() };
        Self { core: Arc::clone(core), state: Mutex::new(state) }
    }

    pub(super) fn admitted(&self, ticket: Ticket) {
        self.state.lock().ticket = Some(ticket);
    }

    pub(super) fn settle(&self, ended: Ended, item: Option<Thing>) {
        let mut state = self.state.lock();
        state.ended = Some(ended);
        state.item = item;
    }

    /// On the loop's thread, after it was settled.
    pub(super) fn wake(&self, py: Python<'_>) -> PyResult<()> {
        let (item, waiter, answers) = {
            let mut state = self.state.lock();
            let answers = state.answering.take().map(|answering| (answering, state.ended.take()));
            (state.item.take(), state.parking.as_ref().map(|parking| parking.waiter(py)), answers)
        };
        drop(item);
        if let Some((answering, Some(ended))) = answers {
            return answering.answer(py, &ended);
        }
        waiter.map_or(Ok(()), |waiter| Waiter::complete(waiter.bind(py)))
    }

    fn cancel_item(&self, py: Python<'_>) -> PyResult<bool> {
        check_fork(py)?;
        let ticket = {
            let state = self.state.lock();
            state.ticket.filter(|_| state.ended.is_none())
        };
        let cancelled = ticket.is_some_and(|ticket| self.core.coordinator.cancel(ticket));
        self.core.hub.settle(py)?;
        Ok(cancelled)
    }
}

#[pymethods]
impl Submission {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        check_fork(py)?;
        let (answer, parking) = {
            let mut state = self.state.lock();
            let answer = match &state.ended {
                Some(Ended::Completed(value)) => Some(Ok(value.clone_ref(py))),
                Some(_) => Some(Err(())),
                None => None,
            };
            let parking = Parking::take(&mut state.parking, answer.is_some());
            (answer, parking)
        };
        let hub = &self.core.hub;
        let Some(answer) = answer else {
            let parking = parking.map_or_else(|| hub.parking(py), Ok)?;
            let waiter = (!parking.is_awaited()).then(|| parking.arm(py));
            self.state.lock().parking = Some(parking);
            return waiter.map(Some).ok_or_else(|| already_awaited("this item"));
        };
        if let Some(parking) = parking {
            hub.recycle(parking);
        }
        match answer {
            Ok(value) => raise_stop_iteration(value.into_bound(py)),
            Err(()) => Err(self.failure(py)),
        }
    }

    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw(
        &self,
        py: Python<'_>,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        drop(traceback);
        self.cancel_item(py)?;
        Err(thrown(kind, value))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.cancel_item(py).map(drop)
    }

    /// Cancels the item: it leaves the queue, or its answer is ignored. False if it had been answered.
    fn cancel(&self, py: Python<'_>) -> PyResult<bool> {
        self.cancel_item(py)
    }

    /// For a request's sink, which takes it for the task of an engine: its end is told to the sink anyway.
    #[expect(clippy::unused_self, reason = "a method of tasks")]
    fn add_done_callback(&self, _callback: &Bound<'_, PyAny>) {}

    /// Whether it has been answered, or otherwise ended.
    fn done(&self) -> bool {
        self.state.lock().ended.is_some()
    }
}

impl Submission {
    /// The exception of an item that was not answered. It is made outside the lock, since that runs Python;
    /// an item ends once, so it can be put back.
    fn failure(&self, py: Python<'_>) -> PyErr {
        let Some(ended) = self.state.lock().ended.take() else { return already_awaited("this item") };
        let error = read(py, &ended).err();
        self.state.lock().ended = Some(ended);
        error.unwrap_or_else(|| already_awaited("this item"))
    }
}
