//! How an item ends, rule by rule: deadlines, cancellation, answers, closing. Under a clock that is moved by
//! hand.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod batch_support;

use std::time::{Duration, Instant};

use batch_support::{Bench, Ended, answer, config, ms};
use headrace::batch::{
    BatchConfig, DispatchReason, Finished, Outcome, RejectReason, Taken, Terms, TimeLimit, Timeout,
};

fn within(timeout: Duration) -> Terms {
    Terms { timeout: Timeout::After(timeout), ..Terms::default() }
}

fn expired(waited: Duration) -> Option<Ended> {
    Some(Outcome::Expired { waited, predicted: false })
}

/// A bench whose batches have always taken ten milliseconds, and that has measured enough of them.
fn measured(config: BatchConfig) -> Bench {
    let bench = Bench::new(config);
    for id in 1000..1010 {
        bench.submit(id);
        let batch = bench.take();
        bench.after(ms(10));
        answer(batch);
    }
    bench
}

#[test]
fn an_item_expires_on_time_while_every_worker_is_busy() {
    let bench = Bench::new(BatchConfig { timeout: Some(ms(10)), ..config() });
    bench.submit_with(0, Terms { timeout: Timeout::Never, ..Terms::default() });
    let running = bench.take();
    bench.submit(1);
    bench.after(ms(10) - Duration::from_nanos(1));
    assert_eq!(bench.log.of(1), None);
    bench.after(Duration::from_nanos(1));
    assert_eq!(bench.log.of(1), expired(ms(10)));
    assert!(bench.log.came_back(1), "its owner drops it");
    answer(running);
    assert_eq!(bench.log.of(0), Some(Outcome::Completed(0)));
}

#[test]
fn deadlines_come_in_their_own_order() {
    let bench = Bench::new(BatchConfig { timeout: Some(ms(30)), ..config() });
    bench.submit_with(0, within(ms(40)));
    bench.submit(1);
    bench.submit_with(2, within(ms(10)));
    bench.submit_with(3, within(ms(20)));
    let at = Instant::now() + Duration::from_secs(3600);
    bench.submit_with(4, Terms { timeout: Timeout::At(at), ..Terms::default() });
    for (ended, id) in [(1, 2), (2, 3), (3, 1), (4, 0)] {
        bench.after(ms(10));
        assert_eq!((bench.log.len(), bench.log.of(id).is_some()), (ended, true));
    }
    assert_eq!(bench.run(), [4]);
}

#[test]
fn an_item_that_has_expired_is_never_taken() {
    let bench = Bench::new(BatchConfig { timeout: Some(ms(10)), ..config() });
    bench.submit_all(0..2);
    // The timer has not come yet.
    bench.clock.advance(ms(10));
    assert!(bench.try_take().is_none());
    assert_eq!(bench.stats().expired, 2);
}

#[test]
fn an_item_without_time_is_refused() {
    let bench = Bench::new(config());
    let past = Terms { timeout: Timeout::At(Instant::now()), ..Terms::default() };
    for terms in [within(Duration::ZERO), past] {
        assert_eq!(bench.refused(0, terms), RejectReason::Expired);
    }
    let response = Terms { response_timeout: Timeout::After(Duration::ZERO), ..Terms::default() };
    assert_eq!(bench.refused(0, response), RejectReason::Expired);
}

#[test]
fn what_would_miss_its_deadline_makes_way_for_what_does_not() {
    let bench = measured(config());
    (0..4).for_each(|id| _ = bench.submit_with(id, within(ms(9))));
    (4..8).for_each(|id| _ = bench.submit_with(id, within(ms(11))));
    assert_eq!(bench.run(), [4, 5, 6, 7]);
    assert_eq!(bench.log.of(0), Some(Outcome::Expired { waited: ms(0), predicted: true }));
    assert_eq!((bench.stats().expired, bench.stats().expired_early), (4, 4));
}

#[test]
fn what_a_free_worker_could_take_now_is_not_given_up() {
    let bench = measured(config());
    (0..4).for_each(|id| _ = bench.submit_with(id, within(ms(9))));
    assert_eq!(bench.run(), [0, 1, 2, 3], "nobody else would use the worker");
    let bench = measured(config());
    (0..5).for_each(|id| _ = bench.submit_with(id, within(ms(9))));
    assert_eq!(bench.run(), [1, 2, 3, 4], "and no more than those that are in the way");
    let bench = measured(BatchConfig { workers: 2, ..config() });
    (0..8).for_each(|id| _ = bench.submit_with(id, within(ms(9))));
    assert_eq!(bench.run(), [0, 1, 2, 3], "two workers are free");
}

