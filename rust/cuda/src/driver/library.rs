//! Finds the driver's library before cudarc looks for it, because cudarc panics where it finds none, and
//! where a function is missing that is called. It loads by the same names in the same order, so that both
//! have the same library.

#![allow(unsafe_code, reason = "loading a library runs its initialisers")]

use std::sync::OnceLock;

use libloading::Library;

use crate::error::Unavailable;

/// Every function that is called without asking for it first.
const REQUIRED: [&str; 32] = [
    "cuInit",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxGetStreamPriorityRange",
    "cuCtxSynchronize",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamQuery",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuLaunchKernel",
];
const POOLS: [&str; 5] = [
    "cuMemPoolCreate",
    "cuMemPoolDestroy",
    "cuMemPoolSetAttribute",
    "cuMemAllocFromPoolAsync",
    "cuMemFreeAsync",
];

/// The library, which stays loaded.
pub(crate) struct Loaded {
    _library: Library,
    /// Whether it has memory pools.
    pub(crate) has_pools: bool,
    /// Whether it calls functions of the host.
    pub(crate) calls_host: bool,
}

/// Loads the library once.
pub(crate) fn load() -> Result<&'static Loaded, Unavailable> {
    static LOADED: OnceLock<Result<Loaded, Unavailable>> = OnceLock::new();
    LOADED.get_or_init(find).as_ref().map_err(Clone::clone)
}

fn find() -> Result<Loaded, Unavailable> {
    let names = ["cuda", "nvcuda"].into_iter().flat_map(cudarc::get_lib_name_candidates);
    // SAFETY: these are the driver's names; what its initialisers do is as in every program that uses CUDA.
    let library = names.filter_map(|name| unsafe { Library::new(name) }.ok()).next();
    let library = library.ok_or(Unavailable::NoLibrary)?;
    if let Some(symbol) = REQUIRED.into_iter().find(|symbol| !has(&library, symbol)) {
        return Err(Unavailable::MissingSymbol { symbol });
    }
    let has_pools = POOLS.into_iter().all(|symbol| has(&library, symbol));
    let calls_host = has(&library, "cuLaunchHostFunc");
    Ok(Loaded { _library: library, has_pools, calls_host })
}

fn has(library: &Library, symbol: &str) -> bool {
    // SAFETY: the function is only looked for, never called, so that its type does not matter.
    unsafe { library.get::<unsafe extern "C" fn()>(symbol) }.is_ok()
}
