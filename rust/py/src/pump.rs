//! Drives an asynchronous generator natively: a coroutine awaits a [`Pump`], which steps the generator and
//! pushes what it yields until the generator ends or has to wait. The coroutine's own frame is then entered
//! once for each wait instead of once for each item. The coroutine is an engine's runner, or what sends a
//! caller's request stream.
//!
//! The pump is an iterator below a real coroutine of a real task, so `asyncio.timeout`, `current_task` and
//! cancellation work in the generator as anywhere; what the generator raises passes through unchanged.

use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyStopAsyncIteration, PyStopIteration};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::ffi::{AsyncGenerator, Sent, send_none};
use crate::pushing::Wait;
use crate::requests::RequestSink;
use crate::sink::Sink;

#[derive(Debug)]
enum State {
    /// The generator stands at a `yield`, or has not begun.
    Idle,
    /// The item under way: what `__anext__` returned.
    Step(Py<PyAny>),
    /// Its last item had to wait, or the loop was given a turn.
    Waits,
    /// Being stepped at this moment.
    Running,
    Ended,
}

/// Where a generator's items go.
#[derive(Debug)]
pub(crate) enum PumpsInto {
    /// An engine's answer.
    Answer(Py<Sink>),
    /// A caller's request.
    Request(Py<RequestSink>),
}

impl PumpsInto {
    fn push_item(&self, item: &Bound<'_, PyAny>) -> PyResult<Wait> {
        match self {
            Self::Answer(sink) => sink.get().push_item(item),
            Self::Request(sink) => sink.get().push_item(item),
        }
    }
}

/// See the module's text. Made by the `pump` of either sink.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Pump {
    into: PumpsInto,
    generator: AsyncGenerator,
    state: Mutex<State>,
}

impl Pump {
    pub(crate) const fn new(into: PumpsInto, generator: AsyncGenerator) -> Self {
        Self { into, generator, state: Mutex::new(State::Idle) }
    }

    fn enter(&self) -> PyResult<State> {
        match std::mem::replace(&mut *self.state.lock(), State::Running) {
            State::Running => Err(PyRuntimeError::new_err("this pump is running already")),
            state => Ok(state),
        }
    }

    /// Steps the generator until it waits or ends. `None` is the end.
    fn run(&self, py: Python<'_>, mut step: Option<Py<PyAny>>) -> PyResult<Option<Py<PyAny>>> {
        loop {
            let next = match step.take() {
                Some(next) => next.into_bound(py),
                None => self.generator.anext(py)?,
            };
            match send_none(&next) {
                Sent::Item(item) => match self.into.push_item(&item)? {
                    Wait::None => {}
                    Wait::Turn => return Ok(Some(self.wait(py.None()))),
                    Wait::For(waiter) => return Ok(Some(self.wait(waiter))),
                },
                Sent::Waits(future) => {
                    *self.state.lock() = State::Step(next.unbind());
                    return Ok(Some(future.unbind()));
                }
                Sent::Raised(error) if error.is_instance_of::<PyStopAsyncIteration>(py) => return Ok(None),
                Sent::Raised(error) => return Err(error),
            }
        }
    }

    fn wait(&self, on: Py<PyAny>) -> Py<PyAny> {
        *self.state.lock() = State::Waits;
        on
    }

    /// The pump has ended unless it left a state to go on from.
    fn leave(&self, result: PyResult<Option<Py<PyAny>>>) -> PyResult<Option<Py<PyAny>>> {
        let mut state = self.state.lock();
        if matches!(*state, State::Running) {
            *state = State::Ended;
        }
        result
    }
}

#[pymethods]
impl Pump {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let step = match self.enter()? {
            State::Step(step) => Some(step),
            State::Idle | State::Waits => None,
            State::Running | State::Ended => return self.leave(Ok(None)),
        };
        self.leave(self.run(py, step))
    }

    /// An exception thrown into the task. The generator may catch it and yield on.
    #[pyo3(signature = (*exception))]
    fn throw(&self, exception: &Bound<'_, PyTuple>) -> PyResult<Option<Py<PyAny>>> {
        let py = exception.py();
        let State::Step(step) = self.enter()? else {
            // Not in the generator: it is the coroutine's, which closes the generator.
            return self.leave(Err(raised(exception)));
        };
        let thrown = step.bind(py).call_method1(pyo3::intern!(py, "throw"), exception);
        self.leave(match thrown {
            Ok(future) => {
                *self.state.lock() = State::Step(step);
                Ok(Some(future.unbind()))
            }
            Err(error) if error.is_instance_of::<PyStopIteration>(py) => {
                let item = error.value(py).getattr(pyo3::intern!(py, "value"))?;
                match self.into.push_item(&item) {
                    Ok(Wait::None) => self.run(py, None),
                    Ok(Wait::Turn) => Ok(Some(self.wait(py.None()))),
                    Ok(Wait::For(waiter)) => Ok(Some(self.wait(waiter))),
                    Err(error) => Err(error),
                }
            }
            Err(error) if error.is_instance_of::<PyStopAsyncIteration>(py) => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// The coroutine that awaits the pump is closed.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if let State::Step(step) = std::mem::replace(&mut *self.state.lock(), State::Ended) {
            step.call_method0(py, pyo3::intern!(py, "close"))?;
        }
        Ok(())
    }
}

/// The exception that `throw` was given, in any of its forms.
fn raised(exception: &Bound<'_, PyTuple>) -> PyErr {
    let make = || {
        let first = exception.get_item(0)?;
        match exception.get_item(1) {
            Ok(value) if !value.is_none() => Ok(crate::response::thrown(first, Some(value))),
            _ => Ok(crate::response::thrown(first, None)),
        }
    };
    make().unwrap_or_else(|error| error)
}
