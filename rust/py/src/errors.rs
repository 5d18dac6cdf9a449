//! Rust errors as Python exceptions: one place. The classes themselves are in `headrace/errors.py`; errors
//! are cold, so they are looked up when raised.

use headrace::discovery::DiscoveryError;
use headrace::{CallError, CallErrorKind, StartError};
use headrace_cuda::{CudaError, Fault, Unavailable};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Builds `headrace.errors.<class>(message, **fields)`.
fn build<'py>(
    py: Python<'py>,
    class: &str,
    message: &str,
    fill: impl FnOnce(&Bound<'py, PyDict>) -> PyResult<()>,
) -> PyErr {
    let made = || -> PyResult<Bound<'py, PyAny>> {
        let fields = PyDict::new(py);
        fill(&fields)?;
        py.import("headrace.errors")?.getattr(class)?.call((message,), Some(&fields))
    };
    match made() {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// An item's failure, or why it was refused.
pub(crate) fn batch_error<'py>(
    py: Python<'py>,
    class: &str,
    message: &str,
    fill: impl FnOnce(&Bound<'py, PyDict>) -> PyResult<()>,
) -> PyErr {
    build(py, class, message, fill)
}

/// A call's failure.
pub(crate) fn call_error(py: Python<'_>, error: &CallError) -> PyErr {
    let message = error.to_string();
    let class = class_of(&error.kind);
    build(py, class, &message, |fields| {
        fields.set_item("phase", error.phase.to_string())?;
        fields.set_item("request_id", &error.request_id)?;
        fields.set_item("instance_id", error.instance.as_deref())?;
        fields.set_item("items", error.items)?;
        match &error.kind {
            CallErrorKind::NoSuchEndpoint { endpoint, available } => {
                fields.set_item("endpoint", endpoint)?;
                fields.set_item("available", available)
            }
            CallErrorKind::Overloaded { retry_after, .. } => {
                fields.set_item("retry_after", retry_after.as_secs_f64())
            }
            CallErrorKind::Disconnected { reason, maybe_executed } => {
                fields.set_item("reason", reason)?;
                fields.set_item("maybe_executed", maybe_executed)
            }
            CallErrorKind::DeadlineExceeded { elapsed } => fields.set_item("elapsed", elapsed.as_secs_f64()),
            CallErrorKind::PayloadTooLarge { limit, actual, setting, .. } => {
                fields.set_item("limit", limit)?;
                fields.set_item("actual", actual)?;
                fields.set_item("setting", setting)
            }
            CallErrorKind::Engine(fault) => {
                fields.set_item("engine_type", &fault.kind)?;
                fields.set_item("engine_message", &fault.message)?;
                let traceback = Some(fault.traceback.as_str()).filter(|text| !text.is_empty());
                fields.set_item("engine_traceback", traceback)
            }
            _ => Ok(()),
        }
    })
}

fn class_of(kind: &CallErrorKind) -> &'static str {
    match kind {
        CallErrorKind::CannotConnect { .. } => "CannotConnect",
        CallErrorKind::NoInstances { .. } => "NoInstances",
        CallErrorKind::NoSuchEndpoint { .. } => "NoSuchEndpoint",
        CallErrorKind::NotUnary { .. } => "NotUnary",
        CallErrorKind::Overloaded { .. } => "Overloaded",
        CallErrorKind::Disconnected { .. } => "Disconnected",
        CallErrorKind::DeadlineExceeded { .. } => "DeadlineExceeded",
        CallErrorKind::ItemTimeout { .. } => "ItemTimeout",
        CallErrorKind::SlowConsumer { .. } => "SlowConsumer",
        CallErrorKind::PayloadTooLarge { .. } => "PayloadTooLarge",
        CallErrorKind::VersionMismatch { .. } => "VersionMismatch",
        CallErrorKind::Authentication { .. } => "AuthenticationError",
        CallErrorKind::Engine(_) => "EngineError",
        _ => "HeadraceError",
    }
}

