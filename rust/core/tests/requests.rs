//! Requests that are streams: how they flow, end and hold each other back.

// Engines are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use headrace::engine::{Answer, AsyncEngine, PushError};
use headrace::wire::body::{Fault, Shape};
use headrace::wire::outbound::Pushed;
use headrace::{
    Call, CallErrorKind, CallOptions, Engine, Item, Phase, Request, RequestSink, Responder, ResponseStream,
    RouterConfig, WorkerConfig,
};
use support::{Net, collect, driver, eventually, fault, guard, local, options, raw};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

const MIB: usize = 1024 * 1024;

type Engines = Vec<(String, Arc<dyn Engine>)>;

fn streaming<F, Fut>(name: &str, function: F) -> (String, Arc<dyn Engine>)
where
    F: Fn(Request, Answer) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Fault>> + Send + 'static,
{
    (name.to_owned(), Arc::new(AsyncEngine::new(Handle::current(), function).taking_streams()))
}

async fn send(answer: &Answer, payload: impl Into<Bytes>) -> Result<(), Fault> {
    answer.send(0, payload.into()).await.map_err(|error| fault(&format!("{error:?}")))
}

async fn next(request: &mut Request) -> Result<Option<Item>, Fault> {
    let requests = request.requests.as_mut().ok_or_else(|| fault("a single request"))?;
    requests.next().await.transpose().map_err(|error| fault(&error.to_string()))
}

/// Answers each item with itself.
async fn echo(mut request: Request, answer: Answer) -> Result<(), Fault> {
    while let Some(item) = next(&mut request).await? {
        send(&answer, item.payload).await?;
    }
    Ok(())
}

/// Answers with the count of items and of their bytes, when it has them all.
async fn count(mut request: Request, answer: Answer) -> Result<(), Fault> {
    let (mut items, mut bytes) = (0, 0);
    while let Some(item) = next(&mut request).await? {
        items += 1;
        bytes += item.payload.len();
    }
    send(&answer, format!("{items} {bytes}")).await
}

/// Takes one item, then answers three times and wants no more.
async fn first(mut request: Request, answer: Answer) -> Result<(), Fault> {
    let item = next(&mut request).await?;
    drop(request.requests.take());
    for _ in 0..3 {
        send(&answer, item.clone().map_or_else(Bytes::new, |item| item.payload)).await?;
    }
    Ok(())
}

fn engines() -> Engines {
    vec![streaming("echo", echo), streaming("count", count), streaming("first", first)]
}

async fn net(engines: Engines) -> Net {
    Net::at(&local(), WorkerConfig::default(), RouterConfig::default(), driver(), engines).await
}

fn to(endpoint: &str) -> CallOptions {
    CallOptions { endpoint: endpoint.to_owned(), ..CallOptions::new(raw("")) }
}

async fn open(call: Call) -> ResponseStream {
    guard("the call", call).await.unwrap()
}

/// Item `number` of `size` bytes, as [`collect`] wants them.
fn item(number: usize, size: usize) -> Bytes {
    Bytes::from(vec![number as u8; size])
}

