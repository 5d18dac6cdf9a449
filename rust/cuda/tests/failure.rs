//! What happens when something fails: a call alone, or the device with everything on it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use headrace_cuda::{
    CompletionMode, CudaError, PoolSettings, SimCall, SimFault, StreamPool, When, device_count,
};

use self::support::{GUARD, MODES, Polled, block_on, spin, still, streams};

/// Within this time everybody must know.
const A_SECOND: Duration = Duration::from_secs(1);

fn is_lost<T: std::fmt::Debug>(result: &Result<T, CudaError>, code: u32) -> bool {
    matches!(result, Err(CudaError::ContextPoisoned(fault)) if fault.code == code)
}

#[test]
fn a_lost_device_fails_everybody_who_waits_within_a_second() {
    for completion in MODES {
        let (simulation, pool) = still(PoolSettings { completion, ..streams(2) });
        let kernel = spin(&pool);
        let (first, second) = (pool.try_lease(None).unwrap(), pool.try_lease(None).unwrap());
        let mut in_line: Vec<_> = (0..8).map(|_| Polled::new(pool.lease(None, None))).collect();
        assert!(in_line.iter_mut().all(|future| future.poll().is_none()));
        kernel.launch(&first, 1000).unwrap();
        kernel.launch(&second, 1000).unwrap();
        let (buffer, uploaded) = second.copy_to_device(&[0; 100]).unwrap();
        let download = second.download(&buffer, 0, 100).unwrap();
        let awaited = [first.completion(), second.completion(), uploaded];
        let other = StreamPool::new(pool.device().clone(), streams(1)).unwrap();
        let lent = other.try_lease(None).unwrap();
        let closed = other.close();
        drop(first); // It drains.
        let begun = Instant::now();
        simulation.lose(700);
        for completion in &awaited {
            assert!(is_lost(&completion.wait(Some(GUARD)).unwrap(), 700));
        }
        assert!(is_lost(&block_on(download), 700));
        assert!(is_lost(&closed.wait(Some(GUARD)).unwrap(), 700));
        for mut future in in_line {
            assert_eq!(future.wakes.count(), 1);
            assert!(is_lost(&future.poll().unwrap(), 700));
        }
        assert!(begun.elapsed() < A_SECOND, "{completion:?} took {:?}", begun.elapsed());
        // Nothing works any more, for any pool of the device, and it says so.
        assert!(is_lost(&pool.try_lease(None), 700) && is_lost(&lent.query(), 700));
        assert!(is_lost(&block_on(pool.lease(None, None)), 700));
        assert!(is_lost(&second.record_event(), 700) && is_lost(&second.allocate(1), 700));
        assert!(!pool.is_healthy() && pool.stats().poisoned && !other.is_healthy());
        assert!(is_lost(&StreamPool::new(pool.device().clone(), streams(1)), 700));
    }
}

#[test]
fn those_in_line_learn_of_a_lost_device_although_nobody_calls_the_driver() {
    let (simulation, pool) = still(streams(1));
    let _lease = pool.try_lease(None).unwrap();
    let begun = Instant::now();
    simulation.lose(719);
    assert!(is_lost(&block_on(pool.lease(None, None)), 719));
    assert!(begun.elapsed() < A_SECOND);
}

#[test]
fn who_waits_for_the_end_of_a_pool_learns_of_a_lost_device_although_nobody_calls_the_driver() {
    let (simulation, pool) = still(streams(1));
    let _lease = pool.try_lease(None).unwrap();
    let closed = pool.close();
    let begun = Instant::now();
    simulation.lose(719);
    assert!(is_lost(&closed.wait(Some(GUARD)).unwrap(), 719));
    assert!(begun.elapsed() < A_SECOND);
}

#[test]
fn a_kernel_that_dies_takes_the_device_with_it_when_it_runs_and_not_before() {
    for completion in MODES {
        let (simulation, pool) = still(PoolSettings { completion, ..streams(1) });
        let (kernel, stream) = (spin(&pool), pool.try_lease(None).unwrap());
        simulation.fail(SimFault { call: SimCall::Launch, nth: 1, code: 719, when: When::Executed });
        kernel.launch(&stream, 100).unwrap();
        let done = stream.completion();
        simulation.advance_us(99);
        assert!(done.result().is_none() && pool.is_healthy());
        simulation.advance_us(1);
        assert!(is_lost(&done.wait(Some(GUARD)).unwrap(), 719));
        assert!(!pool.is_healthy());
    }
}

#[test]
fn an_error_that_does_not_stay_fails_its_call_and_nothing_else() {
    let (simulation, pool) = still(streams(2));
    let (stream, kernel) = (pool.try_lease(None).unwrap(), spin(&pool));
    for (call, code) in [
        (SimCall::AllocateHost, 2),
        (SimCall::Allocate, 2),
        (SimCall::RecordEvent, 400),
        (SimCall::CopyToDevice, 1),
        (SimCall::Launch, 701),
    ] {
        simulation.fail(SimFault { call, nth: 1, code, when: When::Called });
        let failed = match call {
            SimCall::Launch => kernel.launch(&stream, 1),
            SimCall::RecordEvent => stream.record_event().map(drop),
            _ => stream.copy_to_device(&[0; 4096]).map(drop),
        };
        assert!(matches!(failed, Err(CudaError::Driver(fault)) if fault.code == code), "{call:?}");
        assert!(pool.is_healthy());
    }
    let (buffer, _) = stream.copy_to_device(&[5; 10]).unwrap();
    simulation.advance_us(10);
    let download = stream.download(&buffer, 0, 10).unwrap();
    simulation.advance_us(10);
    assert_eq!(&*block_on(download).unwrap(), &[5; 10]);
    assert_eq!(pool.stats().errors, 5);
}

#[test]
fn a_stream_whose_end_the_driver_refuses_to_tell_is_not_lent_again() {
    let (simulation, pool) = still(PoolSettings { completion: CompletionMode::Event, ..streams(1) });
    let (kernel, lease) = (spin(&pool), pool.try_lease(None).unwrap());
    let handle = lease.handle();
    kernel.launch(&lease, 100).unwrap();
    let mut next = Polled::new(pool.lease(None, None));
    assert!(next.poll().is_none());
    // It is busy, and no event can be recorded that would tell when it is not.
    simulation.fail(SimFault { call: SimCall::CreateEvent, nth: 1, code: 2, when: When::Called });
    drop(lease);
    assert_ne!(next.poll().unwrap().unwrap().handle(), handle);
}

#[test]
fn a_host_function_that_is_refused_is_made_up_for() {
    let (simulation, pool) = still(PoolSettings { completion: CompletionMode::HostFn, ..streams(1) });
    let (kernel, stream) = (spin(&pool), pool.try_lease(None).unwrap());
    simulation.fail(SimFault { call: SimCall::CallHost, nth: 1, code: 2, when: When::Called });
    kernel.launch(&stream, 10).unwrap();
    let done = stream.completion();
    simulation.advance_us(10);
    assert_eq!(done.wait(Some(GUARD)), Some(Ok(())));
}

#[test]
fn a_machine_without_a_device_says_why() {
    if let Err(error) = device_count() {
        assert!(matches!(&error, CudaError::Unavailable(_)), "{error:?}");
        assert!(matches!(headrace_cuda::OpenDevice::open(0), Err(again) if again == error));
    }
}
