//! `Submission`: what `submit` returns, one item's answer as an awaitable. The queue holds the [`Answer`] and not
//! what is awaited, so that an item whose awaitable nobody holds any more is cancelled.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use headrace::batch::Ticket;
use parking_lot::Mutex;
use pyo3::prelude::*;

use super::core::Core;
use super::reply::{Ended, Thing, read};
use crate::bridge::hub::elsewhere;
use crate::bridge::parking::Parking;
use crate::bridge::waiter::already_awaited;
use crate::ffi::{LoopCell, raise_stop_iteration};
use crate::response::thrown;
use crate::runtime::{check_fork, is_forked};
use crate::sink::Sink;

/// Who is to be told: one who awaits it, or a request.
#[derive(Debug, Default)]
struct Asks {
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
    fn send(self, py: Python<'_>, ended: &Ended) -> PyResult<()> {
        let answered = read(py, ended).and_then(|value| self.sink.get().finish_with(value.bind(py)));
        match answered {
            Err(error) => self.failed.call1(py, (self.sink, error.into_value(py))).map(drop),
            Ok(()) => Ok(()),
        }
    }
}

/// One item's answer, between whoever resolves it and whoever awaits it.
#[derive(Debug)]
pub(crate) struct Answer {
    core: Arc<Core>,
    /// The item's ticket, once it has one; on the loop's thread.
    ticket: AtomicU64,
    ended: OnceLock<Ended>,
    /// An item that its function did not take, for the loop to drop.
    item: Mutex<Option<Thing>>,
    asks: LoopCell<Asks>,
}

/// No ticket: the last generation of the last place, which no queue gets to.
const NONE: u64 = u64::MAX;

impl Answer {
    pub(super) fn new(core: &Arc<Core>) -> Arc<Self> {
        Self::with(core, Asks::default())
    }

    /// The answer of a request, which has no other.
    pub(super) fn of_request(core: &Arc<Core>, answering: Answering) -> Arc<Self> {
        Self::with(core, Asks { answering: Some(answering), parking: None })
    }

    fn with(core: &Arc<Core>, asks: Asks) -> Arc<Self> {
        let (ticket, ended) = (AtomicU64::new(NONE), OnceLock::new());
        let (item, asks) = (Mutex::default(), core.hub.cell(asks));
        Arc::new(Self { core: Arc::clone(core), ticket, ended, item, asks })
    }

    pub(super) fn admitted(&self, ticket: Ticket) {
        self.ticket.store(ticket.as_u64(), Ordering::Relaxed);
    }

    /// Once; the coordinator sees to that.
    pub(super) fn settle(&self, ended: Ended, item: Option<Thing>) {
        if item.is_some() {
            *self.item.lock() = item;
        }
        let _ = self.ended.set(ended);
    }

    /// On the loop's thread, after it was settled.
    pub(super) fn wake(&self, py: Python<'_>) -> PyResult<()> {
        let ended = self.ended.get();
        if !matches!(ended, Some(Ended::Completed(_))) {
            let item = self.item.lock().take();
            drop(item);
        }
        let Asks { parking, answering } = self.asks.with(std::mem::take).unwrap_or_default();
        if let (Some(answering), Some(ended)) = (answering, ended) {
            // The request lets go of this when it has been answered.
            self.ticket.store(NONE, Ordering::Relaxed);
            return answering.send(py, ended);
        }
        let Some(parking) = parking else { return Ok(()) };
        let woken = parking.complete(py);
        self.core.hub.recycle(parking);
        woken.map(drop)
    }

    /// Cancels the item, unless it has been answered.
    fn cancel(&self) -> bool {
        let ticket = self.ticket.load(Ordering::Relaxed);
        let is_open = ticket != NONE && self.ended.get().is_none();
        is_open && self.core.coordinator.cancel(Ticket::from_u64(ticket))
    }
}

/// One item's answer. `await` gives it or raises what became of the item. Whoever waits and is cancelled, or
/// lets go of it, cancels the item.
#[pyclass(frozen, weakref, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Submission(Arc<Answer>);

impl Submission {
    pub(super) const fn new(answer: Arc<Answer>) -> Self {
        Self(answer)
    }

    fn cancel_item(&self, py: Python<'_>) -> PyResult<bool> {
        check_fork(py)?;
        let cancelled = self.0.cancel();
        self.0.core.hub.settle(py)?;
        Ok(cancelled)
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        if !is_forked() && self.0.cancel() {
            self.0.core.hub.flush_later();
        }
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
        match self.0.ended.get() {
            Some(Ended::Completed(value)) => raise_stop_iteration(value.bind(py).clone()),
            Some(ended) => Err(read(py, ended).err().unwrap_or_else(|| already_awaited("this item"))),
            None => self.0.park(py).map(Some),
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
        self.0.ended.get().is_some()
    }
}

impl Answer {
    /// What to wait for.
    fn park(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let hub = &self.core.hub;
        let look = |asks: &mut Asks| {
            if asks.parking.is_none() {
                asks.parking = hub.spare_parking();
            }
            match &asks.parking {
                Some(parking) if parking.is_free() => parking.give(py).map(Ok),
                _ => Ok(Err(asks.parking.take())),
            }
        };
        let Some(found) = self.asks.with(look) else { return Err(elsewhere()) };
        let kept = match found? {
            Ok(future) => return Ok(future),
            Err(kept) => kept,
        };
        // This may run Python.
        let (parking, waits) = hub.wait(py, kept, "this item");
        self.asks.with(|asks| asks.parking = parking);
        waits
    }
}
