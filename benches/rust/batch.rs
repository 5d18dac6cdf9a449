//! What one item costs in the batch coordinator alone: no Python, no threads. Run with
//! `cargo bench -p headrace-benches --bench batch`; criterion reports time and items a second.
//!
//! The sketch that this checks: a submit takes one lock, one look at the clock and a place that is used again,
//! with no allocation and no system call; taking and completing a batch each take one more lock, and a few
//! allocations for all of its items together.

#![allow(missing_docs, reason = "criterion's macros generate undocumented items")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation fails the benchmark")]

use std::convert::Infallible;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use headrace::batch::{BatchConfig, Coordinator, Outcome, Reply, Taken, Terms, Timeout};

/// Told, and says nothing.
struct Silent;

impl Reply<u64> for Silent {
    type Output = u64;
    type Error = Infallible;

    fn resolve(self, outcome: Outcome<u64, Infallible>, _item: Option<u64>) {
        black_box(outcome);
    }
}

type Work = Coordinator<u64, Silent>;

fn coordinator(config: BatchConfig) -> Work {
    Work::new(BatchConfig { queue_capacity: Some(65_536), ..config }).unwrap()
}

fn submit(work: &Work, items: u64, terms: impl Fn(u64) -> Terms) {
    for item in 0..items {
        assert!(work.submit(item, Silent, terms(item)).is_ok());
    }
}

/// Takes and answers everything that waits.
fn run(work: &Work) {
    while let Taken::Batch(mut batch) = work.try_take(0) {
        let results = batch.take_items().into_iter().map(Ok).collect();
        batch.complete(results);
    }
}

/// Submit, take and complete, by the size of batches.
fn life(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch_life");
    for size in [1, 8, 32, 256] {
        let work = coordinator(BatchConfig { max_batch_size: size, ..BatchConfig::default() });
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new("batches_of", size), |bencher| {
            bencher.iter(|| {
                submit(&work, size as u64, |_| Terms::default());
                run(&work);
            });
        });
    }
    group.finish();
}

/// The same in batches of 32, with what an item may bring.
fn terms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch_terms");
    let plain = BatchConfig::default();
    let capped = BatchConfig { max_in_flight_per_client: Some(64), ..plain.clone() };
    let levels = BatchConfig { priorities: 4, aging: Some(Duration::from_secs(1)), ..plain.clone() };
    let costs = BatchConfig { max_cost: Some(1000), queue_cost: Some(1 << 40), ..plain.clone() };
    let response = BatchConfig { response_timeout: Some(Duration::from_secs(5)), ..plain.clone() };
    let own = |item: u64| Timeout::After(Duration::from_secs(100 - item % 50));
    type Make = fn(u64) -> Terms;
    let client: Make = |item| Terms { client: Some(item % 16), ..Terms::default() };
    let level: Make = |item| Terms { priority: item as usize % 4, ..Terms::default() };
    let key: Make = |item| Terms { key: item % 16, ..Terms::default() };
    let default: Make = |_| Terms::default();
    const ITEMS: u64 = 512;
    group.throughput(Throughput::Elements(ITEMS));
    for (name, config, make) in [
        ("plain", plain.clone(), default),
        ("client", capped, client),
        ("priority_and_aging", levels, level),
        ("cost", costs, default),
        ("response_timeout", response, default),
        ("sixteen_keys", plain.clone(), key),
    ] {
        let work = coordinator(config);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                submit(&work, ITEMS, make);
                run(&work);
            });
        });
    }
    let work = coordinator(plain);
    group.bench_function("own_timeouts_out_of_order", |bencher| {
        bencher.iter(|| {
            submit(&work, ITEMS, |item| Terms { timeout: own(item), ..Terms::default() });
            run(&work);
        });
    });
    group.finish();
}

/// What is refused, and what is cancelled.
fn refusals(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch_refusals");
    group.throughput(Throughput::Elements(1));
    let work = Work::new(BatchConfig::default()).unwrap();
    while work.submit(0, Silent, Terms::default()).is_ok() {}
    group.bench_function("queue_full", |bencher| {
        bencher.iter(|| black_box(work.submit(0, Silent, Terms::default()).is_err()));
    });
    let work = coordinator(BatchConfig::default());
    group.bench_function("submit_and_cancel", |bencher| {
        bencher.iter(|| {
            let Ok(ticket) = work.submit(0, Silent, Terms::default()) else { panic!("room") };
            assert!(work.cancel(ticket));
        });
    });
    group.finish();
}

criterion_group!(batch, life, terms, refusals);
criterion_main!(batch);
