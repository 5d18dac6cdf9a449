//! Who is told when, and what may be done from there: notices come on edges only, replies come after permits
//! and locks have been released.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod batch_support;

use std::sync::{Arc, Mutex};

use batch_support::{Bench, Told, answer, config, ms};
use headrace::batch::{
    BatchClock, BatchConfig, Coordinator, Outcome, RejectReason, Reply, Taken, Terms, Timeout,
};

#[test]
fn the_first_arrival_is_told_of_and_no_other_until_somebody_looks() {
    let bench = Bench::new(config());
    bench.submit_all(0..3);
    assert_eq!(bench.heard.take(), ["arrival"]);
    answer(bench.take());
    bench.submit(3);
    assert_eq!(bench.heard.take(), [""; 0], "everybody is busy, as far as is known");
    answer(bench.take());
    assert!(bench.try_take().is_none());
    bench.submit_all(4..6);
    assert_eq!(bench.heard.take(), ["arrival"]);
}

#[test]
fn who_asks_is_told_of_what_can_be_taken_already_and_of_what_comes() {
    let bench = Bench::new(config());
    assert!(bench.try_take().is_none());
    bench.submit(0);
    assert_eq!(bench.heard.take(), ["arrival"], "and nobody comes");
    bench.coordinator.wake_workers();
    bench.submit(1);
    assert_eq!(bench.heard.take(), [""; 0]);
    bench.coordinator.ask();
    assert_eq!(bench.heard.take(), ["other"]);
    answer(bench.take());
    bench.coordinator.ask();
    assert_eq!(bench.heard.take(), [""; 0]);
    bench.submit(2);
    assert_eq!(bench.heard.take(), ["arrival"]);
}

#[test]
fn a_window_is_told_of_when_it_ends() {
    let bench = Bench::new(BatchConfig { max_latency: ms(5), ..config() });
    bench.submit(0);
    assert_eq!(bench.heard.take(), [""; 0]);
    bench.after(ms(5));
    assert_eq!(bench.heard.take(), ["other"]);
}

#[test]
fn resuming_flushing_and_new_settings_are_told_of() {
    let windows = BatchConfig { max_latency: ms(5), ..config() };
    let bench = Bench::new(config());
    bench.coordinator.pause();
    bench.submit(0);
    assert_eq!(bench.heard.take(), [""; 0]);
    bench.coordinator.resume();
    assert_eq!(bench.heard.take(), ["other"]);
    let bench = Bench::new(windows.clone());
    bench.submit(0);
    bench.coordinator.flush();
    assert_eq!(bench.heard.take(), ["other"]);
    let bench = Bench::new(windows);
    bench.submit(0);
    bench.coordinator.configure(config()).unwrap();
    assert_eq!(bench.heard.take(), ["other"]);
}

#[test]
fn room_is_told_of_once_and_only_to_those_who_were_refused() {
    let small = BatchConfig { queue_capacity: Some(4), ..config() };
    let bench = Bench::new(small);
    bench.submit_all(0..4);
    bench.heard.take();
    answer(bench.take());
    assert_eq!(bench.heard.take(), [""; 0]);
    let tickets = bench.submit_all(4..8);
    bench.refused(8, Terms::default());
    bench.refused(9, Terms::default());
    bench.coordinator.cancel(tickets[0]);
    assert_eq!(bench.heard.take(), ["room"]);
    bench.coordinator.cancel(tickets[1]);
    assert_eq!(bench.heard.take(), [""; 0]);
}

#[test]
fn who_offers_is_told_of_room_and_counts_once_it_is_admitted() {
    let bench = Bench::new(BatchConfig { queue_capacity: Some(4), max_cost: Some(9), ..config() });
    bench.submit_all(0..4);
    bench.heard.take();
    let offer = |id, terms| {
        let reply = Told { id, log: bench.log.clone() };
        bench.coordinator.offer(id, reply, terms).map_err(|refused| refused.reason)
    };
    offer(4, Terms::default()).unwrap_err();
    let stats = bench.coordinator.stats();
    assert_eq!((stats.submitted, stats.rejected.total()), (4, 0));
    answer(bench.take());
    assert_eq!(bench.heard.take(), ["room"]);
    offer(4, Terms::default()).unwrap();
    // What can never be admitted is refused like any other.
    let never = offer(5, Terms { cost: 10, ..Terms::default() }).unwrap_err();
    assert_eq!(never, RejectReason::TooLarge { cost: 10, max_cost: 9 });
    let stats = bench.coordinator.stats();
    assert_eq!((stats.submitted, stats.rejected.total()), (6, 1));
    assert!(stats.is_conserved());
}

