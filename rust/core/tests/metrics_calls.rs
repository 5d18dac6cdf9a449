//! How calls that end badly, or run again, are counted at the router.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used)]

mod support;

use std::future::poll_fn;

use headrace::metrics::names;
use headrace::wire::kind::Kind;
use headrace::wire::outbound::Finish;
use headrace::{CallOptions, RouterConfig};
use support::raw::Raw;
use support::scrape::{Scrape, assert_rose, of};
use support::{Net, fault, guard, options, raw, router_to, turn};

fn router_errors(kind: &str) -> String {
    format!("headrace_router_errors_total{{error_type=\"{kind}\"}}")
}

#[tokio::test]
async fn a_unary_call_without_its_one_item_is_an_error_and_no_cancellation() {
    let net = Net::start().await;
    for idempotent in [false, true] {
        let before = Scrape::now();
        for script in ["0 7 clean", "2 7 clean", "inf 7 clean"] {
            let call = CallOptions { idempotent, ..options(script) };
            let stream = guard("the call", net.router.call(call)).await.unwrap();
            assert!(guard(script, poll_fn(|cx| stream.poll_single(cx))).await.is_err());
            // However often it is asked.
            assert!(guard(script, poll_fn(|cx| stream.poll_single(cx))).await.is_err());
        }
        assert_rose(
            &before,
            &[(router_errors("not_unary"), 3.0), (of(&names::ROUTER_CANCELLATION, ""), 0.0)],
        );
        // Whoever has left and asks all the same is told of an error that is none.
        let stream = guard("the call", net.router.call(CallOptions { idempotent, ..options("0 0 hang") }));
        let stream = stream.await.unwrap();
        stream.kill();
        assert!(guard("the end", poll_fn(|cx| stream.poll_single(cx))).await.is_err());
        drop(stream);
        assert_rose(
            &before,
            &[(router_errors("not_unary"), 3.0), (of(&names::ROUTER_CANCELLATION, ""), 1.0)],
        );
    }
    net.close().await;
}

/// Answers a request: with an item if there is one to give, else with an error. Without either it is lost.
async fn answer_with(mut peer: Raw, item: Option<Result<&[u8], &str>>) -> Raw {
    let request = peer.until(Kind::Request).await.stream;
    peer.out.accept(request, 4096, 4096);
    peer.out.prologue(request, None);
    match item {
        Some(Ok(item)) => {
            peer.out.item(request, 0, item).unwrap();
            peer.out.finish(request, Finish::End { stopped: false });
        }
        Some(Err(error)) => peer.out.finish(request, Finish::Error(fault(error))),
        None => {}
    }
    peer.flush().await;
    peer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_runs_again_fails_once_if_that_fails_and_not_at_all_if_it_does_not() {
    let _turn = turn().await;
    for fails in [false, true] {
        let (listener, address) = raw::listen().await;
        let router = router_to(&[&address], RouterConfig::default());
        let before = Scrape::now();
        let call = tokio::spawn(router.call(CallOptions { idempotent: true, ..options("x") }));
        let first = answer_with(Raw::worker(&listener).await, None).await;
        let stream = guard("the call", call).await.unwrap().unwrap();
        let found = tokio::spawn(async move { poll_fn(|cx| stream.poll_single(cx)).await });
        first.reset();
        let answer = if fails { Err("as asked") } else { Ok(&b"an item"[..]) };
        let second = answer_with(Raw::worker(&listener).await, Some(answer)).await;
        let found = guard("the item", found).await.unwrap();
        assert_eq!(found.is_err(), fails);
        assert_rose(
            &before,
            &[
                ("headrace_router_retries_total{reason=\"lost\"}".to_owned(), 1.0),
                (router_errors("disconnected"), 0.0),
                (router_errors("engine"), f64::from(u8::from(fails))),
                (of(&names::ROUTER_CANCELLATION, ""), 0.0),
            ],
        );
        router.close();
        drop(second);
    }
}
