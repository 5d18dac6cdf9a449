//! The Python module `headrace._headrace`: translation between the `headrace` crate and asyncio, nothing
//! else. Protocol, scheduling and retries are the core's; what an object means is the Python package's.
//!
//! | module | what lives there |
//! |---|---|
//! | [`bridge`] | one hub per event loop; how a task waits and is woken |
//! | [`router`], [`reading`], [`response`] | calls, how tasks wait for them, what Python sees of that |
//! | [`worker`], [`sink`], [`context`] | engines, where their items go, what they know of their request |
//! | [`requests`] | requests that are streams, at the caller and at the engine |
//! | [`batch`] | batching: the queue, what submitters await, what functions get |
//! | [`cuda`] | streams of CUDA, what they are lent for, copies |
//! | [`pushing`], [`pump`] | how items go out, how generators are driven |
//! | [`payload`] | objects as bytes and back |
//! | [`metrics`] | the numbers of the process, and where they are told |
//! | [`errors`] | Rust errors as exceptions |
//! | [`runtime`] | tokio's thread, fork, exit, the cold calls |
//! | [`ffi`] | every raw call into CPython |

#![deny(unsafe_code)]

mod audit;
mod batch;
mod bridge;
mod context;
mod cuda;
mod errors;
mod ffi;
mod metrics;
mod payload;
mod pump;
mod pushing;
mod reading;
mod requests;
mod response;
mod router;
mod runtime;
mod sink;
mod worker;

use pyo3::prelude::*;

/// The native part of Headrace; use it through the package `headrace`.
#[pymodule]
mod _headrace {
    #[pymodule_export]
    use crate::audit::_audit;
    #[pymodule_export]
    use crate::batch::flag::Flag;
    #[pymodule_export]
    use crate::batch::gathered::Gathered;
    #[pymodule_export]
    use crate::batch::queue::BatchQueue;
    #[pymodule_export]
    use crate::batch::seat::Seat;
    #[pymodule_export]
    use crate::batch::settings::BatchSettings;
    #[pymodule_export]
    use crate::batch::stream::BatchStream;
    #[pymodule_export]
    use crate::batch::submission::Submission;
    #[pymodule_export]
    use crate::batch::taken::BatchTaken;
    #[pymodule_export]
    use crate::batch::within::Within;
    #[pymodule_export]
    use crate::bridge::loop_hub::LoopHub;
    #[pymodule_export]
    use crate::context::Context;
    #[pymodule_export]
    use crate::cuda::buffer::DeviceBuffer;
    #[pymodule_export]
    use crate::cuda::event::Event;
    #[pymodule_export]
    use crate::cuda::leasing::Leasing;
    #[pymodule_export]
    use crate::cuda::pending::{Done, Pending};
    #[pymodule_export]
    use crate::cuda::pool::{_cuda_external_stream, StreamPool};
    #[pymodule_export]
    use crate::cuda::probe::{
        _cuda_device_count, _cuda_devices, _cuda_planned_budget, _cuda_unavailable_reason,
    };
    #[pymodule_export]
    use crate::cuda::stream::Stream;
    #[pymodule_export]
    use crate::metrics::{MergedPort, metric_families, render_metrics};
    #[pymodule_export]
    use crate::payload::Codec;
    #[pymodule_export]
    use crate::pump::Pump;
    #[pymodule_export]
    use crate::requests::{RequestSink, RequestStream};
    #[pymodule_export]
    use crate::response::{Call, ResponseStream, UnaryCall};
    #[pymodule_export]
    use crate::router::{Router, RouterSettings};
    #[pymodule_export]
    use crate::runtime::{_exit, _forked};
    #[pymodule_export]
    use crate::sink::Sink;
    #[pymodule_export]
    use crate::worker::{EngineSlot, Worker, WorkerSettings, bind};
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("_claimed_bytes", pyo3::wrap_pyfunction!(crate::claimed_bytes, module)?)
    }
}

/// Bytes that windows and unfinished requests claim in this process.
#[pyfunction]
#[pyo3(name = "_claimed_bytes")]
fn claimed_bytes() -> usize {
    headrace::budget::claimed_bytes()
}