#[test]
fn nothing_is_predicted_before_ten_batches_or_when_told_not_to() {
    for (config, batches) in [(config(), 9), (BatchConfig { predictive_expiry: false, ..config() }, 20)] {
        let bench = Bench::new(config);
        for id in 1000..1000 + batches {
            bench.submit(id);
            let batch = bench.take();
            bench.after(ms(10));
            answer(batch);
        }
        (0..8).for_each(|id| _ = bench.submit_with(id, within(ms(9))));
        assert_eq!(bench.run(), [0, 1, 2, 3]);
    }
}

#[test]
fn what_would_expire_behind_what_waits_is_refused_at_once() {
    let bench = measured(config());
    bench.submit_all(0..12);
    // The first batch may make way; two come before it for certain, and its own takes as long.
    let refused = bench.try_submit(12, within(ms(29))).expect_err("refused");
    let RejectReason::WouldExpire { ahead: 12, late } = refused.reason else { panic!("{refused:?}") };
    assert_eq!(refused.retry_after, Some(late), "when so much less waits");
    assert!(late.abs_diff(ms(1)) < Duration::from_micros(1), "{late:?}");
    assert_eq!((bench.stats().rejected.would_expire, bench.stats().expired), (1, 0));
    bench.submit_with(13, within(ms(31)));
    assert_eq!(bench.run(), [0, 1, 2, 3]);
    bench.submit_with(14, within(ms(21)));
}

#[test]
fn only_what_is_certain_to_come_first_counts_against_an_item() {
    let soon = within(ms(11));
    let admitted = |config: BatchConfig, before: Terms, item: Terms| {
        let bench = measured(config);
        (0..12).for_each(|id| _ = bench.submit_with(id, before));
        bench.try_submit(12, item).map(drop).map_err(|refused| refused.reason.as_str())
    };
    let refused = Err("would_expire");
    let any = Terms::default();
    assert_eq!(admitted(config(), any, soon), refused);
    assert_eq!(admitted(config(), any, any), Ok(()), "it has no deadline");
    assert_eq!(
        admitted(config(), any, Terms { key: 1, ..soon }),
        Ok(()),
        "how long its key's batches take is not known"
    );
    let two = || BatchConfig { priorities: 2, ..config() };
    let second = |terms| Terms { priority: 1, ..terms };
    assert_eq!(admitted(two(), second(any), soon), Ok(()), "it is more urgent");
    assert_eq!(admitted(two(), any, second(soon)), refused);
    assert_eq!(admitted(BatchConfig { workers: 2, ..config() }, any, soon), Ok(()), "two work on them");
    assert_eq!(admitted(BatchConfig { predictive_expiry: false, ..config() }, any, soon), Ok(()));
}

#[test]
fn nothing_is_refused_as_late_before_ten_batches_or_by_an_engine_that_says_what_it_takes() {
    let bench = Bench::new(config());
    bench.submit_all(0..12);
    bench.submit_with(12, within(ms(1)));
    let bench = measured(config());
    assert!(matches!(bench.coordinator.try_take_at_most(0, 64), Taken::Nothing));
    bench.submit_all(0..12);
    bench.submit_with(12, within(ms(1)));
}

#[test]
fn one_slow_batch_does_not_shut_the_door() {
    let bench = measured(config());
    bench.submit(0);
    let slow = bench.take();
    bench.after(Duration::from_secs(60));
    answer(slow);
    // Believing in it, every batch would be too late; some run all the same, and show that it is not so.
    let mut early = Vec::new();
    for round in 0..400 {
        (0..8).for_each(|id| _ = bench.submit_with(2000 + round * 8 + id, within(ms(100))));
        while let Some(batch) = bench.try_take() {
            bench.after(ms(10));
            answer(batch);
        }
        early.push(bench.stats().expired_early);
    }
    assert!(early[0] > 0, "the slow batch was believed at first");
    assert_eq!(early[300], early[399], "and is not any more");
}

#[test]
fn an_item_cancelled_in_the_queue_is_never_taken() {
    let bench = Bench::new(config());
    let tickets = bench.submit_all(0..3);
    assert!(bench.coordinator.cancel(tickets[1]));
    assert_eq!(bench.log.of(1), Some(Outcome::Cancelled { dispatched: false }));
    assert!(!bench.coordinator.cancel(tickets[1]), "once");
    assert_eq!(bench.run(), [0, 2]);
    assert!(!bench.coordinator.cancel(tickets[0]), "it was answered");
    assert_eq!(bench.stats().cancelled, 1);
}

