//! `BatchStream`: what a streaming function, or an engine that steps, yields for one item.

use std::collections::VecDeque;
use std::sync::Arc;

use headrace::batch::{Outcome, Ticket};
use parking_lot::Mutex;
use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;

use super::core::Core;
use super::reply::{Ended, Failure, Thing, Told, read};
use crate::bridge::hub::Event;
use crate::bridge::parking::Parking;
use crate::ffi::raise_stop_iteration;
use crate::response::{Immediate, thrown};
use crate::runtime::{check_fork, is_forked};

/// Items that may lie unread. A function serves many readers at once, so it cannot wait for a slow one.
const UNREAD_MAX: usize = 65_536;

/// Ready items handed over before the loop gets a turn, so that a fast function starves nobody.
const READY_RUN_MAX: u32 = 64;

#[derive(Debug, Default)]
struct State {
    ticket: Option<Ticket>,
    items: VecDeque<Py<PyAny>>,
    ended: Option<Ended>,
    /// An item that its function did not take, for the loop to drop.
    item: Option<Thing>,
    parking: Option<Parking>,
    ready_run: u32,
}

/// What is yielded for one item, between its function and its reader.
#[derive(Debug)]
pub(crate) struct Yielded {
    core: Arc<Core>,
    state: Mutex<State>,
}

impl Yielded {
    pub(super) fn new(core: &Arc<Core>) -> Arc<Self> {
        Arc::new(Self { core: Arc::clone(core), state: Mutex::default() })
    }

    pub(super) fn admitted(&self, ticket: Ticket) {
        self.state.lock().ticket = Some(ticket);
    }

    /// One more item; false when nobody reads it any more.
    pub(super) fn push(self: &Arc<Self>, value: Py<PyAny>) -> bool {
        let (taken, overrun) = {
            let mut state = self.state.lock();
            let taken = state.ended.is_none() && state.items.len() < UNREAD_MAX;
            let overrun = !taken && state.ended.is_none();
            if taken {
                state.items.push_back(value);
            } else if overrun {
                state.ended = Some(Outcome::Failed(Failure::Unread { items: UNREAD_MAX }));
            }
            (taken, state.ticket.filter(|_| overrun))
        };
        if let Some(ticket) = overrun {
            self.core.coordinator.cancel(ticket);
        }
        self.core.hub.put(Event::Answered(Told::Stream(Arc::clone(self))));
        taken
    }

    pub(super) fn settle(&self, ended: Ended, item: Option<Thing>) {
        let mut state = self.state.lock();
        state.ended.get_or_insert(ended);
        state.item = item;
    }

    /// On the loop's thread, after something was pushed or it was settled.
    pub(super) fn wake(&self, py: Python<'_>) -> PyResult<()> {
        let (item, waiter) = {
            let mut state = self.state.lock();
            (state.item.take(), state.parking.as_ref().map(Parking::waiter))
        };
        drop(item);
        waiter.map_or(Ok(()), |waiter| waiter.complete(py).map(drop))
    }

    /// Nobody reads any more.
    fn abandon(&self) {
        let (ticket, unread) = {
            let mut state = self.state.lock();
            let ticket = state.ticket.filter(|_| state.ended.is_none());
            (ticket, (std::mem::take(&mut state.items), state.item.take()))
        };
        drop(unread);
        if let Some(ticket) = ticket {
            self.core.coordinator.cancel(ticket);
        }
    }
}

/// What a reader has of it. Closing or dropping it, or leaving it while it waits, cancels the item.
#[pyclass(frozen, weakref, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct BatchStream(Arc<Yielded>);

impl BatchStream {
    pub(super) const fn new(yielded: Arc<Yielded>) -> Self {
        Self(yielded)
    }

    fn cancel_item(&self, py: Python<'_>) -> PyResult<()> {
        check_fork(py)?;
        self.0.abandon();
        self.0.core.hub.settle(py)
    }
}

impl Drop for BatchStream {
    fn drop(&mut self) {
        if !is_forked() {
            self.0.abandon();
            let parking = self.0.state.lock().parking.take();
            drop(parking);
            self.0.core.hub.flush_later();
        }
    }
}

/// What a reader finds.
enum Found {
    Item(Py<PyAny>),
    End,
    Turn,
    Nothing(Option<Parking>),
}

#[pymethods]
impl BatchStream {
    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        check_fork(py)?;
        let hub = &self.0.core.hub;
        match self.0.look() {
            Found::Item(item) => raise_stop_iteration(item.into_bound(py)),
            Found::Turn => Ok(Some(py.None())),
            Found::End => Err(self.0.ending(py)),
            Found::Nothing(parking) => {
                let (parking, waits) = hub.wait(py, parking, "this stream");
                self.0.state.lock().parking = parking;
                waits.map(Some)
            }
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
        self.cancel_item(py)
    }

    /// Reads no more: the item is cancelled, what was not read is dropped.
    fn aclose(&self, py: Python<'_>) -> PyResult<Immediate> {
        self.cancel_item(py)?;
        Ok(Immediate::new(py.None()))
    }

    fn __aenter__(slf: Py<Self>) -> Immediate {
        Immediate::new(slf.into_any())
    }

    #[pyo3(signature = (*_exception))]
    fn __aexit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<Immediate> {
        self.aclose(py)
    }
}

impl Yielded {
    fn look(&self) -> Found {
        let mut state = self.state.lock();
        if state.ready_run >= READY_RUN_MAX {
            state.ready_run = 0;
            return Found::Turn;
        }
        if let Some(item) = state.items.pop_front() {
            state.ready_run += 1;
            return Found::Item(item);
        }
        state.ready_run = 0;
        if state.ended.is_some() { Found::End } else { Found::Nothing(state.parking.take()) }
    }

    /// What a reader is told at the end. Made outside the lock, since that may run Python.
    fn ending(&self, py: Python<'_>) -> PyErr {
        let (ended, parking) = {
            let mut state = self.state.lock();
            (state.ended.take(), Parking::take(&mut state.parking, true))
        };
        if let Some(parking) = parking {
            self.core.hub.recycle(parking);
        }
        let Some(ended) = ended else { return PyStopAsyncIteration::new_err(()) };
        // Who closed it has no more use for it, and to whoever still reads it has ended.
        let over = matches!(ended, Outcome::Completed(_) | Outcome::Cancelled { .. });
        let error = if over { None } else { read(py, &ended).err() };
        self.state.lock().ended = Some(ended);
        error.unwrap_or_else(|| PyStopAsyncIteration::new_err(()))
    }
}
