//! What becomes of those who wait when the system has no thread for them.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crate::completion::CompletionMode;
use crate::kernel::SpinKernel;
use crate::open::OpenDevice;
use crate::pool::{PoolSettings, StreamPool};
use crate::process::refuse_threads;
use crate::sim::{SimClock, SimSettings, Simulation};
use crate::{CudaError, Lease};

const GUARD: Duration = Duration::from_secs(20);

fn busy(completion: CompletionMode) -> (Simulation, StreamPool, Lease) {
    let simulation = Simulation::new(SimSettings { clock: SimClock::Manual, ..SimSettings::default() });
    let settings = PoolSettings { max_streams: 1, completion, ..PoolSettings::default() };
    let pool = StreamPool::new(OpenDevice::simulated(&simulation), settings).unwrap();
    let lease = pool.try_lease(None).unwrap();
    SpinKernel::load(pool.device()).unwrap().launch(&lease, 10).unwrap();
    (simulation, pool, lease)
}

#[test]
fn whoever_waits_without_a_thread_is_told_and_the_next_tries_again() {
    for completion in [CompletionMode::Event, CompletionMode::Poll] {
        let (simulation, _pool, lease) = busy(completion);
        refuse_threads(2);
        assert_eq!(lease.completion().wait(Some(GUARD)), Some(Err(CudaError::Thread)));
        assert_eq!(lease.completion().wait(Some(GUARD)), Some(Err(CudaError::Thread)), "{completion:?}");
        let done = lease.completion();
        assert_eq!(done.result(), None);
        simulation.advance_us(10);
        assert_eq!(done.wait(Some(GUARD)), Some(Ok(())), "{completion:?}");
    }
}

#[test]
fn a_close_does_not_wait_for_somebody_to_find_a_thread_for_a_stream_that_drains() {
    for completion in [CompletionMode::Event, CompletionMode::Poll, CompletionMode::HostFn] {
        // The drain's thread, and that of the first try of the close.
        for refused in [1, 2] {
            let (simulation, pool, lease) = busy(completion);
            refuse_threads(refused);
            drop(lease);
            let closed = pool.close();
            simulation.advance_us(10);
            assert_eq!(closed.wait(Some(GUARD)), Some(Ok(())), "{completion:?}");
        }
    }
}

#[test]
fn a_close_that_nobody_can_look_after_says_so_and_the_next_does_it() {
    let (simulation, pool, lease) = busy(CompletionMode::Event);
    refuse_threads(3);
    drop(lease);
    simulation.advance_us(10);
    assert_eq!(pool.close().wait(Some(GUARD)), Some(Err(CudaError::Thread)));
    assert_eq!(pool.close().wait(Some(GUARD)), Some(Ok(())));
}

#[test]
fn a_stream_that_drains_without_a_thread_comes_to_whoever_asks_again() {
    for completion in [CompletionMode::Event, CompletionMode::Poll, CompletionMode::HostFn] {
        let (simulation, pool, lease) = busy(completion);
        refuse_threads(1);
        drop(lease);
        simulation.advance_us(10);
        let begun = Instant::now();
        while let Err(refused) = pool.try_lease(None) {
            assert_eq!(refused, CudaError::Capacity { max: 1 });
            assert!(begun.elapsed() < GUARD, "{completion:?}: it drains for ever");
            thread::sleep(Duration::from_micros(100));
        }
    }
}

#[test]
fn a_stream_that_drains_without_a_thread_comes_to_whoever_stands_in_line() {
    for completion in [CompletionMode::Event, CompletionMode::Poll, CompletionMode::HostFn] {
        let (simulation, pool, lease) = busy(completion);
        refuse_threads(1);
        drop(lease);
        simulation.advance_us(10);
        let mut next = pin!(pool.lease(None, None));
        let begun = Instant::now();
        let lease = loop {
            match next.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(lease) => break lease,
                Poll::Pending => thread::sleep(Duration::from_micros(100)),
            }
            assert!(begun.elapsed() < GUARD, "{completion:?}: it drains for ever");
        };
        assert!(lease.is_ok(), "{completion:?}");
    }
}
