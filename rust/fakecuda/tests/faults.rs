//! Faults that the environment scripts, each in a process of its own.
#![allow(unsafe_code, reason = "the interface under test is C")]

mod c;

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use c::*;

#[test]
fn the_driver_refuses_to_start_with_the_code_of_the_script() {
    for code in ["34", "100", "803", "999"] {
        scenario("refused_start", &[("INIT", code)]);
    }
    scenario("refused_start", &[("DEVICES", "0"), ("INIT", "100")]);
}

#[test]
#[ignore = "a scenario"]
fn refused_start() {
    let expected: i32 = std::env::var("HEADRACE_FAKECUDA_INIT").unwrap().parse().unwrap();
    assert_eq!(cuInit(0), expected);
    assert_eq!(cuCtxSynchronize(), 3);
}

#[test]
fn there_are_as_many_devices_as_the_script_says() {
    scenario("three_devices", &[("DEVICES", "3")]);
}

#[test]
#[ignore = "a scenario"]
fn three_devices() {
    start(2);
    // SAFETY: `out` passes a valid pointer.
    assert_eq!(out(|at| unsafe { cuDeviceGetCount(at) }), Ok(3));
    assert_eq!(cuDevicePrimaryCtxRelease_v2(2), 0);
    assert_eq!(cuCtxSynchronize(), 201, "nobody holds the context any more");
}

#[test]
fn the_call_of_the_script_fails_and_its_neighbours_do_not() {
    scenario("third_stream_fails", &[("FAIL", "cuStreamCreate*:3:2,cuEventCreate:2+:999")]);
}

#[test]
#[ignore = "a scenario"]
fn third_stream_fails() {
    start(0);
    // SAFETY: `out` passes valid pointers.
    let create = || out(|at| unsafe { cuStreamCreate(at, NON_BLOCKING) }).map(|_| ());
    // SAFETY: `out` passes a valid pointer.
    let urgent = || out(|at| unsafe { cuStreamCreateWithPriority(at, NON_BLOCKING, -1) }).map(|_| ());
    assert_eq!([create(), urgent(), create(), create()], [Ok(()), Ok(()), Err(2), Ok(())]);
    // SAFETY: `out` passes a valid pointer.
    let event = || out(|at| unsafe { cuEventCreate(at, 0) }).map(|_| ());
    assert_eq!([event(), event(), event()], [Ok(()), Err(999), Err(999)]);
}

#[test]
fn memory_ends_where_the_script_says() {
    scenario("little_memory", &[("MEMORY_MB", "2"), ("PINNED_MB", "1")]);
}

#[test]
#[ignore = "a scenario"]
fn little_memory() {
    start(0);
    let first = device_memory(1 << 20);
    // SAFETY: `out` passes a valid pointer.
    assert_eq!(out(|at| unsafe { cuMemAlloc_v2(at, (1 << 20) + 1) }), Err(2));
    assert_eq!(cuMemFree_v2(first), 0);
    device_memory((1 << 20) + 1);
    let _pinned = Pinned::new(1 << 20);
    let mut more = std::ptr::null_mut();
    // SAFETY: a valid pointer.
    assert_eq!(unsafe { cuMemHostAlloc(&raw mut more, 1, 0) }, 2);
}

#[test]
fn a_copy_takes_the_time_of_its_bandwidth_and_each_direction_has_one_engine() {
    scenario("slow_copies", &[("H2D_GBPS", "0.01")]);
}

#[test]
#[ignore = "a scenario"]
fn slow_copies() {
    start(0);
    let (device, host) = (device_memory(1_000_000), Pinned::new(1_000_000));
    let began = Instant::now();
    for stream in [stream(), stream()] {
        // SAFETY: both blocks are that long and stay.
        assert_eq!(unsafe { cuMemcpyHtoDAsync_v2(device, host.at(), 1_000_000, stream) }, 0);
    }
    assert_eq!(cuCtxSynchronize(), 0);
    assert!(began.elapsed() >= Duration::from_millis(200), "100 ms each, one after the other");
}

#[test]
fn a_sticky_error_fails_all_that_waits_and_every_later_call_and_calls_no_host_function() {
    scenario("broken", &[("STICKY", "1:719")]);
}

#[test]
#[ignore = "a scenario"]
fn broken() {
    static CALLED: AtomicBool = AtomicBool::new(false);
    unsafe extern "C" fn function(_: *mut c_void) {
        CALLED.store(true, Ordering::Release);
    }
    start(0);
    let (stream, other) = (stream(), stream());
    // The spin is the first operation: the device breaks there, and what is behind is given up.
    launch("spin", 0, stream);
    let event = event();
    // The device may break before each of these: then they say so themselves.
    // SAFETY: the function takes any argument.
    let told =
        [unsafe { cuLaunchHostFunc(stream, function, std::ptr::null_mut()) }, cuEventRecord(event, stream)];
    assert!(told.iter().all(|code| [0, 719].contains(code)), "{told:?}");
    while cuEventSynchronize(event) != 719 {
        std::thread::yield_now();
    }
    assert_eq!([cuStreamQuery(other), cuStreamSynchronize(stream), cuCtxSynchronize()], [719; 3]);
    // SAFETY: `out` passes a valid pointer.
    assert_eq!(out(|at| unsafe { cuMemAlloc_v2(at, 1) }), Err(719));
    assert!(!CALLED.load(Ordering::Acquire));
}

#[test]
fn a_trap_breaks_whoever_waits_at_a_gate_too() {
    scenario("trapped", &[]);
}

#[test]
#[ignore = "a scenario"]
fn trapped() {
    start(0);
    let (waiting, failing) = (stream(), stream());
    let _word = gate(waiting);
    let event = recorded(waiting);
    let waiter = std::thread::spawn(move || {
        start_again();
        cuEventSynchronize(event)
    });
    launch("trap", 0, failing);
    assert_eq!(waiter.join().unwrap(), 719);
}

fn start_again() {
    assert_eq!(cuInit(0), 0);
}

#[test]
fn memory_that_is_freed_under_a_copy_is_an_illegal_address() {
    scenario("freed_too_early", &[]);
}

#[test]
#[ignore = "a scenario"]
fn freed_too_early() {
    start(0);
    let stream = stream();
    let device = device_memory(100);
    let word = gate(stream);
    let pinned = Pinned::new(100);
    // SAFETY: the block is gone before the copy runs, which the driver has to notice by itself.
    assert_eq!(unsafe { cuMemcpyHtoDAsync_v2(device, pinned.at(), 100, stream) }, 0);
    drop(pinned);
    word.open();
    assert_eq!(cuStreamSynchronize(stream), 700);
}
