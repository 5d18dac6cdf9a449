//! Numbers for Python objects. The core tells keys and clients apart by numbers, equal for equal objects; an
//! object is kept as long as an item with it is anywhere.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rustc_hash::FxHashMap;

/// Objects that nobody uses any more are looked for when so many have gathered.
const DEAD_MAX: usize = 256;

#[derive(Debug, Default)]
struct Known {
    /// Each number's object, and how many items have it.
    entries: FxHashMap<u64, (Py<PyAny>, usize)>,
    /// Numbers that no item has, with the batch before which that became so.
    dead: Vec<(u64, u64)>,
}

/// See the module's text. The number 0 is nobody's.
#[derive(Debug)]
pub(super) struct Numbers {
    by_object: Py<PyDict>,
    known: Mutex<Known>,
    next: AtomicU64,
}

impl Numbers {
    pub(super) fn new(py: Python<'_>) -> Self {
        Self { by_object: PyDict::new(py).unbind(), known: Mutex::default(), next: AtomicU64::new(1) }
    }

    /// The number of `object`, for one more item. Objects are forgotten whose last item was resolved, and
    /// whose batches ended, before `oldest`, the oldest batch that still runs.
    ///
    /// # Errors
    /// What its hash or comparison raises.
    pub(super) fn take(&self, object: &Bound<'_, PyAny>, oldest: u64) -> PyResult<u64> {
        let py = object.py();
        self.forget(py, oldest)?;
        loop {
            // Hashing runs Python, and with it perhaps another thread: looked at again below.
            let number = match self.by_object.bind(py).get_item(object)? {
                Some(number) => number.extract()?,
                None => {
                    let number = self.next.fetch_add(1, Ordering::Relaxed);
                    self.known.lock().entries.insert(number, (object.clone().unbind(), 0));
                    self.by_object.bind(py).set_item(object, number)?;
                    number
                }
            };
            if let Some((_, items)) = self.known.lock().entries.get_mut(&number) {
                *items += 1;
                return Ok(number);
            }
        }
    }

    /// One item less has this number; it may still be with the batches before `next`.
    pub(super) fn release(&self, number: u64, next: u64) {
        let mut known = self.known.lock();
        let Known { entries, dead } = &mut *known;
        if let Some((_, items)) = entries.get_mut(&number) {
            *items -= 1;
            if *items == 0 {
                dead.push((number, next));
            }
        }
    }

    /// The object with this number, if an item has it.
    pub(super) fn object(&self, py: Python<'_>, number: u64) -> Option<Py<PyAny>> {
        self.known.lock().entries.get(&number).map(|(object, _)| object.clone_ref(py))
    }

    fn forget(&self, py: Python<'_>, oldest: u64) -> PyResult<()> {
        let mut gone = Vec::new();
        {
            let mut known = self.known.lock();
            let Known { entries, dead } = &mut *known;
            if dead.len() < DEAD_MAX {
                return Ok(());
            }
            dead.retain(|&(number, before)| {
                if before > oldest {
                    return true;
                }
                // It may have been used again since.
                if entries.get(&number).is_some_and(|(_, items)| *items == 0) {
                    gone.extend(entries.remove(&number));
                }
                false
            });
        }
        for (object, _) in gone {
            self.by_object.bind(py).call_method1("pop", (object, py.None()))?;
        }
        Ok(())
    }
}
