//! Who gets which stream, and when: fairness, cancellation at each point, draining, closing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::time::Duration;

use headrace_cuda::{CudaError, Lease, PoolSettings, Priority, SimCall, SimFault, StreamPool, When};

use self::support::{GUARD, Polled, block_on, spin, still, streams, until};

fn waiting(pool: &StreamPool) -> Polled<headrace_cuda::LeaseFuture> {
    let mut future = Polled::new(pool.lease(None, None));
    assert!(future.poll().is_none());
    future
}

#[test]
fn a_pool_lends_each_stream_once_and_says_how_many_there_are() {
    let (_, pool) = still(streams(2));
    let (first, second) = (pool.try_lease(None).unwrap(), pool.try_lease(None).unwrap());
    assert_eq!((first.id(), second.id()), (1, 2));
    assert_eq!(pool.try_lease(None).unwrap_err(), CudaError::Capacity { max: 2 });
    drop(first);
    assert_eq!(pool.try_lease(None).unwrap().id(), 1);
    let stats = pool.stats();
    assert_eq!((stats.created, stats.idle, stats.in_use, stats.leases), (2, 1, 1, 3));
    assert_eq!(stats.backend.name(), "sim");
}

#[test]
fn streams_are_created_when_they_are_needed_and_warm_ones_with_the_pool() {
    let (_, pool) = still(streams(3));
    assert_eq!(pool.stats().created, 0);
    drop(pool.try_lease(None));
    drop(pool.try_lease(None));
    assert_eq!(pool.stats().created, 1);
    let (_, warm) = still(PoolSettings { warm_streams: 2, ..streams(3) });
    let stats = warm.stats();
    assert_eq!((stats.created, stats.idle, stats.leases), (2, 2, 0));
}

#[test]
fn whoever_would_wait_is_not_counted_as_refused() {
    let (_, pool) = still(streams(1));
    let lease = pool.take_free(None).unwrap();
    assert!(lease.is_some() && pool.take_free(None).unwrap().is_none());
    assert_eq!(pool.stats().refused, 0);
    assert_eq!(pool.try_lease(None).unwrap_err(), CudaError::Capacity { max: 1 });
    assert_eq!(pool.stats().refused, 1);
}

#[test]
fn the_line_is_first_come_first_served() {
    let (_, pool) = still(streams(1));
    let mut lease = Some(pool.try_lease(None).unwrap());
    let mut line: Vec<_> = (0..64).map(|_| waiting(&pool)).collect();
    assert_eq!(pool.stats().waiting, 64);
    while !line.is_empty() {
        drop(lease.take());
        let mut first = line.remove(0);
        assert_eq!(first.wakes.count(), 1);
        assert!(line.iter_mut().all(|other| other.wakes.count() == 0 && other.poll().is_none()));
        lease = Some(first.poll().unwrap().unwrap());
        assert_eq!(pool.try_lease(None).unwrap_err(), CudaError::Capacity { max: 1 });
    }
    drop(lease);
    assert_eq!(pool.stats().leases, 65);
}

#[test]
fn whoever_gives_up_before_the_grant_leaves_the_line() {
    let (_, pool) = still(streams(1));
    let lease = pool.try_lease(None).unwrap();
    let (first, mut second) = (waiting(&pool), waiting(&pool));
    drop(first);
    drop(lease);
    assert!(second.poll().unwrap().is_ok());
}

#[test]
fn whoever_gives_up_in_the_moment_of_the_grant_passes_the_stream_on() {
    let (_, pool) = still(streams(1));
    let lease = pool.try_lease(None).unwrap();
    let (first, mut second) = (waiting(&pool), waiting(&pool));
    drop(lease);
    // Granted and woken, but not polled.
    assert_eq!((first.wakes.count(), second.wakes.count()), (1, 0));
    drop(first);
    assert_eq!(second.wakes.count(), 1);
    let lease = second.poll().unwrap();
    assert_eq!((lease.map(|lease| lease.id()), pool.stats().leases), (Ok(1), 3));
}

#[test]
fn a_grant_that_nobody_takes_leaves_the_stream_idle() {
    let (_, pool) = still(streams(1));
    let lease = pool.try_lease(None).unwrap();
    let future = waiting(&pool);
    drop(lease);
    drop(future);
    let stats = pool.stats();
    assert_eq!((stats.idle, stats.in_use, stats.waiting), (1, 0, 0));
    assert!(pool.try_lease(None).is_ok());
}

