//! The process ceiling: how much memory peers may make this process hold, over all links. Windows that are
//! promised, and requests and items of request streams that arrive in fragments, draw on one number; when it
//! runs low, new windows shrink.

use std::sync::atomic::{AtomicUsize, Ordering};

use headrace_wire::limits::STREAM_WINDOW_MIN;

/// Bytes that windows and unfinished requests may claim in one process before new ones shrink or are refused.
pub const PROCESS_CEILING_BYTES: usize = 256 * 1024 * 1024;

/// A new window gets at most this share of what is left, so that the ceiling is approached, never hit at once.
const SHARE: usize = 64;

static CLAIMED: AtomicUsize = AtomicUsize::new(0);

/// Bytes claimed at present.
#[must_use]
pub fn claimed_bytes() -> usize {
    CLAIMED.load(Ordering::Relaxed)
}

/// Bytes claimed until dropped.
#[derive(Debug)]
pub(crate) struct Claim(usize);

impl Claim {
    /// Claims a stream window of `wanted` bytes, or less when the process holds much already. There is
    /// always the smallest window, or nothing could ever be received again.
    pub(crate) fn window(wanted: u32) -> Self {
        let left = PROCESS_CEILING_BYTES.saturating_sub(claimed_bytes());
        let bytes = (wanted as usize).min((left / SHARE).max(STREAM_WINDOW_MIN as usize));
        CLAIMED.fetch_add(bytes, Ordering::Relaxed);
        Self(bytes)
    }

    /// Claims nothing yet; see [`Self::grow_to`].
    pub(crate) const fn none() -> Self {
        Self(0)
    }

    /// Raises the claim; false, and unchanged, when the ceiling does not allow it.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.0);
        if CLAIMED.fetch_add(more, Ordering::Relaxed) + more > PROCESS_CEILING_BYTES {
            CLAIMED.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.0 += more;
        true
    }

    /// Lowers the claim; one that is not above `bytes` stays.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let less = self.0.saturating_sub(bytes);
        CLAIMED.fetch_sub(less, Ordering::Relaxed);
        self.0 -= less;
    }

    /// Whether it is above `bytes`.
    pub(crate) const fn exceeds(&self, bytes: u64) -> bool {
        self.0 as u64 > bytes
    }

    /// The claimed window; windows are at most [`headrace_wire::limits::WINDOW_MAX`].
    pub(crate) const fn bytes(&self) -> u32 {
        self.0 as u32
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.fetch_sub(self.0, Ordering::Relaxed);
    }
}
