//! Python objects as item payloads and back. What an object means is decided by the Python side's codec
//! (msgspec); here it is told apart by exact type, copied or shared.

use std::sync::Arc;

use bytes::Bytes;
use headrace::Item;
use headrace::wire::kind::Encoding;
use headrace::wire::limits::REFERENCE_BYTES_MIN;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMemoryView, PyString, PyTuple,
};

use crate::bridge::hub::{Event, Hub};
use crate::ffi::ReceivedBuffer;

/// How values are encoded and decoded: callables of the Python side.
#[pyclass(frozen, module = "headrace._headrace")]
#[derive(Debug)]
pub(crate) struct Codec {
    /// `(object) -> bytes`: one msgpack value.
    encode: Py<PyAny>,
    /// The same, asked when that failed: it says which part cannot be sent. Not a step of every item, since
    /// it is a Python function.
    encode_or_explain: Py<PyAny>,
    /// `(object) -> bytes | None`: an array, or `None` for what is none.
    encode_array: Py<PyAny>,
    /// `(buffer) -> object`: one msgpack value.
    decode: Py<PyAny>,
    /// `(buffer) -> object`: an array.
    decode_array: Py<PyAny>,
    /// Raw items as memoryviews of the received bytes instead of as `bytes`.
    views: bool,
}

#[pymethods]
impl Codec {
    #[new]
    #[pyo3(signature = (encode, encode_or_explain, encode_array, decode, decode_array, views))]
    const fn new(
        encode: Py<PyAny>,
        encode_or_explain: Py<PyAny>,
        encode_array: Py<PyAny>,
        decode: Py<PyAny>,
        decode_array: Py<PyAny>,
        views: bool,
    ) -> Self {
        Self { encode, encode_or_explain, encode_array, decode, decode_array, views }
    }
}

/// An encoded object: immutable bytes that Python owns.
pub(crate) struct Encoded<'py> {
    pub(crate) encoding: u8,
    pub(crate) bytes: Bound<'py, PyBytes>,
}

impl Codec {
    pub(crate) fn encode<'py>(&self, object: &Bound<'py, PyAny>) -> PyResult<Encoded<'py>> {
        let py = object.py();
        let raw = Encoding::Raw as u8;
        if let Ok(bytes) = object.cast::<PyBytes>() {
            return Ok(Encoded { encoding: raw, bytes: bytes.clone() });
        }
        if object.is_instance_of::<PyByteArray>() || object.is_instance_of::<PyMemoryView>() {
            let bytes = py.get_type::<PyBytes>().call1((object,))?.cast_into::<PyBytes>()?;
            return Ok(Encoded { encoding: raw, bytes });
        }
        if !is_builtin(object) {
            let array = self.encode_array.bind(py).call1((object,))?;
            if !array.is_none() {
                let bytes = array.cast_into::<PyBytes>()?;
                return Ok(Encoded { encoding: Encoding::Ndarray as u8, bytes });
            }
        }
        let encoded = match self.encode.bind(py).call1((object,)) {
            Err(error) if error.is_instance_of::<PyException>(py) => {
                self.encode_or_explain.bind(py).call1((object,))
            }
            encoded => encoded,
        };
        Ok(Encoded { encoding: Encoding::Msgpack as u8, bytes: encoded?.cast_into::<PyBytes>()? })
    }

    pub(crate) fn decode<'py>(&self, py: Python<'py>, item: &Item) -> PyResult<Bound<'py, PyAny>> {
        let payload = &item.payload;
        match Encoding::from_u8(item.encoding) {
            Some(Encoding::Raw) if self.views => {
                let buffer = Bound::new(py, ReceivedBuffer::new(payload.clone()))?;
                Ok(PyMemoryView::from(buffer.as_any())?.into_any())
            }
            Some(Encoding::Raw) => Ok(PyBytes::new(py, payload).into_any()),
            Some(Encoding::Msgpack) => self.decode.bind(py).call1((buffer(py, payload)?,)),
            Some(Encoding::Ndarray) => self.decode_array.bind(py).call1((buffer(py, payload)?,)),
            None => Err(PyValueError::new_err(format!("unknown item encoding {}", item.encoding))),
        }
    }
}

/// Whether an object is of a builtin type, and therefore neither an array nor a stream of items.
fn is_builtin(object: &Bound<'_, PyAny>) -> bool {
    object.is_exact_instance_of::<PyDict>()
        || object.is_exact_instance_of::<PyString>()
        || object.is_exact_instance_of::<PyInt>()
        || object.is_exact_instance_of::<PyFloat>()
        || object.is_exact_instance_of::<PyList>()
        || object.is_exact_instance_of::<PyTuple>()
        || object.is_exact_instance_of::<PyBool>()
        || object.is_none()
}

/// Whether a request is to be sent as a stream of items: it is asynchronously iterable, and of no type that
/// has an encoding as a whole.
pub(crate) fn is_stream(request: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = request.py();
    if request.is_exact_instance_of::<PyBytes>() || is_builtin(request) {
        return Ok(false);
    }
    let kind = request.get_type();
    if !kind.hasattr(pyo3::intern!(py, "__aiter__"))? {
        return Ok(false);
    }
    let is_value = request.is_instance_of::<PyDict>()
        || request.is_instance_of::<PyList>()
        || request.is_instance_of::<PyTuple>()
        || request.is_instance_of::<PyString>()
        || request.is_instance_of::<PyBytes>()
        || kind.hasattr(pyo3::intern!(py, "__struct_fields__"))?
        || kind.hasattr(pyo3::intern!(py, "__dataclass_fields__"))?
        || kind.hasattr(pyo3::intern!(py, "__attrs_attrs__"))?
        || kind.hasattr(pyo3::intern!(py, "model_dump"))?;
    Ok(!is_value)
}

/// What arrays rely on for their data; the data lie at a multiple of it within the payload.
const ALIGNMENT: usize = 16;

/// The payload as something a decoder can read: copied when small, shared when large. One that lies askew
/// is copied too: it came among others in one frame of 64 KiB at most, and arrays want their data aligned.
fn buffer<'py>(py: Python<'py>, payload: &Bytes) -> PyResult<Bound<'py, PyAny>> {
    if payload.len() < REFERENCE_BYTES_MIN || !payload.as_ptr().addr().is_multiple_of(ALIGNMENT) {
        return Ok(PyBytes::new(py, payload).into_any());
    }
    Ok(Bound::new(py, ReceivedBuffer::new(payload.clone()))?.into_any())
}

/// Bytes that Python owns, readable without the interpreter and freed on the loop's thread.
struct Owned {
    bytes: Option<PyBackedBytes>,
    hub: Arc<Hub>,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            if self.hub.is_loop_thread() {
                drop(bytes);
            } else {
                self.hub.push(Event::Trash(bytes));
            }
        }
    }
}

/// Shares Python's bytes with the core.
pub(crate) fn share(hub: &Arc<Hub>, bytes: &Bound<'_, PyBytes>) -> Bytes {
    let bytes = Some(PyBackedBytes::from(bytes.clone()));
    Bytes::from_owner(Owned { bytes, hub: Arc::clone(hub) })
}

/// Python's bytes for the core: copied when small, shared when large.
pub(crate) fn own(hub: &Arc<Hub>, bytes: &Bound<'_, PyBytes>) -> Bytes {
    if bytes.as_bytes().len() < REFERENCE_BYTES_MIN {
        return Bytes::copy_from_slice(bytes.as_bytes());
    }
    share(hub, bytes)
}
