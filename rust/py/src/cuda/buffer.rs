//! `DeviceBuffer`: memory of a device, with the shape and type of what was copied there.

use std::fmt;
use std::sync::Arc;

use headrace_cuda::CudaError;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::dlpack::{self, DataType};
use super::pool::Pool;
use super::release::Released;
use super::stream::Stream;
use super::taken::{LEGACY_DEFAULT, Taken, show};
use crate::errors::cuda_error;
use crate::ffi::Contiguous;
use crate::runtime::is_forked;

/// How the bytes of a buffer are to be read.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// As NumPy's array interface writes it.
    typestr: String,
    /// As the buffer protocol writes it.
    format: String,
    pub(super) data_type: DataType,
    pub(super) shape: Vec<usize>,
}

/// Element types: the buffer protocol's, the array interface's kind, DLPack's code, bytes.
const TYPES: &[(&str, char, u8, usize)] = &[
    ("B", 'u', 1, 1),
    ("H", 'u', 1, 2),
    ("I", 'u', 1, 4),
    ("Q", 'u', 1, 8),
    ("L", 'u', 1, 8),
    ("b", 'i', 0, 1),
    ("h", 'i', 0, 2),
    ("i", 'i', 0, 4),
    ("q", 'i', 0, 8),
    ("l", 'i', 0, 8),
    ("e", 'f', 2, 2),
    ("f", 'f', 2, 4),
    ("d", 'f', 2, 8),
    ("?", 'b', 6, 1),
    ("Zf", 'c', 5, 8),
    ("Zd", 'c', 5, 16),
];

impl Layout {
    fn new(kind: (&str, char, u8, usize), shape: Vec<usize>) -> Self {
        let (format, letter, code, size) = kind;
        let order = if size == 1 { '|' } else { '<' };
        Self {
            typestr: format!("{order}{letter}{size}"),
            format: format.to_owned(),
            data_type: DataType { code, bits: (size * 8) as u8, lanes: 1 },
            shape,
        }
    }

    /// Of a buffer of Python. One of a type that has no name elsewhere counts as bytes.
    pub(super) fn of_view(view: &Contiguous) -> PyResult<Self> {
        let format = view.format().trim_start_matches(['@', '=', '<']);
        let known = TYPES.iter().find(|known| known.0 == format && known.3 == view.item_size());
        Ok(known.map_or_else(
            || Self::new(TYPES[0], vec![view.len()]),
            |known| Self::new(*known, view.shape().to_vec()),
        ))
    }

    /// Of memory that nothing was copied to yet.
    pub(super) fn of_array(bytes: usize, shape: Option<Vec<usize>>, typestr: &str) -> PyResult<Self> {
        let known = TYPES.iter().find(|(_, letter, _, size)| {
            let tail = format!("{letter}{size}");
            [format!("<{tail}"), format!("|{tail}"), tail].contains(&typestr.to_owned())
        });
        let known = known.ok_or_else(|| {
            PyValueError::new_err(format!("typestr {typestr:?} is not known; \"<f4\" is an example"))
        })?;
        let shape = shape.unwrap_or_else(|| vec![bytes / known.3]);
        let needed = shape.iter().try_fold(known.3, |all, size| all.checked_mul(*size));
        if needed != Some(bytes) {
            return Err(PyValueError::new_err(format!("{shape:?} of {typestr} are not {bytes} bytes")));
        }
        Ok(Self::new(*known, shape))
    }

    /// A view of bytes as a view of this shape and type, where a memoryview can be that.
    pub(super) fn shape_view(&self, view: Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let py = view.py();
        let is_bytes = self.format == "B" && self.shape.len() == 1;
        // What memoryviews cannot be cast to stays bytes; arrays without a dimension cannot either.
        if is_bytes || self.format.len() > 1 || self.format == "e" || self.shape.is_empty() {
            return Ok(view.unbind());
        }
        let shape = PyTuple::new(py, &self.shape)?;
        Ok(view.call_method1("cast", (&self.format, shape))?.unbind())
    }
}

/// Memory of a device, freed in the order of its stream when nobody holds it.
#[pyclass(frozen, weakref, name = "DeviceBuffer", module = "headrace.cuda")]
pub(crate) struct DeviceBuffer {
    parts: Released<Parts>,
    layout: Layout,
}

struct Parts {
    buffer: headrace_cuda::DeviceBuffer,
    stream: headrace_cuda::Stream,
    pool: Arc<Pool>,
}

impl DeviceBuffer {
    pub(super) fn new(
        pool: Arc<Pool>,
        stream: headrace_cuda::Stream,
        buffer: headrace_cuda::DeviceBuffer,
        layout: Layout,
    ) -> Self {
        Self { parts: Released::new(Parts { buffer, stream, pool }), layout }
    }

    fn get(&self, py: Python<'_>) -> PyResult<&Parts> {
        self.parts.get().filter(|_| !is_forked()).ok_or_else(|| cuda_error(py, &CudaError::Forked))
    }

