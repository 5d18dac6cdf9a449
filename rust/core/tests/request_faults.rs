//! Requests that are streams, when something goes wrong: whoever fails first, the other side learns of it,
//! and nothing is left.

// Engines are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use headrace::engine::{Answer, AsyncEngine, PushError};
use headrace::wire::body::{Reject, RejectReason, RequestHead, Shape};
use headrace::wire::kind::Kind;
use headrace::wire::outbound::{Finish, Pushed};
use headrace::{
    CallErrorKind, CallOptions, Engine, Phase, Request, RequestSink, RouterConfig, WorkerConfig, budget,
};
use support::raw::{Frame, Raw, head, listen};
use support::{Net, Running, driver, eventually, fault, guard, local, raw, router_to, turn};
use tokio::runtime::Handle;

/// Does what its payload says with its items: `echo` them; `end` or `fail` at the first; `hang` without
/// reading. A cut-off stream is an error of its own.
fn engine(running: &Running) -> (String, Arc<dyn Engine>) {
    let running = running.clone();
    let function = move |mut request: Request, answer: Answer| {
        let inside = running.enter();
        async move {
            let _inside = inside;
            let order = request.payload.payload.clone();
            if order == "hang" {
                std::future::pending::<()>().await;
            }
            let mut requests = request.requests.take().ok_or_else(|| fault("a single request"))?;
            while let Some(item) = requests.next().await {
                let item = item.map_err(|error| fault(&error.to_string()))?;
                answer.send(0, item.payload).await.map_err(|error| fault(&format!("{error:?}")))?;
                match &order[..] {
                    b"end" => return Ok(()),
                    b"fail" => return Err(fault("as asked")),
                    _ => {}
                }
            }
            Ok(())
        }
    };
    ("requests".to_owned(), Arc::new(AsyncEngine::new(Handle::current(), function).taking_streams()))
}

/// A net with that engine, and what counts it.
async fn net_with(worker: WorkerConfig) -> (Net, Running) {
    let running = Running::default();
    let engines = vec![engine(&running)];
    (Net::at(&local(), worker, RouterConfig::default(), driver(), engines).await, running)
}

fn order(order: &str) -> CallOptions {
    CallOptions { endpoint: "requests".to_owned(), ..CallOptions::new(raw(order.as_bytes().to_vec())) }
}

