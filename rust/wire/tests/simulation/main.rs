//! A deterministic simulation of whole links: two ends made of the protocol's own parts, driven as the runtime
//! drives them, over a simulated network with a virtual clock. What happens is drawn from a seed: calls and
//! items of all sizes, partial reads and writes, stops, kills, failures, drains, links that are lost while
//! bytes are under way. Whatever the seed: nothing is lost, doubled or out of order, a clean end means that
//! every item came, no request runs twice, credit is conserved, and at the end nothing is open.
//!
//! `HEADRACE_SEED=n` repeats one seed; `HEADRACE_SEEDS=n` runs so many instead of 4,000.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation fails the test"
)]

mod acts;
mod calls;
mod network;
#[path = "../flow/pipe.rs"]
#[allow(dead_code, reason = "only its payloads are used here")]
mod pipe;
mod port;
mod rest;
mod router;
mod worker;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::{Coverage, Trace, World};

const SEEDS: u64 = 4_000;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

fn live(seed: u64) -> Coverage {
    let trace = Trace::default();
    catch_unwind(AssertUnwindSafe(|| World::new(seed, &trace).run())).unwrap_or_else(|_| {
        panic!(
            "seed {seed} fails, as told above; its last events were\n{}HEADRACE_SEED={seed} repeats it",
            trace.lines()
        )
    })
}

#[test]
fn whatever_happens_on_links_every_call_ends_truly_and_no_credit_is_lost() {
    if let Some(seed) = from_environment("HEADRACE_SEED") {
        live(seed);
        return;
    }
    let seeds = from_environment("HEADRACE_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let covers = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let cover = live(seed);
                    covers.lock().unwrap().push(cover);
                }
            });
        }
    });
    let covers = covers.into_inner().unwrap();
    assert_eq!(covers.len() as u64, seeds);
    check_coverage(&covers);
}

/// A simulation that never reaches a state says nothing about it.
fn check_coverage(covers: &[Coverage]) {
    let least = covers.len() as u64 / 20;
    let mut sums = Coverage::default().counts().map(|(what, _)| (what, 0));
    for cover in covers {
        for (sum, (_, count)) in sums.iter_mut().zip(cover.counts()) {
            sum.1 += count;
        }
    }
    for (what, sum) in sums {
        assert!(sum >= least, "only {sum} {what} in {} seeds", covers.len());
    }
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in 0..20 {
        assert_eq!(live(seed), live(seed), "seed {seed}");
    }
    assert_ne!(live(1), live(2));
}
