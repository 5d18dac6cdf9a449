//! Every raw call into CPython, and the other unsafe code of the binding. Each block says who upholds what
//! it relies on.
#![allow(unsafe_code, reason = "this is the file for it")]

use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use pyo3::exceptions::{PyBaseException, PyBufferError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::runtime::is_forked;

/// Raises `StopIteration(value)` as the interpreter expects it from an iterator's `__next__`: the caller
/// returns "no value" right after. It saves the boxed, lazily built error of `PyStopIteration::new_err`.
pub(crate) fn raise_stop_iteration(value: Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
    let py = value.py();
    // A tuple would be taken for the exception's arguments, an exception for the exception itself.
    let value = if value.is_instance_of::<PyTuple>() || value.is_instance_of::<PyBaseException>() {
        PyTuple::new(py, [value])?.into_any()
    } else {
        value
    };
    // SAFETY: the interpreter is attached (`py`), both pointers are live borrowed references, and
    // `PyErr_SetObject` takes references of its own.
    unsafe { ffi::PyErr_SetObject(ffi::PyExc_StopIteration, value.as_ptr()) };
    debug_assert!(PyErr::occurred(py));
    Ok(None)
}

/// Received bytes as a read-only buffer: arrays and memoryviews over it share its memory.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct ReceivedBuffer(Bytes);

impl ReceivedBuffer {
    pub(crate) const fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

#[pymethods]
impl ReceivedBuffer {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// # Safety
    /// Called by the interpreter with a view to fill in.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() || flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err("received bytes are read-only"));
        }
        let bytes = &slf.get().0;
        let length = isize::try_from(bytes.len()).map_err(|_| PyBufferError::new_err("too large"))?;
        // SAFETY: `view` is the interpreter's to fill; the memory belongs to `slf`, which never changes it
        // and which `PyBuffer_FillInfo` keeps alive through `view.obj`.
        let failed = unsafe {
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), bytes.as_ptr().cast_mut().cast(), length, 1, flags)
        };
        if failed == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// Something of the core's that must be left alone in a forked child, where its sockets and locks are the
/// parent's.
#[derive(Debug)]
pub(crate) struct ForkSafe<T>(ManuallyDrop<T>);

impl<T> ForkSafe<T> {
    pub(crate) const fn new(inner: T) -> Self {
        Self(ManuallyDrop::new(inner))
    }
}

impl<T> Deref for ForkSafe<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for ForkSafe<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> Drop for ForkSafe<T> {
    fn drop(&mut self) {
        if !is_forked() {
            // SAFETY: this is the only place that drops it, and `self` is gone afterwards.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}
