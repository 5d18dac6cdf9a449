//! Large buffers kept for the next large message. Without them every message of a megabyte costs a thousand
//! page faults, since the allocator gives such memory back to the system at once.

use std::sync::{Mutex, PoisonError};

/// Buffers kept at most: a message that arrives while another is decoded, twice over.
const BUFFERS_MAX: usize = 4;
/// Buffers outside this range are not worth keeping, or too much to keep.
const BYTES: std::ops::RangeInclusive<usize> = 128 * 1024..=4 * 1024 * 1024;

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty buffer with room for `capacity` bytes.
pub(crate) fn take(capacity: usize) -> Vec<u8> {
    if BYTES.contains(&capacity) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = spare.iter().position(|buffer| buffer.capacity() >= capacity) {
            return spare.swap_remove(at);
        }
    }
    Vec::with_capacity(capacity)
}

/// The payload of a large message; its buffer is kept for the next one when this is dropped.
#[derive(Debug)]
pub struct Payload(Vec<u8>);

impl Payload {
    /// Wraps a message's bytes.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if BYTES.contains(&self.0.capacity()) {
            let mut buffer = std::mem::take(&mut self.0);
            buffer.clear();
            let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
            if spare.len() < BUFFERS_MAX {
                spare.push(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_few_are_kept() {
        for _ in 0..2 * BUFFERS_MAX {
            drop(Payload::new(Vec::with_capacity(200_000)));
        }
        let payloads: Vec<_> = (0..2 * BUFFERS_MAX).map(|_| Payload::new(take(200_000))).collect();
        drop(payloads);
        assert!(SPARE.lock().unwrap().len() <= BUFFERS_MAX);
        assert!(take(150_000).is_empty());
        assert_eq!(take(10).capacity(), 10);
    }
}
