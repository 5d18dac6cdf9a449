//! `Seat`: where a task of the loop that runs batches waits for its next one. It is handed over inside the hub's
//! callback, where no task is current, and the task's step runs at once: a function that need not wait has
//! answered when the callback returns, and whoever waits for it is woken by the same callback.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::taken::BatchTaken;
use crate::bridge::hub::Hub;
use crate::bridge::parking::Parking;
use crate::ffi::raise_stop_iteration;

#[derive(Debug, Default)]
struct State {
    next: Option<Py<BatchTaken>>,
    closed: bool,
    parking: Option<Parking>,
}

/// `await` gives the next batch, or `None` when there will be none any more.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Seat {
    hub: Arc<Hub>,
    state: Mutex<State>,
}

impl Seat {
    pub(super) fn new(hub: &Arc<Hub>) -> Self {
        Self { hub: Arc::clone(hub), state: Mutex::default() }
    }

    /// Hands a batch to the task that waits here, and runs its step. False if none waits: the batch is left
    /// alone. Not for callers inside a task.
    pub(super) fn give(&self, batch: &Bound<'_, BatchTaken>) -> PyResult<bool> {
        let py = batch.py();
        let waiter = {
            let mut state = self.state.lock();
            let parking = state.parking.as_ref().filter(|parking| parking.is_given());
            let Some(waiter) = parking.map(Parking::waiter) else { return Ok(false) };
            if state.closed {
                return Ok(false);
            }
            state.next = Some(batch.clone().unbind());
            waiter
        };
        let is_taken = waiter.complete(py)?;
        // The task may have been cancelled, and is yet to hear of it.
        let left = if is_taken { None } else { self.state.lock().next.take() };
        drop(left);
        Ok(is_taken)
    }
}

#[pymethods]
impl Seat {
    /// There will be no batch any more: the task goes on at the end of the turn.
    pub(super) fn close(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.closed = true;
            state.parking.as_ref().map(|parking| parking.waker().clone())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let mut state = self.state.lock();
        if let Some(next) = state.next.take() {
            drop(state);
            return raise_stop_iteration(next.into_bound(py).into_any());
        }
        if state.closed {
            return Ok(None);
        }
        if let Some(parking) = state.parking.as_ref().filter(|parking| parking.is_free()) {
            return parking.give(py).map(Some);
        }
        let kept = state.parking.take();
        drop(state);
        let (parking, waits) = self.hub.wait(py, kept, "this seat");
        self.state.lock().parking = parking;
        waits.map(Some)
    }
}