    pub(super) fn parts(&self, py: Python<'_>) -> PyResult<(headrace_cuda::DeviceBuffer, Layout)> {
        Ok((self.get(py)?.buffer.clone(), self.layout.clone()))
    }

    /// Refuses to show memory to other libraries that they would take for a device's.
    fn shown(&self, py: Python<'_>) -> PyResult<&Parts> {
        let parts = self.get(py)?;
        if parts.pool.is_simulated() {
            return Err(PyBufferError::new_err("memory of a simulated device cannot be shared"));
        }
        Ok(parts)
    }

    /// Has the consumer's stream wait for what was written.
    fn order_before(&self, py: Python<'_>, consumer: i64) -> PyResult<()> {
        let parts = self.get(py)?;
        let handle = usize::try_from(consumer).map_err(|_| {
            PyValueError::new_err(format!("stream must be -1, 1, 2 or a handle, not {consumer}"))
        })?;
        let (pool, buffer) = (Arc::clone(&parts.pool), parts.buffer.clone());
        let ordered = py.detach(move || {
            let ordered = buffer.wait_on(&pool.native()?.external(handle));
            drop((buffer, pool));
            ordered
        });
        ordered.map_err(|error| cuda_error(py, &error))
    }
}

#[pymethods]
impl DeviceBuffer {
    #[getter]
    fn nbytes(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.get(py)?.buffer.len())
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.layout.shape)
    }

    #[getter]
    fn typestr(&self) -> &str {
        &self.layout.typestr
    }

    /// The number of its device.
    #[getter]
    fn device(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.get(py)?.pool.ordinal())
    }

    /// Its address on the device.
    #[getter]
    fn address(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.get(py)?.buffer.address())
    }

    /// Has a stream wait for what others do with the buffer.
    fn wait_on(&self, py: Python<'_>, stream: &Stream) -> PyResult<()> {
        let buffer = self.get(py)?.buffer.clone();
        stream.call(py, move |stream| {
            let ordered = buffer.wait_on(stream);
            drop(buffer);
            ordered
        })
    }

    /// Keeps the memory until a stream has come to the end of what it was given so far.
    fn record_use(&self, py: Python<'_>, stream: &Stream) -> PyResult<()> {
        let buffer = self.get(py)?.buffer.clone();
        stream.call(py, move |stream| {
            let recorded = buffer.record_use(stream);
            drop(buffer);
            recorded
        })
    }

    /// The buffer for libraries that know the array interface for CUDA, version 3.
    #[getter]
    fn __cuda_array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let parts = self.shown(py)?;
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", self.shape(py)?)?;
        interface.set_item("typestr", &self.layout.typestr)?;
        interface.set_item("data", (parts.buffer.address(), false))?;
        interface.set_item("strides", py.None())?;
        // What is there may be held by a thread that calls the driver.
        let is_ready = py.detach(|| parts.buffer.ready().is_none_or(|event| event.query().unwrap_or(false)));
        let stream = (!is_ready).then(|| match show(&parts.pool, &parts.stream) {
            0 => LEGACY_DEFAULT,
            handle => handle,
        });
        interface.set_item("stream", stream)?;
        Ok(interface)
    }

    fn __dlpack_device__(&self, py: Python<'_>) -> PyResult<(i32, i32)> {
        self.shown(py)?;
        Ok((dlpack::CUDA, i32::try_from(self.device(py)?).unwrap_or(0)))
    }

    /// The buffer for libraries that know DLPack.
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__(
        &self,
        py: Python<'_>,
        stream: Option<i64>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Py<PyAny>> {
        let device = self.__dlpack_device__(py)?;
        if dl_device.is_some_and(|wanted| wanted != device) || copy == Some(true) {
            return Err(PyBufferError::new_err("the buffer is shared as it is, where it is"));
        }
        let consumer = stream.unwrap_or(LEGACY_DEFAULT as i64);
        match consumer {
            -1 => {}
            0 => {
                return Err(PyValueError::new_err(
                    "stream must not be 0, which means several things; 1 is the default stream",
                ));
            }
            _ => self.order_before(py, consumer)?,
        }
        let parts = self.get(py)?;
        let consumer = usize::try_from(consumer).ok();
        let keep = Released::new(Taken::new(parts.buffer.clone(), Arc::clone(&parts.pool), consumer));
        let is_versioned = max_version.is_some_and(|(major, _)| major >= 1);
        dlpack::capsule(py, parts.buffer.address(), device, &self.layout, Box::new(keep), is_versioned)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.nbytes(py)
    }

    fn __repr__(&self) -> String {
        format!("<headrace.cuda.DeviceBuffer {:?} of {}>", self.layout.shape, self.layout.typestr)
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceBuffer").field("layout", &self.layout).finish_non_exhaustive()
    }
}
