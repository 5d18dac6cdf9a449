//! Numbers for Python objects. The core tells keys and clients apart by numbers, equal for equal objects; an
//! object is kept as long as an item with it waits or runs.

use parking_lot::Mutex;
use pyo3::prelude::*;
use rustc_hash::FxHashMap;

/// Objects that no item has are let go when so many have gathered.
const UNUSED_MAX: usize = 256;

#[derive(Debug)]
struct Entry {
    object: Py<PyAny>,
    hash: isize,
    /// How many items have it.
    items: usize,
    /// Whether it is in the list of those that no item may have.
    listed: bool,
}

#[derive(Debug, Default)]
struct Known {
    entries: FxHashMap<u64, Entry>,
    /// Numbers of the objects with this hash.
    by_hash: FxHashMap<isize, Vec<u64>>,
    /// Rises when a number is given or taken back: whoever compared without the lock looks again.
    changes: u64,
    last: u64,
    /// Numbers that no item had when they were put here, each once.
    unused: Vec<u64>,
}

/// See the module's text. (Not a dictionary: letting go of an object would run its hash and its comparison
/// again, which may have begun to raise or to answer otherwise.)
#[derive(Debug, Default)]
pub(super) struct Numbers(Mutex<Known>);

impl Numbers {
    /// The number of `object`, for one more item; never 0.
    ///
    /// # Errors
    /// What its hash or comparison raises.
    pub(super) fn take(&self, object: &Bound<'_, PyAny>) -> PyResult<u64> {
        let gone = self.0.lock().forget();
        // Their destructors run without the lock.
        drop(gone);
        let hash = object.hash()?;
        loop {
            let changes = self.0.lock().changes;
            // Comparing runs Python, and with it perhaps another thread.
            let equal = self.find(object, hash)?;
            let mut known = self.0.lock();
            if known.changes == changes {
                return Ok(known.count(object, hash, equal));
            }
        }
    }

    fn find(&self, object: &Bound<'_, PyAny>, hash: isize) -> PyResult<Option<u64>> {
        for nth in 0.. {
            let Some((number, other)) = self.0.lock().nth(object.py(), hash, nth) else { break };
            if object.is(&other) || other.bind(object.py()).eq(object)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// One item less has this number.
    pub(super) fn release(&self, number: u64) {
        let mut known = self.0.lock();
        let Known { entries, unused, .. } = &mut *known;
        if let Some(entry) = entries.get_mut(&number) {
            entry.items -= 1;
            if entry.items == 0 && !std::mem::replace(&mut entry.listed, true) {
                unused.push(number);
            }
        }
    }
}

impl Known {
    fn nth(&self, py: Python<'_>, hash: isize, nth: usize) -> Option<(u64, Py<PyAny>)> {
        let number = *self.by_hash.get(&hash)?.get(nth)?;
        self.entries.get(&number).map(|entry| (number, entry.object.clone_ref(py)))
    }

    /// One more item has the `equal` one's number, or a new one.
    fn count(&mut self, object: &Bound<'_, PyAny>, hash: isize, equal: Option<u64>) -> u64 {
        if let Some(number) = equal
            && let Some(entry) = self.entries.get_mut(&number)
        {
            entry.items += 1;
            return number;
        }
        self.last += 1;
        self.changes += 1;
        let entry = Entry { object: object.clone().unbind(), hash, items: 1, listed: false };
        self.entries.insert(self.last, entry);
        self.by_hash.entry(hash).or_default().push(self.last);
        self.last
    }

    /// Takes back the numbers that no item has, once enough have gathered: for the caller to drop.
    fn forget(&mut self) -> Vec<Entry> {
        let mut gone = Vec::new();
        if self.unused.len() < UNUSED_MAX {
            return gone;
        }
        self.changes += 1;
        for number in std::mem::take(&mut self.unused) {
            let Some(entry) = self.entries.get_mut(&number) else { continue };
            entry.listed = false;
            if entry.items > 0 {
                continue;
            }
            if let Some(numbers) = self.by_hash.get_mut(&entry.hash) {
                numbers.retain(|&other| other != number);
                if numbers.is_empty() {
                    self.by_hash.remove(&entry.hash);
                }
            }
            gone.extend(self.entries.remove(&number));
        }
        gone
    }
}
