//! What a task awaits while nothing is ready: an object that asyncio takes for a future. It exists once per
//! place of waiting and is used again and again. When woken it runs the task's step at once, inside the
//! hub's callback, where no other task is current; that saves a turn of the loop for each wake-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use pyo3::exceptions::asyncio::CancelledError;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::hub::Hub;

/// A callback and the context that it runs in.
type Callback = (Py<PyAny>, Option<Py<PyAny>>);

/// Who is told. Nearly always there is one, the task: it takes no allocation.
#[derive(Debug, Default)]
struct Callbacks {
    first: Option<Callback>,
    more: Vec<Callback>,
}

impl Callbacks {
    const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn push(&mut self, callback: Callback) {
        match self.first {
            None => self.first = Some(callback),
            Some(_) => self.more.push(callback),
        }
    }
}

impl IntoIterator for Callbacks {
    type Item = Callback;
    type IntoIter = std::iter::Chain<std::option::IntoIter<Callback>, std::vec::IntoIter<Callback>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.more)
    }
}

#[derive(Debug, Default)]
struct State {
    callbacks: Callbacks,
    /// The message that it was cancelled with.
    message: Option<Py<PyAny>>,
}

/// A future-like object without a result; see the module's text. The flags change while the interpreter is
/// attached; they are outside the lock because it costs more than all the rest of them.
#[pyclass(frozen, weakref, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Waiter {
    hub: Arc<Hub>,
    done: AtomicBool,
    cancelled: AtomicBool,
    /// Whether there are callbacks.
    awaited: AtomicBool,
    state: Mutex<State>,
}

impl Waiter {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        let [done, cancelled, awaited] = [false; 3].map(AtomicBool::new);
        Self { hub, done, cancelled, awaited, state: Mutex::default() }
    }

    /// Makes it ready to be awaited anew.
    pub(crate) fn arm(&self) {
        self.done.store(false, Ordering::Relaxed);
        self.cancelled.store(false, Ordering::Relaxed);
    }

    /// Whether somebody awaits it.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.done() && self.awaited.load(Ordering::Relaxed)
    }

    /// Whom to tell that it is done; nobody if they have been told.
    fn finish(&self) -> Option<Callbacks> {
        if self.done.swap(true, Ordering::Relaxed) {
            return None;
        }
        self.awaited.store(false, Ordering::Relaxed);
        Some(std::mem::take(&mut self.state.lock().callbacks))
    }

    /// Completes it and runs what awaits it: tasks, which look at what they are given for a result. CPython's
    /// do that many times faster with a future of its own kind, so they are given one that is done.
    pub(crate) fn complete(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        for (callback, context) in slf.get().finish().unwrap_or_default() {
            let done = &slf.get().hub.done;
            match context {
                Some(context) => context.call_method1(py, pyo3::intern!(py, "run"), (callback, done))?,
                None => callback.call1(py, (done,))?,
            };
        }
        Ok(())
    }
}

impl Waiter {
    /// Completes it; what awaits it runs at the loop's next turn. For callers inside a task.
    pub(crate) fn complete_soon(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        for (callback, context) in this.finish().unwrap_or_default() {
            this.call_soon(slf, callback, context)?;
        }
        Ok(())
    }
}

#[pymethods]
impl Waiter {
    /// Tells tasks that it was awaited and not merely yielded, which never happens to it. So it keeps no note
    /// of what they set it to.
    #[getter]
    #[expect(clippy::unused_self, reason = "an attribute of futures")]
    const fn _asyncio_future_blocking(&self) -> bool {
        true
    }

    #[setter(_asyncio_future_blocking)]
    #[expect(clippy::unused_self, reason = "an attribute of futures")]
    fn set_blocking(&self, _blocking: &Bound<'_, PyAny>) {}

    fn get_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.hub.event_loop(py)
    }

    #[pyo3(signature = (callback, *, context=None))]
    fn add_done_callback(
        slf: &Bound<'_, Self>,
        callback: Py<PyAny>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let this = slf.get();
        if this.done() {
            return this.call_soon(slf, callback, context);
        }
        this.awaited.store(true, Ordering::Relaxed);
        this.state.lock().callbacks.push((callback, context));
        Ok(())
    }

    fn remove_done_callback(slf: &Bound<'_, Self>, callback: &Bound<'_, PyAny>) -> PyResult<usize> {
        let (mut kept, mut removed) = (Vec::new(), Vec::new());
        let callbacks = std::mem::take(&mut slf.get().state.lock().callbacks);
        for entry in callbacks {
            // Comparing calls into Python, so the lock is not held.
            if entry.0.bind(slf.py()).eq(callback)? { removed.push(entry) } else { kept.push(entry) }
        }
        let mut state = slf.get().state.lock();
        kept.into_iter().for_each(|entry| state.callbacks.push(entry));
        slf.get().awaited.store(!state.callbacks.is_empty(), Ordering::Relaxed);
        Ok(removed.len())
    }

    #[pyo3(signature = (msg=None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<Py<PyAny>>) -> PyResult<bool> {
        let this = slf.get();
        let Some(callbacks) = this.finish() else { return Ok(false) };
        this.cancelled.store(true, Ordering::Relaxed);
        this.state.lock().message = msg;
        for (callback, context) in callbacks {
            this.call_soon(slf, callback, context)?;
        }
        Ok(true)
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub(crate) fn done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    fn result(&self, py: Python<'_>) -> PyResult<()> {
        if self.cancelled() {
            let message = self.state.lock().message.as_ref().map(|message| message.clone_ref(py));
            return Err(match message {
                Some(message) => CancelledError::new_err((message,)),
                None => CancelledError::new_err(()),
            });
        }
        if self.done() { Ok(()) } else { Err(PyValueError::new_err("the waiter is not done")) }
    }

    fn exception(&self, py: Python<'_>) -> PyResult<()> {
        self.result(py)
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Awaited directly: yields itself until it is done.
    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Option<Py<Self>>> {
        let this = slf.get();
        if this.done() {
            this.result(slf.py())?;
            return Ok(None);
        }
        Ok(Some(slf.clone().unbind()))
    }
}

impl Waiter {
    fn call_soon(
        &self,
        slf: &Bound<'_, Self>,
        callback: Py<PyAny>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let event_loop = self.hub.event_loop(py)?;
        let options = PyDict::new(py);
        if let Some(context) = context {
            options.set_item("context", context)?;
        }
        event_loop.call_method("call_soon", (callback, slf), Some(&options))?;
        Ok(())
    }
}

/// An awaitable that gives the loop one turn.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug, Default)]
pub(crate) struct Turn(Mutex<bool>);

#[pymethods]
impl Turn {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let mut given = self.0.lock();
        if std::mem::replace(&mut *given, true) {
            return Ok(None);
        }
        Ok(Some(py.None()))
    }
}

/// Refuses two tasks that wait for the same thing, as asynchronous generators do.
pub(crate) fn already_awaited(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("{what} is already being awaited by another task"))
}
