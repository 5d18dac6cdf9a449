//! What programs may rely on with the real driver holds here, and what they may not fails.
#![allow(unsafe_code, reason = "the interface under test is C")]

mod c;

use std::ffi::c_void;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use c::*;

#[test]
fn an_event_is_not_ready_before_its_stream_has_come_to_it() {
    start(0);
    let stream = stream();
    let word = gate(stream);
    let event = recorded(stream);
    assert_eq!(cuEventQuery(event), NOT_READY);
    assert_eq!(cuStreamQuery(stream), NOT_READY);
    word.open();
    assert_eq!(cuEventSynchronize(event), 0);
    assert_eq!(cuEventQuery(event), 0);
    assert_eq!(cuStreamSynchronize(stream), 0);
    assert_eq!(cuStreamQuery(stream), 0);
}

#[test]
fn a_stream_is_done_when_its_last_event_is_reached() {
    start(0);
    let stream = stream();
    for _ in 0..200 {
        assert_eq!(cuEventSynchronize(recorded(stream)), 0);
        assert_eq!(cuStreamQuery(stream), 0);
    }
}

#[test]
fn an_event_that_was_never_recorded_is_ready() {
    start(0);
    assert_eq!(cuEventQuery(event()), 0);
}

#[test]
fn a_stream_waits_for_the_record_that_was_the_newest_when_it_was_told() {
    start(0);
    let (first, second) = (stream(), stream());
    let word = gate(first);
    let event = recorded(first);
    assert_eq!(cuStreamWaitEvent(second, event, 0), 0);
    let after = recorded(second);
    // The event is recorded anew in an idle stream: the wait stays where it was.
    assert_eq!(cuEventRecord(event, stream()), 0);
    assert_eq!(cuEventSynchronize(event), 0);
    assert_eq!(cuEventQuery(after), NOT_READY);
    word.open();
    assert_eq!(cuEventSynchronize(after), 0);
}

#[test]
fn copies_bring_the_bytes_and_a_pageable_source_is_read_before_the_call_returns() {
    start(0);
    let stream = stream();
    let device = device_memory(1000);
    let mut there = Pinned::new(1000);
    let mut back = Pinned::new(1000);
    there.bytes().iter_mut().enumerate().for_each(|(n, byte)| *byte = (n % 251) as u8);
    // SAFETY: both blocks have 1,000 bytes, and stay until the stream has come to the end.
    unsafe {
        assert_eq!(cuMemcpyHtoDAsync_v2(device, there.at(), 1000, stream), 0);
        assert_eq!(cuMemcpyDtoHAsync_v2(back.at(), device, 1000, stream), 0);
    }
    assert_eq!(cuStreamSynchronize(stream), 0);
    assert_eq!(back.bytes(), there.bytes());

    let word = gate(stream);
    let mut pageable = vec![7_u8; 1000];
    // SAFETY: pageable memory is read during the call.
    assert_eq!(unsafe { cuMemcpyHtoDAsync_v2(device, pageable.as_ptr(), 1000, stream) }, 0);
    pageable.fill(9);
    word.open();
    let mut landed = vec![0_u8; 1000];
    // SAFETY: pageable memory is filled during the call.
    assert_eq!(unsafe { cuMemcpyDtoHAsync_v2(landed.as_mut_ptr(), device, 1000, stream) }, 0);
    assert_eq!(landed, vec![7; 1000]);
}

#[test]
fn a_host_function_holds_its_stream_up_and_may_not_call_the_driver() {
    static CODE: AtomicI32 = AtomicI32::new(-1);
    unsafe extern "C" fn function(stream: *mut c_void) {
        CODE.store(cuStreamQuery(stream as usize), Ordering::Release);
    }
    start(0);
    let stream = stream();
    let word = gate(stream);
    // SAFETY: the function takes any argument.
    assert_eq!(unsafe { cuLaunchHostFunc(stream, function, stream as *mut c_void) }, 0);
    let event = recorded(stream);
    assert_eq!(CODE.load(Ordering::Acquire), -1);
    word.open();
    assert_eq!(cuEventSynchronize(event), 0);
    assert_eq!(CODE.load(Ordering::Acquire), 800);
}

#[test]
fn calls_wait_while_a_host_function_runs() {
    static STATE: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn function(_: *mut c_void) {
        STATE.store(1, Ordering::Release);
        std::thread::sleep(Duration::from_millis(50));
        STATE.store(2, Ordering::Release);
    }
    start(0);
    let (busy, other) = (stream(), stream());
    // SAFETY: the function takes any argument.
    assert_eq!(unsafe { cuLaunchHostFunc(busy, function, std::ptr::null_mut()) }, 0);
    while STATE.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(cuStreamQuery(other), 0);
    assert_eq!(STATE.load(Ordering::Acquire), 2);
}

