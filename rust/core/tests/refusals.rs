//! A worker that refuses, is silent, talks nonsense or is lost: what the caller is told, and which calls go on
//! at another worker. The workers are raw peers, so that each answer comes when the test says so.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use headrace::wire::body::{Fault, FaultCode, Goaway, GoawayReason, KillReason, Reject, RejectReason};
use headrace::wire::kind::Kind;
use headrace::wire::outbound::Finish;
use headrace::{CallError, CallErrorKind, CallOptions, Phase, Router, RouterConfig, WorkerConfig, budget};
use support::raw::{Frame, Raw, listen};
use support::{Running, collect, eventually, guard, options, raw, router_to, turn, worker};
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(10);

/// A router to two raw workers, and a call that one of them has been sent.
struct Asked {
    router: Router,
    call: JoinHandle<Result<headrace::ResponseStream, CallError>>,
    request: Frame,
    /// The worker that was asked, until it is lost.
    first: Option<Raw>,
    second: Raw,
}

impl Asked {
    async fn with(call: CallOptions) -> Self {
        Self::of(RouterConfig::default(), call).await
    }

    async fn of(config: RouterConfig, call: CallOptions) -> Self {
        let ((one, address), (two, other)) = (listen().await, listen().await);
        let router = router_to(&[&address, &other], config);
        let mut peers = [Raw::worker(&one).await, Raw::worker(&two).await];
        assert!(router.wait_for_instances(2, LONG).await);
        let call = tokio::spawn(router.call(call));
        let asked = || router.instances().iter().position(|instance| instance.in_flight == 1);
        eventually("one is asked", || asked().is_some()).await;
        if asked() == Some(1) {
            peers.reverse();
        }
        let [mut first, second] = peers;
        let request = first.until(Kind::Request).await;
        Self { router, call, request, first: Some(first), second }
    }

    fn peer(&mut self) -> &mut Raw {
        self.first.as_mut().unwrap()
    }

    async fn accept(&mut self) {
        let stream = self.request.stream;
        self.peer().out.accept(stream, 4096, 256 * 1024);
        self.peer().flush().await;
    }

    fn lose(&mut self) {
        self.first.take().unwrap().reset();
    }

    async fn reject(&mut self, reason: RejectReason, detail: &str) {
        let reject = Reject { reason, retry_after_ms: 250, detail: detail.to_owned() };
        let stream = self.request.stream;
        self.peer().out.reject(stream, &reject);
        self.peer().flush().await;
    }

    /// The other worker is asked and answers; the caller reads that answer to its end.
    async fn goes_on_at_the_other(self) {
        let Self { router, call, mut second, first: _first, .. } = self;
        let request = second.until(Kind::Request).await;
        answer(&mut second, &request).await;
        let mut stream = guard("the call", call).await.unwrap().unwrap();
        assert_eq!(collect(&mut stream).await, (vec![9; 2], None));
        assert_eq!(router.stats().retries_total, 1);
    }

    /// The caller is told, and the other worker was not asked.
    async fn told(self) -> CallError {
        let Self { router, call, mut second, first: _first, .. } = self;
        let error = guard("the call", call).await.unwrap().unwrap_err();
        assert_eq!((router.stats().retries_total, router.stats().in_flight), (0, 0));
        router.close();
        assert!(!second.until_closed().await.contains(&Kind::Request));
        error
    }
}

async fn answer(peer: &mut Raw, request: &Frame) {
    peer.out.accept(request.stream, 4096, 256 * 1024);
    peer.out.prologue(request.stream, None);
    for number in 0..2 {
        peer.out.item(request.stream, 0, &[number; 9]).unwrap();
    }
    peer.out.finish(request.stream, Finish::End { stopped: false });
    peer.flush().await;
}

