//! `Within`: a mark in the context of a function while it runs a batch, one for each batch, by which a submit
//! knows that it comes from there. Tasks and threads that the function starts inherit the context, and with it
//! the mark. A function that waits for its own batcher, none of whose workers is free, would wait for ever.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use headrace::batch::Timeout;
use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::core::Core;
use crate::ffi::{context_copy, context_value, set_context_value};

/// The context variable that holds the mark.
fn variable(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static VARIABLE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let variable = VARIABLE.get_or_try_init(py, || {
        Ok::<_, PyErr>(py.import("contextvars")?.call_method1("ContextVar", ("headrace_batch",))?.unbind())
    })?;
    Ok(variable.bind(py))
}

/// See the module's text.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Within {
    core: Weak<Core>,
    /// The address of the function's own task; none on a thread.
    task: Option<usize>,
    runs: AtomicBool,
}

impl Within {
    /// Marks the context of the caller: `task`, if the function runs in one, or a thread.
    pub(super) fn mark<'py>(
        core: &Arc<Core>,
        py: Python<'py>,
        task: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, Self>> {
        let task = task.map(|task| task.as_ptr().addr());
        core.marks.fetch_add(1, Ordering::Relaxed);
        let within = Self { core: Arc::downgrade(core), task, runs: AtomicBool::new(true) };
        let within = Bound::new(py, within)?;
        set_context_value(variable(py)?, &within)?;
        Ok(within)
    }

    /// Whether the calling task is the function's own.
    fn is_own(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(own) = self.task else { return Ok(false) };
        let task = py.import("asyncio")?.call_method0("current_task")?;
        Ok(task.as_ptr().addr() == own)
    }
}

#[pymethods]
impl Within {
    /// The function has returned: what it has started may submit.
    fn leave(&self) {
        if self.runs.swap(false, Ordering::Relaxed)
            && let Some(core) = self.core.upgrade()
        {
            core.marks.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The same in its own `task`. Whether the next function will find nothing there of this one: no context
    /// variable that is not as it was `found`, and no sign that the task was cancelled.
    fn leave_clean(&self, task: &Bound<'_, PyAny>, found: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = task.py();
        self.leave();
        if task.call_method0(intern!(py, "cancelling"))?.is_truthy()? {
            return Ok(false);
        }
        match context_copy(py)?.eq(found) {
            // Values need not be comparable, as arrays are not. Then they have been changed.
            Err(error) if error.is_instance_of::<PyException>(py) => Ok(false),
            compared => compared,
        }
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Core {
    /// Refuses what a function submits to its own batcher while nobody is free to run it. Whatever it has
    /// started is refused too if it would wait without a bound; perhaps the function does not wait for it.
    pub(super) fn check_within(&self, py: Python<'_>, timeout: Timeout) -> PyResult<()> {
        if self.marks.load(Ordering::Relaxed) == 0 {
            // None of its functions runs.
            return Ok(());
        }
        match context_value(variable(py)?)? {
            None => Ok(()),
            Some(within) => self.check_mark(within.cast::<Within>()?, timeout),
        }
    }

    fn check_mark(&self, within: &Bound<'_, Within>, timeout: Timeout) -> PyResult<()> {
        let py = within.py();
        let within = within.get();
        if !within.runs.load(Ordering::Relaxed) || !std::ptr::eq(within.core.as_ptr(), self) {
            return Ok(());
        }
        let config = self.coordinator.config();
        let (name, workers) = (&config.name, config.workers);
        if self.coordinator.stats().in_flight < workers {
            return Ok(());
        }
        let busy = format!("submits to it while no other of its workers={workers} is free");
        if within.is_own(py)? {
            return Err(PyRuntimeError::new_err(format!(
                "a function of the batcher '{name}' {busy}: nobody could run the item while the function waits. \
                 Raise workers=, call the function directly, or submit from a task of its own"
            )));
        }
        let is_bounded = match timeout {
            Timeout::Never => false,
            Timeout::Configured => config.timeout.is_some(),
            Timeout::After(_) | Timeout::At(_) => true,
        };
        if is_bounded {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(format!(
            "a task or thread that a function of the batcher '{name}' has started {busy}, and without a bound: \
             they would wait for each other if the function waits for it. Give timeout=, raise workers=, or \
             call the function directly"
        )))
    }
}
