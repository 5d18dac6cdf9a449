//! The simulated device as a back end, and as tests see it.
//!
//! `unsafe` is allowed here for pinned memory, which is the host's own.

#![allow(unsafe_code, reason = "pinned memory by raw address")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

#[cfg(doc)]
use super::SimClock;
use super::SimSettings;
use super::core::{Core, Queued, State, Stops};
use super::engine::{Effect, Engine, Lane, Span};
use super::memory::Memory;
use super::script::{Script, SimCall, SimFault, fault};
use crate::device::{Backend, Device, DeviceInfo, HostCall, Launch, RawEvent, RawKernel, RawPool, RawStream};
use crate::error::Fault;

type Answer<T> = Result<T, Fault>;

/// A simulated device. Clones are the same one.
#[derive(Clone)]
pub struct Simulation {
    handle: Arc<Handle>,
}

/// Ends the thread for host functions when the last clone is gone.
struct Handle {
    core: Arc<Core>,
    info: DeviceInfo,
}

const ALIGNMENT: usize = 4096;

impl Simulation {
    /// A device of these settings.
    #[must_use]
    pub fn new(settings: SimSettings) -> Self {
        let info = DeviceInfo {
            ordinal: settings.ordinal,
            name: "simulated device".to_owned(),
            memory_bytes: settings.memory_bytes,
            compute_capability: (0, 0),
            copy_engines: 2,
            memory_pools: settings.memory_pools,
        };
        let state = State {
            engine: Engine::new(settings.kernels_max),
            stops: Stops::default(),
            memory: Memory::new(settings.memory_bytes),
            script: Script::default(),
            host: HashMap::new(),
            pools: HashMap::new(),
            timed: HashSet::new(),
            calls: VecDeque::new(),
            lost: None,
            next_handle: 1,
            has_thread: false,
            closed: false,
        };
        let core =
            Core { state: Mutex::new(state), changed: Condvar::new(), settings, begun: Instant::now() };
        Self { handle: Arc::new(Handle { core: Arc::new(core), info }) }
    }

    fn core(&self) -> &Core {
        &self.handle.core
    }

    /// Has one call fail.
    pub fn fail(&self, fault: SimFault) {
        self.core().state.lock().script.add(fault);
    }

    /// Loses the device now: every call, and every one that waits, returns this error.
    pub fn lose(&self, code: u32) {
        self.core().state.lock().lost = Some(code);
        self.core().changed.notify_all();
    }

    /// Moves a manual clock on, and does what is due until then.
    pub fn advance_us(&self, us: u64) {
        let mut state = self.core().state.lock();
        let until = state.engine.now_ns() + us * 1000;
        self.core().settle(&mut state, until);
    }

    /// Stops the device's time until [`go_on`](Self::go_on): what runs goes on running, what takes no time is
    /// done. For a [`SimClock::Wall`]; a manual one stands still anyway.
    pub fn stop(&self) {
        self.core().settled().stops.stop();
    }

    /// Has the device's time pass again. Nothing where it does.
    pub fn go_on(&self) {
        self.core().state.lock().stops.go_on();
        self.core().changed.notify_all();
    }

    /// What the clock shows, in nanoseconds from the device's beginning.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.core().settled().engine.now_ns()
    }

    /// When the next piece of work ends, in nanoseconds.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        self.core().settled().engine.next_ns()
    }

    /// The work that has ended, the oldest first. At most the last 65,536 pieces.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.core().settled().engine.spans().to_vec()
    }

    /// Bytes of device memory in use.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.core().settled().memory.used_bytes()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.state.lock().closed = true;
        self.core.changed.notify_all();
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation").field("settings", &self.core().settings).finish_non_exhaustive()
    }
}

fn checked(is_known: bool, operation: &'static str) -> Answer<()> {
    if is_known { Ok(()) } else { Err(fault(400, operation)) }
}

impl Device for Simulation {
    fn backend(&self) -> Backend {
        Backend::Sim
    }

    fn info(&self) -> &DeviceInfo {
        &self.handle.info
    }

    fn priorities(&self) -> Answer<(i32, i32)> {
        Ok((0, -5))
    }

    fn create_stream(&self, _priority: i32) -> Answer<RawStream> {
        let (mut state, _) = self.core().enter(Some(SimCall::CreateStream), "cuStreamCreate")?;
        Ok(state.engine.create_stream())
    }

    fn destroy_stream(&self, stream: RawStream) -> Answer<()> {
        let (mut state, _) = self.core().enter(None, "cuStreamDestroy")?;
        checked(state.engine.has_stream(stream), "cuStreamDestroy")?;
        state.engine.destroy_stream(stream);
        Ok(())
    }

