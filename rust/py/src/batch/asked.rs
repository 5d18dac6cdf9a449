//! What a submitter says of an item, and how both become an item of the core's: its key, its cost, its times.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use headrace::batch::{Refused, RejectReason, Terms, Ticket, Timeout};
use pyo3::exceptions::{PyException, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyString};

use super::core::Core;
use super::reply::{Numbered, Reply, Thing, Waits};
use crate::errors::batch_error;
use crate::router::whole;

/// What a submitter says of its items.
#[derive(Debug, Default)]
pub(super) struct Asked {
    client: Option<Py<PyAny>>,
    key: Option<Py<PyAny>>,
    cost: Option<Py<PyAny>>,
    priority: usize,
    timeout: Timeout,
    response_timeout: Timeout,
}

impl Asked {
    /// Bounds the submit as a whole.
    pub(super) const fn timeout(&self) -> Timeout {
        self.timeout
    }

    /// The keywords of a submit: `client`, `key`, `cost`, `priority`, `timeout` and `deadline`, of which the
    /// earlier counts, and `response_timeout`. (Most submits have none, and then there is no dictionary.)
    pub(super) fn of(terms: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let mut asked = Self::default();
        let Some(terms) = terms else { return Ok(asked) };
        let mut deadline = None;
        for (name, value) in terms {
            let some = || (!value.is_none()).then(|| value.clone().unbind());
            match name.cast::<PyString>()?.to_str()? {
                "client" => asked.client = some(),
                "key" => asked.key = some(),
                "cost" => asked.cost = some(),
                "priority" => asked.priority = whole("priority", &value)?,
                "timeout" => asked.timeout = limit(&value)?,
                "deadline" => deadline = value.extract::<Option<f64>>()?,
                "response_timeout" => asked.response_timeout = limit(&value)?,
                name => return Err(PyTypeError::new_err(format!("unexpected keyword argument {name:?}"))),
            }
        }
        if let Some(deadline) = deadline {
            asked.timeout = until(terms.py(), deadline, asked.timeout)?;
        }
        Ok(asked)
    }
}

/// An item, ready to be submitted.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) thing: Thing,
    pub(super) terms: Terms,
    pub(super) numbered: Numbered,
}

impl Core {
    /// Finds out an item's key and cost.
    ///
    /// # Errors
    /// `Rejected`, with what a function of the caller's raised, or why its answer is none, as its cause.
    pub(super) fn item(&self, object: Bound<'_, PyAny>, asked: &Asked) -> PyResult<Item> {
        let py = object.py();
        let mut terms = Terms {
            priority: asked.priority,
            timeout: asked.timeout,
            response_timeout: asked.response_timeout,
            ..Terms::default()
        };
        let (key, numbered) = self.look(&object, asked, &mut terms).map_err(|error| {
            if !error.is_instance_of::<PyException>(py) {
                return error;
            }
            self.coordinator.count_invalid();
            let message = format!("rejected (invalid): {error}");
            let rejected =
                batch_error(py, "Rejected", &message, |fields| fields.set_item("reason", "invalid"));
            rejected.set_cause(py, Some(error));
            rejected
        })?;
        let thing = Thing { object: object.unbind(), key, stream: None };
        Ok(Item { thing, terms, numbered })
    }

    /// An item's key, if it has one, and the numbers of its key and client.
    fn look(
        &self,
        object: &Bound<'_, PyAny>,
        asked: &Asked,
        terms: &mut Terms,
    ) -> PyResult<(Option<Py<PyAny>>, Numbered)> {
        let py = object.py();
        let is_plain = asked.cost.is_none() && asked.key.is_none() && asked.client.is_none();
        if is_plain && !self.looks.load(Ordering::Relaxed) {
            return Ok((None, Numbered::default()));
        }
        let copy = |callback: &Option<Py<PyAny>>| callback.as_ref().map(|callback| callback.clone_ref(py));
        let (key, cost) = {
            let callbacks = self.callbacks.lock();
            (copy(&callbacks.key), copy(&callbacks.cost))
        };
        let by = |function: Option<Py<PyAny>>, given: &Option<Py<PyAny>>| match (given, function) {
            (Some(given), _) => Ok(Some(given.bind(py).clone())),
            (None, Some(function)) => function.bind(py).call1((object,)).map(Some),
            (None, None) => Ok(None),
        };
        if let Some(cost) = by(cost, &asked.cost)? {
            terms.cost = whole_cost(&cost)?;
        }
        let key = by(key, &asked.key)?;
        let client = asked.client.as_ref().map(|client| client.bind(py));
        if key.is_none() && client.is_none() {
            return Ok((None, Numbered::default()));
        }
        let numbered = self.number(key.as_ref(), client, terms)?;
        Ok((key.map(Bound::unbind), numbered))
    }

