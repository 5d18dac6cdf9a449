//! What is tried again, how often, and what is kept out of the choice.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use headrace::wire::kind::Kind;
use headrace::{
    CallError, CallErrorKind, CallOptions, Choose, InstanceInfo, InstanceState, Phase, Policy, Router,
    RouterConfig, Worker, WorkerConfig,
};
use support::raw::{Raw, listen};
use support::{Running, eventually, guard, options, router_to, turn, worker};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(10);

/// A worker that reads every request and loses its link before it answers, again and again. The request may
/// have run there, as far as anybody can know.
fn loses_links(listener: TcpListener) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let mut peer = Raw::worker(&listener).await;
            while let Some(frame) = peer.frame().await {
                if frame.kind == Kind::Request {
                    break;
                }
            }
            peer.reset();
        }
    })
}

/// Takes the first of the router's targets as long as it can.
#[derive(Debug)]
struct First;

impl Choose for First {
    fn choose(&self, _candidates: &[InstanceInfo]) -> Result<usize, String> {
        Ok(0)
    }
}

async fn full_worker() -> (Worker, Running) {
    let running = Running::default();
    let config = WorkerConfig { concurrency: 1, queue: 0, ..WorkerConfig::default() };
    (worker(&running, config).await, running)
}

async fn ask(router: &Router, call: CallOptions) -> Result<String, CallErrorKind> {
    let answered = guard("the call", router.call(call)).await;
    answered.map(|stream| stream.instance_id().to_owned()).map_err(|error| error.kind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_may_have_run_is_tried_elsewhere_only_if_it_is_idempotent() {
    let _turn = turn().await;
    let (listener, losing) = listen().await;
    let lost = loses_links(listener);
    let good = worker(&Running::default(), WorkerConfig::default()).await;
    let policy = Policy::Custom(Arc::new(First));
    let router = router_to(&[&losing, good.address()], RouterConfig { policy, ..RouterConfig::default() });
    for round in 0..2 {
        assert!(router.wait_for_instances(2, LONG).await);
        let error = ask(&router, options("1 1 clean")).await.unwrap_err();
        assert!(matches!(error, CallErrorKind::Disconnected { maybe_executed: true, .. }), "{error}");
        assert_eq!(router.stats().retries_total, round, "nothing is repeated that may have run");
        assert!(router.wait_for_instances(2, LONG).await);
        let call = CallOptions { idempotent: true, ..options("1 1 clean") };
        assert_eq!(ask(&router, call).await.unwrap(), good.instance_id());
        assert_eq!(router.stats().retries_total, round + 1);
    }
    lost.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotent_call_waits_for_the_only_worker_to_be_connected_again() {
    let _turn = turn().await;
    let (listener, address) = listen().await;
    let router = router_to(&[&address], RouterConfig { instance_timeout: LONG, ..RouterConfig::default() });
    let call = tokio::spawn(router.call(CallOptions { idempotent: true, ..options("1 1 clean") }));
    let mut peer = Raw::worker(&listener).await;
    peer.until(Kind::Request).await;
    peer.reset();
    let mut peer = Raw::worker(&listener).await;
    let request = peer.until(Kind::Request).await;
    peer.out.accept(request.stream, 4096, 4096);
    peer.out.prologue(request.stream, None);
    peer.flush().await;
    let stream = guard("the call", call).await.unwrap().unwrap();
    assert_eq!(router.stats().retries_total, 1);
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_stop_where_the_budget_ends_and_the_error_says_so() {
    let _turn = turn().await;
    let mut full = Vec::new();
    for _ in 0..2 {
        full.push(full_worker().await);
    }
    let targets: Vec<_> = full.iter().map(|(worker, _)| worker.address()).collect();
    let router = router_to(&targets, RouterConfig::default());
    assert!(router.wait_for_instances(2, LONG).await);
    let mut held = Vec::new();
    for (worker, _) in &full {
        let call = CallOptions { instance: worker.instance_id().to_owned(), ..options("0 0 hang") };
        held.push(guard("the call", router.call(call)).await.unwrap());
    }
    let mut refused_without_retry = 0;
    for _ in 0..100 {
        let Err(CallErrorKind::Overloaded { detail, .. }) = ask(&router, options("1 1 clean")).await else {
            panic!("both are full")
        };
        refused_without_retry += usize::from(detail.contains("retry budget"));
    }
    // Thirty to begin with and one for five calls; a slow machine earns three more each second.
    let retries = router.stats().retries_total;
    assert!((30..100).contains(&retries), "{retries}");
    assert_eq!(retries as usize + refused_without_retry, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_two_further_attempts_and_never_on_the_same_worker() {
    let _turn = turn().await;
    let mut full = Vec::new();
    for _ in 0..5 {
        full.push(full_worker().await);
    }
    let targets: Vec<_> = full.iter().map(|(worker, _)| worker.address()).collect();
    let router = router_to(&targets, RouterConfig::default());
    assert!(router.wait_for_instances(5, LONG).await);
    let mut held = Vec::new();
    for (worker, _) in &full {
        let call = CallOptions { instance: worker.instance_id().to_owned(), ..options("0 0 hang") };
        held.push(guard("the call", router.call(call)).await.unwrap());
    }
    assert!(matches!(ask(&router, options("1 1 clean")).await, Err(CallErrorKind::Overloaded { .. })));
    let rejected: Vec<_> = full.iter().map(|(worker, _)| worker.stats().rejected_total).collect();
    assert_eq!(rejected.iter().sum::<u64>(), 3, "{rejected:?}");
    assert!(rejected.iter().all(|&each| each <= 1), "{rejected:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_keeps_losing_calls_is_ejected_and_tried_again_by_one_call() {
    let _turn = turn().await;
    let (listener, losing) = listen().await;
    let lost = loses_links(listener);
    let good = worker(&Running::default(), WorkerConfig::default()).await;
    let policy = Policy::RoundRobin;
    let router = router_to(&[&losing, good.address()], RouterConfig { policy, ..RouterConfig::default() });
    let state = || router.instances()[0].state;
    let mut losses = 0;
    while losses < 5 {
        assert!(router.wait_for_instances(2, LONG).await);
        losses += u32::from(ask(&router, options("1 1 clean")).await.is_err());
    }
    eventually("it is ejected", || state() == InstanceState::Ejected).await;
    for _ in 0..100 {
        assert_eq!(ask(&router, options("1 1 clean")).await.unwrap(), good.instance_id());
        if state() != InstanceState::Ejected {
            break; // So slow a machine that the pause is over.
        }
    }
    // After the pause one call goes there, is lost, and the next pause begins: longer.
    while ask(&router, options("1 1 clean")).await.is_ok() {}
    eventually("it is connected again", || state() == InstanceState::Ejected).await;
    lost.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_worker_is_used_however_often_it_was_lost() {
    let _turn = turn().await;
    let (listener, losing) = listen().await;
    let lost = loses_links(listener);
    let router = router_to(&[&losing], RouterConfig { instance_timeout: LONG, ..RouterConfig::default() });
    for _ in 0..8 {
        let answer = ask(&router, options("1 1 clean")).await;
        assert!(matches!(answer, Err(CallErrorKind::Disconnected { .. })), "{answer:?}");
    }
    lost.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ejected_worker_that_answers_its_trial_is_back() {
    let _turn = turn().await;
    let (listener, address) = listen().await;
    let good = worker(&Running::default(), WorkerConfig::default()).await;
    let policy = Policy::RoundRobin;
    let router = router_to(&[&address, good.address()], RouterConfig { policy, ..RouterConfig::default() });
    let state = || router.instances()[0].state;
    let lost = loses_links(listener);
    let mut losses = 0;
    while losses < 5 {
        assert!(router.wait_for_instances(2, LONG).await);
        losses += u32::from(ask(&router, options("1 1 clean")).await.is_err());
    }
    // It is repaired: a sound worker takes its place.
    lost.abort();
    let _ = lost.await;
    let running = Running::default();
    let repaired = support::worker_at(&address, &running, WorkerConfig::default()).await;
    eventually("it is connected again", || state() == InstanceState::Ejected).await;
    while running.begun() == 0 {
        guard("the call", router.call(options("1 1 clean"))).await.unwrap();
    }
    assert_eq!(state(), InstanceState::Up);
    drop(repaired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_stream_that_was_lost_can_be_resumed() {
    let _turn = turn().await;
    let running = Running::default();
    let (one, two) =
        (worker(&running, WorkerConfig::default()).await, worker(&running, WorkerConfig::default()).await);
    let router = router_to(&[one.address(), two.address()], RouterConfig::default());
    assert!(router.wait_for_instances(2, LONG).await);
    let call = CallOptions { resumable: true, ..options("3 1 hang") };
    let mut stream = guard("the call", router.call(call)).await.unwrap();
    guard("an item", stream.next()).await.unwrap().unwrap();
    // Asking takes nothing away, and a run that lives is not replaced.
    assert_eq!(stream.kept(), None);
    let error = CallError { items: 1, ..lost_error() };
    assert!(stream.resume(support::raw("1 1 clean"), error).is_err());
    for _ in 0..2 {
        guard("an item", stream.next()).await.unwrap().unwrap();
    }
    if stream.instance_id() == one.instance_id() { &one } else { &two }.close();
    let lost = guard("the loss", stream.next()).await.unwrap().unwrap_err();
    assert_eq!((lost.items, stream.kept().map(|items| items.len())), (3, Some(3)));
    stream.resume(support::raw("2 1 clean"), lost).unwrap();
    for _ in 0..2 {
        guard("an item", stream.next()).await.unwrap().unwrap();
    }
    assert!(guard("the end", stream.next()).await.is_none());
    assert_eq!((stream.resumed(), stream.kept()), (1, None));
}

fn lost_error() -> CallError {
    CallError {
        kind: CallErrorKind::Disconnected { reason: "made up".to_owned(), maybe_executed: true },
        instance: None,
        phase: Phase::Streaming,
        request_id: String::new(),
        items: 0,
    }
}
