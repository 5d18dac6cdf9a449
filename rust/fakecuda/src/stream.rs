//! A stream: a thread that runs what is queued, in order. Once the device is broken it gives up what is left:
//! marks are reached with the error, memory is freed, and nothing else happens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::code::{Code, Status};
use crate::device::Device;
use crate::driver::{Driver, HostCall};
use crate::event::Mark;
use crate::heap::Block;

/// How often a kernel that waits for the host looks.
const GATE_POLL: Duration = Duration::from_micros(100);

/// One end of a copy.
#[derive(Debug)]
pub(crate) enum Place {
    /// An address on the device.
    Device(usize),
    /// An address in pinned memory.
    Pinned(usize),
    /// Bytes that were read when the copy was asked for.
    Staged(Vec<u8>),
    /// Where a thread waits for what the copy reads.
    Waiting(Arc<Mutex<Vec<u8>>>),
}

/// What can be put into a stream.
#[derive(Debug)]
pub(crate) enum Operation {
    Copy {
        to: Place,
        from: Place,
        bytes: usize,
    },
    Fill {
        address: usize,
        value: u8,
        bytes: usize,
    },
    Mark(Arc<Mark>),
    Wait(Arc<Mark>),
    Host(HostCall),
    Spin(Duration),
    /// Runs until the 32-bit word at this pinned address is not zero.
    Gate(usize),
    Trap,
    Free(usize),
}

/// What is queued for a stream's thread.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) device: Arc<Device>,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    operations: VecDeque<Operation>,
    running: bool,
    closed: bool,
}

impl Stream {
    /// A stream whose thread runs.
    pub(crate) fn start(
        driver: &'static Driver,
        device: Arc<Device>,
        flags: u32,
        priority: i32,
    ) -> Result<Arc<Self>, Code> {
        let stream = Self { device, flags, priority, queue: Mutex::default(), changed: Condvar::new() };
        let stream = Arc::new(stream);
        let own = Arc::clone(&stream);
        let name = "fakecuda-stream".to_owned();
        let spawned = std::thread::Builder::new().name(name).spawn(move || own.run(driver));
        spawned.map(|_| stream).map_err(|_| Code::OUT_OF_MEMORY)
    }

    pub(crate) fn push(&self, operation: Operation) {
        self.queue.lock().operations.push_back(operation);
        self.changed.notify_all();
    }

    /// A mark behind everything that is queued now.
    pub(crate) fn mark(&self) -> Arc<Mark> {
        let mark = Arc::new(Mark::default());
        self.push(Operation::Mark(Arc::clone(&mark)));
        mark
    }

    pub(crate) fn query(&self) -> Status {
        if self.is_busy() { Err(Code::NOT_READY) } else { Ok(()) }
    }

    pub(crate) fn is_busy(&self) -> bool {
        let queue = self.queue.lock();
        queue.running || !queue.operations.is_empty()
    }

    /// The thread ends when it has run what is queued.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.changed.notify_all();
    }

    fn run(&self, driver: &'static Driver) {
        while let Some(operation) = self.next() {
            let outcome = match self.device.broken() {
                Some(code) => Err(code),
                None => driver.script.runs().and_then(|()| self.execute(driver, &operation)),
            };
            if let Err(code) = outcome {
                self.device.break_down(code);
            }
            self.finish(operation, outcome);
        }
    }

    fn next(&self) -> Option<Operation> {
        let mut queue = self.queue.lock();
        queue.running = false;
        loop {
            if let Some(operation) = queue.operations.pop_front() {
                queue.running = true;
                return Some(operation);
            }
            if queue.closed {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }

    /// Runs the operation as far as it can fail.
    fn execute(&self, driver: &'static Driver, operation: &Operation) -> Status {
        match operation {
            Operation::Copy { to, from, bytes } => self.copy(driver, to, from, *bytes),
            Operation::Fill { address, value, bytes } => {
                let (block, offset) =
                    self.device.memory.find(*address, *bytes).ok_or(Code::ILLEGAL_ADDRESS)?;
                block.fill(offset, *value, *bytes);
                Ok(())
            }
            Operation::Wait(mark) => mark.wait(),
            Operation::Host(call) => {
                driver.call_back(call);
                Ok(())
            }
            Operation::Spin(time) => self.device.pause(*time),
            Operation::Gate(address) => self.gate(driver, *address),
            Operation::Trap => Err(Code::LAUNCH_FAILED),
            Operation::Mark(_) | Operation::Free(_) => Ok(()),
        }
    }

    /// What happens even on a device that is broken.
    fn finish(&self, operation: Operation, outcome: Status) {
        match operation {
            Operation::Mark(mark) => {
                // Whoever finds its last mark reached finds the stream done.
                self.queue.lock().running = false;
                mark.reach(outcome);
            }
            // An address that is not there was refused when the free was asked for.
            Operation::Free(address) => drop(self.device.memory.free(address)),
            _ => {}
        }
    }

    fn copy(&self, driver: &'static Driver, to: &Place, from: &Place, bytes: usize) -> Status {
        let began = Instant::now();
        let (engine, gbps) = match (to, from) {
            (Place::Device(_), Place::Device(_)) => (None, 0.0),
            (Place::Device(_), _) => (Some(&self.device.to_device), driver.script.to_device_gbps),
            _ => (Some(&self.device.to_host), driver.script.to_host_gbps),
        };
        let engine = engine.map(Mutex::lock);
        let waited = began.elapsed();
        let target = self.locate(driver, to, bytes)?;
        let source = self.locate(driver, from, bytes)?;
        match (&target, to, &source, from) {
            (Some((to, at)), _, Some((from, from_at)), _) => to.copy(*at, from, *from_at, bytes),
            (Some((to, at)), _, None, Place::Staged(from)) => to.write(*at, from),
            (None, Place::Waiting(to), Some((from, at)), _) => *to.lock() = from.read(*at, bytes),
            _ => return Err(Code::INVALID_VALUE),
        }
        if gbps > 0.0 {
            let time = Duration::from_secs_f64(bytes as f64 / (gbps * 1e9));
            self.device.pause(time.saturating_sub(began.elapsed().saturating_sub(waited)))?;
        }
        drop(engine);
        Ok(())
    }

    fn locate(
        &self,
        driver: &Driver,
        place: &Place,
        bytes: usize,
    ) -> Result<Option<(Arc<Block>, usize)>, Code> {
        let found = match place {
            Place::Device(address) => self.device.memory.find(*address, bytes),
            Place::Pinned(address) => driver.pinned.find(*address, bytes),
            Place::Staged(_) | Place::Waiting(_) => return Ok(None),
        };
        found.map(Some).ok_or(Code::ILLEGAL_ADDRESS)
    }

    fn gate(&self, driver: &Driver, address: usize) -> Status {
        if !address.is_multiple_of(4) {
            return Err(Code::ILLEGAL_ADDRESS);
        }
        loop {
            let (block, offset) = driver.pinned.find(address, 4).ok_or(Code::ILLEGAL_ADDRESS)?;
            if block.is_set(offset) {
                return Ok(());
            }
            self.device.pause(GATE_POLL)?;
        }
    }
}
