//! What the metrics say after runs of which everything is known. The numbers are the process's, so each test
//! looks at what they rose by, or serves an endpoint of its own.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used)]

mod support;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headrace::metrics::{self, Samples, Source, names};
use headrace::wire::body::RequestHead;
use headrace::wire::kind::Kind;
use headrace::{AsyncEngine, CallOptions, Engine, Request, RouterConfig, Worker, WorkerConfig};
use support::raw::Raw;
use support::scrape::{Scrape, assert_rose, count_of, of};
use support::{Net, Running, collect, eventually, fault, guard, options, raw, router_to, turn, worker};
use tokio::runtime::Handle;

fn gauges_of(endpoint: &str) -> [String; 2] {
    let labels = format!("endpoint=\"{endpoint}\"");
    [of(&names::WORKER_INFLIGHT, &labels), of(&names::WORKER_QUEUED, &labels)]
}

const SCRIPT: &str = "endpoint=\"script\"";

fn errors(kind: &str) -> String {
    format!("headrace_worker_errors_total{{endpoint=\"script\",error_type=\"{kind}\"}}")
}

#[tokio::test]
async fn requests_items_and_bytes_are_counted_exactly() {
    let net = Net::start().await;
    // The worker's first PING is answered, so that transit is known.
    let rounds = count_of(&names::LINK_ROUND_TRIP, "side=\"worker\"");
    let known = Scrape::now().get(&rounds);
    drop(net.open("0 0 clean").await);
    eventually("the clock's offset is known", || {
        Scrape::now().get(&rounds) > known || Scrape::now().get(&rounds) >= 1.0
    })
    .await;
    eventually("the first request has ended", || net.worker.stats().running == 0).await;
    let before = Scrape::now();
    let mut requested = 0.0;
    for count in 1..=5 {
        let script = format!("{count} 10 clean");
        requested += script.len() as f64;
        let mut stream = net.open(&script).await.unwrap();
        assert_eq!(collect(&mut stream).await, (vec![10; count], None));
    }
    assert_rose(
        &before,
        &[
            (of(&names::WORKER_REQUESTS, SCRIPT), 5.0),
            (count_of(&names::WORKER_DURATION, SCRIPT), 5.0),
            (count_of(&names::WORKER_QUEUE, SCRIPT), 5.0),
            (count_of(&names::WORKER_FIRST_RESPONSE, SCRIPT), 5.0),
            (count_of(&names::WORKER_TRANSIT, SCRIPT), 5.0),
            (of(&names::WORKER_REQUEST_BYTES, SCRIPT), requested),
            (of(&names::WORKER_RESPONSE_BYTES, SCRIPT), 150.0),
            (of(&names::WORKER_RESPONSE_ITEMS, SCRIPT), 15.0),
            (of(&names::WORKER_CANCELLATION, SCRIPT), 0.0),
            (of(&names::ROUTER_REQUESTS, ""), 5.0),
            (count_of(&names::ROUTER_QUEUE, ""), 5.0),
            (count_of(&names::ROUTER_SEND, ""), 5.0),
            (count_of(&names::ROUTER_TTFT, ""), 5.0),
            (of(&names::ROUTER_CANCELLATION, ""), 0.0),
        ],
    );
    let transit =
        Scrape::now().since(&before, "headrace_worker_network_transit_seconds_sum{endpoint=\"script\"}");
    assert!((0.0..1.0).contains(&transit), "five requests within one process took {transit} s");
    net.close().await;
}

#[tokio::test]
async fn an_engine_that_fails_is_an_error_and_a_caller_that_leaves_is_none() {
    let net = Net::start().await;
    let before = Scrape::now();
    for script in ["0 0 fail", "3 8 fail"] {
        // Before its first item it may fail the call itself.
        if let Ok(mut stream) = net.open(script).await {
            assert!(collect(&mut stream).await.1.is_some());
        }
    }
    let cancelled = net.open("inf 64 clean").await.unwrap();
    drop(cancelled);
    let hanging = net.open("1 8 hang").await.unwrap();
    drop(hanging);
    eventually("nothing runs", || net.worker.stats().running == 0).await;
    assert_rose(
        &before,
        &[
            (of(&names::WORKER_REQUESTS, SCRIPT), 4.0),
            (count_of(&names::WORKER_DURATION, SCRIPT), 4.0),
            (errors("generate"), 2.0),
            (of(&names::WORKER_CANCELLATION, SCRIPT), 2.0),
            (errors("publish_response"), 0.0),
            (errors("publish_final"), 0.0),
            (of(&names::ROUTER_CANCELLATION, ""), 2.0),
            ("headrace_router_errors_total{error_type=\"engine\"}".to_owned(), 2.0),
        ],
    );
    net.close().await;
    let now = Scrape::now();
    assert_eq!(gauges_of("script").map(|gauge| now.get(&gauge)), [0.0, 0.0]);
    assert_eq!(now.get("headrace_router_inflight_requests"), 0.0);
}

