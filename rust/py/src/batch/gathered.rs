//! `Gathered`: what `map` returns, the answers of many items as one awaitable. Items are submitted as the queue
//! has room, so that a map is never refused for its size. The queue holds the [`Gather`] and not what is awaited,
//! so that a map whose awaitable nobody holds any more is cancelled.

use std::sync::Arc;

use headrace::batch::{RejectReason, Ticket};
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyList};

use super::asked::{Asked, Item};
use super::core::Core;
use super::reply::{Ended, Thing, Waits, read};
use crate::bridge::parking::Parking;
use crate::bridge::waiter::already_awaited;
use crate::ffi::raise_stop_iteration;
use crate::response::thrown;
use crate::runtime::{check_fork, is_forked};

#[derive(Debug)]
enum Part {
    Pending(Option<Ticket>),
    Ended(Ended),
    /// Refused, or its key or cost could not be told.
    Refused(PyErr),
}

#[derive(Debug)]
struct State {
    /// What has not been submitted yet.
    source: Option<Py<PyIterator>>,
    /// The item that there was no room for.
    held: Option<Item>,
    parts: Vec<Part>,
    pending: usize,
    /// What the source raised.
    broken: Option<PyErr>,
    /// Items that the function did not take, for the loop to drop.
    left: Vec<Thing>,
    parking: Option<Parking>,
    /// Nobody waits any more: no more is taken from the source, wherever that is now.
    abandoned: bool,
}

/// The answers of many items, between whoever resolves them and whoever awaits them.
#[derive(Debug)]
pub(crate) struct Gather {
    core: Arc<Core>,
    asked: Asked,
    return_exceptions: bool,
    state: Mutex<State>,
}

impl Gather {
    fn start(
        core: &Arc<Core>,
        items: &Bound<'_, PyAny>,
        asked: Asked,
        return_exceptions: bool,
    ) -> PyResult<Arc<Self>> {
        let state = State {
            source: Some(items.try_iter()?.unbind()),
            held: None,
            parts: Vec::new(),
            pending: 0,
            broken: None,
            left: Vec::new(),
            parking: None,
            abandoned: false,
        };
        let this = Self { core: Arc::clone(core), asked, return_exceptions, state: Mutex::new(state) };
        Ok(Arc::new(this))
    }

    /// Submits as many as there is room for.
    pub(super) fn feed(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        // Nobody else feeds meanwhile, since the source is here.
        let (source, mut held) = {
            let mut state = self.state.lock();
            (state.source.take(), state.held.take())
        };
        let Some(source) = source else { return Ok(()) };
        let mut source = source.into_bound(py);
        loop {
            let item = match held.take().map_or_else(|| self.next_item(&mut source), |item| Some(Ok(item))) {
                Some(Ok(item)) => item,
                Some(Err(broken)) => {
                    self.state.lock().broken = broken;
                    break;
                }
                None => continue,
            };
            let index = {
                let mut state = self.state.lock();
                if state.abandoned {
                    drop(state);
                    self.core.release(&item.numbered);
                    break;
                }
                state.parts.push(Part::Pending(None));
                state.pending += 1;
                state.parts.len() - 1
            };
            let terms = item.terms;
            match self.core.submit_item(item, Waits::Part(Arc::clone(self), index)) {
                Ok(ticket) => self.admitted(index, ticket),
                Err(refused) => {
                    let mut state = self.state.lock();
                    state.pending -= 1;
                    if refused.reason.passes() {
                        state.parts.pop();
                        let (thing, numbered) = (refused.item, refused.reply.numbered);
                        state.held = Some(Item { thing, terms, numbered });
                        state.source = Some(source.unbind());
                        drop(state);
                        self.core.wait_for_room(Arc::clone(self));
                        return self.core.hub.settle(py);
                    }
                    drop(state);
                    let error = self.core.refusal(py, &refused);
                    let is_closed = refused.reason == RejectReason::Closed;
                    if is_closed {
                        // What has not been taken from the source, which may have no end, would be refused too.
                        self.state.lock().broken = Some(error.clone_ref(py));
                    }
                    self.set(index, Part::Refused(error));
                    if is_closed {
                        break;
                    }
                }
            }
        }
        self.core.hub.settle(py)?;
        self.wake(py)
    }

    /// The next item of the source: an error without one ends the feeding, `None` is an item that was refused.
    fn next_item(&self, source: &mut Bound<'_, PyIterator>) -> Option<Result<Item, Option<PyErr>>> {
        match source.next() {
            None => Some(Err(None)),
            Some(Err(error)) => Some(Err(Some(error))),
            Some(Ok(object)) => match self.core.item(object, &self.asked) {
                Ok(item) => Some(Ok(item)),
                Err(error) => {
                    self.state.lock().parts.push(Part::Refused(error));
                    None
                }
            },
        }
    }

    fn admitted(&self, index: usize, ticket: Ticket) {
        if let Some(part @ Part::Pending(None)) = self.state.lock().parts.get_mut(index) {
            *part = Part::Pending(Some(ticket));
        }
    }

