//! Events. Recording one puts a *mark* into a stream; whoever waits, waits for the mark of the newest record at
//! that time, however often the event is recorded later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::code::{Code, Status};

/// Waiting for an event blocks the thread instead of spinning.
const BLOCKING_SYNC: u32 = 1;
/// The event takes no times.
const DISABLE_TIMING: u32 = 2;

/// A place in a stream that it comes to, or that a broken device gives up.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    reached: Mutex<Option<(Status, Instant)>>,
    changed: Condvar,
}

impl Mark {
    pub(crate) fn reach(&self, status: Status) {
        *self.reached.lock() = Some((status, Instant::now()));
        self.changed.notify_all();
    }

    pub(crate) fn wait(&self) -> Status {
        let mut reached = self.reached.lock();
        loop {
            if let Some((status, _)) = *reached {
                return status;
            }
            self.changed.wait(&mut reached);
        }
    }

    /// Waits as a thread does that the driver lets spin.
    pub(crate) fn spin(&self) -> Status {
        loop {
            if let Some((status, _)) = *self.reached.lock() {
                return status;
            }
            std::thread::yield_now();
        }
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.reached.lock().is_some()
    }

    fn at(&self) -> Option<Instant> {
        self.reached.lock().map(|(_, at)| at)
    }
}

/// An event: the mark of its newest record.
#[derive(Debug)]
pub(crate) struct Event {
    flags: u32,
    newest: Mutex<Option<Arc<Mark>>>,
}

impl Event {
    pub(crate) fn new(flags: u32) -> Self {
        Self { flags, newest: Mutex::new(None) }
    }

    pub(crate) fn record(&self, mark: Arc<Mark>) {
        *self.newest.lock() = Some(mark);
    }

    pub(crate) fn newest(&self) -> Option<Arc<Mark>> {
        self.newest.lock().clone()
    }

    /// An event that was never recorded counts as reached.
    pub(crate) fn query(&self) -> Status {
        self.newest()
            .map_or(Ok(()), |mark| mark.reached.lock().map_or(Err(Code::NOT_READY), |(status, _)| status))
    }

    pub(crate) fn synchronize(&self) -> Status {
        let Some(mark) = self.newest() else { return Ok(()) };
        if self.flags & BLOCKING_SYNC == 0 { mark.spin() } else { mark.wait() }
    }

    pub(crate) fn since(&self, start: &Self) -> Result<Duration, Code> {
        if (self.flags | start.flags) & DISABLE_TIMING != 0 {
            return Err(Code::INVALID_HANDLE);
        }
        let (Some(start), Some(end)) = (start.newest(), self.newest()) else {
            return Err(Code::INVALID_HANDLE);
        };
        match (start.at(), end.at()) {
            (Some(start), Some(end)) => Ok(end.saturating_duration_since(start)),
            _ => Err(Code::NOT_READY),
        }
    }
}