#[tokio::test]
async fn a_deadline_is_an_error_whoever_notices_it_first() {
    let net = Net::start().await;
    let before = Scrape::now();
    let short = CallOptions { timeout: Some(Duration::from_millis(30)), ..options("1 1 hang") };
    let mut stream = guard("the call", net.router.call(short)).await.unwrap();
    assert!(collect(&mut stream).await.1.is_some());
    eventually("it has ended at the worker", || net.worker.stats().running == 0).await;
    let late = CallOptions { item_timeout: Some(Duration::from_millis(30)), ..options("1 1 hang") };
    let mut stream = guard("the call", net.router.call(late)).await.unwrap();
    assert!(collect(&mut stream).await.1.is_some());
    eventually("it has ended at the worker", || net.worker.stats().running == 0).await;
    assert_rose(
        &before,
        &[
            (errors("deadline"), 1.0),
            (errors("item_timeout"), 1.0),
            (of(&names::WORKER_CANCELLATION, SCRIPT), 0.0),
            ("headrace_router_errors_total{error_type=\"deadline\"}".to_owned(), 1.0),
            ("headrace_router_errors_total{error_type=\"item_timeout\"}".to_owned(), 1.0),
        ],
    );
    net.close().await;
}

#[tokio::test]
async fn what_a_worker_closes_on_ends_as_shut_down() {
    let config = WorkerConfig { concurrency: 1, queue: 1, ..WorkerConfig::default() };
    let net = Net::with(config, RouterConfig { retries: 0, ..RouterConfig::default() }).await;
    let before = Scrape::now();
    let mut running = net.open("1 1 hang").await.unwrap();
    let mut queued = net.router.call(options("0 0 clean"));
    let polled = poll_fn(|cx| std::task::Poll::Ready(queued.poll_open(cx).is_pending()));
    assert!(polled.await);
    eventually("it waits", || net.worker.stats().queued == 1).await;
    net.worker.close();
    assert!(collect(&mut running).await.1.is_some());
    drop(queued);
    eventually("both have ended", || Scrape::now().since(&before, &errors("shutdown")) == 2.0).await;
    assert_rose(&before, &[(of(&names::WORKER_CANCELLATION, SCRIPT), 0.0)]);
    net.close().await;
}

#[tokio::test]
async fn what_waits_is_counted_as_waiting_and_what_is_refused_as_refused() {
    let config = WorkerConfig { concurrency: 1, queue: 1, ..WorkerConfig::default() };
    let net = Net::with(config, RouterConfig { retries: 0, ..RouterConfig::default() }).await;
    let before = Scrape::now();
    let running = net.open("0 0 hang").await.unwrap();
    // Nobody awaits it: it is killed where it waits.
    let mut queued = net.router.call(options("0 0 clean"));
    let polled = poll_fn(|cx| std::task::Poll::Ready(queued.poll_open(cx).is_pending()));
    assert!(polled.await);
    eventually("it waits", || net.worker.stats().queued == 1).await;
    let now = Scrape::now();
    assert_eq!(gauges_of("script").map(|gauge| now.get(&gauge)), [1.0, 1.0]);
    assert!(net.open("0 0 clean").await.is_err());
    drop(queued);
    eventually("it no longer waits", || net.worker.stats().queued == 0).await;
    drop(running);
    eventually("nothing runs", || net.worker.stats().running == 0).await;
    assert_rose(
        &before,
        &[
            (of(&names::WORKER_REQUESTS, SCRIPT), 2.0),
            (count_of(&names::WORKER_DURATION, SCRIPT), 2.0),
            (count_of(&names::WORKER_QUEUE, SCRIPT), 2.0),
            (of(&names::WORKER_CANCELLATION, SCRIPT), 2.0),
            ("headrace_worker_rejections_total{endpoint=\"script\",reason=\"overloaded\"}".to_owned(), 1.0),
            ("headrace_router_errors_total{error_type=\"overloaded\"}".to_owned(), 1.0),
            (of(&names::ROUTER_CANCELLATION, ""), 2.0),
        ],
    );
    net.close().await;
    let now = Scrape::now();
    assert_eq!(gauges_of("script").map(|gauge| now.get(&gauge)), [0.0, 0.0]);
}

