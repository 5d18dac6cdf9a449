//! How the end of work is learned of, in each of the three ways: at once, in order, by everybody, and never
//! lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use headrace_cuda::{
    CompletionMode, CudaError, OpenDevice, PoolSettings, SimCall, SimFault, SimSettings, Simulation,
    StreamPool, When,
};

use self::support::{GUARD, MODES, Polled, block_on, spin, still, streams, until};

fn mode(completion: CompletionMode, max_streams: usize) -> PoolSettings {
    PoolSettings { completion, ..streams(max_streams) }
}

#[test]
fn a_completion_is_told_when_the_stream_has_come_so_far_and_not_before() {
    for completion in MODES {
        let (simulation, pool) = still(mode(completion, 1));
        let (kernel, stream) = (spin(&pool), pool.try_lease(None).unwrap());
        kernel.launch(&stream, 100).unwrap();
        let mut first = Polled::new(stream.completion());
        kernel.launch(&stream, 100).unwrap();
        let second = stream.completion();
        assert!(first.poll().is_none());
        simulation.advance_us(100);
        until("the news", || first.wakes.count() == 1);
        assert_eq!(first.poll(), Some(Ok(())));
        assert_eq!(second.result(), None);
        simulation.advance_us(100);
        assert_eq!(second.wait(Some(GUARD)), Some(Ok(())));
    }
}

#[test]
fn what_is_waited_for_is_done_only_when_a_stopped_device_goes_on() {
    for completion in MODES {
        let simulation = Simulation::new(SimSettings::default());
        let device = OpenDevice::simulated(&simulation);
        let pool = StreamPool::new(device, mode(completion, 1)).unwrap();
        let (kernel, stream) = (spin(&pool), pool.try_lease(None).unwrap());
        simulation.stop();
        let stood_at = simulation.now_ns();
        kernel.launch(&stream, 1).unwrap();
        assert_eq!(stream.completion().wait(Some(Duration::from_millis(5))), None);
        assert_eq!(simulation.now_ns(), stood_at);
        simulation.go_on();
        assert_eq!(stream.completion().wait(Some(GUARD)), Some(Ok(())));
    }
}

#[test]
fn what_is_done_already_involves_no_thread() {
    let (simulation, pool) = still(streams(1));
    // Any recorded or waited-for event would fail.
    for call in [SimCall::RecordEvent, SimCall::SynchronizeEvent, SimCall::CreateEvent] {
        simulation.fail(SimFault { call, nth: 1, code: 1, when: When::Called });
    }
    let stream = pool.try_lease(None).unwrap();
    assert_eq!(stream.completion().result(), Some(Ok(())));
}

#[test]
fn an_event_is_awaited_before_a_later_one_that_is_awaited_already() {
    for completion in MODES {
        let (simulation, pool) = still(mode(completion, 1));
        let (kernel, stream) = (spin(&pool), pool.try_lease(None).unwrap());
        kernel.launch(&stream, 10).unwrap();
        let early = stream.record_event().unwrap();
        kernel.launch(&stream, 1_000_000).unwrap();
        let late = stream.completion();
        let early = early.completion();
        simulation.advance_us(10);
        assert_eq!(early.wait(Some(GUARD)), Some(Ok(())));
        assert_eq!(late.result(), None);
        simulation.advance_us(1_000_000);
        assert_eq!(late.wait(Some(GUARD)), Some(Ok(())));
    }
}

#[test]
fn a_device_is_synchronized_when_all_streams_have_ended() {
    let (simulation, pool) = still(streams(2));
    let (kernel, device) = (spin(&pool), pool.device().clone());
    let (lent, default) = (pool.try_lease(None).unwrap(), pool.resolve(0).unwrap());
    kernel.launch(&lent, 10).unwrap();
    kernel.launch(&default, 20).unwrap();
    let (sender, ended) = mpsc::channel();
    thread::scope(|threads| {
        threads.spawn(move || sender.send(device.synchronize()).unwrap());
        simulation.advance_us(19);
        assert_eq!(ended.recv_timeout(Duration::from_millis(20)), Err(mpsc::RecvTimeoutError::Timeout));
        simulation.advance_us(1);
        assert_eq!(ended.recv_timeout(GUARD), Ok(Ok(())));
    });
    simulation.lose(700);
    assert!(matches!(pool.device().synchronize(), Err(CudaError::ContextPoisoned(_))));
}

#[test]
fn one_event_is_awaited_by_all_who_want_it_and_keeps_what_each_has_left() {
    for completion in MODES {
        let (simulation, pool) = still(mode(completion, 1));
        let (kernel, stream) = (spin(&pool), pool.try_lease(None).unwrap());
        kernel.launch(&stream, 10).unwrap();
        let event = stream.record_event().unwrap();
        let (first, second) = (event.completion(), event.completion());
        // An upload and its buffer have one event; the upload has left its pinned memory with it.
        let (buffer, uploaded) = stream.copy_to_device(&[7; 4096]).unwrap();
        let ready = buffer.ready().unwrap().completion();
        let mut piece = stream.pinned(4096).unwrap();
        piece.fill(8);
        let all = [first, second, uploaded, ready];
        until("all news", || {
            // A stream stands at a host function until that has returned, and then goes on.
            simulation.advance_us(10);
            all.iter().all(|completion| completion.result() == Some(Ok(())))
        });
        let download = stream.download(&buffer, 0, 4096).unwrap();
        until("the bytes", || {
            simulation.advance_us(10);
            download.completion().result().is_some()
        });
        assert_eq!(&*download.take().unwrap().unwrap(), &[7; 4096], "{completion:?}");
    }
}

