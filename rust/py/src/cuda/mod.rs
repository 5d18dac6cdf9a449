//! CUDA as Python sees it: the pool, what it lends, and what is made with that. What a stream, an event or a
//! copy does is decided in `headrace-cuda`.
//!
//! | module | what lives there |
//! |---|---|
//! | [`probe`] | whether there is a driver, and which devices it finds |
//! | [`settings`] | what a pool is made with, checked |
//! | [`pool`], [`leasing`] | `StreamPool`; what `lease` returns |
//! | [`stream`], [`event`] | `Stream`, a lent or foreign one; `Event` |
//! | [`copies`], [`host`] | copies from and to Python's buffers; the bytes of a buffer, without the interpreter |
//! | [`buffer`], [`dlpack`], [`taken`] | `DeviceBuffer`; how other libraries take it over, and let go of it |
//! | [`pending`] | an awaitable for whatever the crate's futures give |
//! | [`release`] | a thread that lets go of what Python has dropped |
//!
//! The interpreter is released around whatever may call the driver. Nothing that Python drops calls it: that
//! is done by a thread which never attaches.

pub(crate) mod buffer;
mod copies;
mod dlpack;
pub(crate) mod event;
mod host;
pub(crate) mod leasing;
pub(crate) mod pending;
pub(crate) mod pool;
pub(crate) mod probe;
mod release;
mod settings;
pub(crate) mod stream;
mod taken;