#[tokio::test]
async fn further_attempts_are_counted_by_their_reason() {
    let turn = turn().await;
    let running = Running::default();
    let full = worker(&running, WorkerConfig { concurrency: 1, queue: 0, ..WorkerConfig::default() }).await;
    let other = worker(&running, WorkerConfig::default()).await;
    let holder = router_to(&[full.address()], RouterConfig::default());
    let held = guard("the call", holder.call(options("0 0 hang"))).await.unwrap();
    let policy = headrace::Policy::RoundRobin;
    let router =
        router_to(&[full.address(), other.address()], RouterConfig { policy, ..RouterConfig::default() });
    assert!(router.wait_for_instances(2, Duration::from_secs(30)).await);
    let before = Scrape::now();
    for _ in 0..4 {
        let mut stream = guard("the call", router.call(options("1 1 clean"))).await.unwrap();
        assert_eq!(collect(&mut stream).await, (vec![1], None));
    }
    let stats = router.stats();
    assert_eq!((stats.calls_total, stats.retries_total), (4, 2));
    assert_rose(
        &before,
        &[
            ("headrace_router_retries_total{reason=\"overloaded\"}".to_owned(), 2.0),
            (of(&names::ROUTER_REQUESTS, ""), 4.0),
            (count_of(&names::ROUTER_QUEUE, ""), 4.0),
            (count_of(&names::ROUTER_SEND, ""), 4.0),
            ("headrace_worker_rejections_total{endpoint=\"script\",reason=\"overloaded\"}".to_owned(), 2.0),
        ],
    );
    drop(held);
    holder.close();
    router.close();
    guard("draining", full.drain(None)).await;
    guard("draining", other.drain(None)).await;
    drop(turn);
}

#[tokio::test]
async fn a_router_that_is_lost_is_an_error_and_one_that_closes_is_none() {
    let turn = turn().await;
    let running = Running::default();
    let served = worker(&running, WorkerConfig::default()).await;
    let before = Scrape::now();
    let mut lost = Raw::router(served.address()).await;
    lost.request(1, "1 8 hang");
    lost.flush().await;
    lost.until(Kind::Data).await;
    lost.reset();
    eventually("its engine was dropped", || served.stats().running == 0).await;
    assert_rose(
        &before,
        &[(errors("publish_response"), 1.0), (of(&names::WORKER_CANCELLATION, SCRIPT), 0.0)],
    );
    let router = router_to(&[served.address()], RouterConfig::default());
    let stream = guard("the call", router.call(options("1 8 hang"))).await.unwrap();
    router.close();
    eventually("its engine was dropped", || served.stats().running == 0).await;
    drop(stream);
    assert_rose(
        &before,
        &[(errors("publish_response"), 1.0), (of(&names::WORKER_CANCELLATION, SCRIPT), 1.0)],
    );
    guard("draining", served.drain(None)).await;
    drop(turn);
}

#[tokio::test]
async fn no_peer_can_make_a_series() {
    let turn = turn().await;
    let running = Running::default();
    let served = worker(&running, WorkerConfig::default()).await;
    let before = Scrape::now();
    let mut peer = Raw::router(served.address()).await;
    for id in 1..=200 {
        let head = RequestHead {
            endpoint: format!("hostile-{id}\n\"}}"),
            request_id: format!("hostile-{id}"),
            metadata: vec![(format!("hostile-{id}"), "hostile".into())],
            traceparent: "hostile".into(),
            window: 65_536,
            ..RequestHead::default()
        };
        let mut encoded = Vec::new();
        head.encode(&mut encoded).unwrap();
        peer.out.request(id, encoded, Bytes::new()).unwrap();
    }
    peer.flush().await;
    for _ in 1..=200 {
        peer.until(Kind::Reject).await;
    }
    // And one that breaks the rules.
    peer.send(Kind::Accept, 0, 1, &[0; 4]).await;
    peer.until_closed().await;
    let unknown = "headrace_worker_rejections_total{endpoint=\"\",reason=\"no_such_endpoint\"}";
    let invalid = "headrace_worker_errors_total{endpoint=\"\",error_type=\"invalid_message\"}";
    assert_rose(&before, &[(unknown.to_owned(), 200.0), (invalid.to_owned(), 1.0)]);
    assert_eq!(served.stats().rejected_total, 200);
    let now = Scrape::now();
    assert!(now.0.keys().all(|series| !series.contains("hostile")));
    let new: Vec<_> = now.0.keys().filter(|series| !before.0.contains_key(*series)).collect();
    assert!(new == [unknown] || new.is_empty(), "{new:?}");
    guard("draining", served.drain(None)).await;
    drop(turn);
}

