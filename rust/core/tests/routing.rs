//! Which worker gets a call, and what a caller learns when there is none for it.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use headrace::wire::body::{Role, VERSION};
use headrace::wire::kind::Kind;
use headrace::{
    Address, CallErrorKind, CallOptions, InstanceState, Phase, Policy, Router, RouterConfig, StartError,
    Worker, WorkerConfig,
};
use support::raw::{Raw, hello, listen};
use support::{
    Running, collect, driver, eventually, guard, options, router_to, script, turn, worker, worker_at,
};
use tokio::runtime::Handle;

const LONG: Duration = Duration::from_secs(10);

fn impatient() -> RouterConfig {
    RouterConfig { instance_timeout: Duration::from_millis(150), ..RouterConfig::default() }
}

/// An address that nobody listens on.
async fn nowhere() -> Address {
    listen().await.1
}

async fn error_of(router: &Router) -> CallErrorKind {
    let error = guard("the call", router.call(options("1 1 clean"))).await.unwrap_err();
    assert_eq!(error.phase, Phase::Unsent);
    error.kind
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_policies_use_both_workers_and_round_robin_does_so_in_turn() {
    let _turn = turn().await;
    for policy in [Policy::RoundRobin, Policy::PowerOfTwo] {
        let (first, second) = (Running::default(), Running::default());
        let a = worker(&first, WorkerConfig::default()).await;
        let b = worker(&second, WorkerConfig::default()).await;
        let router = router_to(
            &[a.address(), b.address()],
            RouterConfig { policy: policy.clone(), ..RouterConfig::default() },
        );
        assert!(router.wait_for_instances(2, LONG).await);
        let mut held = Vec::new();
        for _ in 0..40 {
            held.push(guard("the call", router.call(options("0 0 hang"))).await.unwrap());
        }
        let counts = (first.begun(), second.begun());
        match policy {
            Policy::RoundRobin => assert_eq!(counts, (20, 20)),
            // One slow answer is remembered for seconds, so on a loaded machine the shares may differ much.
            _ => assert!(counts.0 > 0 && counts.1 > 0, "{counts:?}"),
        }
        let named: Vec<_> = router.instances().iter().map(|instance| instance.in_flight).collect();
        assert_eq!(named, [counts.0, counts.1]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_instance_gets_the_call_by_id_and_by_address() {
    let _turn = turn().await;
    let running = Running::default();
    let a = worker(&running, WorkerConfig::default()).await;
    let b = worker(&running, WorkerConfig::default()).await;
    let router = router_to(&[a.address(), b.address()], impatient());
    assert!(router.wait_for_instances(2, LONG).await);
    for name in [b.instance_id().to_owned(), b.address().to_string()] {
        for _ in 0..5 {
            let call = CallOptions { instance: name.clone(), ..options("1 1 clean") };
            let stream = guard("the call", router.call(call)).await.unwrap();
            assert_eq!(stream.instance_id(), b.instance_id());
        }
    }
    let call = CallOptions { instance: "nobody".to_owned(), ..options("1 1 clean") };
    let error = guard("the call", router.call(call)).await.unwrap_err();
    let CallErrorKind::NoInstances { reason, .. } = error.kind else { panic!("{error}") };
    assert!(reason.contains("nobody"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_or_draining_worker_is_passed_over() {
    let _turn = turn().await;
    let (full, free) = (Running::default(), Running::default());
    let a = worker(&full, WorkerConfig { concurrency: 1, queue: 0, ..WorkerConfig::default() }).await;
    let only_a = router_to(&[a.address()], RouterConfig::default());
    let _held = guard("the call", only_a.call(options("0 0 hang"))).await.unwrap();
    let b = worker(&free, WorkerConfig::default()).await;
    let policy = Policy::RoundRobin;
    let router = router_to(&[a.address(), b.address()], RouterConfig { policy, ..RouterConfig::default() });
    assert!(router.wait_for_instances(2, LONG).await);
    for _ in 0..10 {
        let stream = guard("the call", router.call(options("1 1 clean"))).await.unwrap();
        assert_eq!(stream.instance_id(), b.instance_id());
    }
    assert_eq!(router.stats().retries_total, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_starts_later_or_again_is_found() {
    let _turn = turn().await;
    let address = nowhere().await;
    let running = Running::default();
    let router = router_to(&[&address], RouterConfig { instance_timeout: LONG, ..RouterConfig::default() });
    let waiting = tokio::spawn(router.call(options("1 1 clean")));
    eventually("the first attempt failed", || router.instances()[0].last_error.is_some()).await;
    for round in 0..3 {
        let worker = worker_at(&address, &running, WorkerConfig::default()).await;
        let mut stream = guard("the call", router.call(options("3 3 clean"))).await.unwrap();
        assert_eq!(stream.instance_id(), worker.instance_id(), "round {round}");
        assert_eq!(collect(&mut stream).await, (vec![3; 3], None));
        worker.close();
        eventually("the loss is seen", || router.instances()[0].state == InstanceState::Down).await;
    }
    guard("the call that waited", waiting).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_worker_within_the_instance_timeout_is_an_error_that_says_why() {
    let _turn = turn().await;
    let router = router_to(&[&nowhere().await], impatient());
    let CallErrorKind::CannotConnect { reason } = error_of(&router).await else { panic!("not reachable") };
    assert!(reason.contains("refused"), "{reason}");

    let router = router_to(&[], impatient());
    assert!(matches!(error_of(&router).await, CallErrorKind::NoInstances { .. }));

    let running = Running::default();
    let draining = worker(&running, WorkerConfig::default()).await;
    let router = router_to(&[draining.address()], impatient());
    let _held = guard("the call", router.call(options("0 0 hang"))).await.unwrap();
    let drain = tokio::spawn({
        let draining = draining.clone();
        async move { draining.drain(Some(LONG)).await }
    });
    eventually("it drains", || router.instances()[0].state == InstanceState::Draining).await;
    let CallErrorKind::NoInstances { waited, .. } = error_of(&router).await else { panic!("all drain") };
    assert!(waited >= Duration::from_millis(149), "{waited:?}");
    drain.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_fails_at_once_and_the_right_one_is_let_in() {
    let _turn = turn().await;
    let running = Running::default();
    let token = |token: &str| Some(token.to_owned());
    let worker = worker(&running, WorkerConfig { token: token("secret"), ..WorkerConfig::default() }).await;
    for given in [None, token("secre"), token("secret2"), token("Secret")] {
        let router = router_to(&[worker.address()], RouterConfig { token: given, ..RouterConfig::default() });
        let kind = error_of(&router).await;
        assert!(matches!(kind, CallErrorKind::Authentication { .. }), "{kind:?}");
        assert!(!kind.to_string().contains("secret\""), "{kind}");
    }
    let router =
        router_to(&[worker.address()], RouterConfig { token: token("secret"), ..RouterConfig::default() });
    guard("the call", router.call(options("1 1 clean"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_namespace_is_not_joined() {
    let _turn = turn().await;
    let running = Running::default();
    let worker =
        worker(&running, WorkerConfig { namespace: "blue".to_owned(), ..WorkerConfig::default() }).await;
    let router = router_to(&[worker.address()], impatient());
    let CallErrorKind::CannotConnect { reason } = error_of(&router).await else { panic!("not reachable") };
    assert!(reason.contains("\"blue\"") && reason.contains("\"default\""), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_that_do_not_meet_fail_at_once_on_either_side() {
    let _turn = turn().await;
    let (listener, address) = listen().await;
    let router = router_to(&[&address], RouterConfig::default());
    let future = |role| headrace::wire::body::Hello {
        version_min: VERSION + 1,
        version_max: VERSION + 3,
        ..hello(role)
    };
    let _peer = Raw::worker_that_says(&listener, future(Role::Worker)).await;
    let kind = error_of(&router).await;
    assert!(matches!(kind, CallErrorKind::VersionMismatch { .. }), "{kind:?}");

    let running = Running::default();
    let worker = worker(&running, WorkerConfig::default()).await;
    let mut peer = Raw::connect(worker.address()).await;
    peer.out.hello(&future(Role::Router));
    peer.flush().await;
    assert_eq!(peer.until_closed().await, [Kind::Goaway]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_off_loopback_is_refused_unless_asked_for() {
    let _turn = turn().await;
    let outside: Address = "192.0.2.1:1".parse().unwrap();
    let new = |config| Router::new(std::slice::from_ref(&outside), config, Handle::current(), driver());
    assert!(matches!(new(RouterConfig::default()), Err(StartError::Address(_))));
    assert!(new(RouterConfig { insecure: true, ..RouterConfig::default() }).is_ok());
    let everywhere: Address = "0.0.0.0:0".parse().unwrap();
    let bind = async |config| {
        let engines = vec![("script".to_owned(), script(&Running::default()))];
        Worker::bind(&everywhere, engines, config, Handle::current(), driver()).await
    };
    assert!(matches!(bind(WorkerConfig::default()).await, Err(StartError::Address(_))));
    assert!(bind(WorkerConfig { insecure: true, ..WorkerConfig::default() }).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_the_router_ends_calls_in_every_phase() {
    let _turn = turn().await;
    let running = Running::default();
    let worker = worker(&running, WorkerConfig::default()).await;
    let router = router_to(&[worker.address(), &nowhere().await], RouterConfig::default());
    let mut streaming = guard("the call", router.call(options("1 1 hang"))).await.unwrap();
    guard("an item", streaming.next()).await.unwrap().unwrap();
    let lost = tokio::spawn(async move { collect(&mut streaming).await.1 });
    router.close();
    let waiting = guard("a call afterwards", router.call(options("1 1 clean"))).await;
    assert_eq!(waiting.unwrap_err().kind, CallErrorKind::Closed);
    let lost = guard("the stream", lost).await.unwrap();
    assert!(matches!(lost, Some(CallErrorKind::Disconnected { .. })), "{lost:?}");
    eventually("the engine is cancelled", || running.now() == 0 && worker.stats().links == 0).await;
}
