//! When a batch may be taken and what is in it, rule by rule, under a clock that is moved by hand.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod batch_support;

use std::time::Duration;

use batch_support::{Bench, answer, config, ms};
use headrace::batch::{BatchConfig, DispatchReason, Outcome, RejectReason, Terms};

fn key(key: u64) -> Terms {
    Terms { key, ..Terms::default() }
}

fn cost(cost: u64) -> Terms {
    Terms { cost, ..Terms::default() }
}

fn priority(priority: usize) -> Terms {
    Terms { priority, ..Terms::default() }
}

#[test]
fn a_free_worker_takes_what_is_there() {
    let bench = Bench::new(config());
    assert!(bench.try_take().is_none());
    bench.submit_all(0..2);
    let batch = bench.take();
    assert_eq!((batch.items(), batch.reason()), (&[0, 1][..], DispatchReason::Idle));
    answer(batch);
    assert_eq!(bench.log.of(1), Some(Outcome::Completed(10)));
    assert!(bench.try_take().is_none());
}

#[test]
fn a_batch_has_at_most_max_batch_size_items_in_the_order_of_their_submission() {
    let bench = Bench::new(config());
    bench.submit_all(0..9);
    assert_eq!(bench.run_all(), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8]]);
    assert_eq!(bench.stats().batches[DispatchReason::Size as usize], 2);
}

#[test]
fn a_full_batch_does_not_wait_for_its_window() {
    let bench = Bench::new(BatchConfig { max_latency: ms(50), linger: ms(9), ..config() });
    bench.submit_all(0..3);
    assert!(bench.try_take().is_none());
    bench.submit(3);
    assert_eq!(bench.take().reason(), DispatchReason::Size);
}

#[test]
fn the_window_begins_when_the_oldest_item_is_submitted() {
    let bench = Bench::new(BatchConfig { max_latency: ms(50), ..config() });
    bench.submit(0);
    bench.after(ms(40));
    bench.submit(1);
    bench.after(ms(10) - Duration::from_nanos(1));
    assert!(bench.try_take().is_none());
    bench.after(Duration::from_nanos(1));
    let batch = bench.take();
    assert_eq!((batch.items(), batch.reason()), (&[0, 1][..], DispatchReason::Latency));
}

#[test]
fn an_item_that_waited_for_a_busy_worker_has_served_its_window() {
    let bench = Bench::new(BatchConfig { max_latency: ms(50), ..config() });
    bench.submit(0);
    bench.after(ms(50));
    let running = bench.take();
    bench.submit(1);
    bench.after(ms(60));
    answer(running);
    assert_eq!(bench.run(), [1]);
}

#[test]
fn the_window_begins_anew_with_the_oldest_that_is_left() {
    let bench = Bench::new(BatchConfig { max_latency: ms(50), ..config() });
    let first = bench.submit(0);
    bench.after(ms(20));
    bench.submit(1);
    assert!(bench.coordinator.cancel(first));
    bench.after(ms(30));
    assert!(bench.try_take().is_none());
    bench.after(ms(20));
    assert_eq!(bench.run(), [1]);
}

#[test]
fn lingering_ends_when_nothing_has_come_for_a_while() {
    let bench = Bench::new(BatchConfig { linger: ms(5), ..config() });
    bench.submit(0);
    bench.after(ms(4));
    bench.submit(1);
    bench.after(ms(4));
    assert!(bench.try_take().is_none());
    bench.after(ms(1));
    let batch = bench.take();
    assert_eq!((batch.items(), batch.reason()), (&[0, 1][..], DispatchReason::Linger));
}

#[test]
fn lingering_ends_after_ten_times_itself() {
    let bench = Bench::new(BatchConfig { linger: ms(5), max_batch_size: 32, ..config() });
    for id in 0..12 {
        bench.submit(id);
        assert!(bench.try_take().is_none());
        bench.after(ms(4));
    }
    assert!(bench.try_take().is_none(), "48 ms");
    bench.submit(12);
    bench.after(ms(2));
    assert_eq!(bench.run().len(), 13, "50 ms");
}

