//! What a task awaits while nothing is ready. It is a future of the loop's own, which CPython's tasks take
//! several times faster than any other object. Nobody completes it in the ordinary way: who awaits it is taken
//! off it and run at once, inside the hub's callback, where no task is current. That saves a turn of the loop
//! for each wake-up, and the future can be awaited again. Whoever steps an awaitable by hand may keep the
//! future, and look whether it is done: one that anybody but a task holds is completed like any other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyList, PyTuple};

use super::hub::{Hub, elsewhere};
use crate::ffi::{LoopCell, references, run_in_context};

/// See the module's text. The flags change on the loop's thread.
#[derive(Debug)]
pub(crate) struct Waiter {
    hub: Arc<Hub>,
    future: LoopCell<Py<PyAny>>,
    /// Somebody was given the future and has not been told since.
    given: AtomicBool,
    /// The future is done, and another is needed for who waits next.
    spent: AtomicBool,
}

impl Waiter {
    pub(super) fn new(py: Python<'_>, hub: Arc<Hub>) -> PyResult<Self> {
        let future = hub.cell(hub.new_future(py)?);
        let [given, spent] = [false; 2].map(AtomicBool::new);
        Ok(Self { hub, future, given, spent })
    }

    /// Whether it can be given out as it is.
    pub(super) fn is_free(&self) -> bool {
        !self.is_given() && !self.spent.load(Ordering::Relaxed)
    }

    /// Whether somebody was given it who has not been told.
    pub(super) fn is_given(&self) -> bool {
        self.given.load(Ordering::Relaxed)
    }

    /// The future, to be awaited. Runs no Python.
    pub(super) fn give(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let future = self.future(py)?;
        // What `yield from future` would set, which says that it is not merely yielded.
        future.setattr(intern!(py, "_asyncio_future_blocking"), true)?;
        self.given.store(true, Ordering::Relaxed);
        Ok(future.unbind())
    }

    /// Makes it free. False if somebody awaits it. Runs Python, so no lock may be held.
    pub(super) fn prepare(&self, py: Python<'_>) -> PyResult<bool> {
        if self.is_given() {
            let future = self.future(py)?;
            // One that is done was cancelled with the task that awaited it.
            if !is_done(&future)? && !matches!(Callbacks::of(&future)?, Callbacks::None) {
                return Ok(false);
            }
            // Who was given it may still await it, and would not be told by what the next one waits for.
            self.complete_soon(&future)?;
            self.given.store(false, Ordering::Relaxed);
        }
        if self.spent.load(Ordering::Relaxed) {
            let fresh = self.hub.new_future(py)?;
            let old = self.future.with(|future| std::mem::replace(future, fresh));
            self.spent.store(false, Ordering::Relaxed);
            drop(old);
        }
        Ok(true)
    }

    /// Runs what awaits it. False if nothing does. Not for callers inside a task.
    pub(crate) fn complete(&self, py: Python<'_>) -> PyResult<bool> {
        if !self.is_given() {
            return Ok(false);
        }
        self.given.store(false, Ordering::Relaxed);
        let future = self.future(py)?;
        let (callback, context) = match Callbacks::of(&future)? {
            Callbacks::One(callback) => callback,
            Callbacks::None => return self.complete_soon(&future).map(|_| false),
            Callbacks::Several | Callbacks::Unknown => return self.complete_soon(&future),
        };
        let is_used_again = self.hub.uses_futures_again && is_task_alone(&future, &callback);
        future.call_method1(intern!(py, "remove_done_callback"), (&callback,))?;
        // Tasks look at what they are given for a result.
        let done = if is_used_again {
            self.hub.done.bind(py)
        } else {
            self.complete_soon(&future)?;
            &future
        };
        run_in_context(&context, &callback, done).map(|()| true)
    }

    /// Completes the future as any other: what awaits it runs at the loop's next turn. False if it is done.
    fn complete_soon(&self, future: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = future.py();
        self.spent.store(true, Ordering::Relaxed);
        if is_done(future)? {
            return Ok(false);
        }
        future.call_method1(intern!(py, "set_result"), (py.None(),)).map(|_| true)
    }

    fn future<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.future.with(|future| future.bind(py).clone()).ok_or_else(elsewhere)
    }
}

fn is_done(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    future.call_method0(intern!(future.py(), "done"))?.is_truthy()
}

/// References to a future that one task awaits: the waiter's, the task's, and that of who asks.
const REFERENCES_OF_ONE_TASK: isize = 3;

/// Whether one of CPython's own tasks awaits the future, and nobody else has it: whoever steps an awaitable by
/// hand, or does so in a task and awaits the future in the ordinary way, looks whether the future is done.
fn is_task_alone(future: &Bound<'_, PyAny>, callback: &Bound<'_, PyAny>) -> bool {
    callback.is_exact_instance_of::<PyCFunction>() && references(future) == REFERENCES_OF_ONE_TASK
}

/// A function to call and the context to call it in.
type Callback<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// Who awaits a future: nearly always one task.
enum Callbacks<'py> {
    None,
    One(Callback<'py>),
    Several,
    /// The loop has futures of a kind that does not say.
    Unknown,
}

impl<'py> Callbacks<'py> {
    fn of(future: &Bound<'py, PyAny>) -> PyResult<Self> {
        let Some(list) = future.getattr_opt(intern!(future.py(), "_callbacks"))? else {
            return Ok(Self::Unknown);
        };
        let Ok(list) = list.cast_into::<PyList>() else { return Ok(Self::None) };
        match list.len() {
            0 => Ok(Self::None),
            1 => {
                let entry = list.get_item(0)?.cast_into::<PyTuple>()?;
                Ok(Self::One((entry.get_item(0)?, entry.get_item(1)?)))
            }
            _ => Ok(Self::Several),
        }
    }
}

/// An awaitable that hands its task one thing to wait for: what a [`Waiter`] gives, or `None` for a turn of
/// the loop.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Pause(Mutex<Option<Py<PyAny>>>);

impl Pause {
    pub(crate) const fn new(on: Py<PyAny>) -> Self {
        Self(Mutex::new(Some(on)))
    }
}

#[pymethods]
impl Pause {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self) -> Option<Py<PyAny>> {
        self.0.lock().take()
    }
}

/// Refuses two tasks that wait for the same thing, as asynchronous generators do.
pub(crate) fn already_awaited(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("{what} is already being awaited by another task"))
}
