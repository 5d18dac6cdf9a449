//! [`CompletionMode::Poll`](super::CompletionMode::Poll): one thread asks about everything in flight. It asks
//! without a pause for a while after each piece of news, then at intervals, and parks when nothing is in
//! flight.

use std::hint;
use std::mem;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Watch;
use super::owner::{Owner, Work};
use crate::error::CudaError;
use crate::open::OpenDevice;
use crate::process::is_ending;

/// Between two rounds of questions when nothing has happened for the time of spinning. As long as a sleeping
/// thread takes to wake up at the least, so that a shorter one would save nothing.
const INTERVAL: Duration = Duration::from_micros(50);

pub(crate) struct Poller {
    shared: Owner<Shared>,
}

struct Shared {
    device: OpenDevice,
    spin: Duration,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    new: Vec<Watch>,
    has_thread: bool,
    is_parked: bool,
    stopped: bool,
}

impl Poller {
    pub(super) fn new(device: OpenDevice, spin: Duration) -> Self {
        let state = Mutex::new(State::default());
        Self { shared: Owner::new(Shared { device, spin, state, work: Condvar::new() }) }
    }

    pub(super) fn watch(&self, watch: Watch) {
        let mut state = self.shared.state.lock();
        let ticket = watch.ticket.clone();
        state.new.push(watch);
        if state.is_parked {
            self.shared.work.notify_one();
        } else if !state.has_thread {
            state.has_thread = self.shared.start().is_ok();
            let is_stuck = !state.has_thread;
            drop(state);
            if let Some(ticket) = ticket.filter(|_| is_stuck) {
                ticket.complete(Err(CudaError::Thread));
            }
        }
    }

    pub(super) fn retry(&self) {
        let mut state = self.shared.state.lock();
        if !state.has_thread && !state.new.is_empty() {
            state.has_thread = self.shared.start().is_ok();
        }
    }

    /// What the thread has, it fails itself: it asks, and is refused.
    pub(super) fn fail_all(&self, error: &CudaError) {
        let watches = mem::take(&mut self.shared.state.lock().new);
        Watch::fail_all(watches, error);
    }
}

impl Work for Shared {
    fn device(&self) -> &OpenDevice {
        &self.device
    }

    fn stop(&self) {
        self.state.lock().stopped = true;
        self.work.notify_all();
    }

    fn run(&self) {
        let mut watches = Vec::new();
        let mut last_news = Instant::now();
        while !is_ending() && self.take_new(&mut watches) {
            let before = watches.len();
            self.ask(&mut watches);
            if watches.len() < before {
                last_news = Instant::now();
            } else if last_news.elapsed() < self.spin {
                hint::spin_loop();
            } else {
                thread::sleep(INTERVAL);
            }
        }
    }
}

impl Shared {
    /// Waits for something to ask about. False when there is nothing and there will be nothing.
    fn take_new(&self, watches: &mut Vec<Watch>) -> bool {
        let mut state = self.state.lock();
        while watches.is_empty() && state.new.is_empty() {
            if state.stopped {
                state.has_thread = false;
                return false;
            }
            state.is_parked = true;
            self.work.wait(&mut state);
            state.is_parked = false;
        }
        watches.append(&mut state.new);
        true
    }

    fn ask(&self, watches: &mut Vec<Watch>) {
        let mut index = 0;
        while let Some(watch) = watches.get(index) {
            let result = match watch.event.query() {
                Ok(false) => {
                    index += 1;
                    continue;
                }
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            watches.remove(index).finish(&result);
        }
    }
}
