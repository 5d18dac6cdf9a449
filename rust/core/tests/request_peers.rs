//! Request streams beside raw peers: what goes over the wire when, and what a peer may not do.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use headrace::engine::{Answer, AsyncEngine};
use headrace::wire::body::{Reject, RejectReason, RequestHead, Shape, decode_error};
use headrace::wire::kind::{FRAGMENT, Kind, LAST};
use headrace::wire::limits::STREAM_WINDOW_MIN;
use headrace::wire::outbound::{Finish, Pushed};
use headrace::{CallErrorKind, CallOptions, Engine, Request, RouterConfig, WorkerConfig, budget};
use support::raw::{Frame, Raw, head, listen};
use support::{Net, driver, eventually, guard, local, net_with_reader, order, router_to, turn};
use tokio::runtime::Handle;

/// Reads items of stream 1 until END; their payloads.
async fn items_until_end(peer: &mut Raw) -> Vec<Vec<u8>> {
    let mut items = Vec::new();
    loop {
        let Frame { kind, body, .. } = peer.frame().await.unwrap();
        match kind {
            Kind::End => return items,
            Kind::Data => {
                let mut rest = &body[..];
                while let Some((item, used)) = headrace::wire::frame::split_item(rest).unwrap() {
                    items.push(item.payload.to_vec());
                    rest = &rest[used..];
                }
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_request_takes_the_items_it_has_kept_to_another_worker() {
    let _turn = turn().await;
    let ((first, one), (second, two)) = (listen().await, listen().await);
    let router = router_to(&[&one, &two], RouterConfig::default());
    let mut peers = [Raw::worker(&first).await, Raw::worker(&second).await];
    assert!(router.wait_for_instances(2, Duration::from_secs(10)).await);
    let (sink, call) = router.call_streaming(CallOptions { endpoint: "script".into(), ..order("x") });
    sink.push(0, b"one").unwrap();
    let call = tokio::spawn(call);
    // Whichever is asked first rejects it; nothing of the items has been sent to it.
    let asked = || router.instances().iter().position(|instance| instance.in_flight == 1);
    eventually("one is asked", || asked().is_some()).await;
    let rejected = asked().unwrap();
    let request = peers[rejected].until(Kind::Request).await;
    sink.push(0, b"two").unwrap();
    let reject = Reject { reason: RejectReason::Overloaded, retry_after_ms: 1, detail: String::new() };
    peers[rejected].out.reject(request.stream, &reject);
    peers[rejected].flush().await;
    let peer = &mut peers[1 - rejected];
    let request = peer.until(Kind::Request).await;
    assert_eq!(RequestHead::decode(&request.body).unwrap().0.request_shape, Shape::Many);
    peer.out.accept(request.stream, 4096, 4096);
    peer.flush().await;
    guard("acceptance", sink.drained()).await;
    sink.push(0, b"three").unwrap();
    sink.finish();
    assert_eq!(items_until_end(peer).await, [&b"one"[..], b"two", b"three"]);
    peer.out.prologue(request.stream, None);
    peer.out.finish(request.stream, Finish::End { stopped: false });
    peer.flush().await;
    let mut stream = guard("the call", call).await.unwrap().unwrap();
    assert!(guard("the end", stream.next()).await.is_none());
    assert_eq!(router.stats().retries_total, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_lost_closes_the_sink_and_is_not_replaced() {
    let _turn = turn().await;
    for accepted in [false, true] {
        let (listener, address) = listen().await;
        let router = router_to(&[&address], RouterConfig::default());
        let mut peer = Raw::worker(&listener).await;
        // Nobody keeps its items, so that it does not matter what else the call would permit.
        let options =
            CallOptions { endpoint: "script".into(), idempotent: true, resumable: true, ..order("x") };
        let (sink, call) = router.call_streaming(options);
        let call = tokio::spawn(call);
        let request = peer.until(Kind::Request).await;
        if accepted {
            peer.out.accept(request.stream, 4096, 4096);
            peer.flush().await;
            guard("acceptance", sink.drained()).await;
            sink.push(0, b"one").unwrap();
            peer.until(Kind::Data).await;
        }
        peer.reset();
        let error = guard("the call", call).await.unwrap().unwrap_err();
        assert!(matches!(error.kind, CallErrorKind::Disconnected { maybe_executed: true, .. }), "{error}");
        guard("the sink is closed", sink.closed()).await;
        drop(sink);
        assert_eq!((router.stats().retries_total, router.stats().streams), (0, 0));
        router.close();
        eventually("nothing is claimed", || budget::claimed_bytes() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_stop_from_the_worker_nothing_of_the_request_follows() {
    let _turn = turn().await;
    let (listener, address) = listen().await;
    let router = router_to(&[&address], RouterConfig::default());
    let mut peer = Raw::worker(&listener).await;
    let (sink, call) = router.call_streaming(CallOptions { endpoint: "script".into(), ..order("x") });
    let call = tokio::spawn(call);
    let request = peer.until(Kind::Request).await;
    peer.out.accept(request.stream, 4096, 4096);
    peer.flush().await;
    guard("acceptance", sink.drained()).await;
    // More than its window: something waits.
    while sink.push(0, &[0; 1_000]).unwrap() == Pushed::Buffered {}
    peer.out.stop(request.stream);
    peer.out.stop(request.stream);
    peer.out.credit(request.stream, 4096);
    peer.out.prologue(request.stream, None);
    peer.out.ping(7);
    peer.flush().await;
    guard("the sink is closed", sink.closed()).await;
    guard("nothing waits", sink.drained()).await;
    sink.finish();
    // All that comes until PONG was sent before STOP came: no END, and no more than the window.
    let mut data = 0;
    loop {
        let frame = peer.frame().await.unwrap();
        match frame.kind {
            Kind::Pong => break,
            Kind::Data => data += frame.body.len(),
            other => panic!("{other:?}"),
        }
    }
    assert!(data <= 4096, "{data}");
    peer.out.item(request.stream, 0, b"still answering").unwrap();
    peer.out.finish(request.stream, Finish::End { stopped: false });
    peer.flush().await;
    let mut stream = guard("the call", call).await.unwrap().unwrap();
    assert_eq!(guard("an answer", stream.next()).await.unwrap().unwrap().payload, "still answering");
    assert!(guard("the end", stream.next()).await.is_none());
}

/// A call that is polled by hand: between ACCEPT and PROLOGUE it need not be polled for its items to go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_go_as_soon_as_the_request_is_accepted_whoever_polls_the_call() {
    let _turn = turn().await;
    let (listener, address) = listen().await;
    let router = router_to(&[&address], RouterConfig::default());
    let mut peer = Raw::worker(&listener).await;
    assert!(router.wait_for_instances(1, Duration::from_secs(10)).await);
    let (sink, call) = router.call_streaming(CallOptions { endpoint: "script".into(), ..order("x") });
    for item in [b"one", b"two"] {
        sink.push(0, item).unwrap();
    }
    sink.finish();
    let mut call = Box::pin(call);
    assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let request = peer.until(Kind::Request).await;
    peer.out.accept(request.stream, 4096, 4096);
    peer.flush().await;
    assert_eq!(items_until_end(&mut peer).await, [b"one", b"two"]);
    drop(call);
    assert_eq!(peer.until(Kind::Kill).await.stream, request.stream);
}

/// What is broken, the request, and the frames behind it.
type Broken<'a> = (&'a str, &'a [u8], Vec<(Kind, Vec<u8>)>);

/// What a router may not send on a request stream, each on a link of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_breaks_the_rules_of_a_request_stream_loses_its_link() {
    let (net, running) = net_with_reader(WorkerConfig::default()).await;
    let head_of = |shape| {
        let mut encoded = Vec::new();
        RequestHead { request_shape: shape, endpoint: "requests".into(), ..head() }
            .encode(&mut encoded)
            .unwrap();
        encoded.extend_from_slice(b"hang");
        encoded
    };
    let (many, single) = (head_of(Shape::Many), head_of(Shape::Single));
    let item = [2, 0, b'x'];
    let broken: [Broken<'_>; 6] = [
        ("DATA beyond the window", &many, vec![(Kind::Data, [&[0xff, 0x7f][..], &[0; 16_383]].concat()); 20]),
        ("END with a wrong count", &many, vec![(Kind::Data, item.to_vec()), (Kind::End, vec![2; 8])]),
        ("DATA after END", &many, vec![(Kind::End, vec![0; 8]), (Kind::Data, item.to_vec())]),
        ("END twice", &many, vec![(Kind::End, vec![0; 8]), (Kind::End, vec![0; 8])]),
        ("DATA after a single request", &single, vec![(Kind::Data, item.to_vec())]),
        ("END after a single request", &single, vec![(Kind::End, vec![0; 8])]),
    ];
    for (what, head, frames) in broken {
        let mut peer = Raw::router(net.worker.address()).await;
        peer.send(Kind::Request, 0, 1, head).await;
        peer.until(Kind::Accept).await;
        for (kind, body) in frames {
            peer.send(kind, 0, 1, &body).await;
        }
        assert_eq!(peer.until_closed().await.last(), Some(&Kind::Goaway), "{what}");
        eventually("its engine is cancelled", || running.now() == 0).await;
    }
    net.close().await;
}

/// The engine drops its stream at once: what crosses its STOP is discarded, and the link lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_cross_the_workers_stop_are_discarded() {
    let uninterested = |mut request: Request, answer: Answer| async move {
        drop(request.requests.take());
        while !answer.is_stopped() {
            tokio::task::yield_now().await;
        }
        Ok(())
    };
    let engine: Arc<dyn Engine> =
        Arc::new(AsyncEngine::new(Handle::current(), uninterested).taking_streams());
    let engines = vec![("requests".to_owned(), engine)];
    let net = Net::at(&local(), WorkerConfig::default(), RouterConfig::default(), driver(), engines).await;
    for finished in [false, true] {
        let mut peer = Raw::router(net.worker.address()).await;
        let mut encoded = Vec::new();
        let head = RequestHead { request_shape: Shape::Many, endpoint: "requests".into(), ..head() };
        head.encode(&mut encoded).unwrap();
        peer.send(Kind::Request, 0, 1, &encoded).await;
        peer.until(Kind::Stop).await;
        let item = [2, 0, b'x'];
        peer.send(Kind::Data, 0, 1, &item.repeat(100)).await;
        peer.send(Kind::Data, FRAGMENT, 1, &[200, 0, 0, 0, 0, b'x']).await;
        if finished {
            peer.send(Kind::Data, FRAGMENT | LAST, 1, &[b'x'; 199]).await;
            peer.send(Kind::End, 0, 1, &101_u64.to_le_bytes()).await;
        }
        peer.send(Kind::Ping, 0, 0, &[0; 8]).await;
        let credited = loop {
            match peer.frame().await.unwrap().kind {
                Kind::Pong => break false,
                Kind::Credit => break true,
                _ => {}
            }
        };
        assert!(!credited, "credit for items that nobody takes");
        peer.send(Kind::Stop, 0, 1, &[]).await;
        peer.until(Kind::End).await;
    }
    net.close().await;
}

/// As `requests_that_never_complete_are_bounded` in `abuse.rs`: each item declares 4 MiB and brings one byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_never_complete_are_bounded_and_cost_their_own_streams() {
    let worker = WorkerConfig { concurrency: 2_000, ..WorkerConfig::default() };
    let (net, running) = net_with_reader(worker).await;
    let mut peer = Raw::router(net.worker.address()).await;
    let mut encoded = Vec::new();
    let head = RequestHead { request_shape: Shape::Many, endpoint: "requests".into(), ..head() };
    head.encode(&mut encoded).unwrap();
    encoded.extend_from_slice(b"hang");
    for stream in 1..=1_100 {
        peer.send(Kind::Request, 0, stream, &encoded).await;
        peer.send(Kind::Data, FRAGMENT, stream, &[0, 0, 64, 0, 0, b'x']).await;
    }
    let refused = peer.until(Kind::Error).await;
    let (_, fault) = decode_error(&refused.body).unwrap();
    assert!(fault.message.contains("too many unread bytes"), "{}", fault.message);
    assert!(refused.stream > 500, "{}", refused.stream);
    // The smallest windows go beyond the ceiling; nothing else does.
    let most = budget::PROCESS_CEILING_BYTES + 1_100 * STREAM_WINDOW_MIN as usize;
    assert!(budget::claimed_bytes() <= most, "{}", budget::claimed_bytes());
    peer.send(Kind::Ping, 0, 0, &[0; 8]).await;
    peer.until(Kind::Pong).await;
    peer.hang_up();
    eventually("every engine is cancelled", || running.now() == 0).await;
    net.close().await;
}
