//! `Submission`: what `submit` returns, one item's answer as an awaitable. The queue holds the [`Answer`] and not
//! what is awaited, so that an item whose awaitable nobody holds any more is cancelled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use headrace::batch::Ticket;
use parking_lot::Mutex;
use pyo3::prelude::*;

use super::queue::BatchQueue;
use super::reply::{Ended, Thing, read};
use crate::bridge::hub::{Hub, elsewhere};
use crate::bridge::parking::Parking;
use crate::bridge::waiter::already_awaited;
use crate::ffi::{LoopCell, raise_stop_iteration};
use crate::response::thrown;
use crate::runtime::{check_fork, is_forked};
use crate::sink::Sink;

/// What the loop's thread knows of an answer: who is to be told, one who awaits it or a request, and what.
#[derive(Debug, Default)]
struct Known {
    parking: Option<Parking>,
    answering: Option<Answering>,
    ended: Option<Ended>,
    /// An item that its function did not take, to be dropped.
    item: Option<Thing>,
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
    fn send(self, py: Python<'_>, answer: PyResult<Py<PyAny>>) -> PyResult<()> {
        match answer.and_then(|value| self.sink.get().finish_with(value.bind(py))) {
            Err(error) => self.failed.call1(py, (self.sink, error.into_value(py))).map(drop),
            Ok(()) => Ok(()),
        }
    }
}

/// One item's answer, between whoever resolves it and whoever awaits it.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The item's ticket, once it has one; on the loop's thread.
    ticket: AtomicU64,
    is_settled: AtomicBool,
    known: LoopCell<Known>,
    /// What another thread settled it with, for the loop's.
    told: Mutex<Option<(Ended, Option<Thing>)>>,
}

/// No ticket: the last generation of the last place, which no queue gets to.
const NONE: u64 = u64::MAX;

impl Answer {
    /// For the loop of `hub`; with `answering` that of a request, which has no other.
    pub(super) fn new(hub: &Hub, answering: Option<Answering>) -> Arc<Self> {
        Arc::new(Self {
            ticket: AtomicU64::new(NONE),
            is_settled: AtomicBool::new(false),
            known: hub.cell(Known { answering, ..Known::default() }),
            told: Mutex::default(),
        })
    }

    pub(super) fn admitted(&self, ticket: Ticket) {
        self.ticket.store(ticket.as_u64(), Ordering::Relaxed);
    }

    /// Once; the coordinator sees to that.
    pub(super) fn settle(&self, ended: Ended, item: Option<Thing>) {
        let mut outcome = Some((ended, item));
        self.known.with(|known| {
            if let Some((ended, item)) = outcome.take() {
                (known.ended, known.item) = (Some(ended), item);
            }
        });
        if outcome.is_some() {
            *self.told.lock() = outcome;
        }
        self.is_settled.store(true, Ordering::Release);
    }

    fn is_settled(&self) -> bool {
        self.is_settled.load(Ordering::Acquire)
    }

    /// Finds out what another thread settled it with.
    fn learn(&self, known: &mut Known) {
        if known.ended.is_none()
            && let Some((ended, item)) = self.told.lock().take()
        {
            (known.ended, known.item) = (Some(ended), item);
        }
    }

    /// On the loop's thread, after it was settled.
    pub(super) fn wake(&self, py: Python<'_>, hub: &Hub) -> PyResult<()> {
        let found = self.known.with(|known| {
            self.learn(known);
            (known.parking.take(), known.answering.take(), known.item.take())
        });
        let Some((parking, answering, item)) = found else { return Ok(()) };
        // This may run Python.
        drop(item);
        if let Some(answering) = answering {
            // The request lets go of this when it has been answered.
            self.ticket.store(NONE, Ordering::Relaxed);
            return self.read(py).map_or(Ok(()), |answer| answering.send(py, answer));
        }
        let Some(parking) = parking else { return Ok(()) };
        let woken = parking.complete(py);
        hub.recycle(parking);
        woken.map(drop)
    }

    /// The answer as Python sees it; `None` before it was settled.
    fn read(&self, py: Python<'_>) -> Option<PyResult<Py<PyAny>>> {
        if !self.is_settled() {
            return None;
        }
        let found = self.known.with(|known| {
            self.learn(known);
            match &known.ended {
                Some(Ended::Completed(value)) => Ok(value.clone_ref(py)),
                _ => Err(known.ended.take()),
            }
        });
        Some(match found {
            Some(Ok(value)) => Ok(value),
            Some(Err(Some(ended))) => {
                // This may run Python, and it may be read again.
                let answer = read(py, &ended);
                self.known.with(|known| known.ended = Some(ended));
                answer
            }
            Some(Err(None)) => Err(already_awaited("this item")),
            None => Err(elsewhere()),
        })
    }

    /// The item's ticket, if it waits or runs.
    fn open_ticket(&self) -> Option<Ticket> {
        let ticket = self.ticket.load(Ordering::Relaxed);
        (ticket != NONE && !self.is_settled()).then(|| Ticket::from_u64(ticket))
    }

    /// What to wait for.
    fn park(&self, py: Python<'_>, hub: &Arc<Hub>) -> PyResult<Py<PyAny>> {
        let look = |known: &mut Known| {
            if known.parking.is_none() {
                known.parking = hub.spare_parking();
            }
            match &known.parking {
                Some(parking) if parking.is_free() => parking.give(py).map(Ok),
                _ => Ok(Err(known.parking.take())),
            }
        };
        let Some(found) = self.known.with(look) else { return Err(elsewhere()) };
        let kept = match found? {
            Ok(future) => return Ok(future),
            Err(kept) => kept,
        };
        // This may run Python.
        let (parking, waits) = hub.wait(py, kept, "this item");
        self.known.with(|known| known.parking = parking);
        waits
    }
}

/// One item's answer. `await` gives it or raises what became of the item. Whoever waits and is cancelled, or
/// lets go of it, cancels the item.
#[pyclass(frozen, weakref, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Submission {
    answer: Arc<Answer>,
    /// Holds the queue for less than another owner of its core would cost.
    queue: Py<BatchQueue>,
}

impl Submission {
    pub(super) fn new(queue: &Bound<'_, BatchQueue>, answering: Option<Answering>) -> Self {
        let answer = Answer::new(&queue.get().core().hub, answering);
        Self { answer, queue: queue.clone().unbind() }
    }

    pub(super) const fn answer(&self) -> &Arc<Answer> {
        &self.answer
    }

    /// Cancels the item, unless it has been answered.
    fn cancel_if_open(&self) -> bool {
        let core = self.queue.get().core();
        self.answer.open_ticket().is_some_and(|ticket| core.coordinator.cancel(ticket))
    }

    fn cancel_item(&self, py: Python<'_>) -> PyResult<bool> {
        check_fork(py)?;
        let cancelled = self.cancel_if_open();
        self.queue.get().core().hub.settle(py)?;
        Ok(cancelled)
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        if !is_forked() && self.cancel_if_open() {
            self.queue.get().core().hub.flush_later();
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
        match self.answer.read(py) {
            Some(answer) => raise_stop_iteration(answer?.into_bound(py)),
            None => self.answer.park(py, &self.queue.get().core().hub).map(Some),
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
        self.answer.is_settled()
    }
}
