//! The memory of a simulated device: blocks of bytes by address.

use std::collections::BTreeMap;

/// Far from what the host's allocator hands out, so that a mix-up of the two does not look right.
const FIRST_ADDRESS: u64 = 0x7000_0000_0000;
const ALIGNMENT: u64 = 256;

#[derive(Debug)]
pub(super) struct Memory {
    blocks: BTreeMap<u64, Box<[u8]>>,
    next: u64,
    used_bytes: u64,
    limit_bytes: u64,
}

impl Memory {
    pub(super) const fn new(limit_bytes: u64) -> Self {
        Self { blocks: BTreeMap::new(), next: FIRST_ADDRESS, used_bytes: 0, limit_bytes }
    }

    /// The address of a new block, if there is room for it.
    pub(super) fn allocate(&mut self, bytes: usize) -> Option<u64> {
        if bytes == 0 || self.used_bytes.saturating_add(bytes as u64) > self.limit_bytes {
            return None;
        }
        let address = self.next;
        // Addresses are not used again: a stale one meets nothing.
        self.next += (bytes as u64).next_multiple_of(ALIGNMENT) + ALIGNMENT;
        self.used_bytes += bytes as u64;
        self.blocks.insert(address, vec![0; bytes].into_boxed_slice());
        Some(address)
    }

    /// Whether there was such a block.
    pub(super) fn free(&mut self, address: u64) -> bool {
        let block = self.blocks.remove(&address);
        self.used_bytes -= block.as_ref().map_or(0, |block| block.len() as u64);
        block.is_some()
    }

    pub(super) fn range(&mut self, address: u64, bytes: usize) -> Option<&mut [u8]> {
        let (start, block) = self.blocks.range_mut(..=address).next_back()?;
        let offset = usize::try_from(address - start).ok()?;
        block.get_mut(offset..offset.checked_add(bytes)?)
    }

    pub(super) const fn used_bytes(&self) -> u64 {
        self.used_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_lie_within_one_living_block() {
        let mut memory = Memory::new(1000);
        let address = memory.allocate(100).unwrap();
        assert!(memory.range(address, 100).is_some());
        assert!(memory.range(address + 50, 50).is_some());
        assert!(memory.range(address + 50, 51).is_none());
        assert!(memory.range(address - 1, 1).is_none());
        assert!(memory.allocate(901).is_none());
        assert!(memory.free(address) && !memory.free(address));
        assert!(memory.range(address, 1).is_none());
        assert_eq!(memory.used_bytes(), 0);
    }
}
