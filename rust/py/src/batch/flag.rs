//! An awaitable that is done when somebody says so, with a truth value.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyBool;

use crate::bridge::hub::Hub;
use crate::bridge::parking::Parking;
use crate::ffi::raise_stop_iteration;

/// `await` gives the value that it is set to.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Flag {
    hub: Arc<Hub>,
    state: Mutex<(Option<bool>, Option<Parking>)>,
}

impl Flag {
    pub(super) fn new(hub: &Arc<Hub>, value: Option<bool>) -> Self {
        Self { hub: Arc::clone(hub), state: Mutex::new((value, None)) }
    }

    /// Sets it, if it has not been; on the loop's thread.
    pub(super) fn set(&self, value: bool) {
        let waker = {
            let mut state = self.state.lock();
            state.0.get_or_insert(value);
            state.1.as_ref().map(|parking| parking.waker().clone())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[pymethods]
impl Flag {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let (value, parking) = {
            let mut state = self.state.lock();
            let value = state.0;
            (value, Parking::take(&mut state.1, value.is_some()))
        };
        if let Some(value) = value {
            if let Some(parking) = parking {
                self.hub.recycle(parking);
            }
            return raise_stop_iteration(PyBool::new(py, value).to_owned().into_any());
        }
        let (parking, waits) = self.hub.wait(py, parking, "this");
        self.state.lock().1 = parking;
        waits.map(Some)
    }
}
