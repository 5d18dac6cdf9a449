//! Every raw call into CPython, and the other unsafe code of the binding. Each block says who upholds what
//! it relies on.
#![allow(unsafe_code, reason = "this is the file for it")]

use std::cell::RefCell;
use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::thread::ThreadId;

use bytes::Bytes;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBaseException, PyBufferError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};

use crate::runtime::{is_forked, this_thread};

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

/// What a context variable without a default has been set to, in the calling context.
pub(crate) fn context_value<'py>(variable: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    #[cfg(feature = "abi3")]
    {
        let value = variable.call_method1(pyo3::intern!(variable.py(), "get"), (variable.py().None(),))?;
        Ok((!value.is_none()).then_some(value))
    }
    #[cfg(not(feature = "abi3"))]
    {
        let py = variable.py();
        let mut value = std::ptr::null_mut();
        // SAFETY: the interpreter is attached, `variable` is a live object (anything but a context variable is
        // refused with an exception), and `value` may be written to.
        let status =
            unsafe { ffi::PyContextVar_Get(variable.as_ptr(), std::ptr::null_mut(), &raw mut value) };
        if status < 0 {
            return Err(PyErr::fetch(py));
        }
        // SAFETY: it has stored null, or a reference that is ours.
        Ok(unsafe { Bound::from_owned_ptr_or_opt(py, value) })
    }
}

/// Sets a context variable, in the calling context.
pub(crate) fn set_context_value(variable: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
    #[cfg(feature = "abi3")]
    return variable.call_method1(pyo3::intern!(variable.py(), "set"), (value,)).map(drop);
    #[cfg(not(feature = "abi3"))]
    {
        let py = variable.py();
        // SAFETY: the interpreter is attached, and both are live objects; anything but a context variable is
        // refused with an exception. What is returned, by which it could be set back, is ours, and dropped.
        unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContextVar_Set(variable.as_ptr(), value.as_ptr())) }
            .map(drop)
    }
}

/// The calling context as it is now, as `contextvars.copy_context()` gives it.
pub(crate) fn context_copy(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    #[cfg(feature = "abi3")]
    return py.import("contextvars")?.call_method0("copy_context");
    // SAFETY: the interpreter is attached, and what is returned is ours.
    #[cfg(not(feature = "abi3"))]
    unsafe {
        Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent())
    }
}

/// Calls a function with one argument in a context, as `context.run(function, argument)` does.
pub(crate) fn run_in_context(
    context: &Bound<'_, PyAny>,
    function: &Bound<'_, PyAny>,
    argument: &Bound<'_, PyAny>,
) -> PyResult<()> {
    #[cfg(feature = "abi3")]
    return context.call_method1(pyo3::intern!(context.py(), "run"), (function, argument)).map(drop);
    #[cfg(not(feature = "abi3"))]
    {
        let py = context.py();
        // SAFETY: the interpreter is attached and `context` a live object: anything but a context, and one that
        // has been entered, is refused with an exception.
        if unsafe { ffi::PyContext_Enter(context.as_ptr()) } < 0 {
            return Err(PyErr::fetch(py));
        }
        let called = function.call1((argument,));
        // SAFETY: as above; it was entered here, by this thread. It runs with no exception set: one that was
        // raised has been fetched.
        if unsafe { ffi::PyContext_Exit(context.as_ptr()) } < 0 {
            return called.and(Err(PyErr::fetch(py)));
        }
        called.map(drop)
    }
}

/// How many references to an object there are.
pub(crate) fn references(object: &Bound<'_, PyAny>) -> isize {
    // SAFETY: the interpreter is attached, and `object` is live.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) }
}

/// What one step of an awaitable's iterator gave.
pub(crate) enum Sent<'py> {
    /// It has returned this.
    Item(Bound<'py, PyAny>),
    /// It waits for this.
    Waits(Bound<'py, PyAny>),
    /// It has raised.
    Raised(PyErr),
}

/// Steps an iterator as `await` does, without a method call by name.
pub(crate) fn send_none<'py>(iterator: &Bound<'py, PyAny>) -> Sent<'py> {
    let py = iterator.py();
    let mut result = std::ptr::null_mut();
    // SAFETY: the interpreter is attached, `iterator` is a live iterator (what an asynchronous generator's
    // `__anext__` returned), and `result` may be written to.
    let status = unsafe { ffi::PyIter_Send(iterator.as_ptr(), py.None().as_ptr(), &raw mut result) };
    // SAFETY: unless it says that it raised, `PyIter_Send` has stored a reference that is ours.
    let value = unsafe { Bound::from_owned_ptr_or_opt(py, result) };
    match (status, value) {
        (ffi::PySendResult::PYGEN_RETURN, Some(value)) => Sent::Item(value),
        (ffi::PySendResult::PYGEN_NEXT, Some(value)) => Sent::Waits(value),
        _ => Sent::Raised(PyErr::fetch(py)),
    }
}