/// A worker or router that could not be made: a wrong setting or address is a `ValueError`, a refusal of the
/// system an `OSError`.
pub(crate) fn start_error(error: &StartError) -> PyErr {
    let message = error.to_string();
    let source = match error {
        StartError::Bind { source, .. }
        | StartError::MetricsBind { source, .. }
        | StartError::Discovery(DiscoveryError::Io { source, .. }) => source,
        StartError::Discovery(_) => return PyOSError::new_err(message),
        _ => return PyValueError::new_err(message),
    };
    match source.raw_os_error() {
        Some(code) => PyOSError::new_err((code, message)),
        None => PyOSError::new_err(message),
    }
}

/// The runtime cannot run.
pub(crate) fn start_failed(reason: &str) -> PyErr {
    PyRuntimeError::new_err(format!("Headrace's runtime cannot start: {reason}"))
}

/// Use in a forked child.
pub(crate) fn forked(py: Python<'_>) -> PyErr {
    let message = "Headrace was started before this process was forked, and neither its threads nor its \
                   connections exist here; start workers and routers after the fork, or use \
                   multiprocessing's \"spawn\" method";
    build(py, "ForkError", message, |_| Ok(()))
}

/// Nobody wants the engine's answer any more; caught by the pump.
pub(crate) fn stream_killed(py: Python<'_>) -> PyErr {
    build(py, "StreamKilled", "the stream was killed", |_| Ok(()))
}

/// The engine yielded an item over the limit.
pub(crate) fn item_too_large(py: Python<'_>, limit: usize, actual: usize) -> PyErr {
    let message = format!("an item of {actual} bytes exceeds the limit of {limit}; raise max_message_bytes=");
    build(py, "PayloadTooLarge", &message, |fields| {
        fields.set_item("limit", limit)?;
        fields.set_item("actual", actual)?;
        fields.set_item("setting", "max_message_bytes")
    })
}

/// What a CUDA call failed with. A setting or argument that cannot be used is a `ValueError`.
pub(crate) fn cuda_error(py: Python<'_>, error: &CudaError) -> PyErr {
    let message = error.to_string();
    let fault = |fields: &Bound<'_, PyDict>, fault: &Fault| {
        fields.set_item("code", fault.code)?;
        fields.set_item("name", &fault.name)?;
        fields.set_item("operation", fault.operation)
    };
    match error {
        CudaError::NoSuchDevice { .. }
        | CudaError::Invalid(_)
        | CudaError::ZeroBytes
        | CudaError::OutOfBounds { .. }
        | CudaError::OtherDevice => PyValueError::new_err(message),
        CudaError::Unavailable(Unavailable::Forked) | CudaError::Forked => {
            build(py, "CudaForkError", &message, |_| Ok(()))
        }
        CudaError::Unavailable(reason) => {
            build(py, "CudaUnavailable", &message, |fields| fields.set_item("reason", reason.to_string()))
        }
        CudaError::Capacity { max } => build(py, "Capacity", &message, |fields| fields.set_item("max", max)),
        CudaError::LeaseTimeout { waited } => {
            build(py, "LeaseTimeout", &message, |fields| fields.set_item("waited", waited.as_secs_f64()))
        }
        CudaError::PoolClosed => build(py, "PoolClosed", &message, |_| Ok(())),
        CudaError::ForkFailed(cause) => build(py, "ForkFailed", &message, |fields| fault(fields, cause)),
        CudaError::OutOfBudget { requested, current, remaining, limit } => {
            build(py, "OutOfBudget", &message, |fields| {
                fields.set_item("requested", requested)?;
                fields.set_item("current", current)?;
                fields.set_item("remaining", remaining)?;
                fields.set_item("limit", limit)
            })
        }
        CudaError::ContextPoisoned(cause) => build(py, "ContextPoisoned", &message, |fields| {
            fields.set_item("cause", cause.to_string())?;
            fault(fields, cause)
        }),
        CudaError::Driver(cause) => build(py, "CudaError", &message, |fields| fault(fields, cause)),
        _ => build(py, "CudaError", &message, |_| Ok(())),
    }
}
