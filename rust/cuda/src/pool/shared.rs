//! The queue of a pool behind its lock, and what has to be done with the driver for it.
//!
//! Invariants: no call into the driver, no waker and no drop of a lease happens under the lock; an answer is
//! put to its waiter under the lock, so that whoever gives up finds either the place in the line or the
//! answer.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::config::PoolSettings;
use super::keeper;
use super::lease::Lease;
use super::queue::{Answer, LeaseQueue, Next, Ticket};
use super::stats::{PoolStats, WaitTimes};
use super::waiter::Waiter;
use crate::completion::{Reactor, Ticket as CompletionTicket, Watch};
use crate::device::RawStream;
use crate::error::CudaError;
use crate::event::Event;
use crate::memory::{Staging, planned_pool_budget_bytes};
use crate::open::{OnPoison, OpenDevice};
use crate::process::is_ending;
use crate::runtime::{Counters, Runtime};
use crate::stream::{Core, Stream, StreamKind};

pub(crate) struct Shared {
    pub(super) runtime: Arc<Runtime>,
    pub(super) settings: PoolSettings,
    pub(super) priority: i32,
    default: Arc<Core>,
    pub(super) state: Mutex<State>,
    /// Somebody stands in line whose time may be over sooner than that of others.
    pub(super) keeper_wake: Condvar,
    begun: Instant,
}

pub(super) struct State {
    pub(super) queue: LeaseQueue,
    cores: Vec<Option<Arc<Core>>>,
    pub(super) waiters: HashMap<Ticket, (Arc<Waiter>, Instant)>,
    pub(super) has_keeper: bool,
    pub(super) closed: bool,
    /// Who wants to know when everything is back.
    pub(super) closing: Vec<Arc<CompletionTicket>>,
    next_lease: u64,
    pub(super) timeouts: u64,
    refused: u64,
    wait_times: WaitTimes,
    busy: Duration,
}

impl State {
    /// Whether somebody waits, for a stream or for the end.
    pub(super) fn is_waited_for(&mut self) -> bool {
        // Whoever gave up a close has let go of it.
        self.closing.retain(|ticket| Arc::strong_count(ticket) > 1);
        !self.waiters.is_empty() || !self.closing.is_empty()
    }
}

pub(super) enum Requested {
    Now(Result<Lease, CudaError>),
    Waiting(Ticket, Arc<Waiter>),
}

/// What is done once the lock is released.
#[derive(Default)]
pub(super) struct Later {
    wakers: Vec<Waker>,
    unwanted: Vec<Result<Lease, CudaError>>,
    pub(super) quiet: Vec<Arc<CompletionTicket>>,
}

impl Later {
    pub(super) fn answer(&mut self, waiter: &Waiter, answer: Result<Lease, CudaError>) {
        match waiter.answer(answer) {
            Ok(waker) => self.wakers.extend(waker),
            Err(unwanted) => self.unwanted.push(unwanted),
        }
    }

    pub(super) fn run(self) {
        self.wakers.into_iter().for_each(Waker::wake);
        drop(self.unwanted);
        self.quiet.iter().for_each(|ticket| ticket.complete(Ok(())));
    }
}

impl Shared {
    pub(super) fn new(device: OpenDevice, settings: PoolSettings) -> Result<Arc<Self>, CudaError> {
        settings.validate()?;
        device.check()?;
        let runtime = Arc::new(make_runtime(device, &settings)?);
        let priority = settings.priority.within(runtime.call(|device| device.priorities())?);
        let max = settings.max_streams;
        let state = State {
            queue: LeaseQueue::new(max),
            cores: vec![None; max],
            waiters: HashMap::new(),
            has_keeper: false,
            closed: false,
            closing: Vec::new(),
            next_lease: 0,
            timeouts: 0,
            refused: 0,
            wait_times: WaitTimes::default(),
            busy: Duration::ZERO,
        };
        let default = Core::new(&runtime, 0, RawStream(0), StreamKind::Default, 0);
        let shared = Arc::new(Self {
            runtime,
            priority,
            default,
            state: Mutex::new(state),
            keeper_wake: Condvar::new(),
            begun: Instant::now(),
            settings,
        });
        let hooks: [Arc<dyn OnPoison>; 2] = [shared.clone(), shared.runtime.clone()];
        hooks.iter().for_each(|hook| shared.runtime.device.on_poison(hook));
        // Held together, so that each is another one.
        let warm: Result<Vec<Lease>, CudaError> =
            (0..shared.settings.warm_streams).map(|_| shared.try_lease(None)).collect();
        drop(warm?);
        let mut state = shared.state.lock();
        (state.wait_times, state.next_lease, state.busy) = (WaitTimes::default(), 0, Duration::ZERO);
        drop(state);
        Ok(shared)
    }

