//! Letting go of what Python has dropped. Python drops objects with the interpreter held, wherever it is, and
//! letting go of a lease or of memory may call the driver, which may block. So a thread does it, which never
//! attaches.

use std::any::Any;
use std::mem;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use crate::runtime::is_forked;

const THREAD_NAME: &str = "headrace-cuda-drop";

type Dropped = Box<dyn Any + Send>;

/// Lets go of it on another thread. In a forked child, where that thread does not exist and the driver must not
/// be called, never.
pub(super) fn let_go<T: Send + 'static>(thing: T) {
    if is_forked() {
        mem::forget(thing);
        return;
    }
    match thread() {
        // The thread never ends, so that nothing comes back.
        Some(sender) => drop(sender.send(Box::new(thing))),
        // Without a thread it is kept: better than a loop that is blocked.
        None => mem::forget(thing),
    }
}

/// The way to the thread, which is started at the first use. Where none can be, the next use tries again.
fn thread() -> Option<&'static Sender<Dropped>> {
    static THREAD: OnceLock<Sender<Dropped>> = OnceLock::new();
    if let Some(sender) = THREAD.get() {
        return Some(sender);
    }
    let (sender, dropped) = channel::<Dropped>();
    let work = move || dropped.into_iter().for_each(drop);
    std::thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(work).ok()?;
    // Another thread may have been faster; then this one's ends with its sender.
    Some(THREAD.get_or_init(|| sender))
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
