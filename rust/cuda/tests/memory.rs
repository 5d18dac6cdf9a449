//! Budgets, buffers and copies: nothing is used again before the stream has come past its last use.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::cell::RefCell;

use headrace_cuda::{
    CompletionMode, CudaError, Lease, OpenDevice, PoolSettings, SimCall, SimClock, SimFault, SimSettings,
    Simulation, StreamPool, When,
};

use self::support::{GUARD, MODES, Polled, block_on, spin, still, streams, until};

const MIB: usize = 1 << 20;

fn small_budget() -> PoolSettings {
    PoolSettings { budget_mb: 1, ..streams(2) }
}

fn lease(pool: &StreamPool) -> Lease {
    pool.try_lease(None).unwrap()
}

#[test]
fn bytes_come_back_as_they_went() {
    for mode in MODES {
        let settings = PoolSettings { completion: mode, ..streams(1) };
        let pool = StreamPool::new(OpenDevice::simulated(&Simulation::new(SimSettings::default())), settings)
            .unwrap();
        let stream = lease(&pool);
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let (buffer, uploaded) = stream.copy_to_device(&bytes).unwrap();
        assert_eq!(block_on(uploaded), Ok(()));
        assert_eq!(&*block_on(stream.download(&buffer, 0, bytes.len()).unwrap()).unwrap(), &bytes[..]);
        assert_eq!(&*block_on(stream.download(&buffer, 5, 7).unwrap()).unwrap(), &bytes[5..12]);
        let mut patch = stream.pinned(3).unwrap();
        patch.copy_from_slice(&[1, 2, 3]);
        assert_eq!(block_on(stream.upload_to(&buffer, 10, patch).unwrap()), Ok(()));
        assert_eq!(&*block_on(stream.download(&buffer, 9, 5).unwrap()).unwrap(), &[9, 1, 2, 3, 13]);
        let stats = pool.stats();
        assert_eq!((stats.bytes_to_device, stats.bytes_to_host), (100_003, 100_012));
        assert_eq!(stats.device_bytes, 100_000);
    }
}

#[test]
fn an_allocation_over_the_budget_is_refused_before_the_driver_is_asked() {
    let (simulation, pool) = still(small_budget());
    let stream = lease(&pool);
    let half = stream.allocate(MIB / 2).unwrap();
    // Were the driver asked, it would fail.
    simulation.fail(SimFault { call: SimCall::Allocate, nth: 1, code: 2, when: When::Called });
    let (requested, current, remaining, limit) = (MIB as u64, MIB as u64 / 2, MIB as u64 / 2, MIB as u64);
    let refused = CudaError::OutOfBudget { requested, current, remaining, limit };
    assert_eq!(stream.allocate(MIB).unwrap_err(), refused);
    assert_eq!(stream.allocate(0).unwrap_err(), CudaError::ZeroBytes);
    assert!(matches!(stream.allocate(1), Err(CudaError::Driver(fault)) if fault.code == 2));
    // What the driver refused does not count.
    assert!(stream.allocate(MIB / 2).is_ok());
    drop(half);
}

#[test]
fn each_stream_has_a_budget_of_its_own() {
    let (_, pool) = still(small_budget());
    let (first, second) = (lease(&pool), lease(&pool));
    let _whole = first.allocate(MIB).unwrap();
    assert!(first.allocate(1).is_err());
    assert!(second.allocate(MIB).is_ok());
}

#[test]
fn what_was_freed_counts_until_the_stream_has_come_to_it() {
    for memory_pools in [true, false] {
        let settings = SimSettings { clock: SimClock::Manual, memory_pools, ..SimSettings::default() };
        let simulation = Simulation::new(settings);
        let pool = StreamPool::new(OpenDevice::simulated(&simulation), small_budget()).unwrap();
        let (kernel, stream) = (spin(&pool), lease(&pool));
        let buffer = stream.allocate(MIB).unwrap();
        kernel.launch(&stream, 50).unwrap();
        drop(buffer);
        assert!(matches!(stream.allocate(1), Err(CudaError::OutOfBudget { remaining: 0, .. })));
        assert_eq!(simulation.used_bytes(), MIB as u64);
        simulation.advance_us(50);
        until("the memory's return", || pool.stats().device_bytes == 0);
        assert_eq!(simulation.used_bytes(), 0);
        assert!(stream.allocate(MIB).is_ok());
    }
}

#[test]
fn memory_is_freed_after_its_last_use_on_another_stream() {
    let (simulation, pool) = still(streams(2));
    let (kernel, owner, other) = (spin(&pool), lease(&pool), lease(&pool));
    let (buffer, _) = owner.copy_to_device(&[7; 1000]).unwrap();
    kernel.launch(&other, 100).unwrap();
    let mut download = Polled::new(other.download(&buffer, 0, 1000).unwrap());
    drop(buffer);
    simulation.advance_us(50);
    assert!(owner.query().is_ok() && simulation.used_bytes() == 1000, "freed under a reader");
    simulation.advance_us(100);
    until("the copy", || download.wakes.count() > 0 || simulation.used_bytes() == 0);
    assert_eq!(&*block_until(&mut download).unwrap(), &[7; 1000]);
    until("the free", || simulation.used_bytes() == 0);
}