#[test]
fn lingering_ends_after_max_latency() {
    let bench = Bench::new(BatchConfig { linger: ms(5), max_latency: ms(7), ..config() });
    bench.submit(0);
    bench.after(ms(4));
    bench.submit(1);
    bench.after(ms(3));
    assert_eq!(bench.take().reason(), DispatchReason::Latency);
}

#[test]
fn a_batch_is_closed_only_when_a_worker_takes_it() {
    let bench = Bench::new(BatchConfig { max_latency: ms(5), ..config() });
    bench.submit(0);
    bench.after(ms(9));
    bench.submit_all(1..3);
    assert_eq!(bench.run(), [0, 1, 2]);
}

#[test]
fn a_batch_that_is_full_no_longer_waits_for_its_window_again() {
    let bench = Bench::new(BatchConfig { max_latency: ms(50), ..config() });
    let tickets = bench.submit_all(0..4);
    assert!(bench.coordinator.cancel(tickets[2]));
    assert!(bench.try_take().is_none());
    bench.after(ms(50));
    assert_eq!(bench.run(), [0, 1, 3]);
}

#[test]
fn only_items_of_one_key_share_a_batch() {
    let bench = Bench::new(config());
    for id in 0..6 {
        bench.submit_with(id, key(u64::from(id % 2)));
    }
    let batch = bench.take();
    assert_eq!((batch.items(), batch.key()), (&[0, 2, 4][..], 0));
    answer(batch);
    assert_eq!(bench.run(), [1, 3, 5]);
}

#[test]
fn a_rare_key_is_not_starved() {
    let bench = Bench::new(BatchConfig { max_latency: ms(5), ..config() });
    bench.submit_with(1000, key(7));
    let mut batches = 0;
    // The other key always has a full batch.
    for round in 0..10 {
        for id in 0..4 {
            bench.submit_with(round * 4 + id, key(1));
        }
        bench.after(ms(1));
        batches += 1;
        if bench.run() == [1000] {
            break;
        }
    }
    assert_eq!(batches, 5, "its turn comes with its window");
}

#[test]
fn the_key_with_the_oldest_item_has_its_turn() {
    let bench = Bench::new(config());
    bench.submit_with(0, key(3));
    for id in 1..9 {
        bench.after(ms(1));
        bench.submit_with(id, key(u64::from(id % 3)));
    }
    assert_eq!(bench.run_all(), [vec![0], vec![1, 4, 7], vec![2, 5, 8], vec![3, 6]]);
}

#[test]
fn priorities_are_strict() {
    let bench = Bench::new(BatchConfig { priorities: 3, ..config() });
    for (id, level) in [(0, 2), (1, 1), (2, 0), (3, 2), (4, 1), (5, 0), (6, 0)] {
        bench.submit_with(id, priority(level));
    }
    assert_eq!(bench.run_all(), [vec![2, 5, 6, 1], vec![4, 0, 3]]);
}

#[test]
fn an_urgent_item_brings_its_key_to_the_front() {
    let bench = Bench::new(BatchConfig { priorities: 2, ..config() });
    bench.submit_with(0, Terms { priority: 1, ..key(1) });
    bench.submit_with(1, Terms { priority: 1, ..key(2) });
    bench.after(ms(1));
    bench.submit_with(2, Terms { priority: 0, ..key(2) });
    assert_eq!(bench.run_all(), [vec![2, 1], vec![0]]);
}

#[test]
fn with_aging_an_item_of_low_priority_is_not_starved() {
    let bench = Bench::new(BatchConfig { priorities: 2, aging: Some(ms(10)), max_batch_size: 1, ..config() });
    bench.submit_with(1000, priority(1));
    let mut served = 0;
    for id in 0..100 {
        bench.submit_with(id, priority(0));
        served += 1;
        if bench.run() == [1000] {
            break;
        }
        bench.after(ms(1));
    }
    assert_eq!(served, 11, "those that came within ten milliseconds go first");
}

#[test]
fn a_batch_costs_no_more_than_its_budget() {
    let bench = Bench::new(BatchConfig { max_cost: Some(10), max_latency: ms(50), ..config() });
    bench.submit_with(0, cost(4));
    bench.submit_with(1, cost(5));
    assert!(bench.try_take().is_none());
    bench.submit_with(2, cost(2));
    let batch = bench.take();
    assert_eq!((batch.items(), batch.cost(), batch.reason()), (&[0, 1][..], 9, DispatchReason::Cost));
    answer(batch);
    assert!(bench.try_take().is_none(), "the rest has its own window");
    bench.submit_with(3, cost(8));
    let batch = bench.take();
    assert_eq!((batch.items(), batch.cost(), batch.reason()), (&[2, 3][..], 10, DispatchReason::Cost));
}

