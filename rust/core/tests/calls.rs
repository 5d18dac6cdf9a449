//! What a caller sees of an engine, over TCP and over a Unix socket.

// Engines are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use headrace::engine::{PushError, Responder};
use headrace::{CallErrorKind, CallOptions, Engine, Phase, Request, RouterConfig, WorkerConfig};
use support::{Net, collect, driver, fault, guard, local, options, raw, script};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_item_arrives_and_the_end_is_clean_over_tcp_and_unix() {
    let path = std::env::temp_dir().join(format!("headrace-calls-{}.sock", std::process::id()));
    let unix = format!("unix:{}", path.display()).parse().unwrap();
    for address in [local(), unix] {
        let net =
            Net::at(&address, WorkerConfig::default(), RouterConfig::default(), driver(), Vec::new()).await;
        for (count, size) in [(3, 5), (0, 1), (1, 0), (200, 3), (2_000, 1_000)] {
            let mut stream = net.open(&format!("{count} {size} clean")).await.unwrap();
            assert_eq!(collect(&mut stream).await, (vec![size; count], None));
            assert!(stream.next().await.is_none(), "an ended stream stays ended");
            assert!(!stream.stopped());
        }
        net.close().await;
    }
    assert!(!path.exists(), "the socket file goes with its worker");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unary_call_wants_exactly_one_item() {
    let net = Net::start().await;
    for (script, expected) in
        [("1 7 clean", Ok(7)), ("0 7 clean", Err(0)), ("2 7 clean", Err(2)), ("inf 7 clean", Err(2))]
    {
        let stream = net.open(script).await.unwrap();
        let found = guard(script, poll_fn(|cx| stream.poll_single(cx))).await;
        match (found, expected) {
            (Ok(item), Ok(size)) => assert_eq!(item.payload.len(), size),
            (Err(error), Err(items)) => assert_eq!(error.kind, CallErrorKind::NotUnary { items }),
            (found, _) => panic!("{script}: {found:?}"),
        }
    }
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_engine_yielded_before_it_failed_arrives_before_its_failure() {
    let net = Net::start().await;
    for count in [0, 1, 500] {
        let mut stream = net.open(&format!("{count} 100 fail")).await.unwrap();
        let (items, error) = collect(&mut stream).await;
        assert_eq!(items.len(), count);
        assert_eq!(error, Some(CallErrorKind::Engine(fault("as asked"))));
        let again = stream.next().await.unwrap().unwrap_err();
        assert_eq!((again.kind, again.items), (CallErrorKind::Engine(fault("as asked")), count as u64));
    }
    net.close().await;
}

/// Ends within `start`, in the way it is told.
#[derive(Debug)]
enum AtOnce {
    Fail,
    Drop { items: u8 },
    Panic,
}

impl Engine for AtOnce {
    fn start(&self, _: Request, responder: Responder) {
        match self {
            Self::Fail => responder.fail(fault("no stream")),
            Self::Panic => panic!("an engine's mistake"),
            Self::Drop { items } => (0..*items).for_each(|number| {
                responder.push(0, &[number; 4]).unwrap();
            }),
        }
    }
}

async fn net_of(engine: AtOnce) -> Net {
    let engines: Vec<(String, Arc<dyn Engine>)> = vec![("at_once".to_owned(), Arc::new(engine))];
    Net::at(&local(), WorkerConfig::default(), RouterConfig::default(), driver(), engines).await
}

fn at_once() -> CallOptions {
    CallOptions { endpoint: "at_once".to_owned(), ..CallOptions::new(raw("")) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_fails_before_its_stream_fails_the_call_itself() {
    let net = net_of(AtOnce::Fail).await;
    let error = guard("the call", net.router.call(at_once())).await.unwrap_err();
    assert_eq!((error.kind, error.phase), (CallErrorKind::Engine(fault("no stream")), Phase::Accepted));
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_dropped_never_looks_like_a_clean_end() {
    let net = net_of(AtOnce::Drop { items: 0 }).await;
    let error = guard("the call", net.router.call(at_once())).await.unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::Engine(_)), "{error}");
    net.close().await;

    let net = net_of(AtOnce::Drop { items: 3 }).await;
    let mut stream = guard("the call", net.router.call(at_once())).await.unwrap();
    let (items, error) = collect(&mut stream).await;
    assert_eq!(items, [4; 3]);
    assert!(matches!(error, Some(CallErrorKind::Engine(_))), "{error:?}");
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_panics_fails_its_call_and_not_its_link() {
    let net = net_of(AtOnce::Panic).await;
    for _ in 0..3 {
        let error = guard("the call", net.router.call(at_once())).await.unwrap_err();
        assert!(matches!(error.kind, CallErrorKind::Engine(_)), "{error}");
    }
    let mut stream = net.open("3 3 clean").await.unwrap();
    assert_eq!(collect(&mut stream).await, (vec![3; 3], None));
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_lets_the_engine_finish_and_the_end_is_clean() {
    let net = Net::start().await;
    let mut stream = net.open("2 4 stop").await.unwrap();
    stream.stop();
    stream.stop();
    assert_eq!(collect(&mut stream).await, (vec![4; 2], None));
    assert!(stream.stopped());
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_endpoint_is_answered_with_those_there_are() {
    let net = net_of(AtOnce::Fail).await;
    for endpoint in ["other", ""] {
        let call = CallOptions { endpoint: endpoint.to_owned(), ..options("0 0 clean") };
        let error = guard("the call", net.router.call(call)).await.unwrap_err();
        let available = vec!["at_once".to_owned(), "script".to_owned()];
        assert!(error.to_string().contains("at_once, script"), "{error}");
        assert_eq!(error.kind, CallErrorKind::NoSuchEndpoint { endpoint: endpoint.to_owned(), available });
    }
    net.close().await;

    let net = Net::start().await;
    let call = CallOptions { endpoint: String::new(), ..options("1 1 clean") };
    let mut stream = guard("the call", net.router.call(call)).await.unwrap();
    assert_eq!(collect(&mut stream).await, (vec![1], None));
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_over_either_sides_limit_is_refused_with_nothing_written() {
    let small = 1_000;
    for (worker_max, router_max) in [(small, 1 << 20), (1 << 20, small)] {
        let worker = WorkerConfig { max_message_bytes: worker_max, ..WorkerConfig::default() };
        let router = RouterConfig { max_message_bytes: router_max, ..RouterConfig::default() };
        let net = Net::with(worker, router).await;
        let call = CallOptions { payload: raw(vec![b' '; small + 1]), ..options("") };
        let result = guard("the call", net.router.call(call)).await;
        // A router's own limit is for what it receives; the worker's is for what it is sent.
        let error = result.unwrap_err();
        let CallErrorKind::PayloadTooLarge { limit, actual, setting, .. } = error.kind else {
            panic!("{error}")
        };
        assert_eq!((limit, actual, setting), (small as u64, small as u64 + 1, "max_message_bytes"));
        assert_eq!(error.phase, Phase::Unsent);
        assert_eq!((net.worker.stats().accepted_total, net.worker.stats().rejected_total), (0, 0));
        net.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_over_the_callers_limit_is_refused_at_the_engine_with_nothing_written() {
    let router = RouterConfig { max_message_bytes: 1_000, ..RouterConfig::default() };
    let net = Net::with(WorkerConfig::default(), router).await;
    let mut stream = net.open("1 1001 clean").await.unwrap();
    let (items, error) = collect(&mut stream).await;
    let refused = format!("{:?}", PushError::TooLarge { limit: 1_000, actual: 1_001 });
    assert_eq!((items, error), (vec![], Some(CallErrorKind::Engine(fault(&refused)))));
    let mut stream = net.open("3 1000 clean").await.unwrap();
    assert_eq!(collect(&mut stream).await, (vec![1_000; 3], None), "the link lives on");
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_over_the_limit_is_refused_by_name() {
    let net = Net::start().await;
    let metadata = vec![("key".to_owned(), "v".repeat(200_000))];
    let call = CallOptions { metadata, ..options("0 0 clean") };
    let error = guard("the call", net.router.call(call)).await.unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::PayloadTooLarge { setting: "metadata", .. }), "{error}");
    net.close().await;
}

/// Pushes its first item from several threads at once.
#[derive(Debug)]
struct Crowd;

impl Engine for Crowd {
    fn start(&self, _: Request, responder: Responder) {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| responder.push_shared(0, Bytes::from_static(b"x")).unwrap());
            }
        });
        responder.finish();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_race_for_the_first_item_do_not_overtake_the_prologue() {
    let engines: Vec<(String, Arc<dyn Engine>)> = vec![("crowd".to_owned(), Arc::new(Crowd))];
    let net = Net::at(&local(), WorkerConfig::default(), RouterConfig::default(), driver(), engines).await;
    for _ in 0..200 {
        let call = CallOptions { endpoint: "crowd".to_owned(), ..CallOptions::new(raw("")) };
        let mut stream = guard("the call", net.router.call(call)).await.unwrap();
        let mut items = 0;
        while let Some(item) = guard("an item", stream.next()).await {
            assert_eq!(item.unwrap().payload, "x");
            items += 1;
        }
        assert_eq!(items, 4);
    }
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_no_socket_is_never_removed() {
    let path = std::env::temp_dir().join(format!("headrace-file-{}", std::process::id()));
    std::fs::write(&path, "precious").unwrap();
    let address = format!("unix:{}", path.display()).parse().unwrap();
    let engines = vec![("script".to_owned(), script(&support::Running::default()))];
    let runtime = tokio::runtime::Handle::current();
    let bound = headrace::Worker::bind(&address, engines, WorkerConfig::default(), runtime, driver()).await;
    assert!(bound.is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
}
