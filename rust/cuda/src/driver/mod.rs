//! The back end that is CUDA's driver, through cudarc's thin layers (`result` and `sys`); its safe layer
//! records events and creates streams in ways that the pool must not.
//!
//! `unsafe` is allowed in [`device`] and in [`library`], where the library is loaded.

mod device;
mod library;

pub(crate) use self::device::{Driver, describe, fault};
pub(crate) use self::library::load;
