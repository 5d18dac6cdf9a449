//! Workers and links that go away: killed, silent, draining, closed. No stream ends cleanly for it.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use headrace::link::{Driver, Link, TokioDriver};
use headrace::wire::body::{Goaway, GoawayReason};
use headrace::wire::kind::Kind;
use headrace::wire::outbound::Finish;
use headrace::{
    CallError, CallErrorKind, InstanceState, Phase, Router, RouterConfig, Worker, WorkerConfig, budget,
};
use support::raw::{Raw, listen};
use support::{
    Net, Running, collect, eventually, guard, local, options, router_to, script, turn, worker, worker_at,
};
use tokio::runtime::Handle;

const LONG: Duration = Duration::from_secs(10);

fn quick_pings() -> RouterConfig {
    RouterConfig {
        ping_interval: Duration::from_millis(150),
        ping_timeout: Duration::from_millis(150),
        ..RouterConfig::default()
    }
}

async fn assert_nothing_left(router: &Router) {
    eventually("the router's gauges return to zero", || {
        let stats = router.stats();
        (stats.streams, stats.in_flight, budget::claimed_bytes()) == (0, 0, 0)
    })
    .await;
}

/// A raw worker that has answered one call with two items.
async fn streaming(peer: &mut Raw) {
    let request = peer.until(Kind::Request).await;
    peer.out.accept(request.stream, 4096, 256 * 1024);
    peer.out.prologue(request.stream, None);
    for number in 0..2 {
        peer.out.item(request.stream, 0, &[number; 9]).unwrap();
    }
    peer.flush().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_loses_the_stream_after_the_items_that_came() {
    let _turn = turn().await;
    for abruptly in [true, false] {
        let (listener, address) = listen().await;
        let router = router_to(&[&address], RouterConfig::default());
        let mut peer = Raw::worker(&listener).await;
        let call = tokio::spawn(router.call(options("x")));
        streaming(&mut peer).await;
        let mut stream = guard("the call", call).await.unwrap().unwrap();
        // Whether the items were read before the loss or after it, they count.
        if abruptly {
            peer.reset();
        } else {
            peer.hang_up();
        }
        let (items, error) = collect(&mut stream).await;
        let Some(CallErrorKind::Disconnected { maybe_executed, .. }) = error else { panic!("{error:?}") };
        assert_eq!((items, maybe_executed), (vec![9; 2], true));
        let again = stream.next().await.unwrap().unwrap_err();
        assert_eq!((again.phase, again.items), (Phase::Streaming, 2));
        drop(stream);
        assert_nothing_left(&router).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_lost_before_its_answer_may_have_run_the_request() {
    let _turn = turn().await;
    for accepted in [false, true] {
        let (listener, address) = listen().await;
        let router = router_to(&[&address], RouterConfig::default());
        let mut peer = Raw::worker(&listener).await;
        let call = tokio::spawn(router.call(options("x")));
        let request = peer.until(Kind::Request).await;
        if accepted {
            peer.out.accept(request.stream, 4096, 256 * 1024);
            peer.flush().await;
        }
        peer.hang_up();
        let error = guard("the call", call).await.unwrap().unwrap_err();
        assert!(matches!(error.kind, CallErrorKind::Disconnected { maybe_executed: true, .. }), "{error}");
        assert_eq!(error.phase, if accepted { Phase::Accepted } else { Phase::Sent });
        assert_nothing_left(&router).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_worker_is_asked_and_then_given_up_with_all_its_streams() {
    let _turn = turn().await;
    let (listener, address) = listen().await;
    let router = router_to(&[&address], quick_pings());
    let mut peer = Raw::worker(&listener).await;
    let mut calls: Vec<_> = (0..3).map(|_| tokio::spawn(router.call(options("x")))).collect();
    streaming(&mut peer).await;
    let silent_since = Instant::now();
    peer.until(Kind::Ping).await;
    let mut errors = Vec::new();
    for call in calls.drain(..) {
        match guard("a call", call).await.unwrap() {
            Ok(mut stream) => errors.extend(collect(&mut stream).await.1),
            Err(error) => errors.push(error.kind),
        }
    }
    let took = silent_since.elapsed();
    assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(errors.len(), 3);
    for error in errors {
        let CallErrorKind::Disconnected { reason, .. } = error else { panic!("{error}") };
        assert!(reason.contains("silent"), "{reason}");
    }
    assert_nothing_left(&router).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_router_is_given_up_and_its_engines_are_cancelled() {
    let _turn = turn().await;
    let running = Running::default();
    let quick = Duration::from_millis(150);
    let config = WorkerConfig { ping_interval: quick, ping_timeout: quick, ..WorkerConfig::default() };
    let worker = worker(&running, config).await;
    let mut peer = Raw::router(worker.address()).await;
    peer.request(1, "1 1 hang");
    peer.flush().await;
    peer.until(Kind::Data).await;
    assert_eq!(peer.until_closed().await, [Kind::Ping]);
    eventually("nothing is left", || {
        let stats = worker.stats();
        (running.now(), stats.running, stats.streams, stats.links) == (0, 0, 0, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_only_answers_pings_stays_up() {
    let net = Net::with(WorkerConfig::default(), quick_pings()).await;
    let mut stream = net.open("1 1 hang").await.unwrap();
    guard("an item", stream.next()).await.unwrap().unwrap();
    // Several times interval and timeout.
    let rest = tokio::time::timeout(Duration::from_millis(900), stream.next()).await;
    assert!(rest.is_err(), "{rest:?}");
    drop(stream);
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_a_draining_worker_never_saw_is_sent_again_by_itself() {
    let _turn = turn().await;
    let (listener, address) = listen().await;
    let running = Running::default();
    let other = worker(&running, WorkerConfig::default()).await;
    let router = router_to(&[&address], RouterConfig { instance_timeout: LONG, ..RouterConfig::default() });
    let mut peer = Raw::worker(&listener).await;
    let call = tokio::spawn(router.call(options("x")));
    peer.until(Kind::Request).await;
    let detail = String::new();
    peer.out.goaway(&Goaway { last_stream: 0, reason: GoawayReason::Draining, detail });
    peer.flush().await;
    // Its request is taken back, and sent again when the worker is back.
    peer.until(Kind::Kill).await;
    peer.hang_up();
    let mut peer = Raw::worker(&listener).await;
    let request = peer.until(Kind::Request).await;
    peer.out.accept(request.stream, 4096, 256 * 1024);
    peer.out.prologue(request.stream, None);
    peer.out.finish(request.stream, Finish::End { stopped: false });
    peer.flush().await;
    let mut stream = guard("the call", call).await.unwrap().unwrap();
    assert_eq!(collect(&mut stream).await, (vec![], None));
    assert_eq!(router.stats().retries_total, 1);
    drop((stream, other));
    assert_nothing_left(&router).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_runs_and_new_calls_go_elsewhere() {
    let _turn = turn().await;
    let (first, second) = (Running::default(), Running::default());
    let a = worker(&first, WorkerConfig::default()).await;
    let b = worker(&second, WorkerConfig::default()).await;
    let router = router_to(&[a.address(), b.address()], RouterConfig::default());
    assert!(router.wait_for_instances(2, LONG).await);
    let call = headrace::CallOptions { instance: a.instance_id().to_owned(), ..options("3 3 stop") };
    let mut stream = guard("the call", router.call(call)).await.unwrap();
    let drain = tokio::spawn({
        let a = a.clone();
        async move { a.drain(Some(LONG)).await }
    });
    eventually("it drains", || router.instances()[0].state == InstanceState::Draining).await;
    for _ in 0..10 {
        let other = guard("the call", router.call(options("1 1 clean"))).await.unwrap();
        assert_eq!(other.instance_id(), b.instance_id());
    }
    assert!(!drain.is_finished(), "a request is in flight");
    stream.stop();
    assert_eq!(collect(&mut stream).await, (vec![3; 3], None));
    guard("the drain", drain).await.unwrap();
    guard("closed", a.wait_closed()).await;
    drop(stream);
    assert_nothing_left(&router).await;
}

/// The engine's place is free before its END is written; the drain must wait for the END all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_never_cuts_off_the_end_of_an_answer() {
    let _turn = turn().await;
    for round in 0..60 {
        let running = Running::default();
        let worker = worker(&running, WorkerConfig::default()).await;
        let router = router_to(&[worker.address()], RouterConfig::default());
        let mut stream = guard("the call", router.call(options("300 2000 clean"))).await.unwrap();
        let drain = tokio::spawn(async move { worker.drain(Some(LONG)).await });
        assert_eq!(collect(&mut stream).await, (vec![2_000; 300], None), "round {round}");
        guard("the drain", drain).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_runs_out_of_time_ends_streams_with_shutdown() {
    let net = Net::start().await;
    let mut stream = net.open("2 2 hang").await.unwrap();
    guard("the drain", net.worker.drain(Some(Duration::from_millis(50)))).await;
    let (items, error) = collect(&mut stream).await;
    let expected = CallErrorKind::Disconnected { reason: "shutdown".to_owned(), maybe_executed: true };
    assert_eq!((items, error), (vec![2; 2], Some(expected)));
    drop(stream);
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_a_worker_answers_what_runs_and_what_waits() {
    let config = WorkerConfig { concurrency: 1, queue: 5, ..WorkerConfig::default() };
    let net = Net::with(config, RouterConfig::default()).await;
    let mut running = net.open("0 0 hang").await.unwrap();
    let waiting: Vec<_> = (0..5).map(|_| tokio::spawn(net.router.call(options("0 0 hang")))).collect();
    eventually("five wait", || net.worker.stats().queued == 5).await;
    net.worker.close();
    assert!(matches!(collect(&mut running).await.1, Some(CallErrorKind::Disconnected { .. })));
    for call in waiting {
        let error = guard("a call that waited", call).await.unwrap().unwrap_err();
        assert!(matches!(error.kind, CallErrorKind::Disconnected { .. }), "{error}");
    }
    assert_eq!(net.running.begun(), 1, "what waited never ran");
    drop(running);
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_worker_is_used_again_over_a_unix_socket() {
    let _turn = turn().await;
    let path = std::env::temp_dir().join(format!("headrace-loss-{}.sock", std::process::id()));
    let address = format!("unix:{}", path.display()).parse().unwrap();
    let running = Running::default();
    let first = worker_at(&address, &running, WorkerConfig::default()).await;
    let router = router_to(&[&address], RouterConfig { instance_timeout: LONG, ..RouterConfig::default() });
    guard("the call", router.call(options("1 1 clean"))).await.unwrap();
    first.close();
    eventually("the loss is seen", || router.instances()[0].state == InstanceState::Down).await;
    let second = worker_at(&address, &running, WorkerConfig::default()).await;
    // The first worker's last handle must not take the second one's socket file with it.
    drop(first);
    let stream = guard("the call", router.call(options("1 1 clean"))).await.unwrap();
    assert_eq!(stream.instance_id(), second.instance_id());
    assert!(path.exists());
}

/// For an instant a lost instance still has its link, which is closed: a call made then must not be told that
/// the worker lacks the endpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_made_while_its_worker_is_being_lost_waits_for_the_next_one() {
    let _turn = turn().await;
    for _ in 0..50 {
        let (listener, address) = listen().await;
        let router =
            router_to(&[&address], RouterConfig { instance_timeout: LONG, ..RouterConfig::default() });
        let peer = Raw::worker(&listener).await;
        assert!(router.wait_for_instances(1, LONG).await);
        let calling = tokio::task::spawn_blocking(move || {
            let mut cx = Context::from_waker(Waker::noop());
            loop {
                let mut call = pin!(router.call(options("x")));
                match call.as_mut().poll(&mut cx) {
                    // It was sent, and the loss was seen before it waited.
                    Poll::Ready(Err(CallError { kind: CallErrorKind::Disconnected { .. }, .. })) => {}
                    Poll::Ready(ended) => return Some(ended.unwrap_err()),
                    Poll::Pending if router.instances()[0].state == InstanceState::Down => return None,
                    Poll::Pending => {}
                }
            }
        });
        peer.reset();
        let failed = guard("the calls", calling).await.unwrap();
        assert!(failed.is_none(), "{}", failed.unwrap());
    }
}

/// A worker that greets and hangs up must not be called again without a pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_breaks_at_once_is_retried_with_growing_pauses() {
    let _turn = turn().await;
    let (listener, address) = listen().await;
    let _router = router_to(&[&address], RouterConfig::default());
    let mut greeted = 0;
    let _ = tokio::time::timeout(Duration::from_millis(700), async {
        loop {
            Raw::worker(&listener).await.hang_up();
            greeted += 1;
        }
    })
    .await;
    assert!((2..=10).contains(&greeted), "{greeted} connections in 0.7 s");
}

/// Reads and flushes its links, and is held up as it begins with one.
#[derive(Debug)]
struct Slow {
    tokio: TokioDriver,
    held: AtomicBool,
}

impl Driver for Slow {
    fn attach(&self, link: Arc<Link>) {
        self.tokio.attach(link);
        let began = Instant::now();
        // The runtime's other tasks go on meanwhile. Longer than the test waits for anything.
        tokio::task::block_in_place(|| {
            while self.held.load(Ordering::Acquire) && began.elapsed() < 6 * LONG {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }

    fn flush_soon(&self, link: &Arc<Link>) {
        let link = Arc::clone(link);
        Handle::current().spawn(async move { link.flush() });
    }

    fn turns(&self) -> Option<u64> {
        None
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_worker_that_closes_ends_the_streams_of_a_link_that_has_only_just_started() {
    let _turn = turn().await;
    let running = Running::default();
    let held = AtomicBool::new(true);
    let slow = Arc::new(Slow { tokio: TokioDriver::new(Handle::current()), held });
    let engines = vec![("script".to_owned(), script(&running))];
    let driver: Arc<dyn Driver> = Arc::clone(&slow) as _;
    let config = WorkerConfig::default();
    let worker = Worker::bind(&local(), engines, config, Handle::current(), driver).await.unwrap();
    let router = router_to(&[worker.address()], RouterConfig::default());
    // The thread that started the link is held up, and its peer calls meanwhile.
    let mut stream = guard("the call", router.call(options("1 1 hang"))).await.unwrap();
    guard("the item", stream.next()).await.unwrap().unwrap();
    worker.close();
    let error = guard("the end", stream.next()).await.unwrap().unwrap_err();
    slow.held.store(false, Ordering::Release);
    assert!(
        matches!(&error.kind, CallErrorKind::Disconnected { reason, .. } if reason == "shutdown"),
        "{error}"
    );
    eventually("no engine runs", || running.now() == 0).await;
}
