//! Large messages, many streams, and readers that stop reading: who waits for whom, and who does not.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use headrace::{CallOptions, RouterConfig, WorkerConfig};
use support::{Net, collect, eventually, guard, options, raw};

const MIB: usize = 1024 * 1024;

/// The scripted engine reads the first words and ignores the padding.
fn padded(script: &str, bytes: usize) -> CallOptions {
    let mut payload = script.as_bytes().to_vec();
    payload.resize(bytes, b' ');
    CallOptions { payload: raw(payload), ..options("") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_fragments_arrives_whole_beside_small_ones() {
    let net = Net::start().await;
    let large = tokio::spawn(net.router.call(padded("2 2 clean", 20 * MIB)));
    for _ in 0..50 {
        let mut small = net.open("3 3 clean").await.unwrap();
        assert_eq!(collect(&mut small).await, (vec![3; 3], None));
    }
    let mut stream = guard("the large request", large).await.unwrap().unwrap();
    assert_eq!(collect(&mut stream).await, (vec![2; 2], None));
    drop(stream);
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_request_that_is_cancelled_on_its_way_leaves_nothing() {
    let net = Net::start().await;
    for _ in 0..20 {
        let large = tokio::spawn(net.router.call(padded("0 0 hang", 20 * MIB)));
        eventually("it is on its way", || net.router.stats().streams == 1).await;
        large.abort();
        let _ = large.await;
    }
    let mut stream = net.open("3 3 clean").await.unwrap();
    assert_eq!(collect(&mut stream).await, (vec![3; 3], None));
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_item_arrives_whole_and_tokens_beside_it_go_on() {
    let net = Net::start().await;
    let mut tokens = net.open("inf 8 clean").await.unwrap();
    let mut large = net.open(&format!("2 {} clean", 24 * MIB)).await.unwrap();
    let reading = tokio::spawn(async move { collect(&mut large).await });
    let mut beside = 0_u64;
    while !reading.is_finished() {
        guard("a token", tokens.next()).await.unwrap().unwrap();
        beside += 1;
    }
    assert_eq!(reading.await.unwrap(), (vec![24 * MIB; 2], None));
    assert!(beside > 100, "{beside} tokens came beside 48 MiB");
    drop(tokens);
    net.close().await;
}

/// 64 windows of 256 KiB are four times the link's credit: it must come back although nobody reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stop_hold_back_their_own_engines_and_nobody_else() {
    let worker = WorkerConfig { concurrency: 100, ..WorkerConfig::default() };
    let net = Net::with(worker, RouterConfig::default()).await;
    let mut stalled = Vec::new();
    for _ in 0..64 {
        stalled.push(net.open("inf 1000 clean").await.unwrap());
    }
    for _ in 0..20 {
        let mut other = net.open("1000 1000 clean").await.unwrap();
        assert_eq!(collect(&mut other).await.0.len(), 1000);
    }
    let mut large = net.open(&format!("1 {} clean", 8 * MIB)).await.unwrap();
    assert_eq!(collect(&mut large).await, (vec![8 * MIB], None));
    for stream in &mut stalled {
        for number in 0..1_000_u32 {
            let item = guard("a stalled stream goes on", stream.next()).await.unwrap().unwrap();
            assert_eq!(item.payload, Bytes::from(vec![number as u8; 1_000]));
        }
    }
    drop((stalled, large));
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_once_all_arrive() {
    let worker = WorkerConfig { concurrency: 600, queue: 400, ..WorkerConfig::default() };
    let net = Net::with(worker, RouterConfig::default()).await;
    assert!(net.router.wait_for_instances(1, Duration::from_secs(10)).await);
    let mut reading = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let call = net.router.call(options("50 60 clean"));
        reading.spawn(async move { collect(&mut call.await.unwrap()).await });
    }
    while let Some(got) = guard("a stream", reading.join_next()).await {
        assert_eq!(got.unwrap(), (vec![60; 50], None));
    }
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_window_slows_down_and_loses_nothing() {
    let router = RouterConfig { stream_window: 4096, link_window: 256 * 1024, ..RouterConfig::default() };
    let net = Net::with(WorkerConfig::default(), router).await;
    for script in ["5000 1 clean", "300 2000 clean", "100 5000 clean", "3 1000000 clean"] {
        let count: usize = script.split(' ').next().unwrap().parse().unwrap();
        let mut stream = net.open(script).await.unwrap();
        let (items, error) = collect(&mut stream).await;
        assert_eq!((items.len(), error), (count, None), "{script}");
    }
    net.close().await;
}