    fn query_stream(&self, stream: RawStream) -> Answer<bool> {
        let (state, _) = self.core().enter(Some(SimCall::QueryStream), "cuStreamQuery")?;
        checked(state.engine.has_stream(stream), "cuStreamQuery")?;
        Ok(state.engine.is_idle(stream))
    }

    fn wait_event(&self, stream: RawStream, event: RawEvent) -> Answer<()> {
        let (mut state, _) = self.core().enter(Some(SimCall::WaitEvent), "cuStreamWaitEvent")?;
        checked(state.engine.has_stream(stream) && state.engine.has_event(event), "cuStreamWaitEvent")?;
        state.engine.wait(stream, event);
        let now = state.engine.now_ns();
        self.core().settle(&mut state, now);
        Ok(())
    }

    fn create_event(&self, timing: bool) -> Answer<RawEvent> {
        let (mut state, _) = self.core().enter(Some(SimCall::CreateEvent), "cuEventCreate")?;
        let event = state.engine.create_event();
        if timing {
            state.timed.insert(event.0);
        }
        Ok(event)
    }

    fn destroy_event(&self, event: RawEvent) -> Answer<()> {
        let (mut state, _) = self.core().enter(None, "cuEventDestroy")?;
        checked(state.engine.has_event(event), "cuEventDestroy")?;
        state.timed.remove(&event.0);
        state.engine.destroy_event(event);
        Ok(())
    }

    fn record_event(&self, event: RawEvent, stream: RawStream) -> Answer<()> {
        let (mut state, _) = self.core().enter(Some(SimCall::RecordEvent), "cuEventRecord")?;
        checked(state.engine.has_stream(stream) && state.engine.has_event(event), "cuEventRecord")?;
        state.engine.record(event, stream);
        let now = state.engine.now_ns();
        self.core().settle(&mut state, now);
        Ok(())
    }

    fn query_event(&self, event: RawEvent) -> Answer<bool> {
        let (state, _) = self.core().enter(Some(SimCall::QueryEvent), "cuEventQuery")?;
        checked(state.engine.has_event(event), "cuEventQuery")?;
        Ok(state.engine.is_reached(event))
    }

    fn synchronize_event(&self, event: RawEvent) -> Answer<()> {
        drop(self.core().enter(Some(SimCall::SynchronizeEvent), "cuEventSynchronize")?);
        self.core().wait_until("cuEventSynchronize", |engine| engine.is_reached(event))
    }

    fn synchronize_all(&self) -> Answer<()> {
        let (mut state, _) = self.core().enter(Some(SimCall::SynchronizeAll), "cuCtxSynchronize")?;
        let ends = state.engine.mark_all();
        let now = state.engine.now_ns();
        self.core().settle(&mut state, now);
        drop(state);
        let all = |engine: &Engine| ends.iter().all(|end| engine.is_reached(*end));
        let waited = self.core().wait_until("cuCtxSynchronize", all);
        let mut state = self.core().state.lock();
        ends.iter().for_each(|end| state.engine.destroy_event(*end));
        waited
    }

    fn elapsed_ms(&self, start: RawEvent, end: RawEvent) -> Answer<f32> {
        let (state, _) = self.core().enter(None, "cuEventElapsedTime")?;
        let is_timed = state.timed.contains(&start.0) && state.timed.contains(&end.0);
        checked(is_timed, "cuEventElapsedTime")?;
        if !state.engine.is_reached(start) || !state.engine.is_reached(end) {
            return Err(fault(600, "cuEventElapsedTime"));
        }
        match (state.engine.reached_ns(start), state.engine.reached_ns(end)) {
            (Some(start), Some(end)) => Ok((end as f64 - start as f64) as f32 / 1e6),
            _ => Err(fault(400, "cuEventElapsedTime")),
        }
    }

    fn allocate_host(&self, bytes: usize) -> Answer<usize> {
        let (mut state, _) = self.core().enter(Some(SimCall::AllocateHost), "cuMemHostAlloc")?;
        let layout =
            Layout::from_size_align(bytes.max(1), ALIGNMENT).map_err(|_| fault(1, "cuMemHostAlloc"))?;
        // SAFETY: the layout is not of zero bytes.
        let address = unsafe { alloc_zeroed(layout) } as usize;
        if address == 0 {
            return Err(fault(2, "cuMemHostAlloc"));
        }
        state.host.insert(address, layout);
        Ok(address)
    }

    unsafe fn free_host(&self, address: usize) -> Answer<()> {
        let (mut state, _) = self.core().enter(None, "cuMemFreeHost")?;
        let layout = state.host.remove(&address).ok_or_else(|| fault(1, "cuMemFreeHost"))?;
        // SAFETY: it was allocated with this layout and is in the table until it is freed.
        unsafe { dealloc(address as *mut u8, layout) };
        Ok(())
    }

