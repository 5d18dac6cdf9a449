//! Copies between Python's buffers and a device, through pinned memory. Small buffers are copied to and from it
//! where the copy is asked for, with the interpreter released; large ones on threads of their own, so that the
//! loop goes on, and these put the device's copy into the stream. Whoever is cancelled gives up the news, not
//! the copy: pinned memory is not used again before its event, and a Python buffer is held until it was read.

use std::sync::Arc;

use bytes::Bytes;
use headrace_cuda::{CudaError, PinnedBytes};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tokio::sync::oneshot;

use super::buffer::{DeviceBuffer, Layout};
use super::host::{OnLoop, on_thread};
use super::pending::{Made, Pending, Work};
use super::pool::Pool;
use super::release::Released;
use super::stream::Stream;
use crate::errors::cuda_error;
use crate::ffi::{Contiguous, ReceivedBuffer};

/// Up to here a copy in memory takes a few microseconds, which is less than handing it to a thread.
const INLINE_BYTES_MAX: usize = 64 * 1024;

type Uploaded = (headrace_cuda::DeviceBuffer, headrace_cuda::Completion);

/// `stream.copy_to_device(buffer)`.
pub(super) fn to_device(stream: &Bound<'_, Stream>, source: &Bound<'_, PyAny>) -> PyResult<Pending> {
    let py = stream.py();
    let (pool, native) = stream.get().parts(py)?;
    let view = Contiguous::read(source)?;
    let (bytes, layout) = (view.len(), Layout::of_view(&view)?);
    if bytes == 0 {
        return Err(cuda_error(py, &CudaError::ZeroBytes));
    }
    let hub = pool.place.hub(py)?;
    let loaned = OnLoop::new(view, hub);
    let held = loaned.share();
    let (from, upload) =
        (native.clone(), move |stream: &headrace_cuda::Stream| -> Result<Uploaded, CudaError> {
            let mut pinned = stream.pinned(bytes)?;
            loaned.with(|view| view.read_into(&mut pinned));
            // Python's buffer is free before the device has read anything, as soon as the loop has its turn.
            drop(loaned);
            stream.upload(pinned)
        });
    let uploaded = staged(py, bytes, move || upload(&from));
    if matches!(uploaded, Staged::Done(_)) {
        drop(held.take());
    }
    let place = Arc::clone(&pool);
    let work: Work = Box::pin(async move {
        let (buffer, completion) = uploaded.wait().await?;
        completion.await?;
        Ok(Box::new(move |py: Python<'_>| {
            // Whoever awaited it may change the buffer's length now.
            drop(held.take());
            Ok(Py::new(py, DeviceBuffer::new(pool, native, buffer, layout))?.into_any())
        }) as Made)
    });
    Pending::new(py, &place.place, "this copy", work)
}

/// `stream.copy_to_host(buffer, out)`.
pub(super) fn to_host(
    stream: &Bound<'_, Stream>,
    buffer: &DeviceBuffer,
    out: Option<&Bound<'_, PyAny>>,
) -> PyResult<Pending> {
    let py = stream.py();
    let (pool, native) = stream.get().parts(py)?;
    let (source, layout) = buffer.parts(py)?;
    let bytes = source.len();
    // Asked for first: what is begun without a loop would have nobody to tell.
    pool.place.hub(py)?;
    let target = out.map(|out| target(&pool, out, bytes)).transpose()?;
    let download = staged(py, bytes, move || {
        let download = native.download(&source, 0, bytes);
        drop((native, source));
        download
    });
    let work: Work = Box::pin(async move {
        let pinned = download.wait().await?.await?;
        let Some((loaned, out)) = target else {
            return Ok(Box::new(move |py: Python<'_>| host_view(py, pinned, &layout)) as Made);
        };
        let view = loaned.share();
        fill(loaned, pinned).wait().await?;
        Ok(Box::new(move |py: Python<'_>| {
            drop(view.take());
            Ok(out.share().take().unwrap_or_else(|| py.None()))
        }) as Made)
    });
    Pending::new(py, &pool.place, "this copy", work)
}

/// What a copy is to be written to, and the object to give back.
fn target(
    pool: &Pool,
    out: &Bound<'_, PyAny>,
    bytes: usize,
) -> PyResult<(OnLoop<Contiguous>, OnLoop<Py<PyAny>>)> {
    let py = out.py();
    let view = Contiguous::write(out)?;
    if view.len() != bytes {
        let room = view.len();
        return Err(PyValueError::new_err(format!("out has {room} bytes, and the buffer {bytes}")));
    }
    let hub = pool.place.hub(py)?;
    let returned = OnLoop::new(out.clone().unbind(), Arc::clone(&hub));
    Ok((OnLoop::new(view, hub), returned))
}

fn fill(loaned: OnLoop<Contiguous>, pinned: PinnedBytes) -> Staged<()> {
    let bytes = pinned.len();
    let write = move || {
        loaned.with(|view| view.write_from(&pinned));
        drop((loaned, pinned));
        Ok(())
    };
    if bytes <= INLINE_BYTES_MAX { Staged::Done(write()) } else { on_other_thread(write) }
}

/// Pinned memory as Python sees it: read-only, in the device buffer's shape, without a copy.
fn host_view(py: Python<'_>, pinned: PinnedBytes, layout: &Layout) -> PyResult<Py<PyAny>> {
    let bytes = Bytes::from_owner(Pinned(Released::new(pinned)));
    let buffer = Bound::new(py, ReceivedBuffer::new(bytes))?;
    let view = pyo3::types::PyMemoryView::from(buffer.as_any())?;
    layout.shape_view(view.into_any())
}

/// Pinned memory that goes back on a thread that may call the driver.
struct Pinned(Released<PinnedBytes>);

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        self.0.get().map_or(&[], |bytes| bytes)
    }
}

/// What was done where it was asked for, or is done by a thread.
enum Staged<T> {
    Done(Result<T, CudaError>),
    Elsewhere(oneshot::Receiver<Result<T, CudaError>>),
}

impl<T> Staged<T> {
    async fn wait(self) -> Result<T, CudaError> {
        match self {
            Self::Done(result) => result,
            // Without an answer the thread is gone, or there was none.
            Self::Elsewhere(answer) => answer.await.unwrap_or(Err(CudaError::Thread)),
        }
    }
}

fn staged<T: Send + 'static>(
    py: Python<'_>,
    bytes: usize,
    work: impl FnOnce() -> Result<T, CudaError> + Send + 'static,
) -> Staged<T> {
    if bytes <= INLINE_BYTES_MAX { Staged::Done(py.detach(work)) } else { on_other_thread(work) }
}

fn on_other_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CudaError> + Send + 'static,
) -> Staged<T> {
    let (sender, answer) = oneshot::channel();
    let started = on_thread(move || {
        // Nobody may want it any more; then it goes back here.
        drop(sender.send(work()));
    });
    if started { Staged::Elsewhere(answer) } else { Staged::Done(Err(CudaError::Thread)) }
}