    /// Whether anything may be asked of the pool. Takes no lock.
    pub(super) fn check(&self) -> Result<(), CudaError> {
        self.runtime.device.check()
    }

    /// Asks the driver something that costs nothing, and that it refuses once the device is lost.
    pub(super) fn look_at_health(&self) -> Result<(), CudaError> {
        let event = self.runtime.device.take_event(false)?;
        let asked = self.runtime.call(|device| device.query_event(event));
        self.runtime.device.give_event(event, false);
        asked.map(drop)
    }

    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn take_free(self: &Arc<Self>, key: Option<u64>) -> Result<Option<Lease>, CudaError> {
        self.check()?;
        let mut state = self.state.lock();
        if state.closed {
            return Err(CudaError::PoolClosed);
        }
        match state.queue.request(key) {
            Answer::Lease(id) => self.grant(&mut state, id, Duration::ZERO).map(Some),
            Answer::Create(id) => {
                drop(state);
                self.create_now(id).map(Some)
            }
            Answer::Full => Ok(None),
        }
    }

    pub(super) fn try_lease(self: &Arc<Self>, key: Option<u64>) -> Result<Lease, CudaError> {
        if let Some(lease) = self.take_free(key)? {
            return Ok(lease);
        }
        self.state.lock().refused += 1;
        // A stream may drain that no thread could be started for; whoever asks again finds it then.
        self.runtime.reactor.retry();
        Err(CudaError::Capacity { max: self.settings.max_streams })
    }

    pub(super) fn request(
        self: &Arc<Self>,
        key: Option<u64>,
        timeout: Option<Duration>,
        waker: &Waker,
    ) -> Requested {
        let mut state = self.state.lock();
        if state.closed {
            return Requested::Now(Err(CudaError::PoolClosed));
        }
        match state.queue.request(key) {
            Answer::Lease(id) => Requested::Now(self.grant(&mut state, id, Duration::ZERO)),
            Answer::Create(id) => {
                drop(state);
                Requested::Now(self.create_now(id))
            }
            Answer::Full => {
                if let Err(error) = keeper::ensure(self, &mut state) {
                    return Requested::Now(Err(error));
                }
                let until = |timeout: Duration| u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
                let deadline = timeout.map(|timeout| self.now_us().saturating_add(until(timeout)));
                let ticket = state.queue.wait(key, deadline);
                let waiter = Arc::new(Waiter::new(waker.clone()));
                state.waiters.insert(ticket, (Arc::clone(&waiter), Instant::now()));
                self.keeper_wake.notify_one();
                // A device that was lost since it was looked at has refused those in line already.
                if let Some(error) = self.runtime.device.lost() {
                    state.queue.cancel(ticket);
                    state.waiters.remove(&ticket);
                    return Requested::Now(Err(error));
                }
                Requested::Waiting(ticket, waiter)
            }
        }
    }

    /// Somebody in line wants nothing any more.
    pub(super) fn abandon(&self, ticket: Ticket, waiter: &Waiter) {
        if self.runtime.device.is_foreign() {
            return;
        }
        {
            let mut state = self.state.lock();
            state.queue.cancel(ticket);
            state.waiters.remove(&ticket);
        }
        // A stream that was granted in between goes back here, outside of the lock.
        drop(waiter.abandon());
    }

