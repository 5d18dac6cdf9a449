//! A kernel from PTX text, and one such text: a kernel that takes a given time. It is there for benchmarks
//! and tests, which need work of a known length; programs launch theirs through their own libraries.

use std::fmt;
use std::sync::Arc;

use crate::device::{Launch, RawKernel};
use crate::error::CudaError;
use crate::open::OpenDevice;
use crate::stream::Stream;

/// A text of its own, which `benches/gpu` loads too.
const SPIN: &str = include_str!("spin.ptx");

/// A kernel, loaded. It stays loaded: others may have queued it.
#[derive(Clone)]
pub struct Kernel {
    inner: Arc<(OpenDevice, RawKernel)>,
}

impl Kernel {
    /// Loads a kernel of that name from PTX text. On the simulated device every kernel takes as many
    /// nanoseconds as its first argument says.
    ///
    /// # Errors
    /// The driver does not take the text, has no kernel of that name, or the device is lost.
    pub fn load(device: &OpenDevice, ptx: &str, name: &str) -> Result<Self, CudaError> {
        let raw = device.call(|back| back.load_kernel(ptx, name))?;
        Ok(Self { inner: Arc::new((device.clone(), raw)) })
    }

    pub(crate) fn device(&self) -> &OpenDevice {
        &self.inner.0
    }

    pub(crate) fn raw(&self) -> RawKernel {
        self.inner.1
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("raw", &self.inner.1).finish_non_exhaustive()
    }
}

/// A kernel that takes a given time and touches nothing.
#[derive(Clone, Debug)]
pub struct SpinKernel {
    kernel: Kernel,
}

impl SpinKernel {
    /// Loads it.
    ///
    /// # Errors
    /// As for [`Kernel::load`].
    pub fn load(device: &OpenDevice) -> Result<Self, CudaError> {
        Ok(Self { kernel: Kernel::load(device, SPIN, "headrace_spin")? })
    }

    /// Queues it, for so many microseconds.
    ///
    /// # Errors
    /// As for [`Stream::launch`].
    #[allow(unsafe_code, reason = "launches a kernel whose text is known")]
    pub fn launch(&self, stream: &Stream, us: u64) -> Result<(), CudaError> {
        let shape = Launch { blocks: 1, threads: 1 };
        // SAFETY: the kernel above takes one argument of eight bytes and touches no memory.
        unsafe { stream.launch(&self.kernel, shape, &[us.saturating_mul(1000)]) }
    }
}
