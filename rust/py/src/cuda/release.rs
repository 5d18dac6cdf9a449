//! Letting go of what Python has dropped. Python drops objects with the interpreter held, wherever it is, and
//! letting go of a lease or of memory may call the driver, which may block. So a thread does it, which never
//! attaches. What waits for a device is let go of by another one, so that nothing else waits behind it.

use std::any::Any;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::runtime::is_forked;

type Dropped = Box<dyn Any + Send>;

/// A thread that drops what it is sent. It is started at the first use and never ends.
struct Dropper {
    name: &'static str,
    queue: OnceLock<Queue>,
    has_thread: AtomicBool,
}

struct Queue {
    sender: Sender<Dropped>,
    dropped: Arc<Mutex<Receiver<Dropped>>>,
}

static PROMPT: Dropper = Dropper::new("headrace-cuda-drop");
static PATIENT: Dropper = Dropper::new("headrace-cuda-sync");

/// Lets go of it on another thread. In a forked child, where that thread does not exist and the driver must not
/// be called, never.
pub(super) fn let_go<T: Send + 'static>(thing: T) {
    PROMPT.take(thing);
}

/// As [`let_go`], of something whose drop waits for a device.
pub(super) fn let_go_slowly<T: Send + 'static>(thing: T) {
    PATIENT.take(thing);
}

impl Dropper {
    const fn new(name: &'static str) -> Self {
        Self { name, queue: OnceLock::new(), has_thread: AtomicBool::new(false) }
    }

    fn take<T: Send + 'static>(&self, thing: T) {
        if is_forked() {
            mem::forget(thing);
            return;
        }
        let queue = self.queue.get_or_init(|| {
            let (sender, dropped) = channel();
            Queue { sender, dropped: Arc::new(Mutex::new(dropped)) }
        });
        // Both ends are there as long as the process, so that nothing comes back.
        drop(queue.sender.send(Box::new(thing)));
        // Without a thread it is kept, which is better than a loop that is blocked; the next use tries again.
        if !self.has_thread.swap(true, Ordering::AcqRel) && !self.start(&queue.dropped) {
            self.has_thread.store(false, Ordering::Release);
        }
    }

    fn start(&self, dropped: &Arc<Mutex<Receiver<Dropped>>>) -> bool {
        let dropped = Arc::clone(dropped);
        let work = move || dropped.lock().iter().for_each(drop);
        std::thread::Builder::new().name(self.name.to_owned()).spawn(work).is_ok()
    }
}

/// Something that is let go of by [`let_go`].
#[derive(Debug)]
pub(super) struct Released<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Released<T> {
    pub(super) const fn new(inner: T) -> Self {
        Self(Some(inner))
    }

    pub(super) const fn get(&self) -> Option<&T> {
        self.0.as_ref()
    }
}

impl<T: Send + 'static> Drop for Released<T> {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            let_go(inner);
        }
    }
}