    /// Lends a stream that the queue has given out.
    fn grant(self: &Arc<Self>, state: &mut State, id: u32, waited: Duration) -> Result<Lease, CudaError> {
        let core = state.cores.get(id as usize - 1).cloned().flatten().ok_or(CudaError::PoolClosed)?;
        state.next_lease += 1;
        state.wait_times.add(waited);
        let lease = Some(state.next_lease);
        core.touched.store(false, std::sync::atomic::Ordering::Release);
        // Nobody is under this lock: the lease before has ended, which waited for that.
        *core.lease.write() = lease;
        Ok(Lease::new(Arc::clone(self), Stream { core, lease }))
    }

    fn create(&self, id: u32) -> Result<Arc<Core>, CudaError> {
        let (raw, was_exposed) = self.runtime.device.take_stream(self.priority).map_err(|error| {
            Counters::add(&self.runtime.counters.errors, 1);
            match error {
                CudaError::Driver(fault) => CudaError::ForkFailed(fault),
                other => other,
            }
        })?;
        let core = Core::new(&self.runtime, id, raw, StreamKind::Pooled, self.priority);
        core.exposed.store(was_exposed, std::sync::atomic::Ordering::Release);
        Ok(core)
    }

    /// Creates a stream for the caller.
    fn create_now(self: &Arc<Self>, id: u32) -> Result<Lease, CudaError> {
        match self.create(id) {
            Ok(core) => {
                let mut state = self.state.lock();
                state.cores[id as usize - 1] = Some(core);
                state.queue.created(id);
                self.grant(&mut state, id, Duration::ZERO)
            }
            Err(error) => {
                let mut later = Later::default();
                let next = {
                    let mut state = self.state.lock();
                    let next = state.queue.not_created(id);
                    // The pool may have been closed meanwhile, with nothing to wait for but this stream.
                    self.look_whether_quiet(&mut state, &mut later);
                    next
                };
                later.run();
                self.go_on(next);
                Err(error)
            }
        }
    }

    /// Creates streams for those in line until one could be created or nobody is left.
    fn go_on(self: &Arc<Self>, mut next: Next) {
        while let Next::Create(ticket, id) = next {
            let created = self.create(id);
            let mut later = Later::default();
            {
                let mut state = self.state.lock();
                let waiter = state.waiters.remove(&ticket);
                let waited = waiter.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
                let answer = match created {
                    Ok(core) => {
                        state.cores[id as usize - 1] = Some(core);
                        state.queue.created(id);
                        next = Next::Nothing;
                        self.grant(&mut state, id, waited)
                    }
                    Err(error) => {
                        next = state.queue.not_created(id);
                        Err(error)
                    }
                };
                match waiter {
                    Some((waiter, _)) => later.answer(&waiter, answer),
                    None => later.unwanted.push(answer),
                }
                self.look_whether_quiet(&mut state, &mut later);
            }
            later.run();
        }
    }

    /// A lease has ended. Does not wait for what was queued under it.
    pub(super) fn end_lease(self: &Arc<Self>, stream: &Stream, since: Instant) {
        let (core, device) = (&stream.core, &self.runtime.device);
        if device.is_foreign() || is_ending() {
            return;
        }
        *core.lease.write() = None;
        if !core.may_be_busy() {
            return self.free(core.id, since);
        }
        match self.runtime.call(|device| device.query_stream(core.raw)) {
            Ok(true) => return self.free(core.id, since),
            Ok(false) => {}
            Err(_) => return self.give_up(core.id, since),
        }
        self.state.lock().queue.drain(core.id);
        let Ok(event) = Event::record(&self.runtime, core.raw, false) else {
            return self.give_up(core.id, since);
        };
        let (shared, id) = (Arc::clone(self), core.id);
        let after = move |result: &Result<(), CudaError>| match result {
            Ok(()) => shared.free(id, since),
            Err(_) => shared.give_up(id, since),
        };
        self.runtime.reactor.watch(Watch { event, ticket: None, after: Some(Box::new(after)) });
    }

