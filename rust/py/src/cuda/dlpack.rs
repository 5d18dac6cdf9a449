//! DLPack: memory of a device in a form that other libraries take over, with what to call when they are done.
//! The layouts are the specification's, the plain one and the versioned one (1.0).
//!
//! `unsafe` is allowed here. Invariant: what a capsule points to is one `Exported` on the heap, which is freed
//! once: by the consumer, who has renamed the capsule, or by the capsule, if nobody has.
#![allow(unsafe_code, reason = "structures of C that change hands")]

use std::any::Any;
use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use super::buffer::Layout;

/// `kDLCUDA`.
pub(super) const CUDA: i32 = 2;

const PLAIN: &CStr = c"dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";

/// `DLDataType`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct DataType {
    pub(super) code: u8,
    pub(super) bits: u8,
    pub(super) lanes: u16,
}

/// `DLTensor`.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    dimensions: i32,
    data_type: DataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Self)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct ManagedVersioned {
    version: [u32; 2],
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Self)>,
    flags: u64,
    tensor: Tensor,
}

/// What a capsule points to, first the structure and then what it needs.
#[repr(C)]
struct Exported<M> {
    managed: M,
    shape: Box<[i64]>,
    strides: Box<[i64]>,
    _keep: Box<dyn Any + Send>,
}

/// A capsule with the memory at `address`, which `keep` keeps there.
pub(super) fn capsule(
    py: Python<'_>,
    address: u64,
    device: (i32, i32),
    layout: &Layout,
    keep: Box<dyn Any + Send>,
    is_versioned: bool,
) -> PyResult<Py<PyAny>> {
    let mut shape: Box<[i64]> = layout.shape.iter().map(|size| *size as i64).collect();
    let mut strides = strides_of(&shape);
    let tensor = Tensor {
        data: address as *mut c_void,
        device_type: device.0,
        device_id: device.1,
        dimensions: shape.len() as i32,
        data_type: layout.data_type,
        // The heap's memory stays where it is when the box is moved.
        shape: shape.as_mut_ptr(),
        strides: strides.as_mut_ptr(),
        byte_offset: 0,
    };
    if is_versioned {
        let managed = ManagedVersioned {
            version: [1, 0],
            context: ptr::null_mut(),
            deleter: Some(delete::<ManagedVersioned>),
            flags: 0,
            tensor,
        };
        wrap(
            py,
            Exported { managed, shape, strides, _keep: keep },
            VERSIONED,
            unused::<ManagedVersioned, true>,
        )
    } else {
        let managed = Managed { tensor, context: ptr::null_mut(), deleter: Some(delete::<Managed>) };
        wrap(py, Exported { managed, shape, strides, _keep: keep }, PLAIN, unused::<Managed, false>)
    }
}

/// Elements from one to the next in each dimension, the last one's being neighbours.
fn strides_of(shape: &[i64]) -> Box<[i64]> {
    let mut strides = vec![1; shape.len()];
    for index in (1..shape.len()).rev() {
        strides[index - 1] = strides[index] * shape[index];
    }
    strides.into_boxed_slice()
}

fn wrap<M>(
    py: Python<'_>,
    exported: Exported<M>,
    name: &'static CStr,
    destructor: unsafe extern "C" fn(*mut ffi::PyObject),
) -> PyResult<Py<PyAny>> {
    let exported = NonNull::from(Box::leak(Box::new(exported)));
    // SAFETY: the pointer is valid until it is freed, once, by the destructor or the consumer; the name lives
    // for ever.
    let capsule =
        unsafe { PyCapsule::new_with_pointer_and_destructor(py, exported.cast(), name, Some(destructor)) };
    if capsule.is_err() {
        // SAFETY: nobody has got the pointer.
        drop(unsafe { Box::from_raw(exported.as_ptr()) });
    }
    Ok(capsule?.into_any().unbind())
}

/// Called by the consumer when it is done, on any thread, with or without the interpreter.
///
/// # Safety
/// `managed` is that of a capsule of [`wrap`], and this is the first call with it.
unsafe extern "C" fn delete<M>(managed: *mut M) {
    if !managed.is_null() {
        // SAFETY: `managed` is the first field of an `Exported`, which has the layout of C, and was leaked by
        // `wrap`; the caller promises the first call.
        drop(unsafe { Box::from_raw(managed.cast::<Exported<M>>()) });
    }
}

/// Called by the interpreter when a capsule goes. One that a consumer has taken has another name.
///
/// # Safety
/// `capsule` is a capsule that [`wrap`] made.
unsafe extern "C" fn unused<M, const VERSION: bool>(capsule: *mut ffi::PyObject) {
    let name = if VERSION { VERSIONED } else { PLAIN };
    // SAFETY: the interpreter calls this with a live capsule, and is attached.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, name.as_ptr()) == 1 {
            delete(ffi::PyCapsule_GetPointer(capsule, name.as_ptr()).cast::<M>());
        }
    }
}