#[test]
fn a_pool_gives_no_more_than_its_maximum_until_its_stream_has_freed() {
    start(0);
    let stream = stream();
    let properties =
        PoolProperties { kind: 1, location_kind: 1, max_bytes: 1000, ..PoolProperties::default() };
    // SAFETY: `out` passes a valid pointer, here and below.
    let pool = out(|at| unsafe { cuMemPoolCreate(at, &raw const properties) }).unwrap();
    // SAFETY: `out` passes a valid pointer.
    let take = |bytes| out(|at| unsafe { cuMemAllocFromPoolAsync(at, bytes, pool, stream) });
    // SAFETY: `out` passes a valid pointer.
    let used = || out(|at| unsafe { cuMemPoolGetAttribute(pool, 7, at) }).unwrap();
    let block = take(800).unwrap();
    assert_eq!((take(300), used()), (Err(2), 800));
    let word = gate(stream);
    assert_eq!(cuMemFreeAsync(block, stream), 0);
    assert_eq!(take(300), Err(2));
    word.open();
    assert_eq!(cuStreamSynchronize(stream), 0);
    assert_eq!((take(300).is_ok(), used()), (true, 300));
}

#[test]
fn kernels_of_two_streams_run_at_the_same_time_and_events_take_times() {
    start(0);
    let (held, free) = (stream(), stream());
    // SAFETY: `out` passes a valid pointer, here and below.
    let timed = || out(|at| unsafe { cuEventCreate(at, 0) }).unwrap();
    let word = gate(held);
    let (from, to) = (timed(), timed());
    cuEventRecord(from, free);
    launch("spin", 20_000_000, free);
    cuEventRecord(to, free);
    assert_eq!(cuEventSynchronize(to), 0);
    assert_eq!(cuStreamQuery(held), NOT_READY);
    word.open();
    // The word goes at the end of this, and a kernel that still looked at it would break the device for all.
    assert_eq!(cuStreamSynchronize(held), 0);
    // SAFETY: `out` passes a valid pointer.
    let time_ms = out(|at| unsafe { cuEventElapsedTime(at, from, to) }).unwrap();
    assert!(time_ms >= 20.0, "{time_ms}");
}

#[test]
fn a_handle_that_is_gone_is_refused() {
    start(0);
    let (stream, event) = (stream(), event());
    assert_eq!((cuStreamDestroy_v2(stream), cuEventDestroy_v2(event)), (0, 0));
    assert_eq!((cuStreamQuery(stream), cuStreamDestroy_v2(stream), cuEventQuery(event)), (400, 400, 400));
}

#[test]
fn the_default_stream_is_ordered_with_blocking_streams() {
    start(0);
    // SAFETY: `out` passes a valid pointer.
    let blocking = out(|at| unsafe { cuStreamCreate(at, 0) }).unwrap();
    let word = gate(blocking);
    let event = recorded(0);
    assert_eq!(cuEventQuery(event), NOT_READY);
    word.open();
    assert_eq!(cuEventSynchronize(event), 0);
}

#[test]
fn a_context_is_synchronized_when_its_streams_have_ended_and_those_that_were_destroyed() {
    for is_destroyed in [false, true] {
        start(0);
        let stream = stream();
        let (word, is_opened) = (gate(stream), AtomicU32::new(0));
        if is_destroyed {
            assert_eq!(cuStreamDestroy_v2(stream), 0);
        }
        let ended = std::thread::scope(|threads| {
            let waiting = threads.spawn(|| {
                start(0);
                (cuCtxSynchronize(), is_opened.load(Ordering::Acquire))
            });
            // A wait that ends too early ends by now.
            std::thread::sleep(Duration::from_millis(20));
            is_opened.store(1, Ordering::Release);
            word.open();
            waiting.join().unwrap()
        });
        assert_eq!(ended, (0, 1), "{is_destroyed}");
    }
}

#[test]
fn the_child_of_a_fork_finds_no_driver() {
    scenario("in_a_child", &[]);
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn in_a_child() {
    unsafe extern "C" {
        safe fn fork() -> i32;
        safe fn _exit(code: i32) -> !;
        fn waitpid(process: i32, status: *mut i32, options: i32) -> i32;
    }
    start(0);
    let child = fork();
    if child == 0 {
        _exit(cuCtxSynchronize());
    }
    let mut status = 0;
    // SAFETY: the pointer is valid.
    assert_eq!(unsafe { waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status >> 8, 3, "not initialised");
}