#[test]
fn nothing_overtakes_an_item_that_does_not_fit() {
    let bench = Bench::new(BatchConfig { max_cost: Some(10), ..config() });
    for (id, cost) in [(0, 6), (1, 6), (2, 1)] {
        bench.submit_with(id, Terms { cost, ..Terms::default() });
    }
    assert_eq!(bench.run_all(), [vec![0], vec![1, 2]]);
}

#[test]
fn a_padded_batch_costs_its_largest_item_times_its_size() {
    let bench = Bench::new(BatchConfig {
        max_cost: Some(12),
        padded_cost: true,
        max_batch_size: 8,
        max_latency: ms(50),
        ..config()
    });
    let large = bench.submit_with(0, cost(5));
    bench.submit_with(1, cost(2));
    assert!(bench.try_take().is_none(), "10 of 12");
    assert!(bench.coordinator.cancel(large));
    for id in 2..6 {
        bench.submit_with(id, cost(2));
        assert!(bench.try_take().is_none(), "the large one has gone");
    }
    bench.submit_with(6, cost(3));
    let batch = bench.take();
    assert_eq!((batch.items(), batch.cost()), (&[1, 2, 3, 4, 5][..], 10));
}

#[test]
fn an_item_that_was_let_in_under_a_larger_budget_has_a_batch_of_its_own() {
    let bench = Bench::new(BatchConfig { max_cost: Some(10), ..config() });
    bench.submit_with(0, cost(8));
    bench.submit_with(1, cost(1));
    bench.coordinator.configure(BatchConfig { max_cost: Some(4), ..config() }).unwrap();
    assert_eq!(bench.run_all(), [vec![0], vec![1]]);
}

#[test]
fn a_batch_knows_the_size_to_be_padded_to() {
    let bench = Bench::new(BatchConfig { allowed_sizes: vec![1, 2, 4], ..config() });
    bench.submit_all(0..3);
    assert_eq!(bench.take().padded_size(), 4);
}

#[test]
fn an_engine_takes_no_more_than_it_has_room_for() {
    let bench = Bench::new(config());
    bench.submit_all(0..3);
    assert!(matches!(bench.coordinator.try_take_at_most(0, 0), headrace::batch::Taken::Nothing));
    let headrace::batch::Taken::Batch(batch) = bench.coordinator.try_take_at_most(0, 2) else {
        panic!("a batch of two");
    };
    assert_eq!(batch.items(), [0, 1]);
    answer(batch);
    assert_eq!(bench.run(), [2]);
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let bench = Bench::new(BatchConfig {
        queue_capacity: Some(4),
        queue_cost: Some(20),
        max_cost: Some(10),
        max_in_flight_per_client: Some(2),
        priorities: 2,
        ..config()
    });
    let of = |client| Terms { client: Some(client), ..Terms::default() };
    assert_eq!(bench.refused(0, cost(11)), RejectReason::TooLarge { cost: 11, max_cost: 10 });
    assert_eq!(bench.refused(0, priority(2)), RejectReason::Priority { priority: 2, priorities: 2 });
    bench.submit_with(1, of(5));
    bench.submit_with(2, of(5));
    assert_eq!(bench.refused(0, of(5)), RejectReason::ClientCap { client: 5, cap: 2 });
    bench.submit_with(3, cost(10));
    let refused = bench.refused(0, cost(9));
    assert_eq!(refused, RejectReason::QueueCost { queued_cost: 12, cost: 9, limit: 20 });
    bench.submit_with(4, cost(8));
    assert_eq!(bench.refused(0, cost(0)), RejectReason::QueueFull { queued: 4, capacity: 4 });
    bench.coordinator.count_invalid();
    let rejected = bench.stats().rejected;
    assert_eq!((rejected.too_large, rejected.invalid, rejected.client_cap), (1, 2, 1));
    assert_eq!((rejected.queue_cost, rejected.queue_full, rejected.total()), (1, 1, 6));
    bench.coordinator.close();
    assert_eq!(bench.refused(0, Terms::default()), RejectReason::Closed);
}

