//! A driver that never reads and never flushes stands for an event loop's thread that is busy for ever: the
//! keeper does both, so that peers are answered all the same.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use headrace::link::{Driver, Link};
use headrace::wire::kind::Kind;
use headrace::{CallErrorKind, RouterConfig, WorkerConfig};
use support::raw::Raw;
use support::{Net, collect, eventually, guard, local};

#[derive(Debug)]
struct Busy;

impl Driver for Busy {
    fn attach(&self, _: Arc<Link>) {}

    fn flush_soon(&self, _: &Arc<Link>) {}

    fn turns(&self) -> Option<u64> {
        Some(0)
    }
}

async fn busy_worker() -> Net {
    let worker = WorkerConfig { concurrency: 2, queue: 0, ..WorkerConfig::default() };
    let quick = Duration::from_millis(300);
    let router = RouterConfig { ping_interval: quick, ping_timeout: quick, ..RouterConfig::default() };
    Net::at(&local(), worker, router, Arc::new(Busy), Vec::new()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_is_answered_while_the_driver_is_busy() {
    let net = busy_worker().await;
    let mut peer = Raw::router(net.worker.address()).await;
    for stamp in 0..5_u64 {
        peer.send(Kind::Ping, 0, 0, &stamp.to_le_bytes()).await;
        assert_eq!(peer.until(Kind::Pong).await.body[..8], stamp.to_le_bytes());
    }
    drop(peer);
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_and_reject_are_answered_while_the_driver_is_busy() {
    let net = busy_worker().await;
    let held = vec![net.open("0 0 hang").await.unwrap(), net.open("1 1 hang").await.unwrap()];
    let error = net.open("0 0 hang").await.unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::Overloaded { .. }), "{error}");
    drop(held);
    eventually("the engines are cancelled", || net.running.now() == 0).await;
    let mut stream = net.open("3 3 clean").await.unwrap();
    assert_eq!(collect(&mut stream).await, (vec![3; 3], None));
    drop(stream);
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_larger_than_every_buffer_go_on_while_the_driver_is_busy() {
    let net = busy_worker().await;
    let mut large = net.open("1 6000000 clean").await.unwrap();
    let mut many = net.open("3000 1000 clean").await.unwrap();
    assert_eq!(collect(&mut many).await.0.len(), 3_000);
    assert_eq!(collect(&mut large).await, (vec![6_000_000], None));
    drop((large, many));
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_peer_is_noticed_while_the_driver_is_busy() {
    let net = busy_worker().await;
    let mut peer = Raw::router(net.worker.address()).await;
    peer.request(1, "1 1 hang");
    peer.flush().await;
    guard("an item", peer.until(Kind::Data)).await;
    peer.reset();
    eventually("the engine is cancelled", || net.running.now() == 0 && net.worker.stats().running == 0).await;
    net.close().await;
}
