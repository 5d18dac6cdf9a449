//! Places, the queue, and what happens when both are full.

// Engines are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use headrace::engine::Responder;
use headrace::{CallErrorKind, CallOptions, Engine, Phase, Request, RouterConfig, WorkerConfig};
use support::{Net, collect, driver, eventually, guard, local, options, raw};

fn places(concurrency: usize, queue: usize) -> WorkerConfig {
    WorkerConfig { concurrency, queue, ..WorkerConfig::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_places_and_a_full_queue_reject_at_once_and_a_freed_place_admits_again() {
    let net = Net::with(places(2, 1), RouterConfig::default()).await;
    let mut running = vec![net.open("0 0 hang").await.unwrap(), net.open("0 0 hang").await.unwrap()];
    let queued = tokio::spawn(net.router.call(options("1 1 clean")));
    eventually("one waits", || net.worker.stats().queued == 1).await;

    let error = net.open("0 0 hang").await.unwrap_err();
    let CallErrorKind::Overloaded { retry_after, detail } = &error.kind else { panic!("{error}") };
    assert!(*retry_after > Duration::ZERO, "{retry_after:?}");
    assert_eq!((detail.as_str(), error.phase), ("2 requests running and 1 queued", Phase::Sent));
    assert_eq!((net.worker.stats().accepted_total, net.worker.stats().rejected_total), (3, 1));

    drop(running.pop());
    let mut stream = guard("the queued call", queued).await.unwrap().unwrap();
    assert_eq!(collect(&mut stream).await, (vec![1], None));
    let mut stream = net.open("2 2 clean").await.unwrap();
    assert_eq!(collect(&mut stream).await, (vec![2; 2], None));
    drop(running);
    net.close().await;
}

/// Ends with one item before `start` returns.
#[derive(Debug)]
struct AtOnce;

impl Engine for AtOnce {
    fn start(&self, _: Request, responder: Responder) {
        responder.push(0, b"0").unwrap();
        responder.finish();
    }
}

/// Each start frees a place within itself; nested, this many would overflow the stack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_queue_of_engines_that_answer_at_once_is_worked_off() {
    let engines: Vec<(String, Arc<dyn Engine>)> = vec![("at_once".to_owned(), Arc::new(AtOnce))];
    let (worker, router) = (places(1, 10_000), RouterConfig::default());
    let net = Net::at(&local(), worker, router, driver(), engines).await;
    let blocker = net.open("0 0 hang").await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..5_000 {
        let call = CallOptions { endpoint: "at_once".to_owned(), ..CallOptions::new(raw("")) };
        waiting.spawn(net.router.call(call));
    }
    eventually("all wait", || net.worker.stats().queued == 5_000).await;
    drop(blocker);
    while let Some(stream) = guard("an answer", waiting.join_next()).await {
        stream.unwrap().unwrap();
    }
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_is_free_before_the_caller_knows_the_end() {
    let net = Net::with(places(1, 0), RouterConfig::default()).await;
    for _ in 0..300 {
        let mut stream = net.open("1 1 clean").await.unwrap();
        assert_eq!(collect(&mut stream).await, (vec![1], None));
    }
    assert_eq!(net.worker.stats().rejected_total, 0);
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_carries_no_more_streams_than_the_worker_allows() {
    let worker = WorkerConfig { streams_per_link: 2, ..WorkerConfig::default() };
    let net = Net::with(worker, RouterConfig::default()).await;
    let open = vec![net.open("0 0 hang").await.unwrap(), net.open("0 0 hang").await.unwrap()];
    let error = net.open("0 0 hang").await.unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::Overloaded { .. }), "{error}");
    assert_eq!(error.phase, Phase::Unsent);
    drop(open);
    let mut stream = net.open("1 1 clean").await.unwrap();
    assert_eq!(collect(&mut stream).await, (vec![1], None));
    net.close().await;
}
