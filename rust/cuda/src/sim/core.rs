//! The state of a simulated device behind its lock, the clock, and the thread that calls host functions.
//!
//! `unsafe` is allowed here: copies touch host memory when their work ends, as a GPU would, so that memory
//! which is used again too early shows in the bytes.

#![allow(unsafe_code, reason = "bytes move when the simulated work ends, between raw addresses")]

use std::alloc::Layout;
use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::c_void;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::engine::{Act, Effect, Engine, Lane};
use super::memory::Memory;
use super::script::{Script, SimCall, When, fault};
use super::{SimClock, SimSettings};
use crate::device::{HostCall, RawStream};
use crate::error::Fault;

type Answer<T> = Result<T, Fault>;

pub(super) struct Core {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) settings: SimSettings,
    pub(super) begun: Instant,
}

/// How the device's time differs from time itself.
#[derive(Default)]
pub(super) struct Stops {
    /// Since when it stands still.
    since: Option<Instant>,
    /// How long it has stood still before.
    total: Duration,
}

impl Stops {
    pub(super) fn stop(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    pub(super) fn go_on(&mut self) {
        if let Some(since) = self.since.take() {
            self.total += since.elapsed();
        }
    }

    /// The time since then that has passed on the device.
    fn passed(&self, begun: Instant) -> Duration {
        let until = self.since.unwrap_or_else(Instant::now);
        until.duration_since(begun).saturating_sub(self.total)
    }

    /// When that much time will have passed, unless it stands still.
    fn when(&self, begun: Instant, passed: Duration) -> Option<Instant> {
        if self.since.is_some() { None } else { Some(begun + self.total + passed) }
    }
}

pub(super) struct State {
    pub(super) engine: Engine,
    pub(super) stops: Stops,
    pub(super) memory: Memory,
    pub(super) script: Script,
    pub(super) host: HashMap<usize, Layout>,
    pub(super) pools: HashMap<usize, u64>,
    pub(super) timed: HashSet<usize>,
    pub(super) calls: VecDeque<(RawStream, HostCall)>,
    pub(super) lost: Option<u32>,
    pub(super) next_handle: usize,
    pub(super) has_thread: bool,
    pub(super) closed: bool,
}

thread_local! {
    static IS_CALLING: Cell<bool> = const { Cell::new(false) };
}

impl Core {
    /// The state, with everything done that is due.
    pub(super) fn settled(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        let until = match self.settings.clock {
            SimClock::Wall => u64::try_from(state.stops.passed(self.begun).as_nanos()).unwrap_or(u64::MAX),
            SimClock::Manual => state.engine.now_ns(),
        };
        self.settle(&mut state, until);
        state
    }

    pub(super) fn settle(&self, state: &mut State, until_ns: u64) {
        let before = state.engine.now_ns();
        let mut acted = false;
        while state.lost.is_none() {
            match state.engine.advance(until_ns) {
                Some(Act::Effect(effect)) => state.apply(&effect),
                Some(Act::Call(stream, call)) => state.calls.push_back((stream, call)),
                None => break,
            }
            acted = true;
        }
        if acted || state.engine.now_ns() != before {
            self.changed.notify_all();
        }
    }

    /// Begins a call: what is due is done, a lost device or a scripted fault refuses.
    pub(super) fn enter(
        &self,
        call: Option<SimCall>,
        operation: &'static str,
    ) -> Answer<(MutexGuard<'_, State>, Option<u32>)> {
        if IS_CALLING.get() {
            return Err(fault(800, operation));
        }
        let mut state = self.settled();
        if let Some(code) = state.lost {
            return Err(fault(code, operation));
        }
        match call.and_then(|call| state.script.meet(call)) {
            Some(met) if met.when == When::Executed => Ok((state, Some(met.code))),
            Some(met) => {
                let met = fault(met.code, operation);
                if met.is_sticky() {
                    state.lost = Some(met.code);
                    self.changed.notify_all();
                }
                Err(met)
            }
            None => Ok((state, None)),
        }
    }

    /// Blocks until that is so, or the device is lost.
    pub(super) fn wait_until(&self, operation: &'static str, is_so: impl Fn(&Engine) -> bool) -> Answer<()> {
        loop {
            let mut state = self.settled();
            if let Some(code) = state.lost {
                return Err(fault(code, operation));
            }
            if is_so(&state.engine) {
                return Ok(());
            }
            self.pause(&mut state);
        }
    }

    /// Until something changed, or the next piece of work ends by the clock.
    fn pause(&self, state: &mut MutexGuard<'_, State>) {
        let next = match self.settings.clock {
            SimClock::Wall => state.engine.next_ns(),
            SimClock::Manual => None,
        };
        match next.and_then(|next| state.stops.when(self.begun, Duration::from_nanos(next))) {
            Some(until) => {
                self.changed.wait_until(state, until);
            }
            None => self.changed.wait(state),
        }
    }

    /// Queues work that fails when it ends if `fails` says so.
    pub(super) fn queue(&self, mut state: MutexGuard<'_, State>, fails: Option<u32>, work: Queued) {
        let Queued { stream, lane, ns, effect } = work;
        let effect = fails.map_or(effect, |code| Effect::Fail { code });
        state.engine.run(stream, lane, ns, effect);
        let now = state.engine.now_ns();
        self.settle(&mut state, now);
    }

    /// Calls the host functions that are due, until the device is gone.
    pub(super) fn run_calls(&self) {
        IS_CALLING.set(true);
        loop {
            let mut state = self.settled();
            if state.closed {
                return;
            }
            let next = if state.lost.is_some() { None } else { state.calls.pop_front() };
            if let Some((stream, call)) = next {
                drop(state);
                // SAFETY: whoever queued it permits one call on any thread; it was taken off the queue.
                unsafe { (call.function)(call.argument as *mut c_void) };
                let mut state = self.state.lock();
                state.engine.returned(stream);
                self.changed.notify_all();
            } else if state.engine.has_calls() {
                self.pause(&mut state);
            } else {
                self.changed.wait(&mut state);
            }
        }
    }
}

pub(super) struct Queued {
    pub(super) stream: RawStream,
    pub(super) lane: Lane,
    pub(super) ns: u64,
    pub(super) effect: Effect,
}

impl State {
    fn apply(&mut self, effect: &Effect) {
        let is_done = match *effect {
            Effect::None => true,
            Effect::ToDevice { to, from, bytes } => self.memory.range(to, bytes).is_some_and(|range| {
                // SAFETY: the caller of `copy_to_device` keeps these bytes valid and unchanged until now.
                range.copy_from_slice(unsafe { std::slice::from_raw_parts(from as *const u8, bytes) });
                true
            }),
            Effect::ToHost { to, from, bytes } => self.memory.range(from, bytes).is_some_and(|range| {
                // SAFETY: the caller of `copy_to_host` keeps these bytes valid and untouched until now.
                unsafe { std::slice::from_raw_parts_mut(to as *mut u8, bytes) }.copy_from_slice(range);
                true
            }),
            Effect::Free { address } => self.memory.free(address),
            Effect::Fail { code } => {
                self.lost = Some(code);
                true
            }
        };
        if !is_done {
            // What a GPU does when memory is used that is not there.
            self.lost = Some(700);
        }
    }
}