#[test]
fn an_item_that_costs_more_than_may_wait_is_let_in_alone() {
    let bench = Bench::new(BatchConfig { queue_cost: Some(5), ..config() });
    bench.submit_with(0, cost(9));
    bench.refused(1, cost(1));
    bench.run();
    bench.submit_with(1, cost(1));
}

#[test]
fn a_clients_cap_counts_what_is_queued_and_what_the_function_has() {
    let bench = Bench::new(BatchConfig { max_in_flight_per_client: Some(2), ..config() });
    let of = |client| Terms { client: Some(client), ..Terms::default() };
    bench.submit_with(0, of(1));
    let running = bench.take();
    let queued = bench.submit_with(1, of(1));
    bench.refused(2, of(1));
    bench.submit_with(2, of(2));
    bench.submit_with(3, Terms::default());
    assert!(bench.coordinator.cancel(queued));
    bench.submit_with(4, of(1));
    bench.refused(5, of(1));
    answer(running);
    bench.submit_with(5, of(1));
}

#[test]
fn paused_nothing_is_taken_but_items_come_and_expire() {
    let bench = Bench::new(BatchConfig { timeout: Some(ms(10)), ..config() });
    bench.coordinator.pause();
    bench.submit_all(0..8);
    assert!(bench.try_take().is_none());
    bench.after(ms(10));
    assert_eq!(bench.stats().expired, 8);
    bench.submit(8);
    bench.coordinator.resume();
    assert_eq!(bench.run(), [8]);
}

#[test]
fn a_flush_ends_the_window_of_what_waits_and_of_nothing_else() {
    let bench = Bench::new(BatchConfig { max_latency: ms(50), ..config() });
    bench.submit_all(0..2);
    bench.coordinator.flush();
    let batch = bench.take();
    assert_eq!((batch.items(), batch.reason()), (&[0, 1][..], DispatchReason::Flush));
    bench.submit(2);
    assert!(bench.try_take().is_none());
}

#[test]
fn changed_settings_hold_for_what_waits() {
    let bench = Bench::new(BatchConfig { max_latency: ms(50), ..config() });
    bench.submit_all(0..3);
    assert!(bench.try_take().is_none());
    bench.coordinator.configure(BatchConfig { max_batch_size: 2, max_latency: ms(50), ..config() }).unwrap();
    assert_eq!(bench.run(), [0, 1]);
    assert!(bench.try_take().is_none());
    bench.coordinator.configure(config()).unwrap();
    assert_eq!(bench.run(), [2]);
    assert_eq!(bench.coordinator.config(), config());
}

#[test]
fn settings_out_of_range_are_refused_and_change_nothing() {
    let bench = Bench::new(config());
    let error = bench.coordinator.configure(BatchConfig { workers: 0, ..config() }).unwrap_err();
    assert!(error.to_string().starts_with("workers must be "), "{error}");
    assert_eq!(bench.coordinator.config(), config());
}

#[test]
fn counts_and_histograms_tell_of_each_batch() {
    let bench = Bench::new(config());
    bench.submit_all(0..2);
    bench.after(ms(3));
    bench.submit(2);
    bench.after(ms(1));
    let batch = bench.take();
    bench.after(ms(7));
    answer(batch);
    let stats = bench.stats();
    assert_eq!((stats.submitted, stats.completed, stats.dispatched_batches()), (3, 3, 1));
    assert_eq!((stats.batch_size.sum(), stats.batch_cost.sum(), stats.fill.sum()), (3.0, 3.0, 0.75));
    let near = |seconds: f64, expected: f64| assert!((seconds - expected).abs() < 1e-9, "{seconds}");
    near(stats.queue_wait.sum(), 0.009);
    near(stats.formation.sum(), 0.004);
    near(stats.execution.sum(), 0.007);
    assert_eq!((stats.min_batch_size_seen, stats.max_batch_size_seen), (3, 3));
    bench.submit(3);
    answer(bench.take());
    let stats = bench.stats();
    assert_eq!((stats.min_batch_size_seen, stats.max_batch_size_seen), (1, 3));
}
