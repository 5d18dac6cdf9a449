//! Pinned host memory: what copies from and to a device go through, so that they run beside everything else.
//! Pieces are used again by size, and are not write-combined, so that the host reads them at full speed.
//!
//! `unsafe` is allowed here. Invariant: a piece belongs to one [`PinnedBytes`] or to the free lists; a copy
//! in flight owns the `PinnedBytes` until its event, so that neither its user nor a free list has it before.

#![allow(unsafe_code, reason = "slices over memory that the driver allocates")]

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::slice;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::CudaError;
use crate::open::OpenDevice;

/// The smallest piece. Pinning less costs a page anyway.
const PIECE_MIN: usize = 4096;
/// Sizes are powers of two from the smallest on, up to 1 GiB; above it a piece is as large as it must be and
/// is not kept.
const CLASSES: usize = 19;

/// The pinned memory of a pool.
pub(crate) struct Staging {
    device: OpenDevice,
    /// Free pieces that are kept, at most that many bytes.
    kept_max: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: [Vec<usize>; CLASSES],
    kept: u64,
    allocated: u64,
}

impl Staging {
    pub(crate) fn new(device: OpenDevice, kept_max: u64) -> Arc<Self> {
        Arc::new(Self { device, kept_max, state: Mutex::new(State::default()) })
    }

    /// Bytes that are pinned, used or not.
    pub(crate) fn allocated(&self) -> u64 {
        self.state.lock().allocated
    }

    /// A piece of that many bytes, of which nothing can be said.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Result<PinnedBytes, CudaError> {
        self.device.check()?;
        let (class, capacity) = class_of(len);
        let spare = class.and_then(|class| {
            let mut state = self.state.lock();
            let address = state.free.get_mut(class)?.pop()?;
            state.kept -= capacity as u64;
            Some(address)
        });
        let address = match spare {
            Some(address) => address,
            None => {
                let address = self.device.call(|device| device.allocate_host(capacity))?;
                // SAFETY: the back end gives that many bytes that are nobody else's. A slice over them may
                // only be made once they are initialised.
                unsafe { ptr::write_bytes(address as *mut u8, 0, capacity) };
                self.state.lock().allocated += capacity as u64;
                address
            }
        };
        Ok(PinnedBytes { staging: Arc::clone(self), address, capacity, len })
    }

    fn give(&self, address: usize, capacity: usize) {
        // In a forked child the lock may be held by nobody.
        if self.device.is_foreign() {
            return;
        }
        {
            let mut state = self.state.lock();
            let keeps = state.kept + capacity as u64 <= self.kept_max;
            if let (Some(class), true) = (class_of(capacity).0, keeps) {
                state.free[class].push(address);
                state.kept += capacity as u64;
                return;
            }
            state.allocated -= capacity as u64;
        }
        // SAFETY: it came from the back end, and whoever had it has let it go.
        self.device.release(|device| unsafe { device.free_host(address) });
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for address in self.state.get_mut().free.iter_mut().flat_map(|pieces| pieces.drain(..)) {
            // SAFETY: a piece in a free list is nobody's.
            self.device.release(|device| unsafe { device.free_host(address) });
        }
    }
}

/// The size class of a length, if it has one, and how much is allocated for it.
const fn class_of(len: usize) -> (Option<usize>, usize) {
    let largest = PIECE_MIN << (CLASSES - 1);
    if len > largest {
        return (None, len);
    }
    let capacity = if len <= PIECE_MIN { PIECE_MIN } else { len.next_power_of_two() };
    (Some((capacity / PIECE_MIN).trailing_zeros() as usize), capacity)
}

/// A piece of pinned host memory, as bytes. Goes back to its pool when it is dropped.
pub struct PinnedBytes {
    staging: Arc<Staging>,
    address: usize,
    capacity: usize,
    len: usize,
}

impl PinnedBytes {
    /// Where it lies. It stays there as long as this object.
    #[must_use]
    pub const fn address(&self) -> usize {
        self.address
    }

    /// Keeps the memory from everybody for good: something may still write to it, and it is not known when
    /// that ends.
    pub(crate) fn leak(self) {
        let _ = ManuallyDrop::new(self);
    }

    pub(crate) fn belongs_to(&self, device: &OpenDevice) -> bool {
        self.staging.device.is(device)
    }
}

impl Deref for PinnedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: at least `len` initialised bytes lie there, and no copy in flight writes to them: it would
        // own this object.
        unsafe { slice::from_raw_parts(self.address as *const u8, self.len) }
    }
}

impl DerefMut for PinnedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `self` is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.address as *mut u8, self.len) }
    }
}

impl Drop for PinnedBytes {
    fn drop(&mut self) {
        self.staging.give(self.address, self.capacity);
    }
}

impl fmt::Debug for PinnedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedBytes").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{SimSettings, Simulation};

    #[test]
    fn sizes_are_powers_of_two_with_a_smallest_and_a_largest() {
        assert_eq!(class_of(0), (Some(0), 4096));
        assert_eq!(class_of(4096), (Some(0), 4096));
        assert_eq!(class_of(4097), (Some(1), 8192));
        assert_eq!(class_of(1 << 30), (Some(18), 1 << 30));
        assert_eq!(class_of((1 << 30) + 1), (None, (1 << 30) + 1));
    }

    #[test]
    fn a_piece_is_used_again_and_no_more_are_kept_than_said() {
        let device = OpenDevice::simulated(&Simulation::new(SimSettings::default()));
        let staging = Staging::new(device, 8192);
        let first = staging.take(5000).unwrap();
        let address = first.address();
        drop(first);
        let mut again = staging.take(8000).unwrap();
        assert_eq!(again.address(), address);
        again.fill(7);
        assert_eq!(again.len(), 8000);
        let other = staging.take(8000).unwrap();
        assert_ne!(other.address(), address);
        drop((again, other));
        assert_eq!(staging.allocated(), 8192);
    }
}