#[tokio::test]
async fn endpoints_beyond_the_bound_are_counted_together() {
    let turn = turn().await;
    let engine = |_name: &str| -> Arc<dyn Engine> {
        Arc::new(AsyncEngine::new(
            Handle::current(),
            |request: Request, answer: headrace::engine::Answer| async move {
                answer.send(0, request.payload.payload).await.map_err(|error| fault(&format!("{error:?}")))
            },
        ))
    };
    let bind = |names: Vec<String>| async move {
        let engines = names.iter().map(|name| (name.clone(), engine(name))).collect();
        let config = WorkerConfig::default();
        Worker::bind(&support::local(), engines, config, Handle::current(), support::driver()).await.unwrap()
    };
    let names: Vec<_> = (0..names::NAMES_MAX).map(|number| format!("many-{number}")).collect();
    let first = bind(names).await;
    let second = bind(vec!["beyond-1".to_owned(), "beyond-2".to_owned()]).await;
    let router = router_to(&[second.address()], RouterConfig::default());
    let before = Scrape::now();
    for endpoint in ["beyond-1", "beyond-2"] {
        let options = CallOptions { endpoint: endpoint.to_owned(), ..CallOptions::new(raw("x")) };
        let mut stream = guard("the call", router.call(options)).await.unwrap();
        assert_eq!(guard("the item", stream.next()).await.unwrap().unwrap().payload, "x");
        assert!(guard("the end", stream.next()).await.is_none());
    }
    assert_rose(&before, &[(of(&names::WORKER_REQUESTS, "endpoint=\"_overflow\""), 2.0)]);
    let endpoints =
        before.0.keys().filter(|series| series.starts_with("headrace_worker_requests_total")).count();
    assert_eq!(endpoints, names::NAMES_MAX + 1);
    router.close();
    for served in [first, second] {
        guard("draining", served.drain(None)).await;
    }
    drop(turn);
}

#[tokio::test]
async fn scraping_under_load_changes_nothing() {
    let net = Net::start().await;
    let before = Scrape::now();
    let scraping = tokio::task::spawn_blocking(|| {
        for _ in 0..200 {
            let scrape = Scrape::now();
            let gauges = gauges_of("script").map(|gauge| scrape.get(&gauge));
            assert!(gauges.iter().all(|gauge| (0.0..=64.0).contains(gauge)), "{gauges:?}");
        }
    });
    let mut calls = 0.0;
    while !scraping.is_finished() {
        let mut stream = net.open("20 100 clean").await.unwrap();
        assert_eq!(collect(&mut stream).await, (vec![100; 20], None));
        calls += 1.0;
    }
    scraping.await.unwrap();
    assert_rose(
        &before,
        &[
            (of(&names::WORKER_REQUESTS, SCRIPT), calls),
            (count_of(&names::WORKER_DURATION, SCRIPT), calls),
            (of(&names::WORKER_RESPONSE_ITEMS, SCRIPT), 20.0 * calls),
            (of(&names::WORKER_RESPONSE_BYTES, SCRIPT), 2_000.0 * calls),
        ],
    );
    net.close().await;
}

