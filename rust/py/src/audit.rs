//! With the feature `audit`, every entry from Rust into Python that does not come from a Python call is
//! recorded with its thread's name, so that the tests can prove that no tokio thread is among them.
//! `Python::attach` itself is disallowed by clippy in this crate.

#[cfg(feature = "audit")]
static RECORD: parking_lot::Mutex<std::collections::BTreeMap<String, u64>> =
    parking_lot::Mutex::new(std::collections::BTreeMap::new());

/// Notes that this thread entered Python.
pub(crate) fn entered_python() {
    #[cfg(feature = "audit")]
    {
        let name = std::thread::current().name().unwrap_or("unnamed").to_owned();
        *RECORD.lock().entry(name).or_default() += 1;
    }
}

/// Entries by thread name since the start; `None` without the feature `audit`.
#[pyo3::pyfunction]
pub(crate) fn _audit() -> Option<std::collections::BTreeMap<String, u64>> {
    #[cfg(feature = "audit")]
    return Some(RECORD.lock().clone());
    #[cfg(not(feature = "audit"))]
    None
}