/// A generator made by an `async def` function with `yield`, and the slot behind its `__anext__`.
#[derive(Debug)]
pub(crate) struct AsyncGenerator {
    object: Py<PyAny>,
    anext: ffi::unaryfunc,
}

impl AsyncGenerator {
    /// `None` for any other object: whose `__anext__` may return what first has to be made an iterator.
    pub(crate) fn new(object: Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let py = object.py();
        let kind = TYPE.import(py, "types", "AsyncGeneratorType")?;
        if !object.get_type().is(kind) {
            return Ok(None);
        }
        // SAFETY: the type is live; since Python 3.10 static types may be asked too.
        let slot = unsafe { ffi::PyType_GetSlot(kind.as_type_ptr(), ffi::Py_am_anext) };
        if slot.is_null() {
            return Ok(None);
        }
        // SAFETY: a slot of this number that is not null is a `unaryfunc`.
        let anext = unsafe { std::mem::transmute::<*mut std::ffi::c_void, ffi::unaryfunc>(slot) };
        Ok(Some(Self { object: object.unbind(), anext }))
    }

    /// `generator.__anext__()`: an iterator to be stepped by [`send_none`].
    pub(crate) fn anext<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: the interpreter is attached, and the slot is that of the object's exact type; it returns a
        // reference that is ours, or null with an exception set.
        unsafe { Bound::from_owned_ptr_or_err(py, (self.anext)(self.object.as_ptr())) }
    }
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

/// A contiguous buffer of Python. Its memory stays where it is as long as this is there, and can be copied from
/// and to without the interpreter. Python code may change it at the same time: whoever copies gets some bytes
/// of before and some of after, as from any buffer.
#[derive(Debug)]
pub(crate) struct Contiguous(PyUntypedBuffer);

impl Contiguous {
    /// A buffer to read.
    pub(crate) fn read(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let view = PyUntypedBuffer::get(object)?;
        if !view.is_c_contiguous() {
            return Err(PyBufferError::new_err("the buffer is not contiguous; copy it first"));
        }
        Ok(Self(view))
    }

    /// A buffer to write to.
    pub(crate) fn write(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let view = Self::read(object)?;
        if view.0.readonly() {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        Ok(view)
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len_bytes()
    }

    pub(crate) fn item_size(&self) -> usize {
        self.0.item_size()
    }

    pub(crate) fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    /// The type of its elements, as the module `struct` writes it.
    pub(crate) fn format(&self) -> &str {
        self.0.format().to_str().unwrap_or("B")
    }

    /// Copies its bytes, as many as there is room for.
    pub(crate) fn read_into(&self, to: &mut [u8]) {
        let bytes = to.len().min(self.len());
        // SAFETY: the view is contiguous, keeps its memory alive, and has at least that many bytes; `to` is
        // memory of this program that nothing else refers to. Bytes have no invalid values.
        unsafe { std::ptr::copy_nonoverlapping(self.0.buf_ptr().cast::<u8>(), to.as_mut_ptr(), bytes) };
    }

    /// Copies bytes into it, as many as it has room for. It was made by [`Self::write`].
    pub(crate) fn write_from(&self, from: &[u8]) {
        let bytes = from.len().min(self.len());
        if !self.0.readonly() {
            // SAFETY: as in `read_into`, the other way; the view is writable.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.0.buf_ptr().cast::<u8>(), bytes) };
        }
    }
}

/// What only one thread looks at: that of a loop. A lock would cost more than most of what is done under it.
pub(crate) struct LoopCell<T> {
    thread: ThreadId,
    value: RefCell<T>,
}

// SAFETY: but for whoever has it to themselves (`drop`), which may be any thread because the value is `Send`,
// only `with` touches the value, and it does so on one thread. Ids of threads are not used again.
unsafe impl<T: Send> Sync for LoopCell<T> {}

impl<T> LoopCell<T> {
    /// For this thread.
    pub(crate) const fn new(thread: ThreadId, value: T) -> Self {
        Self { thread, value: RefCell::new(value) }
    }

    /// Looks at the value; `None` on another thread, and inside another look.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        if this_thread() != self.thread {
            return None;
        }
        self.value.try_borrow_mut().ok().map(|mut value| look(&mut value))
    }
}

impl<T> std::fmt::Debug for LoopCell<T> {
    /// Says nothing of the value: this may be any thread.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopCell").field("thread", &self.thread).finish_non_exhaustive()
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