    /// Submits an item, or gives it back.
    pub(super) fn submit_item(
        self: &Arc<Self>,
        item: Item,
        waits: Waits,
    ) -> Result<Ticket, Box<Refused<Thing, Reply>>> {
        let Item { mut thing, terms, numbered } = item;
        thing.stream = match &waits {
            Waits::Stream(stream) => Some(Arc::clone(stream)),
            Waits::One(_) | Waits::Part(..) | Waits::Thread(_) => None,
        };
        // A map comes again when there is room.
        let comes_again = matches!(waits, Waits::Part(..));
        let reply = Reply { core: Arc::clone(self), waits, numbered };
        let submitted = if comes_again {
            self.coordinator.offer(thing, reply, terms)
        } else {
            self.coordinator.submit(thing, reply, terms)
        };
        submitted.map_err(Box::new)
    }

    /// What the caller of an item is told that was refused for good.
    pub(super) fn refusal(&self, py: Python<'_>, refused: &Refused<Thing, Reply>) -> PyErr {
        self.release(&refused.reply.numbered);
        let (reason, retry_after) = (&refused.reason, refused.retry_after.map(|after| after.as_secs_f64()));
        if *reason == RejectReason::Closed {
            return batch_error(py, "Closed", "rejected: the batcher is closed", |_| Ok(()));
        }
        let word = reason.as_str();
        batch_error(py, "Rejected", &format!("rejected ({word}): {reason}"), |fields| {
            fields.set_item("reason", word)?;
            fields.set_item("retry_after", retry_after)
        })
    }
}

fn whole_cost(cost: &Bound<'_, PyAny>) -> PyResult<u64> {
    if !cost.is_instance_of::<PyInt>() {
        let kind = cost.get_type().name()?.to_string();
        return Err(PyTypeError::new_err(format!("a cost is a whole number from 0 up, not {kind}")));
    }
    cost.extract()
        .map_err(|_| PyValueError::new_err(format!("a cost is a whole number from 0 up, not {cost}")))
}

/// How long something may take: `None` for ever, or seconds.
fn limit(value: &Bound<'_, PyAny>) -> PyResult<Timeout> {
    let Some(seconds) = value.extract::<Option<f64>>()? else { return Ok(Timeout::Never) };
    if seconds.is_nan() {
        return Err(PyValueError::new_err("a timeout must be a number of seconds, not nan"));
    }
    // What is over already is refused as expired, and what is out of reach is no bound.
    Ok(Duration::try_from_secs_f64(seconds.max(0.0)).map_or(Timeout::Never, Timeout::After))
}

/// The earlier one of a timeout and a `deadline` by `time.monotonic`.
fn until(py: Python<'_>, deadline: f64, timeout: Timeout) -> PyResult<Timeout> {
    let monotonic: f64 = py.import("time")?.call_method0("monotonic")?.extract()?;
    // What is over already is refused as expired; `max` would take what is no number for that.
    let left = (deadline - monotonic).clamp(0.0, f64::INFINITY);
    let left = Duration::try_from_secs_f64(left)
        .map_err(|_| PyValueError::new_err(format!("deadline must be a time.monotonic(), not {deadline}")))?;
    Ok(match timeout {
        Timeout::After(duration) if duration < left => timeout,
        _ => Instant::now().checked_add(left).map_or(Timeout::Never, Timeout::At),
    })
}