/// Sends items of these sizes from a task of its own.
fn send_all(sink: RequestSink, sizes: Vec<usize>) -> tokio::task::JoinHandle<Result<(), PushError>> {
    tokio::spawn(async move {
        for (number, size) in sizes.into_iter().enumerate() {
            sink.send(0, item(number, size)).await?;
        }
        sink.finish();
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_arrive_whole_and_in_order_both_ways() {
    let net = net(engines()).await;
    let sizes: [Vec<usize>; 5] = [
        vec![],
        vec![0],
        vec![7; 3],
        vec![100; 10_000],
        vec![1, 65_535, 65_536, 3 * MIB, 0, 200_000, MIB, 9],
    ];
    for sizes in sizes {
        let (sink, call) = net.router.call_streaming(to("echo"));
        let sending = send_all(sink, sizes.clone());
        let mut stream = open(call).await;
        assert_eq!(collect(&mut stream).await, (sizes, None));
        guard("the sender", sending).await.unwrap().unwrap();
    }
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_requests_may_have_a_single_answer() {
    let net = net(engines()).await;
    for (sizes, expected) in [(vec![], "0 0"), (vec![5; 1_000], "1000 5000"), (vec![4 * MIB], "1 4194304")] {
        let (sink, call) = net.router.call_streaming(CallOptions { single: true, ..to("count") });
        let sending = send_all(sink, sizes);
        let stream = open(call).await;
        let answer = guard("the answer", poll_fn(|cx| stream.poll_single(cx))).await.unwrap();
        assert_eq!(answer.payload, expected);
        sending.await.unwrap().unwrap();
    }
    net.close().await;
}

/// Everything is pushed before the call has even begun, and nobody waits for credit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pushed_before_the_call_begins_arrives_in_order_with_its_end() {
    let net = net(engines()).await;
    let (sink, call) = net.router.call_streaming(to("echo"));
    for number in 0..1_000 {
        let pushed = sink.push(0, &item(number, 10));
        assert_eq!(pushed, Ok(Pushed::Waiting), "nobody has accepted the request");
    }
    sink.finish();
    assert_eq!(collect(&mut open(call).await).await, (vec![10; 1_000], None));
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_payload_of_the_request_goes_ahead_of_its_items() {
    let both = |request: Request, answer: Answer| async move {
        send(&answer, request.payload.payload.clone()).await?;
        echo(request, answer).await
    };
    let net = net(vec![streaming("both", both)]).await;
    let (sink, call) = net.router.call_streaming(CallOptions { payload: raw(item(0, 5)), ..to("both") });
    sink.push(0, &item(1, 6)).unwrap();
    sink.finish();
    assert_eq!(collect(&mut open(call).await).await, (vec![5, 6], None));
    net.close().await;
}

/// An engine that takes as many items as there are permits.
fn gated(gate: &Arc<Semaphore>, taken: &Arc<AtomicUsize>) -> (String, Arc<dyn Engine>) {
    let (gate, taken) = (Arc::clone(gate), Arc::clone(taken));
    streaming("gated", move |mut request: Request, answer: Answer| {
        let (gate, taken) = (Arc::clone(&gate), Arc::clone(&taken));
        async move {
            loop {
                gate.acquire().await.unwrap().forget();
                let Some(item) = next(&mut request).await? else { return Ok(()) };
                taken.fetch_add(1, Ordering::SeqCst);
                send(&answer, item.payload).await?;
            }
        }
    })
}

/// Pushes items until it has to wait; returns how many went.
async fn push_until_blocked(sink: &RequestSink, size: usize) -> usize {
    guard("acceptance", sink.drained()).await;
    let mut pushed = 0;
    loop {
        pushed += 1;
        if sink.push(0, &item(pushed - 1, size)).unwrap() == Pushed::Waiting {
            return pushed;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_does_not_read_holds_back_its_own_caller_and_nobody_else() {
    let (gate, taken) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (window, size) = (64 * 1024, 1_000);
    let mut engines = engines();
    engines.push(gated(&gate, &taken));
    let worker = WorkerConfig { stream_window: window, ..WorkerConfig::default() };
    let net = Net::at(&local(), worker, RouterConfig::default(), driver(), engines).await;
    let (sink, call) = net.router.call_streaming(to("gated"));
    let mut stream = open(call).await;
    let pushed = push_until_blocked(&sink, size).await;
    let fitting = window as usize / size;
    assert!((fitting..=fitting + 1).contains(&pushed), "{pushed} items of a window of {fitting}");
    // Another stream on the same link is not held back, however much it sends.
    let (other, call) = net.router.call_streaming(to("echo"));
    let sending = send_all(other, vec![10_000; 1_000]);
    assert_eq!(collect(&mut open(call).await).await, (vec![10_000; 1_000], None));
    sending.await.unwrap().unwrap();
    assert_eq!(taken.load(Ordering::SeqCst), 0);

    // Credit comes back in halves of the window as items are taken.
    gate.add_permits(fitting / 2 + 2);
    guard("credit", sink.drained()).await;
    let more = push_until_blocked(&sink, size).await;
    assert!((fitting / 4..=fitting).contains(&more), "{more} more");
    gate.add_permits(1_000);
    sink.finish();
    let numbers: Vec<u8> = (0..pushed).chain(0..more).map(|number| number as u8).collect();
    for number in numbers {
        let item = guard("the rest", stream.next()).await.unwrap().unwrap();
        assert_eq!(item.payload, vec![number; size]);
    }
    assert!(guard("the end", stream.next()).await.is_none());
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_larger_than_the_window_arrives() {
    let worker = WorkerConfig { stream_window: 4096, ..WorkerConfig::default() };
    let net = Net::at(&local(), worker, RouterConfig::default(), driver(), engines()).await;
    let (sink, call) = net.router.call_streaming(to("echo"));
    let sizes = vec![5, 3 * MIB, 4_091, 4_092, 4_093, 20_000, 0];
    let sending = send_all(sink, sizes.clone());
    assert_eq!(collect(&mut open(call).await).await, (sizes, None));
    sending.await.unwrap().unwrap();
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_at_once_all_arrive() {
    let worker = WorkerConfig { concurrency: 100, queue: 200, ..WorkerConfig::default() };
    let net = Net::at(&local(), worker, RouterConfig::default(), driver(), engines()).await;
    let mut reading = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (sink, call) = net.router.call_streaming(to("echo"));
        reading.spawn(async move {
            let sending = send_all(sink, vec![60; 200]);
            let got = collect(&mut call.await.unwrap()).await;
            sending.await.unwrap().unwrap();
            got
        });
    }
    while let Some(got) = guard("a stream", reading.join_next()).await {
        assert_eq!(got.unwrap(), (vec![60; 200], None));
    }
    net.close().await;
}

/// The request waits for a place with its items; they are there when it starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_a_queued_request_are_held_back_at_its_window_and_read_when_it_runs() {
    let worker = WorkerConfig { concurrency: 1, queue: 1, ..WorkerConfig::default() };
    let net = Net::at(&local(), worker, RouterConfig::default(), driver(), engines()).await;
    let blocker = net.open("0 0 hang").await.unwrap();
    let (sink, call) = net.router.call_streaming(to("echo"));
    let call = tokio::spawn(call);
    let pushed = push_until_blocked(&sink, 1_000).await;
    assert_eq!(net.worker.stats().queued, 1);
    drop(blocker);
    let mut stream = guard("the call", call).await.unwrap().unwrap();
    sink.finish();
    assert_eq!(collect(&mut stream).await, (vec![1_000; pushed], None));
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_wants_no_more_items_goes_on_answering() {
    let net = net(engines()).await;
    let (sink, call) = net.router.call_streaming(to("first"));
    sink.push(0, b"word").unwrap();
    let mut stream = open(call).await;
    guard("the sink is closed", sink.closed()).await;
    eventually("it takes nothing", || sink.push(0, b"late") == Err(PushError::Killed)).await;
    guard("nothing waits", sink.drained()).await;
    assert!(!sink.fail("too late to matter"), "what fails now is nobody's failure");
    for _ in 0..3 {
        assert_eq!(guard("an answer", stream.next()).await.unwrap().unwrap().payload, "word");
    }
    assert!(guard("the end", stream.next()).await.is_none(), "the end is clean");
    net.close().await;
}

/// Takes request streams only.
#[derive(Debug)]
struct OnlyStreams;

impl Engine for OnlyStreams {
    fn start(&self, request: Request, responder: Responder) {
        assert!(request.requests.is_some());
        responder.finish();
    }

    fn refuses(&self, request_shape: Shape) -> Option<Cow<'_, str>> {
        (request_shape == Shape::Single).then_some("this endpoint takes streams".into())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shape_that_an_endpoint_does_not_take_is_refused_with_its_reason() {
    let net = net(vec![("only".to_owned(), Arc::new(OnlyStreams))]).await;
    let (sink, call) = net.router.call_streaming(options("1 1 clean"));
    let error = guard("the call", call).await.unwrap_err();
    let detail = "this endpoint takes one request, not a stream of them".to_owned();
    assert_eq!((error.kind, error.phase), (CallErrorKind::Refused { detail }, Phase::Sent));
    guard("the sink is closed", sink.closed()).await;
    let error = guard("the call", net.router.call(to("only"))).await.unwrap_err();
    let detail = "this endpoint takes streams".to_owned();
    assert_eq!(error.kind, CallErrorKind::Refused { detail });
    let (sink, call) = net.router.call_streaming(to("only"));
    assert!(guard("the end", open(call).await.next()).await.is_none());
    drop(sink);
    assert_eq!((net.worker.stats().accepted_total, net.worker.stats().rejected_total), (1, 2));
    net.close().await;
}

/// Gives up waiting again and again, says so once, and answers each item with itself.
async fn impatient(mut request: Request, answer: Answer) -> Result<(), Fault> {
    let mut given_up = 0_u32;
    loop {
        let found = tokio::select! {
            biased;
            found = next(&mut request) => Some(found?),
            () = tokio::task::yield_now() => None,
        };
        match found {
            Some(Some(item)) => send(&answer, item.payload).await?,
            Some(None) => return Ok(()),
            None => {
                given_up += 1;
                if given_up == 3 {
                    send(&answer, "waiting").await?;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_is_given_up_loses_no_item() {
    let net = net(vec![streaming("impatient", impatient)]).await;
    let (sink, call) = net.router.call_streaming(to("impatient"));
    let mut stream = open(call).await;
    assert_eq!(guard("it waits", stream.next()).await.unwrap().unwrap().payload, "waiting");
    let sending = send_all(sink, vec![4; 500]);
    assert_eq!(collect(&mut stream).await, (vec![4; 500], None));
    sending.await.unwrap().unwrap();
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_request_may_be_killed_and_gives_its_memory_back() {
    let (gate, taken) = (Arc::new(Semaphore::new(1)), Arc::new(AtomicUsize::new(0)));
    let net = net(vec![gated(&gate, &taken)]).await;
    let (sink, call) = net.router.call_streaming(to("gated"));
    let mut stream = open(call).await;
    for number in 0..10 {
        sink.push(0, &item(number, 1_000)).unwrap();
    }
    sink.finish();
    assert_eq!(guard("an answer", stream.next()).await.unwrap().unwrap().payload.len(), 1_000);
    stream.kill();
    eventually("the engine is cancelled", || net.worker.stats().running == 0).await;
    drop(stream);
    net.close().await;
}
