//! A stand-in for the NVIDIA driver: the shared object of this crate, laid under the name `libcuda.so.1` into
//! a folder of `LD_LIBRARY_PATH`, lets tests run the real loading, binding and pool code without a GPU.
//!
//! It is honest where a mistake in the code under test would otherwise stay hidden:
//!
//! - Each stream is a thread with a queue. An event is not ready before its stream has come to it. Streams run
//!   at the same time, but a device has one engine for copies in each direction.
//! - Device and pinned memory is ordinary memory, so that copies can be checked. It is filled with 0xCD. A copy
//!   looks its blocks up when it runs: one that was freed by then is an illegal address, which is sticky.
//! - A copy from or to memory that is not pinned waits as the driver does: its source is read, or its target
//!   filled, before the call returns.
//! - A sticky error fails everything from then on; host functions are not called any more.
//! - A host function runs on a thread of the driver, holds the driver's lock and its own stream up, and may not
//!   call the driver.
//! - A forked child finds the driver not initialised.
//!
//! Not there: graphs, peers, textures, more than one context for each device. The per-thread default stream is
//! the legacy one. Kernels are known by name alone, see `module`. Faults are scripted by the environment, see
//! `script`. Nothing here is published, and nothing but tests may use it: figures taken with it mean nothing.

mod code;
mod device;
mod driver;
mod event;
mod ffi;
mod heap;
mod module;
mod script;
mod stream;
