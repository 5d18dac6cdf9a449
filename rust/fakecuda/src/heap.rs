//! Memory of a device, and pinned memory: blocks found by address, so that a copy that misses them is noticed.
//! A block that is being copied stays alive although it is freed meanwhile; its address is gone at once.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::code::{Code, Status};

/// What the driver aligns to.
const ALIGNMENT: usize = 256;
/// What new memory holds.
const FILL: u8 = 0xCD;

/// The number of a memory pool; 0 stands for no pool.
pub(crate) type PoolId = usize;

/// Blocks of one kind of memory, and the pools that some belong to.
#[derive(Debug)]
pub(crate) struct Heap {
    limit_bytes: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    blocks: BTreeMap<usize, (Arc<Block>, PoolId)>,
    used_bytes: u64,
    pools: HashMap<PoolId, Pool>,
    pools_made: usize,
}

/// A memory pool: what it may hold and holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pool {
    pub(crate) max_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) high_bytes: u64,
    pub(crate) threshold_bytes: u64,
}

/// Memory that is given back when nobody holds it any more.
#[derive(Debug)]
pub(crate) struct Block {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: the pointer is owned, and all access goes through the methods below, which copy bytes between
// blocks as a device would: programs that race on their memory see torn bytes, as there.
#[allow(unsafe_code, reason = "memory that stream threads share")]
unsafe impl Send for Block {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "memory that stream threads share")]
unsafe impl Sync for Block {}

impl Heap {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, inner: Mutex::default() }
    }

    /// The address of a new block, filled with a pattern.
    pub(crate) fn allocate(&self, bytes: usize, pool: PoolId) -> Result<usize, Code> {
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let mut inner = self.inner.lock();
        if inner.used_bytes + bytes as u64 > self.limit_bytes {
            return Err(Code::OUT_OF_MEMORY);
        }
        if pool != 0 {
            inner.pools.get_mut(&pool).ok_or(Code::INVALID_HANDLE)?.take(bytes as u64)?;
        }
        let block = Block::new(bytes)?;
        let address = block.start as usize;
        inner.used_bytes += bytes as u64;
        inner.blocks.insert(address, (Arc::new(block), pool));
        Ok(address)
    }

    /// Forgets the block that begins there.
    pub(crate) fn free(&self, address: usize) -> Status {
        let mut inner = self.inner.lock();
        let (block, pool) = inner.blocks.remove(&address).ok_or(Code::INVALID_VALUE)?;
        inner.used_bytes -= block.layout.size() as u64;
        if let Some(pool) = inner.pools.get_mut(&pool) {
            pool.used_bytes = pool.used_bytes.saturating_sub(block.layout.size() as u64);
        }
        Ok(())
    }

    /// The block in which all of `bytes` from `address` on lie, and where in it.
    pub(crate) fn find(&self, address: usize, bytes: usize) -> Option<(Arc<Block>, usize)> {
        let inner = self.inner.lock();
        let (&start, (block, _)) = inner.blocks.range(..=address).next_back()?;
        let offset = address - start;
        (offset.checked_add(bytes)? <= block.layout.size()).then(|| (Arc::clone(block), offset))
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.inner.lock().used_bytes
    }

    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// A pool that holds up to `max_bytes`; 0 means as much as the device has.
    pub(crate) fn new_pool(&self, max_bytes: u64) -> PoolId {
        let mut inner = self.inner.lock();
        inner.pools_made += 1;
        let id = inner.pools_made;
        inner.pools.insert(id, Pool { max_bytes, ..Pool::default() });
        id
    }

    pub(crate) fn drop_pool(&self, id: PoolId) -> Status {
        self.inner.lock().pools.remove(&id).map(|_| ()).ok_or(Code::INVALID_HANDLE)
    }

    pub(crate) fn with_pool<T>(&self, id: PoolId, look: impl FnOnce(&mut Pool) -> T) -> Result<T, Code> {
        self.inner.lock().pools.get_mut(&id).map(look).ok_or(Code::INVALID_HANDLE)
    }
}

impl Pool {
    fn take(&mut self, bytes: u64) -> Status {
        let used = self.used_bytes + bytes;
        if self.max_bytes != 0 && used > self.max_bytes {
            return Err(Code::OUT_OF_MEMORY);
        }
        self.used_bytes = used;
        self.high_bytes = self.high_bytes.max(used);
        Ok(())
    }
}

#[allow(unsafe_code, reason = "memory that is shared with the program under test by address")]
impl Block {
    fn new(bytes: usize) -> Result<Self, Code> {
        let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| Code::OUT_OF_MEMORY)?;
        // SAFETY: the layout's size is not zero, `Heap::allocate` checks.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(Code::OUT_OF_MEMORY);
        }
        // SAFETY: `start` is a new allocation of `bytes` bytes.
        unsafe { start.write_bytes(FILL, bytes) };
        Ok(Self { start, layout })
    }

    /// Copies `bytes` from one place to another. `find` has checked both.
    pub(crate) fn copy(&self, offset: usize, from: &Self, from_offset: usize, bytes: usize) {
        // SAFETY: `Heap::find` has checked that both ranges lie in their blocks, which the caller's `Arc`s
        // keep alive; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from.start.add(from_offset), self.start.add(offset), bytes) };
    }

    /// Copies a slice into the block, where `find` has found room for it.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        // SAFETY: as in `copy`; the slice is memory of this crate and no part of the block.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.start.add(offset), from.len()) };
    }

    /// Copies bytes of the block out, where `find` has found them.
    pub(crate) fn read(&self, offset: usize, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        // SAFETY: as in `write`, the other way.
        unsafe { std::ptr::copy_nonoverlapping(self.start.add(offset), out.as_mut_ptr(), bytes) };
        out
    }

    pub(crate) fn fill(&self, offset: usize, value: u8, bytes: usize) {
        // SAFETY: as in `copy`.
        unsafe { self.start.add(offset).write_bytes(value, bytes) };
    }

    /// Whether the 32-bit word there is not zero. It is read as a device reads what the host may write.
    pub(crate) fn is_set(&self, offset: usize) -> bool {
        // SAFETY: `find` has found four bytes there; the caller has checked that the address is a multiple of 4.
        unsafe { self.start.add(offset).cast::<u32>().read_volatile() != 0 }
    }
}

impl Drop for Block {
    #[allow(unsafe_code, reason = "the end of memory that is shared by address")]
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; nobody holds the block any more.
        unsafe { dealloc(self.start, self.layout) };
    }
}
