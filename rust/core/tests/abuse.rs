//! Peers that break the protocol lose their own link, with a reason, and nothing else.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use headrace::wire::body::{Goaway, GoawayReason, Role};
use headrace::wire::frame::PREFACE;
use headrace::wire::kind::{FRAGMENT, Kind, LAST};
use headrace::wire::limits::{ASSEMBLY_BYTES_FIRST, HELLO_BODY_MAX, UNAUTHENTICATED_LINKS_MAX};
use headrace::{CallErrorKind, RouterConfig, WorkerConfig, budget};
use support::raw::{Raw, head, hello, listen};
use support::{Net, collect, eventually, guard, options, router_to, turn};

/// Runs `abuse` against a worker that is streaming to an honest router, which must not notice.
async fn beside_an_honest_router(abuse: impl AsyncFn(&Net)) {
    let net = Net::start().await;
    let mut honest = net.open("inf 10 clean").await.unwrap();
    abuse(&net).await;
    for _ in 0..10_000 {
        guard("an item", honest.next()).await.unwrap().unwrap();
    }
    let mut another = net.open("3 3 clean").await.unwrap();
    assert_eq!(collect(&mut another).await, (vec![3; 3], None));
    eventually("only the honest link is left", || net.worker.stats().links == 1).await;
    drop(honest);
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_begin_with_preface_and_hello_is_hung_up_on() {
    beside_an_honest_router(async |net| {
        let oversize = headrace::wire::frame::Header::encode(Kind::Hello, 0, 0, HELLO_BODY_MAX + 1);
        let early = headrace::wire::frame::Header::encode(Kind::Ping, 0, 0, 8);
        let beginnings: [Vec<u8>; 6] = [
            b"GET / HTTP/1.1\r\nHost: headrace\r\n\r\n".to_vec(),
            vec![0xff; 100_000],
            b"HDRACE\n\n".to_vec(),
            [&PREFACE[..], &oversize].concat(),
            [&PREFACE[..], &early, &[0; 8]].concat(),
            [&PREFACE[..], &[0xee; 64]].concat(),
        ];
        for beginning in beginnings {
            let mut peer = Raw::connect(net.worker.address()).await;
            peer.bytes(&beginning).await;
            peer.until_closed().await;
        }
        // Another worker, or a router that hangs up half-way, is no router either.
        let mut peer = Raw::connect(net.worker.address()).await;
        peer.out.hello(&hello(Role::Worker));
        peer.flush().await;
        assert_eq!(peer.until_closed().await, [Kind::Goaway]);
        let mut peer = Raw::connect(net.worker.address()).await;
        peer.bytes(&PREFACE[..5]).await;
        peer.hang_up();
    })
    .await;
}

/// The last frame before the close is a GOAWAY that gives the reason.
async fn assert_refused(mut peer: Raw, what: &str) {
    let mut last = None;
    while let Some(frame) = peer.frame().await {
        last = Some(frame);
    }
    let last = last.unwrap_or_else(|| panic!("{what}: closed without a word"));
    assert_eq!(last.kind, Kind::Goaway, "{what}");
    assert_eq!(Goaway::decode(&last.body).unwrap().reason, GoawayReason::Protocol, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_a_router_may_not_send_close_its_link_only() {
    beside_an_honest_router(async |net| {
        let ok = [0; 8];
        let frames: [(Kind, u8, u64, &[u8]); 13] = [
            (Kind::Hello, 0, 0, &ok),
            (Kind::Status, 0, 0, &ok),
            (Kind::Accept, 0, 1, &ok),
            (Kind::Reject, 0, 1, &ok),
            (Kind::Prologue, 0, 1, &[0]),
            (Kind::Error, 0, 1, &ok),
            (Kind::Data, 0, 7, &[1, 0]),
            (Kind::End, 0, 7, &ok),
            (Kind::Stop, 0, 7, &[]),
            (Kind::Kill, 0, 7, &[1]),
            (Kind::Credit, 0, 7, &[1, 0, 0, 0]),
            (Kind::Request, 0, 1, &[0xff; 40]),
            (Kind::Goaway, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
        ];
        for (kind, flags, stream, body) in frames {
            let mut peer = Raw::router(net.worker.address()).await;
            peer.send(kind, flags, stream, body).await;
            assert_refused(peer, &format!("{kind:?} on {stream}")).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_ids_lengths_and_credit_are_checked() {
    beside_an_honest_router(async |net| {
        let connected = async || Raw::router(net.worker.address()).await;
        let mut encoded = Vec::new();
        head().encode(&mut encoded).unwrap();
        encoded.extend_from_slice(b"0 0 hang");

        let mut peer = connected().await;
        peer.send(Kind::Request, 0, 5, &encoded).await;
        peer.send(Kind::Request, 0, 5, &encoded).await;
        assert_refused(peer, "a stream id twice").await;

        let mut peer = connected().await;
        peer.send(Kind::Request, 0, 5, &encoded).await;
        peer.send(Kind::Request, 0, 4, &encoded).await;
        assert_refused(peer, "a falling stream id").await;

        let mut peer = connected().await;
        peer.send(Kind::Request, 0, 1, &encoded).await;
        peer.send(Kind::Data, 0, 1, &[1, 0]).await;
        assert_refused(peer, "data behind a single request").await;

        let mut peer = connected().await;
        peer.send(Kind::Request, 0, 1, &encoded).await;
        for _ in 0..2 {
            peer.send(Kind::Credit, 0, 1, &(1_u32 << 30).to_le_bytes()).await;
        }
        assert_refused(peer, "more credit than a window holds").await;

        let mut peer = connected().await;
        peer.send(Kind::Request, FRAGMENT, 1, &[20, 0, 0, 0, 1, 2, 3]).await;
        peer.send(Kind::Request, FRAGMENT | LAST, 1, &[4, 5]).await;
        assert_refused(peer, "a request that is not complete").await;

        let mut peer = connected().await;
        peer.send(Kind::Request, FRAGMENT, 1, &[2, 0, 0, 0, 1, 2, 3]).await;
        assert_refused(peer, "more than was declared").await;

        let mut peer = connected().await;
        let header = headrace::wire::frame::Header::encode(Kind::Request, 0, 1, 1 << 30);
        peer.bytes(&header).await;
        assert_refused(peer, "a frame over the limit").await;
    })
    .await;
}

/// 4 MiB each are declared and one byte sent: what an assembly reserves counts before the bytes come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_never_complete_are_bounded_and_forgotten_with_their_link() {
    let net = Net::start().await;
    let mut peer = Raw::router(net.worker.address()).await;
    for stream in 1..=1_100 {
        peer.send(Kind::Request, FRAGMENT, stream, &[0, 0, 64, 0, 1]).await;
    }
    let refused = peer.until(Kind::Reject).await;
    let fitting = (budget::PROCESS_CEILING_BYTES / ASSEMBLY_BYTES_FIRST) as u64;
    assert!((fitting / 2..=fitting + 1).contains(&refused.stream), "{} of {fitting}", refused.stream);
    assert!(budget::claimed_bytes() <= budget::PROCESS_CEILING_BYTES);
    peer.hang_up();
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_asks_and_never_reads_loses_its_link_before_it_costs_much() {
    let _turn = turn().await;
    let running = support::Running::default();
    let worker = support::worker(&running, WorkerConfig::default()).await;
    let mut peer = Raw::router(worker.address()).await;
    let ping = [&headrace::wire::frame::Header::encode(Kind::Ping, 0, 0, 8)[..], &[0; 8]].concat();
    let many = ping.repeat(10_000);
    guard("the link is closed", async {
        while worker.stats().links == 1 {
            peer.bytes(&many).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_worker_may_not_send_loses_its_link_and_never_ends_a_stream_cleanly() {
    let _turn = turn().await;
    let end = |count: u64| count.to_le_bytes().to_vec();
    let frames: Vec<(Kind, u64, Vec<u8>)> = vec![
        (Kind::End, 1, end(1)),
        (Kind::End, 1, end(3)),
        (Kind::Accept, 1, vec![0, 16, 0, 0]),
        (Kind::Reject, 1, vec![1, 0, 0, 0, 0, 0]),
        (Kind::Prologue, 1, vec![0]),
        (Kind::Data, 1, vec![]),
        (Kind::Data, 1, vec![9, 0, 0]),
        (Kind::Data, 2, vec![1, 0]),
        (Kind::Error, 2, end(0)),
        (Kind::Request, 1, vec![0; 40]),
        (Kind::Hello, 0, vec![0; 40]),
        (Kind::Kill, 1, vec![1]),
    ];
    for (kind, stream_id, body) in frames {
        let (listener, address) = listen().await;
        let router = router_to(&[&address], RouterConfig::default());
        let mut peer = Raw::worker(&listener).await;
        let call = tokio::spawn(router.call(options("x")));
        let request = peer.until(Kind::Request).await;
        assert_eq!(request.stream, 1);
        peer.out.accept(1, 4096, 256 * 1024);
        peer.out.prologue(1, None);
        for number in 0..2 {
            peer.out.item(1, 0, &[number; 9]).unwrap();
        }
        peer.flush().await;
        peer.send(kind, 0, stream_id, &body).await;
        let mut stream = guard("the call", call).await.unwrap().unwrap();
        let (items, error) = collect(&mut stream).await;
        assert_eq!(items, [9; 2], "{kind:?}");
        let Some(CallErrorKind::Disconnected { reason, .. }) = error else { panic!("{kind:?}: {error:?}") };
        assert!(reason.contains("protocol"), "{reason}");
        drop(stream);
        router.close();
        eventually("nothing is claimed", || budget::claimed_bytes() == 0).await;
    }
}

/// Takes the five seconds that a peer has for its HELLO.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_are_bounded_in_number_and_time() {
    let net = Net::start().await;
    net.open("1 1 clean").await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..UNAUTHENTICATED_LINKS_MAX {
        silent.push(Raw::connect(net.worker.address()).await);
    }
    let mut one_more = Raw::connect(net.worker.address()).await;
    assert!(one_more.frame().await.is_none(), "it is hung up on at once");
    let mut stream = net.open("3 3 clean").await.unwrap();
    assert_eq!(collect(&mut stream).await, (vec![3; 3], None), "links there are go on");
    for peer in &mut silent {
        assert!(peer.frame().await.is_none(), "the handshake has its time");
    }
    let late = router_to(&[net.worker.address()], RouterConfig::default());
    assert!(late.wait_for_instances(1, Duration::from_secs(10)).await);
    late.close();
    net.close().await;
}