#[test]
fn an_item_cancelled_in_its_batch_is_told_at_once_and_holds_its_permit() {
    let bench = Bench::new(BatchConfig { max_in_flight_per_client: Some(1), ..config() });
    let of = Terms { client: Some(1), ..Terms::default() };
    let ticket = bench.submit_with(0, of);
    bench.submit(1);
    let batch = bench.take();
    assert!(!batch.is_cancelled(0) && batch.remaining(0).is_none());
    assert!(bench.coordinator.cancel(ticket));
    assert_eq!(bench.log.of(0), Some(Outcome::Cancelled { dispatched: true }));
    assert!(batch.is_cancelled(0) && !batch.is_cancelled(1) && batch.is_cancelled(9));
    bench.refused(2, of);
    assert_eq!((bench.stats().abandoned, bench.stats().dispatched), (1, 1));
    let finished = batch.complete(vec![Ok(0), Ok(10)]);
    assert_eq!(finished, Finished { resolved: 1, late: 1, lost: false });
    assert_eq!((bench.stats().abandoned, bench.stats().late_results), (0, 1));
    bench.submit_with(2, of);
}

#[test]
fn the_response_timeout_counts_from_dispatch() {
    let bench = Bench::new(BatchConfig { response_timeout: Some(ms(10)), ..config() });
    bench.submit(0);
    let own = Terms { response_timeout: Timeout::After(ms(5)), ..Terms::default() };
    bench.submit_with(1, own);
    bench.submit_with(2, Terms { response_timeout: Timeout::Never, ..Terms::default() });
    bench.after(ms(50));
    let batch = bench.take();
    assert_eq!(batch.remaining(0), Some(ms(10)));
    bench.after(ms(5));
    let (waited, limit) = (ms(50), TimeLimit::Response);
    assert_eq!(bench.log.of(1), Some(Outcome::TimedOut { waited, ran: ms(5), limit }));
    bench.after(ms(5));
    assert_eq!(bench.log.of(0), Some(Outcome::TimedOut { waited, ran: ms(10), limit }));
    bench.after(ms(1000));
    answer(batch);
    assert_eq!(bench.log.of(2), Some(Outcome::Completed(20)));
    assert_eq!((bench.stats().timed_out, bench.stats().late_results), (2, 2));
}

#[test]
fn the_timeout_bounds_a_submit_as_a_whole() {
    let configured = BatchConfig { timeout: Some(ms(20)), response_timeout: Some(ms(15)), ..config() };
    let bench = Bench::new(configured);
    bench.submit(0);
    bench.after(ms(10));
    let _batch = bench.take();
    bench.after(ms(10));
    let ended = Outcome::TimedOut { waited: ms(10), ran: ms(10), limit: TimeLimit::Whole };
    assert_eq!(bench.log.of(0), Some(ended));
}

#[test]
fn an_error_in_one_place_fails_that_item_alone() {
    let bench = Bench::new(config());
    bench.submit_all(0..2);
    let finished = bench.take().complete(vec![Err("bad"), Ok(10)]);
    assert_eq!(finished.resolved, 2);
    assert_eq!(bench.log.of(0), Some(Outcome::Failed("bad")));
    assert_eq!(bench.log.of(1), Some(Outcome::Completed(10)));
    assert_eq!((bench.stats().failed, bench.stats().consecutive_errors), (1, 0));
}

#[test]
fn a_wrong_number_of_results_fails_all_and_names_both() {
    let bench = Bench::new(config());
    bench.submit_all(0..2);
    bench.take().complete(vec![Ok(0), Ok(10), Ok(20)]);
    for id in 0..2 {
        assert_eq!(bench.log.of(id), Some(Outcome::WrongCount { expected: 2, actual: 3 }));
    }
    assert_eq!(bench.stats().consecutive_errors, 1);
}

#[test]
fn each_item_of_a_failed_batch_has_an_error_of_its_own() {
    let bench = Bench::new(config());
    bench.submit_all(0..2);
    bench.take().fail(|index| if index == 0 { "first" } else { "second" });
    assert_eq!(bench.log.of(0), Some(Outcome::Failed("first")));
    assert_eq!(bench.log.of(1), Some(Outcome::Failed("second")));
}

