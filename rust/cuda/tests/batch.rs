//! A batcher of the runtime over the pool: each batch in flight on a stream of its own, copies beside
//! kernels, and nobody told before the stream is done.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use headrace::batch::{BatchConfig, BatchError, BatchFunction, Batcher, WorkBatch};
use headrace_cuda::sim::{Lane, Span};
use headrace_cuda::{
    CudaError, Lease, OpenDevice, SimCall, SimFault, SimSettings, Simulation, SpinKernel, StreamPool, When,
};

use self::support::{GUARD, spin, still, streams};

/// A megabyte each way and a kernel, about as long as each other: 105 and 100 microseconds.
const BYTES: usize = 1 << 20;
const KERNEL_US: u64 = 100;

struct Model {
    kernel: SpinKernel,
    /// Batches that are queued with all their work.
    queued: Arc<AtomicUsize>,
}

impl BatchFunction<u8, Lease> for Model {
    type Output = u8;
    type Error = CudaError;

    /// Queues everything and leaves the waiting to the batcher.
    fn run(
        &mut self,
        batch: &mut WorkBatch<u8, u8, CudaError>,
        lease: &mut Lease,
    ) -> Result<Vec<Result<u8, CudaError>>, CudaError> {
        let mut pinned = lease.pinned(BYTES)?;
        pinned.fill(batch.items()[0]);
        let (buffer, _) = lease.upload(pinned)?;
        self.kernel.launch(lease, KERNEL_US)?;
        drop(lease.download(&buffer, 0, BYTES)?);
        self.queued.fetch_add(1, Ordering::SeqCst);
        Ok(batch.items().iter().map(|item| Ok(*item)).collect())
    }
}

fn batcher(pool: &StreamPool, workers: usize, queued: &Arc<AtomicUsize>) -> Arc<Batcher<u8, u8, CudaError>> {
    let config = BatchConfig {
        max_batch_size: 1,
        workers,
        linger: Duration::ZERO,
        name: "model".to_owned(),
        ..BatchConfig::default()
    };
    let kernel = spin(pool);
    let queued = Arc::clone(queued);
    let make = move |_| Model { kernel: kernel.clone(), queued: Arc::clone(&queued) };
    Arc::new(Batcher::start_with_leases(config, Arc::new(pool.clone()), make).unwrap())
}

/// Runs so many batches on so many streams; how long they took by the device's clock, and what ran when.
///
/// The clock moves on only when every stream that can have a batch has all of one queued, so that how fast
/// the threads are does not show.
async fn serve(streams_max: usize, batches: usize) -> (u64, Vec<Span>) {
    let (simulation, pool) = still(streams(streams_max));
    let queued = Arc::new(AtomicUsize::new(0));
    let batcher = batcher(&pool, streams_max, &queued);
    let clock = thread::spawn({
        let simulation = simulation.clone();
        move || {
            loop {
                let done = simulation.spans().iter().filter(|span| span.lane == Lane::ToHost).count();
                if done == batches {
                    return;
                }
                let in_flight = queued.load(Ordering::SeqCst) - done;
                match simulation.next_ns() {
                    Some(next) if in_flight == streams_max.min(batches - done) => {
                        simulation.advance_us((next - simulation.now_ns()).div_ceil(1000));
                    }
                    _ => thread::yield_now(),
                }
            }
        }
    });
    let callers = (0..batches).map(|item| {
        let batcher = Arc::clone(&batcher);
        tokio::spawn(async move { assert_eq!(batcher.submit(item as u8).await.unwrap(), item as u8) })
    });
    for caller in callers.collect::<Vec<_>>() {
        tokio::time::timeout(GUARD, caller).await.expect("an answer").unwrap();
    }
    clock.join().unwrap();
    assert!(pool.stats().created <= streams_max);
    let spans = simulation.spans();
    (spans.iter().map(|span| span.end_ns).max().unwrap(), spans)
}

fn overlap(spans: &[Span], lane: Lane, other: Lane) -> bool {
    let of = |lane: Lane| spans.iter().filter(move |span| span.lane == lane);
    of(lane).any(|one| {
        of(other)
            .any(|two| one.stream != two.stream && one.begin_ns < two.end_ns && two.begin_ns < one.end_ns)
    })
}

#[tokio::test]
async fn copies_of_one_batch_overlap_the_kernel_of_another() {
    let (alone, spans) = serve(1, 8).await;
    assert!(!overlap(&spans, Lane::ToDevice, Lane::Kernel));
    let (together, spans) = serve(4, 8).await;
    assert!(overlap(&spans, Lane::ToDevice, Lane::Kernel));
    assert!(overlap(&spans, Lane::Kernel, Lane::ToHost));
    // Each batch takes about 310 microseconds alone. The simulated device has one copy engine each way, so
    // that eight of them side by side take at least eight copies and the rest of one.
    assert!(alone >= 8 * 300_000, "{alone}");
    assert!((together as f64) < 0.6 * alone as f64, "{together} of {alone}");
}

#[tokio::test]
async fn nobody_is_told_before_the_stream_is_done() {
    let (simulation, pool) = still(streams(1));
    let queued = Arc::new(AtomicUsize::new(0));
    let batcher = batcher(&pool, 1, &queued);
    let answer = tokio::spawn({
        let batcher = Arc::clone(&batcher);
        async move { batcher.submit(1).await }
    });
    while queued.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // Into the last piece of work, which takes until 309.
    simulation.advance_us(300);
    assert_eq!(simulation.spans().len(), 2);
    // Time for an answer that comes too early.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!answer.is_finished());
    assert_eq!(pool.stats().in_use, 1);
    simulation.advance_us(100);
    assert_eq!(tokio::time::timeout(GUARD, answer).await.expect("an answer").unwrap().unwrap(), 1);
}

#[tokio::test]
async fn a_lost_device_fails_the_batch_and_those_that_follow() {
    let (simulation, pool) = still(streams(1));
    let batcher = batcher(&pool, 1, &Arc::default());
    let answer = tokio::spawn({
        let batcher = Arc::clone(&batcher);
        async move { batcher.submit(1).await }
    });
    while simulation.next_ns().is_none() {
        tokio::task::yield_now().await;
    }
    simulation.lose(700);
    let answer = tokio::time::timeout(GUARD, answer).await.expect("an answer").unwrap();
    assert!(matches!(answer, Err(BatchError::Lease { .. } | BatchError::Failed(_))), "{answer:?}");
    // There is no stream any more, and everybody is told why.
    let next = tokio::time::timeout(GUARD, batcher.submit(2)).await.expect("a refusal");
    assert!(matches!(next, Err(BatchError::Lease { .. })), "{next:?}");
}

#[tokio::test]
async fn a_stream_that_cannot_be_created_fails_its_batch_and_not_the_next() {
    let simulation = Simulation::new(SimSettings::default());
    let pool = StreamPool::new(OpenDevice::simulated(&simulation), streams(1)).unwrap();
    let batcher = batcher(&pool, 1, &Arc::default());
    simulation.fail(SimFault { call: SimCall::CreateStream, nth: 1, code: 2, when: When::Called });
    let failed = tokio::time::timeout(GUARD, batcher.submit(1)).await.expect("an answer");
    assert!(matches!(failed, Err(BatchError::Lease { .. })), "{failed:?}");
    let next = tokio::time::timeout(GUARD, batcher.submit(2)).await.expect("an answer");
    assert_eq!(next.unwrap(), 2);
}