    fn create_pool(&self, bytes_max: u64) -> Answer<Option<RawPool>> {
        let (mut state, _) = self.core().enter(None, "cuMemPoolCreate")?;
        if !self.core().settings.memory_pools {
            return Ok(None);
        }
        state.next_handle += 1;
        let handle = state.next_handle;
        state.pools.insert(handle, bytes_max);
        Ok(Some(RawPool(handle)))
    }

    fn destroy_pool(&self, pool: RawPool) -> Answer<()> {
        let (mut state, _) = self.core().enter(None, "cuMemPoolDestroy")?;
        checked(state.pools.remove(&pool.0).is_some(), "cuMemPoolDestroy")
    }

    fn allocate(&self, bytes: usize, stream: RawStream, pool: Option<RawPool>) -> Answer<u64> {
        let (mut state, _) = self.core().enter(Some(SimCall::Allocate), "cuMemAllocFromPoolAsync")?;
        checked(state.engine.has_stream(stream), "cuMemAllocFromPoolAsync")?;
        checked(pool.is_none_or(|pool| state.pools.contains_key(&pool.0)), "cuMemAllocFromPoolAsync")?;
        state.memory.allocate(bytes).ok_or_else(|| fault(2, "cuMemAllocFromPoolAsync"))
    }

    unsafe fn free(&self, address: u64, stream: RawStream, pooled: bool) -> Answer<()> {
        let (mut state, _) = self.core().enter(None, "cuMemFreeAsync")?;
        if !pooled {
            return checked(state.memory.free(address), "cuMemFree");
        }
        checked(state.engine.has_stream(stream), "cuMemFreeAsync")?;
        state.engine.at_once(stream, Effect::Free { address });
        let now = state.engine.now_ns();
        self.core().settle(&mut state, now);
        Ok(())
    }

    unsafe fn copy_to_device(&self, to: u64, from: *const u8, bytes: usize, stream: RawStream) -> Answer<()> {
        let (state, fails) = self.core().enter(Some(SimCall::CopyToDevice), "cuMemcpyHtoDAsync")?;
        let ns = bytes as u64 * 1000 / self.core().settings.to_device_bytes_per_us.max(1);
        let effect = Effect::ToDevice { to, from: from as usize, bytes };
        self.core().queue(state, fails, Queued { stream, lane: Lane::ToDevice, ns, effect });
        Ok(())
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: u64, bytes: usize, stream: RawStream) -> Answer<()> {
        let (state, fails) = self.core().enter(Some(SimCall::CopyToHost), "cuMemcpyDtoHAsync")?;
        let ns = bytes as u64 * 1000 / self.core().settings.to_host_bytes_per_us.max(1);
        let effect = Effect::ToHost { to: to as usize, from, bytes };
        self.core().queue(state, fails, Queued { stream, lane: Lane::ToHost, ns, effect });
        Ok(())
    }

    unsafe fn call_host(&self, stream: RawStream, call: HostCall) -> Answer<()> {
        let (mut state, _) = self.core().enter(Some(SimCall::CallHost), "cuLaunchHostFunc")?;
        checked(state.engine.has_stream(stream), "cuLaunchHostFunc")?;
        if !state.has_thread {
            let core = Arc::clone(&self.handle.core);
            let thread =
                thread::Builder::new().name("headrace-sim".to_owned()).spawn(move || core.run_calls());
            state.has_thread = thread.map_err(|_| fault(2, "cuLaunchHostFunc")).is_ok();
        }
        state.engine.call(stream, call);
        let now = state.engine.now_ns();
        self.core().settle(&mut state, now);
        self.core().changed.notify_all();
        Ok(())
    }

    fn can_call_host(&self) -> bool {
        true
    }

    fn load_kernel(&self, _source: &str, _name: &str) -> Answer<RawKernel> {
        drop(self.core().enter(None, "cuModuleLoadData")?);
        Ok(RawKernel { module: 1, function: 1 })
    }

    /// Every kernel spins for as many nanoseconds as its first argument says.
    unsafe fn launch(
        &self,
        _kernel: RawKernel,
        _shape: Launch,
        arguments: &[u64],
        stream: RawStream,
    ) -> Answer<()> {
        let (state, fails) = self.core().enter(Some(SimCall::Launch), "cuLaunchKernel")?;
        checked(state.engine.has_stream(stream), "cuLaunchKernel")?;
        let ns = arguments.first().copied().unwrap_or(0);
        let work = Queued { stream, lane: Lane::Kernel, ns, effect: Effect::None };
        self.core().queue(state, fails, work);
        Ok(())
    }
}