#[test]
fn a_future_that_was_never_polled_takes_no_place() {
    let (_, pool) = still(streams(1));
    let lease = pool.try_lease(None).unwrap();
    let unpolled = pool.lease(None, None);
    let mut second = waiting(&pool);
    drop(lease);
    assert!(second.poll().unwrap().is_ok());
    drop(unpolled);
}

#[test]
fn no_stream_within_the_time_is_an_error_that_says_so() {
    let (_, pool) = still(streams(1));
    let lease = pool.try_lease(None).unwrap();
    let timeout = Duration::from_millis(5);
    let mut patient = waiting(&pool);
    let error = block_on(pool.lease(None, Some(timeout))).unwrap_err();
    assert!(matches!(error, CudaError::LeaseTimeout { waited } if waited >= timeout), "{error:?}");
    assert_eq!((pool.stats().timeouts, pool.stats().waiting), (1, 1));
    drop(lease);
    assert!(patient.poll().unwrap().is_ok());
}

#[test]
fn a_stream_is_drained_before_it_is_lent_again_and_nobody_waits_for_that() {
    let (simulation, pool) = still(streams(1));
    let kernel = spin(&pool);
    let lease = pool.try_lease(None).unwrap();
    kernel.launch(&lease, 100).unwrap();
    let mut next = waiting(&pool);
    drop(lease);
    assert_eq!((pool.stats().draining, pool.stats().in_use), (1, 0));
    assert!(next.poll().is_none());
    simulation.advance_us(99);
    assert!(next.poll().is_none());
    simulation.advance_us(1);
    until("the grant", || next.wakes.count() == 1);
    assert!(next.poll().unwrap().is_ok());
}

#[test]
fn what_others_queue_by_the_handle_is_drained_in_every_later_lease() {
    let (simulation, pool) = still(streams(1));
    let kernel = spin(&pool);
    let lease = pool.try_lease(None).unwrap();
    // Somebody who keeps the handle, as a session of another library would.
    let outside = pool.external(lease.handle());
    drop(lease);
    let lease = pool.try_lease(None).unwrap();
    kernel.launch(&outside, 100).unwrap();
    drop(lease);
    assert_eq!(pool.stats().draining, 1);
    simulation.advance_us(100);
    until("the stream's return", || pool.stats().idle == 1);
}

#[test]
fn a_handle_that_was_handed_out_stays_a_stream_in_whatever_pool_has_it() {
    let (_, pool) = still(streams(1));
    let (device, kernel) = (pool.device().clone(), spin(&pool));
    let handle = pool.try_lease(None).unwrap().handle();
    drop(pool);
    // A pool that has it without handing it out again.
    let pool = StreamPool::new(device.clone(), streams(1)).unwrap();
    drop(pool.try_lease(None).unwrap());
    drop(pool);
    let pool = StreamPool::new(device, streams(1)).unwrap();
    let lease = pool.try_lease(None).unwrap();
    kernel.launch(&pool.external(handle), 100).unwrap();
    drop(lease);
    assert_eq!(pool.stats().draining, 1, "what others queue is not waited for");
}

#[test]
fn a_stream_works_as_long_as_its_lease() {
    let (_, pool) = still(streams(1));
    let lease = pool.try_lease(None).unwrap();
    let stream = lease.stream();
    assert!(stream.is_live() && stream.record_event().is_ok());
    drop(lease);
    let again = pool.try_lease(None).unwrap();
    assert_eq!((again.id(), stream.id()), (1, 1));
    assert!(again.is_live() && !stream.is_live());
    assert_eq!(stream.record_event().unwrap_err(), CudaError::LeaseEnded);
    assert_eq!(stream.allocate(1).unwrap_err(), CudaError::LeaseEnded);
    assert_eq!(stream.completion().wait(None), Some(Err(CudaError::LeaseEnded)));
}

#[test]
fn the_default_stream_is_there_and_is_never_lent() {
    let (_, pool) = still(streams(2));
    let leases: Vec<Lease> = (0..2).map(|_| pool.try_lease(None).unwrap()).collect();
    assert!(leases.iter().all(|lease| lease.id() != 0));
    let default = pool.resolve(0).unwrap();
    assert!(default.query().unwrap() && default.is_live());
    assert_eq!(default.handle(), 0);
    assert!(pool.resolve(2).unwrap().query().unwrap());
    assert!(pool.resolve(3).is_none());
    drop(leases);
    assert_eq!(pool.resolve(2).unwrap().query().unwrap_err(), CudaError::LeaseEnded);
}

