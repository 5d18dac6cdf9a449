//! Requests that are streams, when something goes wrong: whoever fails first, the other side learns of it,
//! and nothing is left.

// Engines are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use headrace::engine::PushError;
use headrace::wire::limits::STREAM_WINDOW_DEFAULT;
use headrace::wire::outbound::Pushed;
use headrace::{CallErrorKind, CallOptions, Phase, RequestSink, WorkerConfig, budget};
use support::{eventually, fault, guard, net_with_reader, order};

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
    let (net, running) = net_with_reader(WorkerConfig::default()).await;
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
        let (net, running) = net_with_reader(WorkerConfig::default()).await;
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
    let (net, running) = net_with_reader(WorkerConfig::default()).await;
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
    let (net, running) = net_with_reader(WorkerConfig::default()).await;
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
    let (net, running) = net_with_reader(worker).await;
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
    let (net, running) = net_with_reader(WorkerConfig::default()).await;
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
    let (net, _) =
        net_with_reader(WorkerConfig { max_message_bytes: 1_000, ..WorkerConfig::default() }).await;
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

/// Large items that wait to be read are claimed beyond the window, and given back as they are read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_items_are_claimed_while_they_wait() {
    let (net, _) = net_with_reader(WorkerConfig::default()).await;
    let size = 4 * 1024 * 1024;
    let (sink, call) = net.router.call_streaming(order("hang"));
    let stream = guard("the call", call).await.unwrap();
    sink.push_shared(0, Bytes::from(vec![7; size])).unwrap();
    eventually("it has arrived", || budget::claimed_bytes() >= size).await;
    drop(stream);
    drop(sink);
    let (sink, call) = net.router.call_streaming(order("echo"));
    let mut stream = guard("the call", call).await.unwrap();
    for _ in 0..3 {
        sink.send(0, Bytes::from(vec![7; size])).await.unwrap();
        assert_eq!(guard("it comes back", stream.next()).await.unwrap().unwrap().payload.len(), size);
    }
    let windows = 2 * STREAM_WINDOW_DEFAULT as usize;
    eventually("only windows are claimed", || budget::claimed_bytes() == windows).await;
    sink.finish();
    assert!(guard("the end", stream.next()).await.is_none());
    drop(stream);
    net.close().await;
}