    fn set(&self, index: usize, with: Part) {
        if let Some(part) = self.state.lock().parts.get_mut(index) {
            *part = with;
        }
    }

    /// True if it was the last one that is known of.
    pub(super) fn settle(&self, index: usize, ended: Ended, item: Option<Thing>) -> bool {
        let mut state = self.state.lock();
        if let Some(part) = state.parts.get_mut(index) {
            *part = Part::Ended(ended);
            state.pending -= 1;
        }
        state.left.extend(item);
        state.is_over()
    }

    pub(super) fn wake(&self, py: Python<'_>) -> PyResult<()> {
        let (left, waiter) = {
            let mut state = self.state.lock();
            let left = std::mem::take(&mut state.left);
            let is_over = state.is_over();
            (left, state.parking.as_ref().filter(|_| is_over).map(Parking::waiter))
        };
        drop(left);
        waiter.map_or(Ok(()), |waiter| waiter.complete(py).map(drop))
    }

    /// Cancels everything that has not ended.
    fn abandon(&self) {
        let (source, held, tickets) = {
            let mut state = self.state.lock();
            state.abandoned = true;
            let pending = |part: &Part| match part {
                Part::Pending(ticket) => *ticket,
                Part::Ended(_) | Part::Refused(_) => None,
            };
            let tickets: Vec<_> = state.parts.iter().filter_map(pending).collect();
            (state.source.take(), state.held.take(), tickets)
        };
        if let Some(held) = &held {
            self.core.release(&held.numbered);
        }
        drop((source, held));
        for ticket in tickets {
            self.core.coordinator.cancel(ticket);
        }
    }

    /// The list of answers; the first error, unless errors are wanted in it. They are read outside the lock,
    /// since that may run Python; all has ended, so they can be put back.
    fn answers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let (parts, broken) = {
            let mut state = self.state.lock();
            (std::mem::take(&mut state.parts), state.broken.as_ref().map(|error| error.clone_ref(py)))
        };
        let answers = self.read(py, &parts, broken);
        self.state.lock().parts = parts;
        answers
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        parts: &[Part],
        broken: Option<PyErr>,
    ) -> PyResult<Bound<'py, PyList>> {
        let mut first = None;
        let mut answers = Vec::with_capacity(parts.len());
        for part in parts {
            let answer = match part {
                Part::Ended(ended) => read(py, ended),
                Part::Refused(error) => Err(error.clone_ref(py)),
                Part::Pending(_) => Err(already_awaited("this map")),
            };
            match answer {
                Ok(value) => answers.push(value),
                Err(error) if self.return_exceptions => answers.push(error.into_value(py).into_any()),
                Err(error) => _ = first.get_or_insert(error),
            }
        }
        // The caller's own iterable failed: that is no item's error.
        match broken.or(first) {
            Some(error) => Err(error),
            None => PyList::new(py, answers),
        }
    }
}

impl State {
    fn is_over(&self) -> bool {
        self.pending == 0 && self.source.is_none() && self.held.is_none()
    }
}

/// The answers of many items, in their order. Whoever waits and is cancelled, or lets go of it, cancels those
/// that have not been answered.
#[pyclass(frozen, weakref, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Gathered(Arc<Gather>);

impl Gathered {
    pub(super) fn start<'py>(
        core: &Arc<Core>,
        items: &Bound<'py, PyAny>,
        asked: Asked,
        return_exceptions: bool,
    ) -> PyResult<Bound<'py, Self>> {
        let py = items.py();
        let gather = Gather::start(core, items, asked, return_exceptions)?;
        let this = Bound::new(py, Self(Arc::clone(&gather)))?;
        gather.feed(py)?;
        Ok(this)
    }

    fn abandon(&self, py: Python<'_>) -> PyResult<()> {
        check_fork(py)?;
        self.0.abandon();
        self.0.core.hub.settle(py)
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        if is_forked() || self.0.state.lock().is_over() {
            return;
        }
        self.0.abandon();
        self.0.core.hub.flush_later();
    }
}

#[pymethods]
impl Gathered {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        check_fork(py)?;
        let (is_over, parking) = {
            let mut state = self.0.state.lock();
            let is_over = state.is_over();
            (is_over, Parking::take(&mut state.parking, is_over))
        };
        let hub = &self.0.core.hub;
        if is_over {
            if let Some(parking) = parking {
                hub.recycle(parking);
            }
            return raise_stop_iteration(self.0.answers(py)?.into_any());
        }
        let (parking, waits) = hub.wait(py, parking, "this map");
        self.0.state.lock().parking = parking;
        waits.map(Some)
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
        self.abandon(py)?;
        Err(thrown(kind, value))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.abandon(py)
    }

    /// Cancels the items that have not been answered.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.abandon(py)
    }

    /// Whether all have been answered, or otherwise ended.
    fn done(&self) -> bool {
        self.0.state.lock().is_over()
    }
}
