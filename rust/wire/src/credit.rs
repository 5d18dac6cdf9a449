//! Flow control by byte credits: what may be sent, and what to grant.
//!
//! A receiver's promise is one invariant: *credit that is granted but not used, plus bytes that are
//! buffered and not taken, never exceed the window and one item that comes or came in fragments*. What such
//! an item still lacks is granted on top of the window when it begins, or an item larger than the window
//! could never arrive. Once it is taken, the sum is within the window again.
//!
//! ```text
//!  granted ──────────────────────────────▶   granted = received + window - buffered + expected   (at most)
//!  received ───────────────▶ unused credit
//!  taken ────────▶ buffered
//! ```

use crate::error::StreamError;
use crate::limits::{MESSAGE_MAX_DEFAULT, WINDOW_MAX};

/// The sender's side of a window.
#[derive(Clone, Copy, Debug)]
pub struct SendWindow {
    credit: u64,
    initial: u32,
}

impl SendWindow {
    /// A window with its first credit.
    #[must_use]
    pub const fn new(initial: u32) -> Self {
        Self { credit: initial as u64, initial }
    }

    /// Bytes that may be sent now.
    #[must_use]
    pub const fn available(&self) -> u64 {
        self.credit
    }

    /// The receiver grants again at the latest when unused credit is under half a window, so a sender may
    /// wait for this much but for no more.
    #[must_use]
    pub const fn reachable(&self) -> u64 {
        self.initial as u64 / 2
    }

    /// Uses credit; the caller has checked that it is there.
    pub const fn use_up(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.credit, "bytes are sent only with credit for them");
        self.credit = self.credit.saturating_sub(bytes);
    }

    /// Adds what the receiver granted.
    ///
    /// # Errors
    /// The sum exceeds the largest window: the peer grants what it never announced.
    pub const fn grant(&mut self, bytes: u64) -> Result<(), StreamError> {
        let credit = self.credit.saturating_add(bytes);
        if credit > WINDOW_MAX as u64 {
            return Err(StreamError::CreditOverflow { credit });
        }
        self.credit = credit;
        Ok(())
    }
}

/// The receiver's side of a window.
#[derive(Clone, Copy, Debug)]
pub struct ReceiveWindow {
    window: u64,
    unused: u64,
    buffered: u64,
    expected: u64,
}

impl ReceiveWindow {
    /// A window whose first credit the peer has been told.
    #[must_use]
    pub const fn new(window: u32) -> Self {
        Self { window: window as u64, unused: window as u64, buffered: 0, expected: 0 }
    }

    /// The size of the window in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.window
    }

    /// Bytes that arrived whole and that nobody has taken.
    #[must_use]
    pub const fn buffered(&self) -> u64 {
        self.buffered
    }

    /// Credit that the peer has and did not use.
    #[must_use]
    pub const fn unused(&self) -> u64 {
        self.unused
    }

    /// Bytes arrived.
    ///
    /// # Errors
    /// They are more than was granted.
    pub const fn receive(&mut self, bytes: u64) -> Result<(), StreamError> {
        if bytes > self.unused {
            return Err(StreamError::CreditExceeded { sent: bytes, credit: self.unused });
        }
        self.unused -= bytes;
        self.expected = self.expected.saturating_sub(bytes);
        Ok(())
    }

    /// An item has begun to arrive in fragments and this much of it is still to come: it is granted at once,
    /// so that a large item crosses in one go instead of half a window at a time.
    pub const fn expect(&mut self, bytes: u64) {
        let most = MESSAGE_MAX_DEFAULT as u64;
        self.expected = if bytes < most { bytes } else { most };
    }

    /// Bytes of the arriving item that are granted on top of the window.
    #[must_use]
    pub const fn expected(&self) -> u64 {
        self.expected
    }

    /// Received bytes have become whole items and wait for the consumer.
    pub const fn buffer(&mut self, bytes: u64) {
        self.buffered += bytes;
    }

    /// The consumer took items of this size.
    pub const fn take(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.buffered, "only buffered bytes can be taken");
        self.buffered = self.buffered.saturating_sub(bytes);
    }

    /// The credit to send now, if half a window or more has gathered. Small grants would cost a frame each
    /// and give nothing.
    pub const fn grant(&mut self) -> Option<u64> {
        let room = self.window.saturating_sub(self.buffered);
        let wanted = if room > 0 { room + self.expected } else { 0 };
        // A sender takes no more than this for sane.
        let wanted = if wanted < WINDOW_MAX as u64 { wanted } else { WINDOW_MAX as u64 };
        let missing = wanted.saturating_sub(self.unused);
        if missing < self.window / 2 || missing == 0 {
            return None;
        }
        self.unused += missing;
        Some(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_item_brings_its_credit_back_in_halves() {
        let mut window = ReceiveWindow::new(1000);
        window.receive(499).unwrap();
        window.buffer(499);
        window.take(499);
        assert_eq!(window.grant(), None);
        window.receive(1).unwrap();
        window.buffer(1);
        window.take(1);
        assert_eq!(window.grant(), Some(500));
    }

    #[test]
    fn an_item_larger_than_the_window_arrives_and_then_holds_the_sender_back() {
        let mut window = ReceiveWindow::new(1000);
        for _ in 0..10 {
            window.receive(500).unwrap();
            assert_eq!(window.grant(), Some(500));
        }
        window.buffer(5000);
        window.receive(1000).unwrap();
        window.buffer(1000);
        assert_eq!(window.grant(), None);
        window.take(5000);
        assert_eq!(window.grant(), None);
        window.take(1000);
        assert_eq!(window.grant(), Some(1000));
    }

    #[test]
    fn what_an_item_still_lacks_is_granted_when_it_begins_unless_nobody_reads() {
        let mut window = ReceiveWindow::new(1000);
        window.receive(500).unwrap();
        window.expect(9500);
        assert_eq!(window.grant(), Some(10_000));
        window.receive(9500).unwrap();
        window.buffer(10_000);
        assert_eq!((window.unused(), window.expected(), window.grant()), (1000, 0, None));
        window.receive(500).unwrap();
        window.expect(9500);
        assert_eq!(window.grant(), None, "the first item has not been taken");
        window.take(10_000);
        assert_eq!(window.grant(), Some(10_000));
    }

    #[test]
    fn the_sum_of_grants_stays_below_what_a_sender_accepts() {
        let mut receive = ReceiveWindow::new(WINDOW_MAX);
        let mut send = SendWindow::new(WINDOW_MAX);
        for bytes in [u64::from(WINDOW_MAX) / 2 + 1, 1] {
            send.use_up(bytes);
            receive.receive(bytes).unwrap();
            receive.expect(1 << 40);
            if let Some(granted) = receive.grant() {
                send.grant(granted).unwrap();
            }
        }
        assert_eq!(send.available(), receive.unused());
    }

    #[test]
    fn more_than_granted_is_refused() {
        let mut window = ReceiveWindow::new(10);
        assert_eq!(window.receive(11), Err(StreamError::CreditExceeded { sent: 11, credit: 10 }));
        let mut send = SendWindow::new(10);
        assert!(send.grant(u64::from(WINDOW_MAX)).is_err());
        assert_eq!(send.available(), 10);
    }
}
