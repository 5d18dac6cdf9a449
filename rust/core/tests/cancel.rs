//! Who no longer wants an answer, or has waited too long for one, tells the engine, and its place is free.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use headrace::wire::body::KillReason;
use headrace::wire::kind::Kind;
use headrace::{CallErrorKind, CallOptions, Phase, RouterConfig, WorkerConfig};
use support::raw::{Raw, head, listen};
use support::{Net, Running, collect, eventually, guard, options, router_to, turn, worker};

fn one_at_a_time() -> WorkerConfig {
    WorkerConfig { concurrency: 1, queue: 1, ..WorkerConfig::default() }
}

fn within(script: &str, timeout_ms: u64) -> CallOptions {
    CallOptions { timeout: Some(Duration::from_millis(timeout_ms)), ..options(script) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_dropped_unpolled_or_while_it_waits_for_an_instance_leaves_nothing() {
    let _turn = turn().await;
    let router = router_to(&[&"127.0.0.1:1".parse().unwrap()], RouterConfig::default());
    drop(router.call(options("0 0 clean")));
    let mut call = Box::pin(router.call(options("0 0 clean")));
    assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(router.stats().in_flight, 1);
    drop(call);
    assert_eq!(router.stats().in_flight, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_dropped_before_its_answer_takes_the_request_back() {
    let _turn = turn().await;
    let (listener, address) = listen().await;
    let router = router_to(&[&address], RouterConfig::default());
    let mut peer = Raw::worker(&listener).await;
    assert!(router.wait_for_instances(1, Duration::from_secs(10)).await);
    let mut call = Box::pin(router.call(options("0 0 clean")));
    assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let request = peer.until(Kind::Request).await;
    drop(call);
    let kill = peer.until(Kind::Kill).await;
    assert_eq!((kill.stream, kill.body), (request.stream, vec![KillReason::Cancelled as u8]));
    assert_eq!((router.stats().streams, router.stats().in_flight), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_stream_frees_its_place_in_every_phase() {
    let net = Net::with(one_at_a_time(), RouterConfig::default()).await;
    // Running without an item, between items, held back by its window, ended but unread.
    for script in ["0 0 hang", "2 4 hang", "inf 1000 clean", "1 1 clean"] {
        for by_hand in [false, true] {
            let mut stream = net.open(script).await.unwrap();
            if !script.starts_with('0') {
                guard("an item", stream.next()).await.unwrap().unwrap();
            }
            if by_hand {
                stream.kill();
                assert!(stream.next().await.is_none());
            }
            drop(stream);
            eventually("the engine is cancelled and its place free", || {
                net.running.now() == 0 && net.worker.stats().running == 0
            })
            .await;
        }
    }
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_killed_in_the_queue_never_runs() {
    let net = Net::with(one_at_a_time(), RouterConfig::default()).await;
    let running = net.open("0 0 hang").await.unwrap();
    {
        let mut queued = pin!(net.router.call(options("0 0 hang")));
        poll_fn(|cx| {
            assert!(queued.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        eventually("it is queued", || net.worker.stats().queued == 1).await;
    }
    eventually("it has left the queue", || net.worker.stats().queued == 0).await;
    drop(running);
    let mut next = net.open("1 1 clean").await.unwrap();
    assert_eq!(collect(&mut next).await, (vec![1], None));
    assert_eq!(net.running.begun(), 2);
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_holds_while_queued_while_running_and_between_items() {
    let net = Net::with(one_at_a_time(), RouterConfig::default()).await;
    let blocker = net.open("0 0 hang").await.unwrap();
    let error = guard("queued", net.router.call(within("0 0 hang", 60))).await.unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::DeadlineExceeded { .. }), "{error}");
    assert_eq!(error.phase, Phase::Accepted);
    drop(blocker);

    for (script, items) in [("0 0 hang", 0), ("3 3 hang", 3)] {
        let mut stream = guard("running", net.router.call(within(script, 60))).await.unwrap();
        let (got, error) = collect(&mut stream).await;
        assert_eq!(got.len(), items);
        let Some(CallErrorKind::DeadlineExceeded { elapsed }) = error else { panic!("{error:?}") };
        assert!(elapsed >= Duration::from_millis(59), "not before its time: {elapsed:?}");
        eventually("the engine is cancelled", || net.running.now() == 0).await;
    }
    assert_eq!(net.running.begun(), 3, "the queued one never ran");
    net.close().await;
}

/// The keeper's tick must not be put off by flushes: a neighbour keeps the link busy all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_holds_on_a_link_that_is_never_quiet() {
    let net = Net::start().await;
    let mut busy = net.open("inf 100 clean").await.unwrap();
    let mut stream = guard("the call", net.router.call(within("0 0 hang", 100))).await.unwrap();
    let (_, error) = guard("the deadline", async {
        tokio::select! {
            ended = collect(&mut stream) => ended,
            () = async { while busy.next().await.is_some() {} } => panic!("the neighbour ended"),
        }
    })
    .await;
    let Some(CallErrorKind::DeadlineExceeded { elapsed }) = error else { panic!("{error:?}") };
    assert!(elapsed < Duration::from_secs(3), "{elapsed:?}");
    drop((busy, stream));
    net.close().await;
}

/// The router is a raw one, so only the worker can keep the deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_worker_keeps_the_deadline_itself_running_and_queued() {
    let _turn = turn().await;
    let running = Running::default();
    let worker = worker(&running, one_at_a_time()).await;
    let mut peer = Raw::router(worker.address()).await;
    for stream in [1, 2] {
        let mut encoded = Vec::new();
        let mut head = head();
        head.deadline_us = Some(50_000);
        head.encode(&mut encoded).unwrap();
        peer.out.request(stream, encoded, "1 1 hang".into()).unwrap();
    }
    peer.flush().await;
    let mut ended = [peer.until(Kind::Error).await.stream, peer.until(Kind::Error).await.stream];
    ended.sort_unstable();
    assert_eq!(ended, [1, 2]);
    eventually("places are free", || worker.stats().running == 0 && worker.stats().streams == 0).await;
    assert_eq!((running.begun(), running.now()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_timeout_counts_only_while_the_caller_waits() {
    let net = Net::start().await;
    let timeout = Duration::from_millis(60);
    let call = CallOptions { item_timeout: Some(timeout), ..options("2 4 hang") };
    let mut stream = guard("the call", net.router.call(call)).await.unwrap();
    guard("an item", stream.next()).await.unwrap().unwrap();
    // Nobody waits: time passes and nothing happens.
    tokio::time::sleep(timeout * 3).await;
    guard("an item", stream.next()).await.unwrap().unwrap();
    let error = guard("the timeout", stream.next()).await.unwrap().unwrap_err();
    assert_eq!(error.kind, CallErrorKind::ItemTimeout { timeout });
    assert_eq!((error.phase, error.items), (Phase::Streaming, 2));
    eventually("the engine is cancelled", || net.running.now() == 0).await;
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_leaves_a_full_window_unread_is_cut_off() {
    let timeout = Duration::from_millis(100);
    let router = RouterConfig { slow_consumer_timeout: Some(timeout), ..RouterConfig::default() };
    let net = Net::with(WorkerConfig::default(), router).await;
    let mut stream = net.open("inf 1000 clean").await.unwrap();
    guard("an item", stream.next()).await.unwrap().unwrap();
    eventually("the engine is cancelled", || net.running.now() == 0).await;
    let (mut read, mut last) = (0, None);
    while let Some(item) = guard("the rest", stream.next()).await {
        match item {
            Ok(_) => read += 1,
            Err(error) => {
                last = Some(error.kind);
                break;
            }
        }
    }
    assert_eq!(last, Some(CallErrorKind::SlowConsumer { timeout }));
    assert!(read > 100, "what had arrived is still there: {read}");
    drop(stream);

    // A slow reader that reads is no slow consumer.
    let mut stream = net.open("600 1000 clean").await.unwrap();
    for _ in 0..6 {
        tokio::time::sleep(timeout / 2).await;
        for _ in 0..100 {
            guard("an item", stream.next()).await.unwrap().unwrap();
        }
    }
    assert!(guard("the end", stream.next()).await.is_none());
    net.close().await;
}

/// A waker that changes between polls must not lose the wake-up of the call's timer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_moves_between_tasks_still_times_out() {
    let _turn = turn().await;
    let router = RouterConfig { instance_timeout: Duration::from_millis(100), ..RouterConfig::default() };
    let router = router_to(&[&"127.0.0.1:1".parse().unwrap()], router);
    let mut call = Box::pin(router.call(options("0 0 clean")));
    let _ = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    let error = guard("the timeout", tokio::spawn(call)).await.unwrap().unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::CannotConnect { .. }), "{error}");
}