#[test]
fn a_key_gets_its_stream_again() {
    let (_, pool) = still(streams(3));
    let leases: Vec<Lease> = (1..=3).map(|key| pool.try_lease(Some(key)).unwrap()).collect();
    drop(leases);
    for key in [2, 1, 3, 2] {
        assert_eq!(u64::from(pool.try_lease(Some(key)).unwrap().id()), key);
    }
}

#[test]
fn a_stream_that_cannot_be_created_is_an_error_and_never_the_default_stream() {
    let (simulation, pool) = still(streams(2));
    simulation.fail(SimFault { call: SimCall::CreateStream, nth: 2, code: 2, when: When::Called });
    let lease = pool.try_lease(None).unwrap();
    let error = pool.try_lease(None).unwrap_err();
    assert!(matches!(&error, CudaError::ForkFailed(fault) if fault.code == 2), "{error:?}");
    // Only that call failed.
    assert_eq!(pool.try_lease(None).unwrap().id(), 2);
    assert_eq!(lease.id(), 1);
    assert_eq!(pool.stats().errors, 1);
}

#[test]
fn a_stream_that_cannot_be_drained_is_given_up_and_another_made_for_the_next() {
    let (simulation, pool) = still(streams(1));
    let lease = pool.try_lease(None).unwrap();
    let handle = lease.handle();
    let (mut first, mut second) = (waiting(&pool), waiting(&pool));
    simulation.fail(SimFault { call: SimCall::QueryStream, nth: 1, code: 1, when: When::Called });
    simulation.fail(SimFault { call: SimCall::CreateStream, nth: 1, code: 2, when: When::Called });
    drop(lease);
    assert!(matches!(first.poll().unwrap(), Err(CudaError::ForkFailed(_))));
    let lease = second.poll().unwrap().unwrap();
    assert_eq!(lease.id(), 1);
    assert_ne!(lease.handle(), handle);
}

#[test]
fn closing_refuses_those_in_line_and_waits_for_what_is_lent() {
    let (simulation, pool) = still(streams(1));
    let kernel = spin(&pool);
    let lease = pool.try_lease(None).unwrap();
    kernel.launch(&lease, 10).unwrap();
    let mut line: Vec<_> = (0..3).map(|_| waiting(&pool)).collect();
    let closed = pool.close();
    for future in &mut line {
        assert_eq!(future.wakes.count(), 1);
        assert_eq!(future.poll().unwrap().unwrap_err(), CudaError::PoolClosed);
    }
    assert_eq!(pool.try_lease(None).unwrap_err(), CudaError::PoolClosed);
    assert_eq!(block_on(pool.lease(None, None)).unwrap_err(), CudaError::PoolClosed);
    // The lease still works.
    assert!(lease.record_event().is_ok());
    drop(lease);
    assert_eq!(closed.wait(Some(Duration::ZERO)), None);
    simulation.advance_us(10);
    assert_eq!(closed.wait(Some(GUARD)), Some(Ok(())));
    assert_eq!(pool.close().wait(Some(GUARD)), Some(Ok(())), "closing twice is no error");
}

#[test]
fn dropping_the_pool_refuses_those_in_line() {
    let (_, pool) = still(streams(1));
    let lease = pool.try_lease(None).unwrap();
    let mut future = waiting(&pool);
    drop(pool);
    assert_eq!(future.poll().unwrap().unwrap_err(), CudaError::PoolClosed);
    assert!(lease.synchronize().is_ok());
}

#[test]
fn urgent_streams_have_the_greatest_priority() {
    let (_, pool) = still(PoolSettings { priority: Priority::High, ..streams(1) });
    assert_eq!(pool.try_lease(None).unwrap().priority(), -5);
    let (_, pool) = still(streams(1));
    assert_eq!(pool.try_lease(None).unwrap().priority(), 0);
}

#[test]
fn what_is_out_of_bounds_is_refused_by_name() {
    let (_, pool) = still(streams(1));
    let refused = StreamPool::new(pool.device().clone(), streams(33)).unwrap_err();
    assert!(matches!(refused, CudaError::Invalid(error) if error.setting == "max_streams"));
}