#[test]
fn streams_do_not_wait_for_each_other() {
    for completion in MODES {
        let (simulation, pool) = still(mode(completion, 8));
        let kernel = spin(&pool);
        let leases: Vec<_> = (0..8).map(|_| pool.try_lease(None).unwrap()).collect();
        // The last one is done first. All kernels start at once where there is room; there is room for four.
        let done: Vec<_> = leases[..4]
            .iter()
            .enumerate()
            .map(|(index, lease)| {
                kernel.launch(lease, 400 - 100 * index as u64).unwrap();
                lease.completion()
            })
            .collect();
        for index in (0..4).rev() {
            simulation.advance_us(100);
            assert_eq!(done[index].wait(Some(GUARD)), Some(Ok(())));
            assert!(done[..index].iter().all(|earlier| earlier.result().is_none()));
        }
    }
}

#[test]
fn a_stream_waits_for_an_event_of_another() {
    let (simulation, pool) = still(streams(2));
    let kernel = spin(&pool);
    let (first, second) = (pool.try_lease(None).unwrap(), pool.try_lease(None).unwrap());
    kernel.launch(&first, 100).unwrap();
    let event = first.record_event().unwrap();
    second.wait_event(&event).unwrap();
    kernel.launch(&second, 10).unwrap();
    let done = second.completion();
    simulation.advance_us(109);
    assert!(event.query().unwrap() && done.result().is_none());
    simulation.advance_us(1);
    assert_eq!(done.wait(Some(GUARD)), Some(Ok(())));
}

#[test]
fn the_time_between_two_events_is_that_of_the_device() {
    let (simulation, pool) = still(streams(1));
    let (kernel, stream) = (spin(&pool), pool.try_lease(None).unwrap());
    let begin = stream.record_timed_event().unwrap();
    kernel.launch(&stream, 1500).unwrap();
    let end = stream.record_timed_event().unwrap();
    assert!(matches!(begin.elapsed_ms(&end), Err(CudaError::Driver(fault)) if fault.code == 600));
    simulation.advance_us(2000);
    assert!((begin.elapsed_ms(&end).unwrap() - 1.5).abs() < 1e-6);
    let plain = stream.record_event().unwrap();
    assert!(begin.elapsed_ms(&plain).is_err());
}

#[test]
fn a_function_that_waits_is_called_once_even_if_nobody_keeps_the_completion() {
    for completion in MODES {
        let (simulation, pool) = still(mode(completion, 1));
        let (kernel, stream) = (spin(&pool), pool.try_lease(None).unwrap());
        kernel.launch(&stream, 10).unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        stream.completion().on_complete({
            let calls = Arc::clone(&calls);
            move |result| {
                assert_eq!(result, Ok(()));
                calls.fetch_add(1, Ordering::SeqCst);
            }
        });
        simulation.advance_us(10);
        until("the call", || calls.load(Ordering::SeqCst) == 1);
        stream.synchronize().unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
}

/// Many threads lease, work and await at once, on real time: whatever is lost hangs.
#[test]
fn no_wake_up_is_lost_under_load() {
    const THREADS: usize = 6;
    const ROUNDS: u32 = 60;
    for completion in MODES {
        let simulation = Simulation::new(SimSettings::default());
        let pool = StreamPool::new(OpenDevice::simulated(&simulation), mode(completion, 3)).unwrap();
        let (kernel, in_use) = (spin(&pool), Arc::new(AtomicU32::new(0)));
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (pool, kernel, in_use) = (&pool, &kernel, Arc::clone(&in_use));
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let mut given_up = Polled::new(pool.lease(None, None));
                        if round % 3 == 0 {
                            _ = given_up.poll();
                        }
                        drop(given_up);
                        let lease = block_on(pool.lease(Some(thread as u64), Some(GUARD))).unwrap();
                        assert!(in_use.fetch_add(1, Ordering::SeqCst) < 3, "a stream was lent twice");
                        kernel.launch(&lease, u64::from(round % 4) * 20).unwrap();
                        let (buffer, _) = lease.copy_to_device(&[round as u8; 100]).unwrap();
                        assert_eq!(
                            block_on(lease.download(&buffer, 0, 100).unwrap()).unwrap()[99],
                            round as u8
                        );
                        if round % 2 == 0 {
                            block_on(lease.completion()).unwrap();
                        }
                        in_use.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(pool.close().wait(Some(GUARD)), Some(Ok(())));
        until("every byte's return", || pool.stats().device_bytes == 0);
        let stats = pool.stats();
        assert_eq!((stats.in_use, stats.draining, stats.waiting, stats.errors), (0, 0, 0, 0));
        // Given up leases that were granted at once count too.
        assert!(stats.leases >= u64::from(ROUNDS) * THREADS as u64);
    }
}

#[test]
fn waiting_has_an_end_where_one_is_asked_for() {
    let (_, pool) = still(streams(1));
    let (kernel, stream) = (spin(&pool), pool.try_lease(None).unwrap());
    kernel.launch(&stream, 10).unwrap();
    assert_eq!(stream.completion().wait(Some(Duration::from_millis(2))), None);
}