/// Nobody takes items any more.
async fn assert_closed(sink: &RequestSink) {
    guard("the sink is closed", sink.closed()).await;
    guard("nothing waits", sink.drained()).await;
    assert!(sink.is_closed());
    // The link forgets the stream right behind its end, on another thread perhaps.
    eventually("it takes nothing", || sink.push(0, b"late") == Err(PushError::Killed)).await;
    assert_eq!(sink.push_shared(0, Bytes::from_static(b"late")), Err(PushError::Killed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_ends_or_fails_first_closes_the_sink() {
    let (net, running) = net_with(WorkerConfig::default()).await;
    for how in ["end", "fail"] {
        let (sink, call) = net.router.call_streaming(order(how));
        let mut stream = guard("the call", call).await.unwrap();
        sink.push(0, b"one").unwrap();
        assert_eq!(guard("an answer", stream.next()).await.unwrap().unwrap().payload, "one");
        match (how, guard("the end", stream.next()).await) {
            ("end", None) => {}
            ("fail", Some(Err(error))) => assert_eq!(error.kind, CallErrorKind::Engine(fault("as asked"))),
            (_, found) => panic!("{how}: {found:?}"),
        }
        assert_closed(&sink).await;
        drop(sink);
    }
    assert_eq!((running.begun(), running.now()), (2, 0));
    net.close().await;
}

/// The sink waits for credit as the engine ends, so it is the end itself that must tell it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_waits_for_credit_learns_of_the_end() {
    for by_caller in [true, false] {
        let (net, running) = net_with(WorkerConfig::default()).await;
        let timeout = (!by_caller).then_some(Duration::from_millis(100));
        let (sink, call) = net.router.call_streaming(CallOptions { timeout, ..order("hang") });
        let stream = guard("the call", call).await.unwrap();
        while sink.push(0, &[0; 10_000]).unwrap() == Pushed::Buffered {}
        let waiting = tokio::spawn(async move {
            sink.drained().await;
            assert_closed(&sink).await;
        });
        // One that is kept ends at its deadline.
        let kept = (!by_caller).then_some(stream);
        guard("the sink", waiting).await.unwrap();
        drop(kept);
        eventually("the engine is cancelled", || running.now() == 0).await;
        net.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_request_stream_kills_the_engine_and_fails_the_call_behind_what_had_come() {
    let (net, running) = net_with(WorkerConfig::default()).await;
    for dropped in [false, true] {
        let (sink, call) = net.router.call_streaming(order("echo"));
        let mut stream = guard("the call", call).await.unwrap();
        for _ in 0..100 {
            sink.push(0, b"item").unwrap();
        }
        assert_eq!(guard("an answer", stream.next()).await.unwrap().unwrap().payload, "item");
        let reason = if dropped {
            drop(sink);
            "its sink was dropped before it had finished"
        } else {
            assert!(sink.fail("the microphone is gone"));
            "the microphone is gone"
        };
        // What had arrived is still read; then comes the failure, and never a clean end.
        let error = guard("the failure", async {
            loop {
                match stream.next().await.unwrap() {
                    Ok(item) => assert_eq!(item.payload, "item"),
                    Err(error) => return error,
                }
            }
        })
        .await;
        assert_eq!(error.kind, CallErrorKind::RequestFailed { reason: reason.to_owned() });
        assert_eq!(error.phase, Phase::Streaming);
        assert!(error.to_string().contains(reason), "{error}");
        let again = guard("again", stream.next()).await.unwrap().unwrap_err();
        assert_eq!(again.kind, error.kind);
        eventually("the engine is cancelled", || running.now() == 0).await;
    }
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_stream_that_failed_before_its_call_began_is_never_sent() {
    let (net, running) = net_with(WorkerConfig::default()).await;
    let (sink, call) = net.router.call_streaming(order("echo"));
    drop(sink);
    let error = guard("the call", call).await.unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::RequestFailed { .. }), "{error}");
    assert_eq!((error.phase, running.begun()), (Phase::Unsent, 0));
    assert_eq!(net.worker.stats().accepted_total, 0);
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_in_any_phase_closes_its_sink() {
    let worker = WorkerConfig { concurrency: 1, ..WorkerConfig::default() };
    let (net, running) = net_with(worker).await;
    // Never polled.
    let (sink, call) = net.router.call_streaming(order("echo"));
    sink.push(0, b"kept").unwrap();
    drop(call);
    assert_closed(&sink).await;
    // Queued, with items on their way.
    let blocker = net.open("0 0 hang").await.unwrap();
    let (sink, call) = net.router.call_streaming(order("echo"));
    let call = tokio::spawn(call);
    guard("acceptance", sink.drained()).await;
    sink.push(0, &[0; 100_000]).unwrap();
    call.abort();
    assert_closed(&sink).await;
    eventually("it has left the queue", || net.worker.stats().queued == 0).await;
    drop(blocker);
    // Running.
    let (sink, call) = net.router.call_streaming(order("echo"));
    let stream = guard("the call", call).await.unwrap();
    sink.push(0, b"one").unwrap();
    stream.kill();
    assert_closed(&sink).await;
    eventually("the engine is cancelled", || running.now() == 0).await;
    drop(stream);
    assert_eq!(running.begun(), 1);
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_the_request_as_well() {
    let (net, running) = net_with(WorkerConfig::default()).await;
    let (sink, call) =
        net.router.call_streaming(CallOptions { timeout: Some(Duration::from_millis(60)), ..order("echo") });
    let mut stream = guard("the call", call).await.unwrap();
    sink.push(0, b"one").unwrap();
    assert_eq!(guard("an answer", stream.next()).await.unwrap().unwrap().payload, "one");
    let error = guard("the deadline", stream.next()).await.unwrap().unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::DeadlineExceeded { .. }), "{error}");
    assert_closed(&sink).await;
    eventually("the engine is cancelled", || running.now() == 0).await;
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_over_the_limit_is_refused_by_the_name_of_its_setting() {
    let (net, _) = net_with(WorkerConfig { max_message_bytes: 1_000, ..WorkerConfig::default() }).await;
    let (sink, call) = net.router.call_streaming(order("echo"));
    let mut stream = guard("the call", call).await.unwrap();
    assert_eq!(sink.push(0, &[0; 1_001]), Err(PushError::TooLarge { limit: 1_000, actual: 1_001 }));
    assert_eq!(sink.push(0, &[0; 1_000]), Ok(Pushed::Buffered), "the stream lives on");
    sink.finish();
    assert_eq!(guard("an answer", stream.next()).await.unwrap().unwrap().payload.len(), 1_000);
    assert!(guard("the end", stream.next()).await.is_none());

    // Pushed before the worker's limit was known.
    let (sink, call) = net.router.call_streaming(order("echo"));
    assert_eq!(sink.push(0, &[0; 1_001]), Ok(Pushed::Waiting));
    let found = guard("the call", call).await;
    let error = match found {
        Err(error) => error,
        Ok(mut stream) => guard("the failure", stream.next()).await.unwrap().unwrap_err(),
    };
    let CallErrorKind::PayloadTooLarge { limit, actual, setting, .. } = error.kind else { panic!("{error}") };
    assert_eq!((limit, actual, setting), (1_000, 1_001, "max_message_bytes"));
    assert_closed(&sink).await;
    drop(sink);
    net.close().await;
}

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
        let (sink, call) = router.call_streaming(CallOptions { endpoint: "script".into(), ..order("x") });
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
        assert_closed(&sink).await;
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
    assert_closed(&sink).await;
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
    let (net, running) = net_with(WorkerConfig::default()).await;
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
    let running = Running::default();
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
        peer.send(Kind::Data, headrace::wire::kind::FRAGMENT, 1, &[200, 0, 0, 0, 0, b'x']).await;
        if finished {
            peer.send(Kind::Data, 0x03, 1, &[b'x'; 199]).await;
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
    drop(running);
    net.close().await;
}
