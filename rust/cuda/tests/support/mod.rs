//! What the tests of the pool share: a simulated device whose time stands still, and waiting for a state.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use headrace_cuda::{
    CompletionMode, OpenDevice, PoolSettings, SimClock, SimSettings, Simulation, SpinKernel, StreamPool,
};

/// Longer than anything takes that does not hang.
pub(crate) const GUARD: Duration = Duration::from_secs(20);

pub(crate) const MODES: [CompletionMode; 3] =
    [CompletionMode::Event, CompletionMode::Poll, CompletionMode::HostFn];

/// A pool on a device whose clock only the test moves.
pub(crate) fn still(settings: PoolSettings) -> (Simulation, StreamPool) {
    let simulation = Simulation::new(SimSettings { clock: SimClock::Manual, ..SimSettings::default() });
    let pool = StreamPool::new(OpenDevice::simulated(&simulation), settings).unwrap();
    (simulation, pool)
}

pub(crate) fn streams(max_streams: usize) -> PoolSettings {
    PoolSettings { max_streams, ..PoolSettings::default() }
}

pub(crate) fn spin(pool: &StreamPool) -> SpinKernel {
    SpinKernel::load(pool.device()).unwrap()
}

/// Waits for a state, not for a time.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < GUARD, "{what} did not come about");
        thread::sleep(Duration::from_micros(100));
    }
}

/// Counts how often it is woken.
#[derive(Default)]
pub(crate) struct Wakes(AtomicUsize);

impl Wakes {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A future that is polled by hand.
pub(crate) struct Polled<F: Future> {
    future: Pin<Box<F>>,
    pub(crate) wakes: Arc<Wakes>,
}

impl<F: Future> Polled<F> {
    pub(crate) fn new(future: F) -> Self {
        Self { future: Box::pin(future), wakes: Arc::default() }
    }

    pub(crate) fn poll(&mut self) -> Option<F::Output> {
        let waker = Waker::from(Arc::clone(&self.wakes));
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }
}

/// Blocks on a future, at most as long as the guard.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    let begun = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let left = GUARD.checked_sub(begun.elapsed()).expect("the future hangs");
        thread::park_timeout(left);
    }
}
