//! [`CompletionMode::HostFn`](super::CompletionMode::HostFn): the driver calls a function when the stream has
//! come so far. The function tells whoever waits and hands the rest to a thread, for it may not call the
//! driver itself. It is not called after a sticky error; the same thread therefore asks about everything in
//! flight each 5 ms.
//!
//! `unsafe` is allowed here: the function is called with a pointer. Invariant: each pointer is made from one
//! box and is either called with, once, or leaked with what the driver forgot to call.

#![allow(unsafe_code, reason = "a function that the driver calls takes a pointer")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Watch;
use super::owner::{Owner, Work};
use crate::device::HostCall;
use crate::error::CudaError;
use crate::event::Event;
use crate::open::OpenDevice;
use crate::process::is_ending;

/// How soon a lost device is noticed that nobody else has noticed. A question costs a microsecond or so.
const WATCHDOG: Duration = Duration::from_millis(5);

pub(crate) struct HostCalls {
    shared: Owner<Shared>,
}

struct Shared {
    device: OpenDevice,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// By a number of their own: one event may be watched more than once.
    in_flight: HashMap<u64, Watch>,
    next_number: u64,
    /// Told, and to be finished by the thread.
    called: Vec<(Watch, Result<(), CudaError>)>,
    has_thread: bool,
    stopped: bool,
}

struct Argument {
    shared: Arc<Shared>,
    number: u64,
}

impl HostCalls {
    pub(super) fn new(device: OpenDevice) -> Self {
        let shared = Shared { device, state: Mutex::new(State::default()), work: Condvar::new() };
        Self { shared: Owner::new(shared) }
    }

    pub(super) fn watch(&self, watch: Watch) {
        let stream = watch.event.raw_stream();
        let number = {
            let mut state = self.shared.state.lock();
            let number = state.next_number;
            state.next_number += 1;
            state.in_flight.insert(number, watch);
            if !state.has_thread {
                state.has_thread = self.shared.start().is_ok();
            }
            number
        };
        self.shared.work.notify_one();
        let argument = Box::into_raw(Box::new(Argument { shared: self.shared.share(), number }));
        let call = HostCall { function: called, argument: argument as usize };
        // SAFETY: `called` takes such a box, which nobody else has, on any thread.
        let queued = self.shared.device.call(|device| unsafe { device.call_host(stream, call) });
        if queued.is_err() {
            // SAFETY: the driver refused and never calls; the box is still ours.
            drop(unsafe { Box::from_raw(argument) });
            // The watchdog finds out when the event is reached: it was recorded all the same.
        }
    }

    pub(super) fn retry(&self) {
        let mut state = self.shared.state.lock();
        let is_idle = state.called.is_empty() && state.in_flight.is_empty();
        if !state.has_thread && !is_idle {
            state.has_thread = self.shared.start().is_ok();
        }
    }

    pub(super) fn fail_all(&self, error: &CudaError) {
        let watches = mem::take(&mut self.shared.state.lock().in_flight);
        Watch::fail_all(watches.into_values(), error);
    }
}

/// # Safety
/// The argument is a box of [`Argument`] that is given up here.
unsafe extern "C" fn called(argument: *mut c_void) {
    // SAFETY: as the caller promises.
    let argument = unsafe { Box::from_raw(argument.cast::<Argument>()) };
    // A waker is foreign code, and an unwinding one must not reach the driver.
    let told = catch_unwind(AssertUnwindSafe(|| argument.shared.called(argument.number)));
    // The last reference would be dropped here only if the thread had ended; it holds one until nothing is
    // left.
    drop(told);
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
        while !is_ending() {
            let (called, events) = {
                let mut state = self.state.lock();
                while state.called.is_empty() && state.in_flight.is_empty() {
                    if state.stopped {
                        state.has_thread = false;
                        return;
                    }
                    self.work.wait(&mut state);
                }
                if state.called.is_empty() {
                    self.work.wait_for(&mut state, WATCHDOG);
                }
                let event_of = |(number, watch): (&u64, &Watch)| (*number, watch.event.clone());
                let events: Vec<(u64, Event)> = state.in_flight.iter().map(event_of).collect();
                (mem::take(&mut state.called), events)
            };
            for (watch, result) in called {
                watch.finish(&result);
            }
            self.ask(events);
        }
    }
}

impl Shared {
    fn called(&self, number: u64) {
        let ticket = {
            let mut state = self.state.lock();
            let Some(mut watch) = state.in_flight.remove(&number) else { return };
            let ticket = watch.ticket.take();
            // In one step, so that the thread never sees neither and ends.
            state.called.push((watch, Ok(())));
            ticket
        };
        self.work.notify_one();
        if let Some(ticket) = ticket {
            ticket.complete(Ok(()));
        }
    }

    fn ask(&self, events: Vec<(u64, Event)>) {
        for (number, event) in events {
            let result = match event.query() {
                Ok(false) => continue,
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            let watch = self.state.lock().in_flight.remove(&number);
            if let Some(watch) = watch {
                watch.finish(&result);
            }
        }
    }
}
