//! A device: its memory, its engines for copies, its default stream, and whether it is broken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::code::{Code, Status};
use crate::event::Mark;
use crate::heap::{Heap, PoolId};
use crate::stream::{Operation, Stream};

/// The stream does not wait for the default stream, nor the default stream for it.
const NON_BLOCKING: u32 = 1;

/// One device.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) ordinal: usize,
    pub(crate) memory: Heap,
    pub(crate) default_pool: PoolId,
    /// The engine that copies from the host; held while it does.
    pub(crate) to_device: Mutex<()>,
    /// The engine that copies to the host.
    pub(crate) to_host: Mutex<()>,
    pub(crate) context: Mutex<Context>,
    broken: Mutex<Option<Code>>,
    broke: Condvar,
}

/// The primary context: how often it is held, and its flags.
#[derive(Debug, Default)]
pub(crate) struct Context {
    pub(crate) holders: usize,
    pub(crate) flags: u32,
    /// The legacy default stream, made when it is first used.
    pub(crate) default_stream: Option<Arc<Stream>>,
    /// Streams that are ordered with the default stream.
    pub(crate) ordered: Vec<Arc<Stream>>,
    /// The ends of streams that were destroyed, whose work runs on.
    pub(crate) ends: Vec<Arc<Mark>>,
}

impl Device {
    pub(crate) fn new(ordinal: usize, memory_bytes: u64) -> Self {
        let memory = Heap::new(memory_bytes);
        let default_pool = memory.new_pool(0);
        Self {
            ordinal,
            memory,
            default_pool,
            to_device: Mutex::default(),
            to_host: Mutex::default(),
            context: Mutex::default(),
            broken: Mutex::default(),
            broke: Condvar::new(),
        }
    }

    /// The error that broke the device, which every call returns from then on.
    pub(crate) fn broken(&self) -> Option<Code> {
        *self.broken.lock()
    }

    /// The first error stays.
    pub(crate) fn break_down(&self, code: Code) {
        self.broken.lock().get_or_insert(code);
        self.broke.notify_all();
    }

    /// Lets time pass, less of it when the device breaks.
    pub(crate) fn pause(&self, time: Duration) -> Status {
        let until = Instant::now() + time;
        let mut broken = self.broken.lock();
        loop {
            if let Some(code) = *broken {
                return Err(code);
            }
            if self.broke.wait_until(&mut broken, until).timed_out() {
                return Ok(());
            }
        }
    }

    /// Queues an operation. One in the default stream comes after all that blocking streams have queued, and
    /// theirs after all of its.
    pub(crate) fn enqueue(&self, stream: &Arc<Stream>, operation: Operation) {
        let context = self.context.lock();
        let is_default = context.default_stream.as_ref().is_some_and(|default| Arc::ptr_eq(default, stream));
        if is_default {
            for other in context.ordered.iter().filter(|other| other.is_busy()) {
                stream.push(Operation::Wait(other.mark()));
            }
        } else if stream.flags & NON_BLOCKING == 0
            && let Some(default) = context.default_stream.as_ref().filter(|default| default.is_busy())
        {
            stream.push(Operation::Wait(default.mark()));
        }
        stream.push(operation);
    }

    /// Notes a new stream that is ordered with the default stream.
    pub(crate) fn adopt(&self, stream: &Arc<Stream>) {
        if stream.flags & NON_BLOCKING == 0 {
            self.context.lock().ordered.push(Arc::clone(stream));
        }
    }

    /// A stream is destroyed: what is queued still runs.
    pub(crate) fn forget(&self, stream: &Arc<Stream>) {
        let end = stream.is_busy().then(|| stream.mark());
        let mut context = self.context.lock();
        context.ordered.retain(|other| !Arc::ptr_eq(other, stream));
        context.ends.retain(|end| !end.is_reached());
        context.ends.extend(end);
    }
}