fn block_until<F: Future>(future: &mut Polled<F>) -> F::Output {
    let begun = std::time::Instant::now();
    loop {
        if let Some(output) = future.poll() {
            return output;
        }
        assert!(begun.elapsed() < GUARD, "the future hangs");
        std::thread::yield_now();
    }
}

#[test]
fn a_reader_on_another_stream_waits_for_the_writer() {
    let (simulation, pool) = still(streams(2));
    let (kernel, writer, reader) = (spin(&pool), lease(&pool), lease(&pool));
    kernel.launch(&writer, 100).unwrap();
    let (buffer, _) = writer.copy_to_device(&[9; 64]).unwrap();
    let mut download = Polled::new(reader.download(&buffer, 0, 64).unwrap());
    simulation.advance_us(99);
    assert!(download.poll().is_none());
    simulation.advance_us(10);
    assert_eq!(&*block_until(&mut download).unwrap(), &[9; 64]);
}

#[test]
fn a_writer_waits_for_readers_on_other_streams_by_record_use() {
    let (simulation, pool) = still(streams(2));
    let (kernel, owner, other) = (spin(&pool), lease(&pool), lease(&pool));
    let (buffer, _) = owner.copy_to_device(&[1; 64]).unwrap();
    simulation.advance_us(10);
    // Foreign code on another stream.
    buffer.wait_on(&other).unwrap();
    kernel.launch(&other, 100).unwrap();
    buffer.record_use(&other).unwrap();
    let pinned = owner.pinned(64).unwrap();
    let written = owner.upload_to(&buffer, 0, pinned).unwrap();
    simulation.advance_us(99);
    assert_eq!(written.result(), None);
    simulation.advance_us(2);
    assert_eq!(written.wait(Some(GUARD)), Some(Ok(())));
}

#[test]
fn a_cancelled_copy_keeps_its_memory_until_it_has_ended() {
    for mode in MODES {
        let (simulation, pool) = still(PoolSettings { completion: mode, ..streams(1) });
        let (kernel, stream) = (spin(&pool), lease(&pool));
        let warm = stream.pinned(4096).unwrap();
        let address = warm.address();
        drop(warm);
        kernel.launch(&stream, 100).unwrap();
        let mut bytes = stream.pinned(4096).unwrap();
        assert_eq!(bytes.address(), address);
        bytes.fill(5);
        let (buffer, uploaded) = stream.upload(bytes).unwrap();
        let download = stream.download(&buffer, 0, 4096).unwrap();
        drop((uploaded, download));
        // Were a piece used again before its copy has ended, these bytes would be copied.
        let pieces: Vec<_> = (0..3)
            .map(|_| {
                let mut piece = stream.pinned(4096).unwrap();
                piece.fill(6);
                piece
            })
            .collect();
        assert!(pieces.iter().all(|piece| piece.address() != address));
        simulation.advance_us(200);
        // What is taken is kept, so that whatever comes back is taken next.
        let taken = RefCell::new(Vec::new());
        until("the piece's return", || {
            // A stream stands at a host function until that has returned, and then goes on.
            simulation.advance_us(10);
            let piece = stream.pinned(4096).unwrap();
            let is_back = piece.address() == address;
            taken.borrow_mut().push(piece);
            is_back
        });
        let mut check = Polled::new(stream.download(&buffer, 0, 4096).unwrap());
        until("the copy", || {
            simulation.advance_us(10);
            stream.query().unwrap()
        });
        assert_eq!(&*block_until(&mut check).unwrap(), &[5; 4096]);
        assert!(pieces.iter().all(|piece| piece.iter().all(|byte| *byte == 6)));
    }
}

#[test]
fn a_copy_that_nothing_marks_the_end_of_keeps_its_memory_for_good() {
    let (simulation, pool) = still(streams(1));
    let stream = lease(&pool);
    let (buffer, _) = stream.copy_to_device(&[1; 4096]).unwrap();
    simulation.advance_us(10);
    until("the piece's return", || stream.completion().result().is_some());
    let piece = stream.pinned(4096).unwrap();
    let address = piece.address();
    simulation.fail(SimFault { call: SimCall::RecordEvent, nth: 1, code: 1, when: When::Called });
    assert!(matches!(stream.upload_to(&buffer, 0, piece), Err(CudaError::Driver(_))));
    let others: Vec<_> = (0..8).map(|_| stream.pinned(4096).unwrap()).collect();
    assert!(others.iter().all(|piece| piece.address() != address));
}