#[test]
fn a_batch_that_is_dropped_loses_its_worker() {
    let bench = Bench::new(config());
    bench.submit_all(0..2);
    let batch = bench.take();
    bench.after(ms(3));
    drop(batch);
    assert_eq!(bench.log.of(0), Some(Outcome::WorkerLost { ran: ms(3), hung: false }));
    assert!(bench.log.came_back(0));
    assert_eq!(bench.stats().failed, 2);
}

#[test]
fn items_are_answered_ahead_of_their_batch() {
    let bench = Bench::new(BatchConfig { max_in_flight_per_client: Some(1), ..config() });
    let of = Terms { client: Some(1), ..Terms::default() };
    bench.submit_with(0, of);
    let ticket = bench.submit(1);
    bench.submit(2);
    let mut batch = bench.take();
    assert!(batch.resolve(0, Ok(7)));
    assert_eq!(bench.log.of(0), Some(Outcome::Completed(7)));
    bench.submit_with(3, of);
    assert!(!batch.resolve(0, Ok(8)), "once");
    assert!(!batch.resolve(99, Ok(8)));
    assert!(bench.coordinator.cancel(ticket));
    assert!(!batch.resolve(1, Ok(8)), "nobody waits");
    assert_eq!(bench.stats().late_results, 1);
    let finished = batch.complete(vec![Ok(0), Ok(0), Err("bad")]);
    assert_eq!(finished, Finished { resolved: 1, late: 0, lost: false });
    assert_eq!(bench.log.of(2), Some(Outcome::Failed("bad")));
}

#[test]
fn a_batch_whose_items_were_all_answered_ahead_needs_no_results() {
    let bench = Bench::new(config());
    bench.submit(0);
    let ticket = bench.submit(1);
    let mut batch = bench.take();
    batch.resolve(0, Ok(0));
    bench.coordinator.cancel(ticket);
    assert_eq!(batch.finish(), Finished { resolved: 0, late: 0, lost: false });
    assert_eq!((bench.stats().consecutive_errors, bench.stats().abandoned), (0, 0));
    bench.submit_all(2..4);
    let mut batch = bench.take();
    batch.resolve(0, Ok(0));
    batch.finish();
    assert_eq!(bench.log.of(3), Some(Outcome::WrongCount { expected: 2, actual: 1 }));
}

#[test]
fn items_that_were_not_taken_out_come_back_with_the_answer() {
    let bench = Bench::new(config());
    bench.submit(0);
    bench.take().complete(vec![Ok(0)]);
    assert!(bench.log.came_back(0));
    bench.submit(1);
    let mut batch = bench.take();
    assert_eq!(batch.take_items(), [1]);
    batch.complete(vec![Ok(0)]);
    assert!(!bench.log.came_back(1));
}

#[test]
fn a_batch_that_fails_can_be_halved_until_the_culprit_is_alone() {
    let bench = Bench::new(BatchConfig { isolate_failures: true, allowed_sizes: vec![1, 2, 4], ..config() });
    let tickets = bench.submit_all(0..4);
    let mut left = vec![bench.take()];
    assert!(left[0].isolates());
    bench.coordinator.cancel(tickets[3]);
    let mut runs = Vec::new();
    while let Some(batch) = left.pop() {
        bench.check();
        runs.push((batch.items().to_vec(), batch.padded_size()));
        if !batch.items().contains(&1) {
            answer(batch);
            continue;
        }
        match batch.split() {
            Ok((first, second)) => {
                assert_eq!(first.reason(), DispatchReason::Isolation);
                left.extend([second, first]);
            }
            Err(alone) => _ = alone.fail(|_| "poison"),
        }
    }
    let expected = [(vec![0, 1, 2, 3], 4), (vec![0, 1], 2), (vec![0], 1), (vec![1], 1), (vec![2, 3], 2)];
    assert_eq!(runs, expected);
    assert_eq!(bench.log.of(0), Some(Outcome::Completed(0)));
    assert_eq!(bench.log.of(1), Some(Outcome::Failed("poison")));
    assert_eq!(bench.log.of(2), Some(Outcome::Completed(20)));
    let stats = bench.stats();
    assert_eq!((stats.completed, stats.failed, stats.cancelled, stats.late_results), (2, 1, 1, 1));
    assert_eq!((stats.in_flight, stats.dispatched, stats.abandoned), (0, 0, 0));
}

