//! The one thread that waits for time, for any number of batchers: it sleeps until the earliest of what they
//! named, and not at all while nothing is due. It is started by the first batcher that needs it.
//!
//! A batcher names a time only when it is earlier than those it has named, so most items cost nothing here.
//! A time that has become meaningless is not taken back: it costs one look.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::clock::{NEVER, now_ns};

/// The times that one batcher has named and that have not come: each earlier than the one before. Knowing the
/// later ones too keeps it from naming a deadline anew whenever a window has ended before it.
#[derive(Debug, Default)]
pub(super) struct Named(Vec<u64>);

impl Named {
    /// Whether a time is to be named: it is earlier than all that were.
    pub(super) fn name(&mut self, at_ns: u64) -> bool {
        let earlier = at_ns < self.0.last().copied().unwrap_or(NEVER);
        if earlier {
            self.0.push(at_ns);
        }
        earlier
    }

    /// Whether a time has been named that is no later.
    pub(super) fn covers(&self, at_ns: u64) -> bool {
        at_ns >= self.0.last().copied().unwrap_or(NEVER)
    }

    /// Times that have come are to be named again.
    pub(super) fn pass(&mut self, now_ns: u64) {
        while self.0.last().is_some_and(|&at_ns| at_ns <= now_ns) {
            self.0.pop();
        }
    }
}

/// Somebody who has something to do at a time.
pub(super) trait Timed: Send + Sync {
    /// It is time. When next, if that has not been named yet.
    fn due(self: Arc<Self>) -> Option<u64>;
}

struct Entry {
    at_ns: u64,
    timed: Weak<dyn Timed>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at_ns == other.at_ns
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at_ns.cmp(&other.at_ns)
    }
}

#[derive(Default)]
struct Times {
    heap: BinaryHeap<Reverse<Entry>>,
    running: bool,
}

#[derive(Default)]
struct Timer {
    times: Mutex<Times>,
    earlier: Condvar,
}

static TIMER: OnceLock<Timer> = OnceLock::new();

/// Calls `timed` at `at_ns`, never before.
pub(super) fn call_at(at_ns: u64, timed: Weak<dyn Timed>) {
    let timer = TIMER.get_or_init(Timer::default);
    let mut times = timer.times.lock();
    let first = times.heap.peek().is_none_or(|Reverse(entry)| at_ns < entry.at_ns);
    times.heap.push(Reverse(Entry { at_ns, timed }));
    if !times.running {
        // Without a thread nothing would ever expire; the next one to name a time tries again.
        times.running =
            thread::Builder::new().name("headrace-timer".to_owned()).spawn(move || run(timer)).is_ok();
        if !times.running {
            tracing::error!("the timer's thread cannot be started: nothing expires until it can");
        }
    } else if first {
        timer.earlier.notify_one();
    }
}

/// Has the system wake this thread when it is time: it may be 50 us late otherwise, so that wakes fall together.
/// Where that cannot be had, it is late.
fn be_punctual() {
    let Ok(this) = fs::read_link("/proc/thread-self") else { return };
    if let Some(number) = this.file_name() {
        _ = fs::write(Path::new("/proc").join(number).join("timerslack_ns"), "1");
    }
}

fn run(timer: &Timer) {
    be_punctual();
    let mut times = timer.times.lock();
    loop {
        let Some(Reverse(first)) = times.heap.peek() else {
            timer.earlier.wait(&mut times);
            continue;
        };
        let left_ns = first.at_ns.saturating_sub(now_ns());
        if left_ns > 0 {
            // Longer than any time-out that makes sense: looked at again then.
            let until = Instant::now().checked_add(Duration::from_nanos(left_ns.min(NEVER / 4)));
            match until {
                Some(until) => _ = timer.earlier.wait_until(&mut times, until),
                None => timer.earlier.wait(&mut times),
            }
            continue;
        }
        let Some(Reverse(entry)) = times.heap.pop() else { continue };
        let again = parking_lot::MutexGuard::unlocked(&mut times, || {
            let timed = entry.timed.upgrade()?;
            Some((timed.due()?, entry.timed))
        });
        if let Some((at_ns, timed)) = again {
            times.heap.push(Reverse(Entry { at_ns, timed }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    struct Late {
        named_ns: u64,
        told: Mutex<Sender<u64>>,
    }

    impl Timed for Late {
        fn due(self: Arc<Self>) -> Option<u64> {
            let late_ns = now_ns().checked_sub(self.named_ns).expect("called before its time");
            self.told.lock().send(late_ns).unwrap();
            None
        }
    }

    #[test]
    fn a_time_that_is_still_ahead_is_not_named_again_after_an_earlier_one() {
        let (minute, mut named, mut count) = (60_000, Named::default(), 0);
        for now in (0..1000).step_by(10) {
            named.pass(now);
            // The deadline of an item that comes now, and its window, which ends first.
            count += usize::from(named.name(now + minute));
            count += usize::from(named.name(now + 5));
            named.pass(now + 5);
            count += usize::from(named.name(now + minute));
        }
        assert_eq!(count, 101, "each window, and one deadline");
        named.pass(minute);
        assert!(named.name(minute + 1), "the next deadline is named when that one has come");
        assert!(!named.name(NEVER));
    }

    #[test]
    fn each_time_is_kept_in_order_and_never_early() {
        let (told, heard) = channel();
        let start_ns = now_ns();
        let timed: Vec<_> = (0..40_u64)
            .map(|n| {
                // Named in another order than they come.
                let named_ns = start_ns + (n * 17 % 40) * 500_000;
                Arc::new(Late { named_ns, told: Mutex::new(told.clone()) })
            })
            .collect();
        for late in &timed {
            let weak: Weak<dyn Timed> = Arc::downgrade(late) as Weak<dyn Timed>;
            call_at(late.named_ns, weak);
        }
        for _ in 0..timed.len() {
            heard.recv_timeout(Duration::from_secs(60)).expect("every time comes");
        }
    }

    #[test]
    fn one_that_is_gone_is_forgotten() {
        let (told, heard) = channel();
        let gone = Arc::new(Late { named_ns: 0, told: Mutex::new(told.clone()) });
        let there = Arc::new(Late { named_ns: now_ns() + 2_000_000, told: Mutex::new(told) });
        call_at(now_ns() + 1_000_000, Arc::downgrade(&gone) as Weak<dyn Timed>);
        call_at(there.named_ns, Arc::downgrade(&there) as Weak<dyn Timed>);
        drop(gone);
        heard.recv_timeout(Duration::from_secs(60)).expect("the one that is there");
        assert!(heard.try_recv().is_err());
    }
}
