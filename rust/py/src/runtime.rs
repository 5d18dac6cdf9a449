//! The tokio runtime behind the binding: one per process, started at first use, one thread (what it does is
//! accept, connect, time out and stand in for a busy loop; items never cross it). A forked child has none of
//! its threads, so it is told so.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3_async_runtimes::TaskLocals;
use pyo3_async_runtimes::generic::{self, ContextExt, JoinError};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::bridge::hub::Hub;
use crate::errors;

static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);
static FORKED: AtomicBool = AtomicBool::new(false);
static EXITING: AtomicBool = AtomicBool::new(false);

/// How long interpreter exit waits for tokio's thread, which only ever holds up exit by a running poll.
const EXIT_WAIT: Duration = Duration::from_secs(1);

/// Name of tokio's thread; the audit looks for it.
pub(crate) const THREAD_NAME: &str = "headrace-tokio";

/// The runtime's handle, starting it if need be.
pub(crate) fn handle(py: Python<'_>) -> PyResult<Handle> {
    check_process(py)?;
    let mut runtime = RUNTIME.lock();
    if let Some(runtime) = &*runtime {
        return Ok(runtime.handle().clone());
    }
    let started = Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(4)
        .thread_name(THREAD_NAME)
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| errors::start_failed(&error.to_string()))?;
    Ok(runtime.insert(started).handle().clone())
}

/// The runtime's handle, if it has been started.
pub(crate) fn started() -> Option<Handle> {
    RUNTIME.lock().as_ref().map(|runtime| runtime.handle().clone())
}

/// Refuses to go on in a forked child or while the interpreter exits.
pub(crate) fn check_process(py: Python<'_>) -> PyResult<()> {
    check_fork(py)?;
    if is_exiting() {
        return Err(errors::start_failed("the interpreter is exiting"));
    }
    Ok(())
}

/// Refuses to go on in a forked child, where streams and their sockets are the parent's.
pub(crate) fn check_fork(py: Python<'_>) -> PyResult<()> {
    if is_forked() { Err(errors::forked(py)) } else { Ok(()) }
}

/// Whether the interpreter exits; hubs have been closed.
pub(crate) fn is_exiting() -> bool {
    EXITING.load(Ordering::SeqCst)
}

pub(crate) fn is_forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// The calling thread. (`std::thread::current` counts a reference up and down each time.)
pub(crate) fn this_thread() -> ThreadId {
    thread_local! {
        static THIS: ThreadId = std::thread::current().id();
    }
    THIS.try_with(|this| *this).unwrap_or_else(|_| std::thread::current().id())
}

/// Called in a forked child: nothing of the parent's may be used or closed here. A child of a process that
/// had not started Headrace may start it. (The lock is taken only to start and to end the runtime; whoever
/// held it as the process was forked does not exist here.)
#[pyfunction]
pub(crate) fn _forked() {
    if RUNTIME.try_lock().is_none_or(|runtime| runtime.is_some()) {
        FORKED.store(true, Ordering::Relaxed);
    }
}

/// Called at interpreter exit, after every hub has been closed.
#[pyfunction]
pub(crate) fn _exit(py: Python<'_>) {
    // In one order with the count of threads that will want the interpreter.
    EXITING.store(true, Ordering::SeqCst);
    if is_forked() {
        return;
    }
    headrace_cuda::end_process();
    crate::batch::blocking::wait_until_left(py, EXIT_WAIT);
    py.detach(|| {
        if let Some(runtime) = RUNTIME.lock().take() {
            runtime.shutdown_timeout(EXIT_WAIT);
        }
    });
}

tokio::task_local! {
    static HUB: Arc<Hub>;
    static LOCALS: TaskLocals;
}

/// [`generic::Runtime`] for the cold calls: futures run on tokio, and what must touch Python runs in the
/// drain of the loop's own hub, where the interpreter is attached already.
struct HubRuntime;

struct Panicked(tokio::task::JoinError);

impl JoinError for Panicked {
    fn is_panic(&self) -> bool {
        self.0.is_panic()
    }

    fn into_panic(self) -> Box<dyn std::any::Any + Send + 'static> {
        self.0.into_panic()
    }
}

/// A join handle in the form that the trait wants.
struct Joined(Pin<Box<dyn Future<Output = Result<(), Panicked>> + Send>>);

impl Future for Joined {
    type Output = Result<(), Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl generic::Runtime for HubRuntime {
    type JoinError = Panicked;
    type JoinHandle = Joined;

    fn spawn<F: Future<Output = ()> + Send + 'static>(future: F) -> Joined {
        // The first spawn of a cold call comes from the loop's thread inside `HUB.sync_scope`, the second
        // from the task that the first one made.
        let hub = HUB.try_with(Arc::clone).ok();
        let runtime = RUNTIME.lock().as_ref().map(|runtime| runtime.handle().clone());
        let (Some(hub), Some(runtime)) = (hub, runtime) else {
            return Joined(Box::pin(std::future::ready(Ok(()))));
        };
        let task = runtime.spawn(HUB.scope(hub, future));
        Joined(Box::pin(async move { task.await.map_err(Panicked) }))
    }

    fn spawn_blocking<F: FnOnce() + Send + 'static>(work: F) -> Joined {
        if let Ok(hub) = HUB.try_with(Arc::clone) {
            hub.run(Box::new(work));
        }
        Joined(Box::pin(std::future::ready(Ok(()))))
    }
}

impl ContextExt for HubRuntime {
    fn scope<F, R>(locals: TaskLocals, future: F) -> Pin<Box<dyn Future<Output = R> + Send>>
    where
        F: Future<Output = R> + Send + 'static,
    {
        Box::pin(LOCALS.scope(locals, future))
    }

    fn get_task_locals() -> Option<TaskLocals> {
        LOCALS.try_with(TaskLocals::clone).ok()
    }
}

/// A cold call: runs `future` on tokio and returns an `asyncio.Future` of `event_loop` with its result.
pub(crate) fn cold<'py, F, T>(
    event_loop: &Bound<'py, PyAny>,
    hub: &Arc<Hub>,
    future: F,
) -> PyResult<Bound<'py, PyAny>>
where
    F: Future<Output = PyResult<T>> + Send + 'static,
    T: for<'a> IntoPyObject<'a> + Send + 'static,
{
    let py = event_loop.py();
    handle(py)?;
    let locals = TaskLocals::new(event_loop.clone());
    HUB.sync_scope(Arc::clone(hub), || {
        generic::future_into_py_with_locals::<HubRuntime, F, T>(py, locals, future)
    })
}