fn permitting_more(idempotent: bool, resumable: bool) -> CallOptions {
    CallOptions { idempotent, resumable, ..options("x") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_another_worker_may_not_share_is_taken_there() {
    let _turn = turn().await;
    for reason in [RejectReason::Overloaded, RejectReason::Draining, RejectReason::NoSuchEndpoint] {
        let mut asked = Asked::with(options("x")).await;
        asked.reject(reason, "as asked").await;
        asked.goes_on_at_the_other().await;
    }
}

/// An engine that has no room says so after the worker has accepted the request.
fn no_room() -> Fault {
    let (kind, message) = ("250".to_owned(), "the engine is full".to_owned());
    Fault { code: FaultCode::Refused, kind, message, traceback: String::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_its_engine_has_no_room_for_is_taken_to_another_worker() {
    let _turn = turn().await;
    let mut asked = Asked::with(options("x")).await;
    asked.accept().await;
    let stream = asked.request.stream;
    asked.peer().out.prologue(stream, Some(&no_room()));
    asked.peer().flush().await;
    asked.goes_on_at_the_other().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_other_worker_an_engine_without_room_is_told_as_overloaded() {
    let _turn = turn().await;
    let (listener, address) = listen().await;
    let router = router_to(&[&address], RouterConfig::default());
    let mut peer = Raw::worker(&listener).await;
    let call = tokio::spawn(router.call(options("x")));
    let request = peer.until(Kind::Request).await;
    peer.out.accept(request.stream, 4096, 256 * 1024);
    peer.out.prologue(request.stream, Some(&no_room()));
    peer.flush().await;
    let error = guard("the call", call).await.unwrap().unwrap_err();
    let retry_after = Duration::from_millis(250);
    let expected = CallErrorKind::Overloaded { retry_after, detail: "the engine is full".to_owned() };
    assert_eq!((error.kind, error.phase), (expected, Phase::Accepted));
    assert_eq!(router.stats().retries_total, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_other_worker_a_refusal_is_told_with_its_phase_and_its_details() {
    let _turn = turn().await;
    for (reason, detail) in [
        (RejectReason::Overloaded, "full"),
        (RejectReason::Draining, "leaving"),
        (RejectReason::NoSuchEndpoint, "chat, embed"),
        (RejectReason::NoSuchEndpoint, ""),
    ] {
        let (listener, address) = listen().await;
        let router = router_to(&[&address], RouterConfig::default());
        let mut peer = Raw::worker(&listener).await;
        let call = tokio::spawn(router.call(options("x")));
        let request = peer.until(Kind::Request).await;
        peer.out.reject(request.stream, &Reject { reason, retry_after_ms: 250, detail: detail.to_owned() });
        peer.flush().await;
        let error = guard("the call", call).await.unwrap().unwrap_err();
        assert_eq!((error.phase, error.instance.as_deref()), (Phase::Sent, Some("raw")));
        let expected = match reason {
            RejectReason::NoSuchEndpoint => CallErrorKind::NoSuchEndpoint {
                endpoint: "script".to_owned(),
                available: detail.split(", ").filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            },
            _ => CallErrorKind::Overloaded {
                retry_after: Duration::from_millis(250),
                detail: detail.to_owned(),
            },
        };
        assert_eq!(error.kind, expected);
        assert_eq!(router.stats().retries_total, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_any_worker_would_repeat_is_told_at_once() {
    let _turn = turn().await;
    for reason in [
        RejectReason::Unauthenticated,
        RejectReason::TooLarge,
        RejectReason::Expired,
        RejectReason::UnsupportedShape,
    ] {
        // Not even a call that may run twice is sent again.
        let mut asked = Asked::with(permitting_more(true, true)).await;
        asked.reject(reason, "as asked").await;
        let error = asked.told().await;
        assert_eq!(error.phase, Phase::Sent, "{reason:?}");
        let fits = match reason {
            RejectReason::Unauthenticated => matches!(error.kind, CallErrorKind::Authentication { .. }),
            RejectReason::TooLarge => matches!(error.kind, CallErrorKind::PayloadTooLarge { .. }),
            RejectReason::Expired => matches!(error.kind, CallErrorKind::DeadlineExceeded { .. }),
            _ => matches!(error.kind, CallErrorKind::Refused { .. }),
        };
        assert!(fits, "{reason:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_beyond_a_goaway_goes_on_at_another_worker() {
    let _turn = turn().await;
    let mut asked = Asked::with(options("x")).await;
    let goaway = |last_stream| Goaway { last_stream, reason: GoawayReason::Draining, detail: String::new() };
    asked.peer().out.goaway(&goaway(0));
    asked.peer().flush().await;
    asked.goes_on_at_the_other().await;

    // What it does not lie beyond may have run.
    let mut asked = Asked::with(options("x")).await;
    let last = goaway(asked.request.stream);
    asked.peer().out.goaway(&last);
    asked.peer().flush().await;
    asked.lose();
    let error = asked.told().await;
    assert!(matches!(error.kind, CallErrorKind::Disconnected { maybe_executed: true, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_lost_before_its_answer_goes_on_elsewhere_only_if_the_call_permits_it() {
    let _turn = turn().await;
    for accepted in [false, true] {
        for garbage in [false, true] {
            for (idempotent, resumable) in [(false, false), (true, false), (false, true)] {
                let mut asked = Asked::with(permitting_more(idempotent, resumable)).await;
                if accepted {
                    asked.accept().await;
                }
                if garbage {
                    asked.peer().bytes(&[0xff; 64]).await;
                } else {
                    asked.lose();
                }
                if idempotent || resumable {
                    asked.goes_on_at_the_other().await;
                    continue;
                }
                let error = asked.told().await;
                let CallErrorKind::Disconnected { maybe_executed: true, reason } = &error.kind else {
                    panic!("{error}")
                };
                assert!(!garbage || reason.contains("protocol"), "{reason}");
            }
        }
    }
}

/// The request was written whole and the worker says nothing: neither time-out is made good elsewhere, even where
/// the call may run twice, and the engine that may have begun is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_answer_is_killed_for_the_time_out_and_nobody_else_is_asked() {
    let _turn = turn().await;
    let limit = Duration::from_millis(80);
    for accepted in [false, true] {
        for (timeout, item_timeout, reason) in
            [(Some(limit), None, KillReason::Deadline), (None, Some(limit), KillReason::ItemTimeout)]
        {
            let call = CallOptions { timeout, item_timeout, ..permitting_more(true, true) };
            let mut asked = Asked::with(call).await;
            if accepted {
                asked.accept().await;
            }
            let kill = asked.peer().until(Kind::Kill).await;
            assert_eq!((kill.stream, kill.body), (asked.request.stream, vec![reason as u8]));
            let error = asked.told().await;
            // A worker may be slow to say ACCEPT: until then the caller cannot know more than that it was sent.
            assert_eq!(error.phase, if accepted { Phase::Accepted } else { Phase::Sent });
            match error.kind {
                CallErrorKind::DeadlineExceeded { elapsed } => assert!(elapsed >= limit, "{elapsed:?}"),
                kind => assert_eq!(kind, CallErrorKind::ItemTimeout { timeout: limit }),
            }
        }
    }
}

/// A frozen process still has its connections accepted by the system.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_never_greets_is_passed_over_and_cannot_be_connected_to() {
    let _turn = turn().await;
    let (_listener, silent) = listen().await;
    let impatient = RouterConfig { instance_timeout: Duration::from_millis(100), ..RouterConfig::default() };
    let router = router_to(&[&silent], impatient);
    let asked = Instant::now();
    let error = guard("the call", router.call(options("x"))).await.unwrap_err();
    assert!(asked.elapsed() >= Duration::from_millis(99), "{:?}", asked.elapsed());
    assert_eq!((error.phase, error.instance), (Phase::Unsent, None));
    let CallErrorKind::CannotConnect { reason } = error.kind else { panic!("{}", error.kind) };
    assert!(reason.contains(&silent.to_string()), "{reason}");

    let good = worker(&Running::default(), WorkerConfig::default()).await;
    let router = router_to(&[&silent, good.address()], RouterConfig::default());
    for _ in 0..20 {
        let stream = guard("the call", router.call(options("1 1 clean"))).await.unwrap();
        assert_eq!(stream.instance_id(), good.instance_id());
    }
    assert_eq!(router.stats().retries_total, 0);
}

/// Of a request that a worker has not got whole, nothing ran: it goes elsewhere without asking anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_not_written_whole_goes_on_at_another_worker() {
    let _turn = turn().await;
    let large = CallOptions { payload: raw(vec![b' '; 16 * 1024 * 1024]), ..options("") };
    // It reads the first fragment and no more, so the rest cannot have been written.
    let mut asked = Asked::with(large).await;
    asked.lose();
    let Asked { router, call, mut second, .. } = asked;
    second.until(Kind::Request).await;
    assert_eq!(router.stats().retries_total, 1);
    assert!(!call.is_finished());
    call.abort();
    drop(second);
    router.close();
    eventually("nothing is claimed", || budget::claimed_bytes() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_further_attempt_does_not_outlive_the_deadline() {
    let _turn = turn().await;
    let (listener, address) = listen().await;
    let router = router_to(&[&address], RouterConfig { instance_timeout: LONG, ..RouterConfig::default() });
    let timeout = Some(Duration::from_millis(400));
    let call = tokio::spawn(router.call(CallOptions { timeout, ..permitting_more(true, false) }));
    let mut peer = Raw::worker(&listener).await;
    peer.until(Kind::Request).await;
    drop(listener);
    peer.reset();
    let error = guard("the call", call).await.unwrap().unwrap_err();
    let CallErrorKind::DeadlineExceeded { elapsed } = error.kind else { panic!("{error}") };
    assert!(elapsed >= Duration::from_millis(400), "{elapsed:?}");
    // Nothing was sent since, but the first attempt may have run.
    assert_eq!((error.phase, router.stats().retries_total), (Phase::Sent, 1));
}

/// That the last attempt did not run says nothing of the one before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_which_any_attempt_may_have_run_says_so() {
    let _turn = turn().await;
    let unseen = Goaway { last_stream: 0, reason: GoawayReason::Draining, detail: String::new() };
    for first_may_have_run in [true, false] {
        let config = RouterConfig { retries: 1, ..RouterConfig::default() };
        let mut asked = Asked::of(config, permitting_more(true, false)).await;
        if first_may_have_run {
            asked.lose();
        } else {
            asked.peer().out.goaway(&unseen);
            asked.peer().flush().await;
        }
        asked.second.until(Kind::Request).await;
        asked.second.out.goaway(&unseen);
        asked.second.flush().await;
        let error = guard("the call", asked.call).await.unwrap().unwrap_err();
        let CallErrorKind::Disconnected { maybe_executed, .. } = error.kind else { panic!("{error}") };
        assert_eq!((maybe_executed, error.phase), (first_may_have_run, Phase::Sent));
        assert_eq!(asked.router.stats().retries_total, 1);
    }
}