    /// The stream is nobody's, and nothing runs on it.
    fn free(self: &Arc<Self>, id: u32, since: Instant) {
        let mut later = Later::default();
        {
            let mut state = self.state.lock();
            state.busy += since.elapsed();
            if let Next::Lease(ticket, id) = state.queue.release(id) {
                let waiter = state.waiters.remove(&ticket);
                let waited = waiter.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
                let answer = self.grant(&mut state, id, waited);
                match waiter {
                    Some((waiter, _)) => later.answer(&waiter, answer),
                    None => later.unwanted.push(answer),
                }
            }
            self.look_whether_quiet(&mut state, &mut later);
        }
        later.run();
    }

    /// Nobody knows when the stream will be done, so that it is never lent again. Another takes its place.
    fn give_up(self: &Arc<Self>, id: u32, since: Instant) {
        let mut later = Later::default();
        let (core, next) = {
            let mut state = self.state.lock();
            state.busy += since.elapsed();
            let core = state.cores[id as usize - 1].take();
            let next = state.queue.not_created(id);
            self.look_whether_quiet(&mut state, &mut later);
            (core, next)
        };
        // Leaked with all that it keeps: something may still run on it.
        std::mem::forget(core);
        later.run();
        self.go_on(next);
    }

    pub(super) fn resolve(&self, id: u32) -> Option<Stream> {
        if id == 0 {
            return Some(Stream { core: Arc::clone(&self.default), lease: None });
        }
        self.check().ok()?;
        let core = self.state.lock().cores.get(id as usize - 1).cloned().flatten()?;
        // A number that no lease has, if nobody has it.
        let lease = Some(core.lease.read().unwrap_or(0));
        Some(Stream { core, lease })
    }

    /// Its device.
    #[cfg(feature = "headrace")]
    pub(crate) fn device(&self) -> &OpenDevice {
        &self.runtime.device
    }

    pub(crate) fn stats(&self) -> PoolStats {
        use std::sync::atomic::Ordering::Relaxed;
        let (runtime, state) = (&self.runtime, self.state.lock());
        let counts = state.queue.counts();
        let cores = state.cores.iter().flatten().chain([&self.default]);
        let device_bytes = cores.map(|core| core.budget.lock().outstanding()).sum();
        PoolStats {
            backend: runtime.device.backend(),
            max_streams: state.queue.max(),
            created: counts.created,
            idle: counts.idle,
            in_use: counts.leased,
            draining: counts.draining,
            waiting: counts.waiting,
            leases: state.next_lease,
            timeouts: state.timeouts,
            refused: state.refused,
            wait_times: state.wait_times,
            busy_us: u64::try_from(state.busy.as_micros()).unwrap_or(u64::MAX),
            bytes_to_device: runtime.counters.bytes_to_device.load(Relaxed),
            bytes_to_host: runtime.counters.bytes_to_host.load(Relaxed),
            device_bytes,
            budget_bytes: runtime.budget_bytes.saturating_mul(self.settings.max_streams as u64),
            pinned_bytes: runtime.staging.allocated(),
            errors: runtime.counters.errors.load(Relaxed),
            poisoned: runtime.device.lost().is_some(),
        }
    }
}

#[cfg(feature = "headrace")]
impl Drop for Shared {
    fn drop(&mut self) {
        crate::metrics::gone(self);
    }
}

fn make_runtime(device: OpenDevice, settings: &PoolSettings) -> Result<Runtime, CudaError> {
    let budget_bytes = planned_pool_budget_bytes(1, settings.budget_mb);
    // One more than there are streams: the default stream has a budget too, and pieces do not fit exactly.
    let plan = planned_pool_budget_bytes(settings.max_streams as u64 + 1, settings.budget_mb);
    let bytes_max = plan.min(device.info().memory_bytes);
    let memory_pool = device.call(|device| device.create_pool(bytes_max))?;
    Ok(Runtime {
        reactor: Reactor::new(device.clone(), settings.completion, settings.spin)?,
        staging: Staging::new(device.clone(), planned_pool_budget_bytes(1, settings.pinned_mb)),
        device,
        memory_pool,
        budget_bytes,
        counters: Counters::default(),
    })
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("device", &self.runtime.device).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "fork_tests.rs"]
mod fork_tests;
#[cfg(test)]
#[path = "shared_tests.rs"]
mod tests;