#[test]
fn who_offers_is_not_refused_as_late() {
    let bench = Bench::new(config());
    for id in 100..110 {
        bench.submit(id);
        let batch = bench.take();
        bench.after(ms(10));
        answer(batch);
    }
    bench.submit_all(0..12);
    let terms = Terms { timeout: Timeout::After(ms(25)), ..Terms::default() };
    assert_eq!(bench.refused(12, terms).as_str(), "would_expire");
    // Its time begins when it is admitted: held back for as long as others wait, it would never be over.
    bench.coordinator.offer(12, Told { id: 12, log: bench.log.clone() }, terms).unwrap();
}

#[test]
fn a_clients_permit_is_room() {
    let bench = Bench::new(BatchConfig { max_in_flight_per_client: Some(1), ..config() });
    let of = Terms { client: Some(1), ..Terms::default() };
    bench.submit_with(0, of);
    let batch = bench.take();
    bench.refused(1, of);
    bench.heard.take();
    answer(batch);
    assert_eq!(bench.heard.take(), ["room"]);
}

#[test]
fn a_refusal_says_when_there_will_be_room_once_that_is_known() {
    let small = BatchConfig { queue_capacity: Some(4), max_cost: Some(9), ..config() };
    let bench = Bench::new(small);
    let retry_after = |bench: &Bench, terms| bench.try_submit(99, terms).unwrap_err().retry_after;
    bench.submit_all(0..4);
    assert_eq!(retry_after(&bench, Terms::default()), None);
    for id in 10..20 {
        let batch = bench.take();
        bench.after(ms(8));
        answer(batch);
        bench.submit(id);
    }
    bench.submit_all(4..7);
    let after = retry_after(&bench, Terms::default()).expect("ten were measured");
    assert!(after.abs_diff(ms(8)) < ms(1), "{after:?}");
    assert_eq!(retry_after(&bench, Terms { cost: 10, ..Terms::default() }), None, "it never fits");
}

type Again = Coordinator<u32, Restless>;

/// Uses the coordinator from within its reply.
struct Restless {
    coordinator: Mutex<Option<Again>>,
    heard: Arc<Mutex<Vec<bool>>>,
}

impl Reply<u32> for Restless {
    type Output = ();
    type Error = ();

    fn resolve(self, _outcome: Outcome<(), ()>, item: Option<u32>) {
        let Some(coordinator) = self.coordinator.lock().unwrap().take() else { return };
        assert!(item != Some(13), "a reply that panics");
        let next = Self { coordinator: Mutex::new(None), heard: Arc::clone(&self.heard) };
        let of = Terms { client: Some(1), ..Terms::default() };
        let admitted = coordinator.submit(0, next, of).is_ok();
        self.heard.lock().unwrap().push(admitted && coordinator.stats().is_conserved());
    }
}

#[test]
fn a_permit_is_free_before_anybody_is_told_and_replies_may_submit() {
    let capped = BatchConfig { max_in_flight_per_client: Some(1), ..config() };
    let of = Terms { client: Some(1), ..Terms::default() };
    type End = fn(&Again);
    let ends: [End; 4] = [
        |coordinator| {
            let Taken::Batch(batch) = coordinator.try_take(0) else { panic!("a batch") };
            batch.complete(vec![Ok(())]);
        },
        |coordinator| {
            let Taken::Batch(batch) = coordinator.try_take(0) else { panic!("a batch") };
            drop(batch);
        },
        |coordinator| {
            let Taken::Batch(_batch) = coordinator.try_take(3) else { panic!("a batch") };
            coordinator.lose(3);
        },
        |coordinator| {
            let Taken::Batch(mut batch) = coordinator.try_take(0) else { panic!("a batch") };
            batch.resolve(0, Err(()));
        },
    ];
    for end in ends {
        let coordinator = Again::with_clock(capped.clone(), BatchClock::manual()).unwrap();
        let heard = Arc::<Mutex<Vec<bool>>>::default();
        let reply = |to| Restless { coordinator: Mutex::new(to), heard: Arc::clone(&heard) };
        coordinator.submit(0, reply(Some(coordinator.clone())), of).unwrap();
        end(&coordinator);
        assert_eq!(*heard.lock().unwrap(), [true]);
        coordinator.close();
    }
}

#[test]
fn a_reply_that_panics_costs_nobody_else_theirs() {
    let coordinator = Again::with_clock(config(), BatchClock::manual()).unwrap();
    let heard = Arc::<Mutex<Vec<bool>>>::default();
    for item in [13, 14] {
        let to = Mutex::new(Some(coordinator.clone()));
        let reply = Restless { coordinator: to, heard: Arc::clone(&heard) };
        coordinator.submit(item, reply, Terms::default()).unwrap();
    }
    let Taken::Batch(batch) = coordinator.try_take(0) else { panic!("a batch") };
    batch.complete(vec![Ok(()), Ok(())]);
    assert_eq!(*heard.lock().unwrap(), [true]);
    coordinator.close();
    assert!(coordinator.is_quiet());
}
