//! The C interface: exports that check pointers, look handles up, and call the plain Rust behind. Names and
//! types are the driver's own, at the level of CUDA 12.2. Safety is the same everywhere: a pointer is null,
//! which is refused, or points to what the driver's documentation asks for.
#![allow(unsafe_code, reason = "a C interface takes raw pointers")]
#![allow(non_snake_case, reason = "the driver's own names")]

mod device;
mod event;
mod memory;
mod module;
mod pool;
mod stream;

use crate::code::{Code, Status};

/// Writes what a call gives out.
///
/// # Safety
/// `out` is null or valid for a write of `T`.
unsafe fn put<T>(out: *mut T, value: T) -> Status {
    if out.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: not null, and valid by this function's contract.
    unsafe { out.write(value) };
    Ok(())
}