#[test]
fn a_buffer_that_is_copied_without_a_mark_is_not_freed() {
    for call in [SimCall::CopyToDevice, SimCall::CopyToHost] {
        let (simulation, pool) = still(streams(2));
        let (kernel, owner, other) = (spin(&pool), lease(&pool), lease(&pool));
        let buffer = owner.allocate(4096).unwrap();
        kernel.launch(&other, 100).unwrap();
        let pinned = other.pinned(4096).unwrap();
        simulation.fail(SimFault { call: SimCall::RecordEvent, nth: 1, code: 1, when: When::Called });
        let failed = match call {
            SimCall::CopyToDevice => other.upload_to(&buffer, 0, pinned).map(drop),
            _ => other.download(&buffer, 0, 4096).map(drop),
        };
        assert!(matches!(failed, Err(CudaError::Driver(_))), "{call:?}");
        drop(buffer);
        simulation.advance_us(200);
        // A copy of memory that is not there would lose the device.
        assert!(owner.query().unwrap() && other.query().unwrap(), "{call:?}");
        assert_eq!(simulation.used_bytes(), 4096, "{call:?}");
    }
}

/// The next questions about events, asked by whichever way of waiting, meet an error that does not stay.
fn refuse_to_tell(simulation: &Simulation) {
    for (call, nth) in [(SimCall::QueryEvent, 1), (SimCall::QueryEvent, 2), (SimCall::SynchronizeEvent, 1)] {
        simulation.fail(SimFault { call, nth, code: 1, when: When::Called });
    }
}

#[test]
fn a_copy_whose_end_the_driver_refuses_to_tell_keeps_its_memory_for_good() {
    for mode in MODES {
        let (simulation, pool) = still(PoolSettings { completion: mode, ..streams(1) });
        let (kernel, stream) = (spin(&pool), lease(&pool));
        kernel.launch(&stream, 100).unwrap();
        let mut bytes = stream.pinned(4096).unwrap();
        bytes.fill(5);
        refuse_to_tell(&simulation);
        let (buffer, uploaded) = stream.upload(bytes).unwrap();
        let told = uploaded.wait(Some(GUARD));
        assert!(matches!(told, Some(Err(CudaError::Driver(_)))), "{mode:?}: {told:?}");
        refuse_to_tell(&simulation);
        let download = stream.download(&buffer, 0, 4096).unwrap();
        assert!(matches!(block_on(download), Err(CudaError::Driver(_))), "{mode:?}");
        // Both copies are still to come. Were their pieces used again, these bytes would come and go.
        let fill = || {
            let mut piece = stream.pinned(4096).unwrap();
            piece.fill(6);
            piece
        };
        let pieces: Vec<_> = (0..4).map(|_| fill()).collect();
        until("the copies", || {
            simulation.advance_us(100);
            stream.query().unwrap()
        });
        assert!(pieces.iter().all(|piece| piece.iter().all(|byte| *byte == 6)), "{mode:?}: written");
        // Not every way of waiting has asked in every way.
        let event = stream.record_event().unwrap();
        until("the end of the faults", || event.query().is_ok() && event.synchronize().is_ok());
        let mut check = Polled::new(stream.download(&buffer, 0, 4096).unwrap());
        until("the bytes", || {
            simulation.advance_us(100);
            stream.query().unwrap()
        });
        let bytes = block_until(&mut check).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 5), "{mode:?}: read");
    }
}

#[test]
fn a_copy_outside_of_its_buffer_is_refused() {
    let (_, pool) = still(streams(1));
    let stream = lease(&pool);
    let buffer = stream.allocate(10).unwrap();
    let outside = CudaError::OutOfBounds { offset: 8, bytes: 3, len: 10 };
    assert_eq!(stream.download(&buffer, 8, 3).unwrap_err(), outside);
    let pinned = stream.pinned(3).unwrap();
    assert_eq!(stream.upload_to(&buffer, 8, pinned).unwrap_err(), outside);
    assert!(stream.download(&buffer, usize::MAX, 2).is_err());
}

#[test]
fn what_belongs_to_another_device_is_refused() {
    let ((_, here), (_, there)) = (still(streams(1)), still(streams(1)));
    let (stream, other) = (lease(&here), lease(&there));
    let buffer = other.allocate(10).unwrap();
    assert_eq!(stream.download(&buffer, 0, 1).unwrap_err(), CudaError::OtherDevice);
    let pinned = other.pinned(10).unwrap();
    let own = stream.allocate(10).unwrap();
    assert_eq!(stream.upload_to(&own, 0, pinned).unwrap_err(), CudaError::OtherDevice);
    let event = other.record_event().unwrap();
    assert_eq!(stream.wait_event(&event).unwrap_err(), CudaError::OtherDevice);
    assert_eq!(spin(&there).launch(&stream, 1).unwrap_err(), CudaError::OtherDevice);
}

#[test]
fn a_buffer_outlives_its_lease_and_its_pool() {
    let (simulation, pool) = still(PoolSettings { completion: CompletionMode::Poll, ..streams(1) });
    let stream = lease(&pool);
    let (buffer, _) = stream.copy_to_device(&[3; 10]).unwrap();
    drop(stream);
    simulation.advance_us(10);
    until("the stream's return", || pool.stats().idle == 1);
    let again = lease(&pool);
    let mut download = Polled::new(again.download(&buffer, 0, 10).unwrap());
    simulation.advance_us(10);
    assert_eq!(&*block_until(&mut download).unwrap(), &[3; 10]);
    drop((again, pool));
    assert_eq!(simulation.used_bytes(), 10);
    drop(buffer);
    simulation.advance_us(1);
    until("the free", || simulation.used_bytes() == 0);
}