#[test]
fn a_function_that_hangs_is_given_up_and_its_late_answer_ignored() {
    let bench = Bench::new(BatchConfig { callback_timeout: Some(ms(100)), ..config() });
    bench.submit_all(0..2);
    let batch = bench.take();
    bench.after(ms(99));
    assert_eq!(bench.log.of(0), None);
    assert!(bench.coordinator.is_running(0));
    bench.heard.take();
    bench.after(ms(1));
    assert_eq!(bench.log.of(0), Some(Outcome::WorkerLost { ran: ms(100), hung: true }));
    assert_eq!(bench.heard.take(), ["lost"]);
    let is_running = || bench.coordinator.is_running(0);
    assert!(!is_running());
    bench.submit(2);
    let finished = batch.complete(vec![Ok(0), Ok(0)]);
    assert_eq!(finished, Finished { resolved: 0, late: 2, lost: true });
    let next = bench.take();
    assert!(is_running(), "who hears of the loss only now finds that the worker has come back");
    answer(next);
    assert_eq!(bench.log.of(2), Some(Outcome::Completed(20)));
    assert_eq!((bench.stats().workers_lost, bench.stats().late_results), (1, 2));
}

#[test]
fn halves_are_watched_from_the_beginning_of_their_own_run() {
    let bench = Bench::new(BatchConfig { callback_timeout: Some(ms(100)), ..config() });
    bench.submit_all(0..2);
    let batch = bench.take();
    bench.after(ms(60));
    let (first, second) = batch.split().expect("two items");
    first.rearm();
    bench.after(ms(60));
    answer(first);
    bench.after(ms(60));
    second.rearm();
    bench.after(ms(60));
    answer(second);
    assert_eq!(bench.log.of(1), Some(Outcome::Completed(10)));
}

#[test]
fn a_worker_that_has_died_fails_its_batches_and_no_others() {
    let bench = Bench::new(config());
    bench.submit(0);
    let dead = bench.try_take_as(7).expect("a batch");
    bench.submit(1);
    let alive = bench.try_take_as(8).expect("a batch");
    bench.coordinator.lose(7);
    assert_eq!(bench.log.of(0), Some(Outcome::WorkerLost { ran: ms(0), hung: false }));
    assert!(dead.fail(|_| "late").lost);
    answer(alive);
    assert_eq!(bench.log.of(1), Some(Outcome::Completed(10)));
}

#[test]
fn a_drain_runs_what_waits_at_once_and_takes_nothing_new() {
    let bench = Bench::new(BatchConfig { max_latency: ms(50), ..config() });
    bench.submit(0);
    bench.coordinator.pause();
    bench.coordinator.begin_drain();
    assert_eq!(bench.refused(1, Terms::default()), RejectReason::Closed);
    let batch = bench.take();
    assert_eq!(batch.reason(), DispatchReason::Drain);
    bench.heard.take();
    assert!(!bench.coordinator.is_quiet());
    answer(batch);
    assert!(bench.coordinator.is_quiet());
    assert_eq!(bench.heard.take(), ["quiet"]);
    assert!(matches!(bench.coordinator.try_take(0), Taken::Closed));
    assert!(bench.coordinator.drain(None), "again, at once");
}

#[test]
fn closing_ends_what_waits_and_lets_batches_finish() {
    let bench = Bench::new(BatchConfig { priorities: 2, max_latency: ms(50), ..config() });
    bench.submit_all(0..4);
    let batch = bench.take();
    bench.submit_with(4, Terms { key: 1, priority: 1, ..Terms::default() });
    bench.submit_with(5, Terms { key: 2, ..Terms::default() });
    bench.coordinator.close();
    assert_eq!((bench.log.of(4), bench.log.of(5)), (Some(Outcome::Closed), Some(Outcome::Closed)));
    assert!(bench.log.came_back(5));
    assert!(matches!(bench.coordinator.try_take(0), Taken::Closed));
    answer(batch);
    assert_eq!(bench.log.of(3), Some(Outcome::Completed(30)));
    assert_eq!(bench.stats().closed, 2);
    bench.coordinator.close();
}

#[test]
fn what_waits_when_the_last_owner_goes_is_told() {
    let bench = Bench::new(config());
    bench.submit_all(0..5);
    let log = bench.log.clone();
    let batch = bench.take();
    drop(bench);
    assert_eq!(log.of(4), None, "the batch might be split and taken again");
    answer(batch);
    assert_eq!((log.of(0), log.of(4)), (Some(Outcome::Completed(0)), Some(Outcome::Closed)));
}