#[tokio::test]
async fn links_are_counted_on_both_sides() {
    let turn = turn().await;
    let running = Running::default();
    let before = Scrape::now();
    let served = worker(&running, WorkerConfig::default()).await;
    let router = router_to(&[served.address()], RouterConfig::default());
    let stream = guard("the call", router.call(options("0 0 hang"))).await.unwrap();
    let now = Scrape::now();
    for side in ["side=\"worker\"", "side=\"router\""] {
        assert_eq!(
            (now.get(&of(&names::LINK_OPEN, side)), now.get(&of(&names::LINK_STREAMS, side))),
            (1.0, 1.0)
        );
        assert_eq!(now.since(&before, &of(&names::LINK_OPENED, side)), 1.0);
    }
    drop(stream);
    eventually("all that one side sent the other has received", || {
        let now = Scrape::now();
        let rose = |family: &names::Family, side: &str| now.since(&before, &of(family, side));
        let (worker, router) = ("side=\"worker\"", "side=\"router\"");
        rose(&names::LINK_SENT_BYTES, router) == rose(&names::LINK_RECEIVED_BYTES, worker)
            && rose(&names::LINK_SENT_FRAMES, router) == rose(&names::LINK_RECEIVED_FRAMES, worker)
            && rose(&names::LINK_SENT_BYTES, worker) == rose(&names::LINK_RECEIVED_BYTES, router)
            && rose(&names::LINK_SENT_FRAMES, worker) == rose(&names::LINK_RECEIVED_FRAMES, router)
            && rose(&names::LINK_SENT_FRAMES, router) >= 3.0
    })
    .await;
    router.close();
    guard("draining", served.drain(None)).await;
    let now = Scrape::now();
    for side in ["side=\"worker\"", "side=\"router\""] {
        assert_eq!(
            (now.get(&of(&names::LINK_OPEN, side)), now.get(&of(&names::LINK_STREAMS, side))),
            (0.0, 0.0)
        );
    }
    drop(turn);
}

#[tokio::test]
async fn stamps_that_make_no_sense_are_cut_to_the_age_of_their_link() {
    let turn = turn().await;
    let running = Running::default();
    let began = std::time::Instant::now();
    let served = worker(&running, WorkerConfig::default()).await;
    let before = Scrape::now();
    let mut peer = Raw::router(served.address()).await;
    let ping = peer.until(Kind::Ping).await;
    let pong = [&ping.body[..], &u64::MAX.to_le_bytes()].concat();
    peer.send(Kind::Pong, 0, 0, &pong).await;
    // An answer to what was never asked.
    peer.send(Kind::Pong, 0, 0, &[0xff; 16]).await;
    for (id, sent_at_us) in [(1, 0), (2, u64::MAX), (3, 12_345)] {
        let mut encoded = Vec::new();
        RequestHead { sent_at_us, ..raw::head() }.encode(&mut encoded).unwrap();
        peer.out.request(id, encoded, Bytes::from_static(b"1 1 clean")).unwrap();
        peer.flush().await;
        peer.until(Kind::End).await;
    }
    let age = began.elapsed().as_secs_f64();
    assert_rose(&before, &[(count_of(&names::WORKER_TRANSIT, SCRIPT), 3.0)]);
    let sum = "headrace_worker_network_transit_seconds_sum{endpoint=\"script\"}";
    let transit = Scrape::now().since(&before, sum);
    assert!((0.0..=3.0 * age).contains(&transit), "{transit} s in {age} s");
    guard("draining", served.drain(None)).await;
    drop(turn);
}

/// A pool with numbers of its own.
struct Pool(u64);

impl Source for Pool {
    fn collect(&self, samples: &mut Samples) {
        samples.count(&names::CUDA_LEASES, &["0"], self.0);
        samples.count(&names::CUDA_COPIED_BYTES, &["0", "to_device"], 100 * self.0);
        let waits = [(0.001, 1), (f64::INFINITY, 2)];
        samples.histogram(&names::CUDA_LEASE_WAIT, &["0"], waits, 0.5);
    }
}

#[tokio::test]
async fn whoever_has_numbers_of_its_own_registers_a_source() {
    let _turn = turn().await;
    let pools = [Arc::new(Pool(1)), Arc::new(Pool(2))];
    for pool in &pools {
        let pool = Arc::downgrade(pool);
        metrics::register(pool);
    }
    // Two of one device are one series.
    let now = Scrape::now();
    for (series, value) in [
        ("headrace_cuda_leases_total{device=\"0\"}", 3.0),
        ("headrace_cuda_copied_bytes_total{device=\"0\",direction=\"to_device\"}", 300.0),
        ("headrace_cuda_lease_wait_seconds_bucket{device=\"0\",le=\"0.001\"}", 2.0),
        ("headrace_cuda_lease_wait_seconds_bucket{device=\"0\",le=\"+Inf\"}", 4.0),
        ("headrace_cuda_lease_wait_seconds_sum{device=\"0\"}", 1.0),
        ("headrace_cuda_lease_wait_seconds_count{device=\"0\"}", 4.0),
    ] {
        assert!(now.get(series) == value, "{series} is {}", now.get(series));
    }
    drop(pools);
    assert!(Scrape::now().0.keys().all(|series| !series.starts_with("headrace_cuda")));
}
