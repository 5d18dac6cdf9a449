//! Faults of the network between a router and a worker, at every byte of a conversation: whatever happens,
//! every call resolves, a stream that looks complete is, nothing runs twice, and nothing is left behind.

#![allow(missing_docs, unreachable_pub, missing_debug_implementations)]
// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod conversation;
#[path = "../support/mod.rs"]
mod support;
mod sweep;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use conversation::{Outcome, judge};
use headrace::CallErrorKind;
use headrace_faults::plan::Direction;
use headrace_faults::{Fault, Menu, Plan, Script, Scripts};
use sweep::{Job, Settings, recorded, sweep};

const DIRECTIONS: [Direction; 2] = [Direction::ToServer, Direction::ToClient];

/// A job for every `stride`th byte of both directions of a recorded conversation.
async fn at_bytes(settings: &Settings, stride: usize, script: impl Fn(u64) -> Script) -> Vec<Job> {
    let (to_server, to_client) = recorded(settings).await;
    assert!(to_server > 400 && to_client > 4_500, "{to_server} and {to_client} bytes");
    let mut jobs = Vec::new();
    for (direction, length) in DIRECTIONS.into_iter().zip([to_server, to_client]) {
        for at in (0..length).step_by(stride) {
            let plan = Plan::First(Scripts::of(direction, script(at)));
            jobs.push(Job { tag: format!("{direction:?}/{at}"), plan });
        }
    }
    jobs
}

/// Cuts both directions at every `stride`th byte and judges the conversations. Each call fails, if it does,
/// for the loss of its link: the next connection is whole, so none may be left without one.
async fn cut_at_bytes(settings: Settings, fault: Fault, stride: usize) {
    let jobs = at_bytes(&settings, stride, |at| Script::cut(fault, at)).await;
    let (count, fired) = (jobs.len(), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&fired);
    sweep(settings, jobs, move |lane, report| {
        let what = format!("{fault:?} {}", report.job.tag);
        judge(&report.said, &lane.ledger, &what);
        for said in &report.said {
            let lost = matches!(
                said.outcome,
                Outcome::Failed { kind: CallErrorKind::Disconnected { .. }, .. }
                    | Outcome::Complete { .. }
                    | Outcome::Cancelled
            );
            assert!(lost, "{what}: {said:?}");
        }
        seen.fetch_add(usize::from(report.fired()), Ordering::Relaxed);
    })
    .await;
    // The last bytes of the longest conversation need not come in every one.
    let fired = fired.load(Ordering::Relaxed);
    assert!(fired * 20 >= count * 19, "only {fired} of {count} faults came about");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reset_at_any_byte_every_call_resolves_and_none_ran_twice() {
    cut_at_bytes(Settings::default(), Fault::Reset, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_half_close_every_call_resolves_and_none_ran_twice() {
    cut_at_bytes(Settings::default(), Fault::HalfClose, 2).await;
}

/// No call and no item has a timeout here: only liveness can end what falls into the hole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_given_up_by_liveness_alone() {
    let settings = Settings::default().with_pings(Duration::from_millis(250));
    cut_at_bytes(settings, Fault::BlackHole, 41).await;
}

/// Nothing in the protocol detects a changed byte (TCP and TLS do), so an answer may be wrong here. But no
/// byte may leave a call without an end, leak, run more than was asked for, or bring a side down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_byte_hangs_nothing_and_leaks_nothing() {
    let patience = Some(Duration::from_millis(800));
    let settings = Settings { patience, ..Settings::default().with_pings(Duration::from_millis(400)) };
    let jobs = at_bytes(&settings, 3, |at| Script::corrupt(at, (at * 37 % 255 + 1) as u8)).await;
    let held = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&held);
    sweep(settings, jobs, move |lane, report| {
        assert_eq!(report.said.len(), 4, "{report:?}");
        let calls = calls.fetch_add(4, Ordering::SeqCst) as u64 + 4;
        let (_, ran) = lane.ledger.most_and_total();
        assert!(ran <= calls, "{}: {ran} executions of {calls} calls", report.job.tag);
    })
    .await;
    assert!(held.load(Ordering::SeqCst) > 4 * 1_500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_delay_and_jitter_change_no_outcome() {
    let script = |bytes| Script {
        delay: Duration::from_millis(1),
        jitter: Duration::from_millis(2),
        seed: bytes as u64,
        ..Script::slices(bytes)
    };
    let mut jobs = vec![Job { tag: "whole".to_owned(), plan: Plan::default() }];
    for bytes in [1, 2, 3, 5, 11, 12, 13, 100] {
        for script in [Script::slices(bytes), script(bytes)] {
            let tag = format!("slices/{}", jobs.len());
            jobs.push(Job { tag, plan: Plan::Every(Scripts::both(script)) });
        }
    }
    sweep(Settings::default(), jobs, |lane, report| {
        judge(&report.said, &lane.ledger, &report.job.tag);
        let failed = report.said.iter().find(|said| matches!(said.outcome, Outcome::Failed { .. }));
        assert!(failed.is_none(), "{}: {failed:?}", report.job.tag);
        assert_eq!(report.connections.len(), 1, "{}", report.job.tag);
    })
    .await;
}

/// Every connection has its own faults, drawn from a seed. `HEADRACE_SEED` repeats one of them, and
/// `HEADRACE_SEEDS` sets how many there are instead of 300.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_on_every_connection_resolve_every_call_and_run_none_twice() {
    let given = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seeds = match given("HEADRACE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..given("HEADRACE_SEEDS").unwrap_or(300),
    };
    let menu = Menu {
        delay_max: Duration::from_millis(2),
        jitter_max: Duration::from_millis(2),
        slice_max: 4096,
        cut_percent: 35,
        cuts: vec![Fault::Reset, Fault::HalfClose],
        cut_before: 6_000,
        corrupt_percent: 0,
    };
    let job = |seed| Job { tag: format!("seed {seed}"), plan: Plan::Drawn { seed, menu: menu.clone() } };
    sweep(Settings::default(), seeds.map(job), |lane, report| {
        judge(&report.said, &lane.ledger, &format!("HEADRACE_SEED={}", report.job.tag));
    })
    .await;
}
