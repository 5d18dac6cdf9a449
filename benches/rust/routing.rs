//! What it costs to choose the instance that a call goes to, by policy and number of instances: workers of this
//! process, a router with a link to each, and a call that chooses again and again and is never sent. Run with
//! `cargo bench -p headrace-benches --features routing --bench routing`; criterion reports the time of one choice.
//!
//! The sketch that this checks: the better of two looks at two instances, whatever their number, and takes four
//! uncontended locks, two looks at the clock and no allocation. The others look at every instance, one lock
//! for each, and allocate the list of candidates.

#![allow(missing_docs, reason = "criterion's macros generate undocumented items")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation fails the benchmark")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use headrace::link::TokioDriver;
use headrace::{
    CallOptions, Choose, Engine, InstanceInfo, Item, Policy, Request, Responder, Router, RouterConfig,
    Worker, WorkerConfig,
};
use tokio::runtime::{Builder, Handle};

const INSTANCES: [usize; 4] = [1, 2, 8, 64];
const CONNECT_MAX: Duration = Duration::from_secs(20);

/// Answers nothing: no call is ever sent.
#[derive(Debug)]
struct Silent;

impl Engine for Silent {
    fn start(&self, _request: Request, _responder: Responder) {}
}

/// A policy of one's own, at its cheapest.
#[derive(Debug)]
struct First;

impl Choose for First {
    fn choose(&self, _candidates: &[InstanceInfo]) -> Result<usize, String> {
        Ok(0)
    }
}

/// A router connected to `count` workers, with the workers.
async fn connected(policy: Policy, count: usize) -> (Router, Vec<Worker>) {
    let runtime = Handle::current();
    let driver = Arc::new(TokioDriver::new(runtime.clone()));
    let mut workers = Vec::new();
    for _ in 0..count {
        let engines: Vec<(String, Arc<dyn Engine>)> = vec![("echo".to_owned(), Arc::new(Silent))];
        let address = "127.0.0.1:0".parse().unwrap();
        let config = WorkerConfig::default();
        workers.push(Worker::bind(&address, engines, config, runtime.clone(), driver.clone()).await.unwrap());
    }
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address().clone()).collect();
    let config = RouterConfig { policy, ..RouterConfig::default() };
    let router = Router::new(&addresses, config, runtime, driver).unwrap();
    assert!(router.wait_for_instances(count, CONNECT_MAX).await, "{:?}", router.instances());
    (router, workers)
}

/// Options of a call that says which endpoint it wants, as most do.
fn options() -> CallOptions {
    CallOptions {
        endpoint: "echo".to_owned(),
        ..CallOptions::new(Item { encoding: 0, payload: Bytes::new() })
    }
}

fn choose(criterion: &mut Criterion) {
    // Nothing turns it while a choice is timed, so that all the time is the choice's.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let with_affinity = CallOptions { affinity: "conversation 7".to_owned(), ..options() };
    let cases = [
        ("p2c", Policy::PowerOfTwo, options()),
        ("round_robin", Policy::RoundRobin, options()),
        ("random", Policy::Random, options()),
        ("least_loaded", Policy::LeastLoaded, options()),
        ("hash_affinity", Policy::Hash, with_affinity),
        ("own", Policy::Custom(Arc::new(First)), options()),
        ("named", Policy::Direct, options()),
    ];
    let mut group = criterion.benchmark_group("choose");
    for (name, policy, options) in cases {
        for count in INSTANCES {
            let (router, workers) = runtime.block_on(connected(policy.clone(), count));
            let mut options = options.clone();
            if matches!(policy, Policy::Direct) {
                options.instance = router.instances().pop().unwrap().instance_id;
            }
            let call = router.call(options);
            assert!(call.chooses());
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter(|| black_box(black_box(&call).chooses()));
            });
            drop((call, router, workers));
        }
    }
    group.finish();
}

criterion_group!(benches, choose);
criterion_main!(benches);
