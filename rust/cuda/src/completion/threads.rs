//! [`CompletionMode::Event`](super::CompletionMode::Event): a thread waits for each stream that has something
//! in flight.
//!
//! Watches queue in lanes, one for each stream, whose events are reached in order; a thread owns a lane while
//! anything is in it. Threads are started when no idle one is there, park while idle, and end after ten
//! seconds of that. An event that was recorded before one that its lane has already gets a lane of its own,
//! so that it does not wait for the later one.

use std::collections::{HashMap, VecDeque};
use std::hint;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Watch;
use super::owner::{Owner, Work};
use crate::device::{RawEvent, RawStream};
use crate::error::CudaError;
use crate::open::OpenDevice;
use crate::process::is_ending;

/// Streams that are waited for at once. Lanes above it wait for a thread.
const THREADS_MAX: usize = 64;
const IDLE_MAX: Duration = Duration::from_secs(10);

pub(crate) struct WaiterThreads {
    shared: Owner<Shared>,
}

struct Shared {
    device: OpenDevice,
    spin: Duration,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum LaneKey {
    Stream(RawStream),
    /// Of one event that came too late for its stream's lane.
    Late(u64),
}

#[derive(Default)]
struct State {
    lanes: HashMap<LaneKey, VecDeque<Watch>>,
    /// Lanes that no thread owns.
    ready: VecDeque<LaneKey>,
    threads: usize,
    idle: usize,
    stopped: bool,
}

impl WaiterThreads {
    pub(super) fn new(device: OpenDevice, spin: Duration) -> Self {
        let state = Mutex::new(State::default());
        Self { shared: Owner::new(Shared { device, spin, state, work: Condvar::new() }) }
    }

    pub(super) fn watch(&self, watch: Watch) {
        let mut state = self.shared.state.lock();
        let mut key = LaneKey::Stream(watch.event.raw_stream());
        let last = state.lanes.get(&key).and_then(VecDeque::back);
        if last.is_some_and(|last| last.event.serial() > watch.event.serial()) {
            key = LaneKey::Late(watch.event.serial());
        }
        let lost = self.shared.device.lost();
        if let Some(error) = lost {
            drop(state);
            return watch.finish(&Err(error));
        }
        let ticket = watch.ticket.clone();
        if let Some(lane) = state.lanes.get_mut(&key) {
            lane.push_back(watch);
            // It has a thread, or waits for one, unless none could be started.
            if state.threads > 0 {
                return;
            }
        } else {
            state.lanes.insert(key, VecDeque::from([watch]));
            state.ready.push_back(key);
        }
        self.attend(&mut state);
        let is_stuck = state.threads == 0;
        drop(state);
        // What the watch keeps stays kept until a thread is found later; whoever waits is told.
        if let Some(ticket) = ticket.filter(|_| is_stuck) {
            ticket.complete(Err(CudaError::Thread));
        }
    }

    /// Has a thread come for the lanes that are ready.
    fn attend(&self, state: &mut State) {
        if state.idle >= state.ready.len() {
            self.shared.work.notify_one();
        } else if state.threads < THREADS_MAX {
            state.threads += usize::from(self.shared.start().is_ok());
        }
    }

    pub(super) fn retry(&self) {
        let mut state = self.shared.state.lock();
        if state.threads == 0 && !state.ready.is_empty() {
            self.attend(&mut state);
        }
    }

    pub(super) fn fail_all(&self, error: &CudaError) {
        let watches: Vec<Watch> =
            self.shared.state.lock().lanes.values_mut().flat_map(|lane| lane.drain(..)).collect();
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
        while let Some(key) = self.next_lane() {
            while let Some((event, serial)) = self.first_of(key) {
                let result = self.wait_for(event);
                if is_ending() {
                    return;
                }
                self.finish_first(key, serial, &result);
            }
        }
    }
}

impl Shared {
    /// A lane that nobody owns, or none when this thread is to end.
    fn next_lane(&self) -> Option<LaneKey> {
        let mut state = self.state.lock();
        loop {
            if let Some(key) = state.ready.pop_front() {
                return Some(key);
            }
            if state.stopped {
                break;
            }
            state.idle += 1;
            let timed_out = self.work.wait_for(&mut state, IDLE_MAX).timed_out();
            state.idle -= 1;
            if timed_out && state.ready.is_empty() {
                break;
            }
        }
        state.threads -= 1;
        None
    }

    /// The event that the lane waits for. A lane without one is given up.
    fn first_of(&self, key: LaneKey) -> Option<(RawEvent, u64)> {
        let mut state = self.state.lock();
        let first = state.lanes.get(&key).and_then(VecDeque::front);
        let first = first.map(|watch| (watch.event.raw(), watch.event.serial()));
        if first.is_none() {
            state.lanes.remove(&key);
        }
        first
    }

    /// Without a lock: the event cannot be used again, for its watch is still in the lane, or the device is
    /// lost and nothing is used again.
    fn wait_for(&self, event: RawEvent) -> Result<(), CudaError> {
        let begun = Instant::now();
        while begun.elapsed() < self.spin {
            if self.device.call(|device| device.query_event(event))? {
                return Ok(());
            }
            hint::spin_loop();
        }
        self.device.call(|device| device.synchronize_event(event))
    }

    fn finish_first(&self, key: LaneKey, serial: u64, result: &Result<(), CudaError>) {
        let watch = {
            let mut state = self.state.lock();
            state.lanes.get_mut(&key).and_then(|lane| {
                let is_first = lane.front().is_some_and(|watch| watch.event.serial() == serial);
                if is_first { lane.pop_front() } else { None }
            })
        };
        if let Some(watch) = watch {
            watch.finish(result);
        }
    }
}
