//! Threads against each other under a model checker, which tries thousands of the orders in which they can
//! take the coordinator's lock and park: whatever the order, each item is resolved exactly once, each permit
//! is given back exactly once, and nobody sleeps on.
//!
//! Built only with `RUSTFLAGS="--cfg headrace_model"`, as `make test-model` does.

#![cfg(headrace_model)]
// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use headrace::batch::{
    BatchClock, BatchConfig, Cause, Coordinator, Notice, Outcome, Reply, Taken, Terms, Ticket,
};
use shuttle::sync::{Condvar, Mutex, MutexGuard};
use shuttle::{check_random, thread};

const ORDERS: usize = 20_000;
const TIMEOUT: Duration = Duration::from_millis(10);

/// How often each item was resolved.
#[derive(Default)]
struct Ledger {
    told: Mutex<Vec<usize>>,
    more: Condvar,
}

impl Ledger {
    /// A worker that panics answers for its batch while it unwinds, which is no reason to poison anything.
    fn lock(&self) -> MutexGuard<'_, Vec<usize>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, id: usize) {
        self.lock()[id] += 1;
        self.more.notify_all();
    }

    fn wait_for(&self, id: usize) {
        let mut told = self.lock();
        while told[id] == 0 {
            told = self.more.wait(told).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Told(usize, Arc<Ledger>);

impl Reply<usize> for Told {
    type Output = ();
    type Error = Infallible;

    fn resolve(self, _outcome: Outcome<(), Infallible>, _item: Option<usize>) {
        self.1.tell(self.0);
    }
}

type Work = Coordinator<usize, Told>;

struct Scene {
    work: Work,
    clock: BatchClock,
    ledger: Arc<Ledger>,
}

const CLIENT: Terms = Terms {
    cost: 1,
    key: 0,
    client: Some(1),
    priority: 0,
    timeout: headrace::batch::Timeout::Configured,
    response_timeout: headrace::batch::Timeout::Configured,
};

impl Scene {
    fn new(items: usize, config: BatchConfig) -> Self {
        let clock = BatchClock::manual();
        let work = Work::with_clock(config, clock.clone()).unwrap();
        let ledger = Arc::new(Ledger::default());
        ledger.lock().resize(items, 0);
        Self { work, clock, ledger }
    }

    fn submit(&self, id: usize) -> Ticket {
        self.work.submit(id, Told(id, Arc::clone(&self.ledger)), CLIENT).expect("admitted")
    }

    fn spawn(&self, run: impl FnOnce(&Work) + Send + 'static) -> thread::JoinHandle<()> {
        let work = self.work.clone();
        thread::spawn(move || run(&work))
    }

    /// Everything has ended, once, and nothing is held.
    fn check(&self) {
        assert!(self.ledger.lock().iter().all(|&times| times == 1));
        let stats = self.work.stats();
        assert!(stats.is_conserved(), "{stats:?}");
        let held = (stats.queued, stats.dispatched, stats.abandoned, stats.in_flight);
        assert_eq!(held, (0, 0, 0, 0));
    }

    /// All permits of the client are free: as many items as the cap are let in.
    fn check_permits(&self, cap: usize) {
        let sink = Arc::new(Ledger::default());
        sink.lock().resize(cap, 0);
        for id in 0..cap {
            assert!(self.work.submit(id, Told(id, Arc::clone(&sink)), CLIENT).is_ok(), "permit {id}");
        }
        assert!(self.work.submit(0, Told(0, sink), CLIENT).is_err(), "and no more");
    }
}

fn config() -> BatchConfig {
    BatchConfig {
        max_batch_size: 2,
        max_in_flight_per_client: Some(3),
        timeout: Some(TIMEOUT),
        ..BatchConfig::default()
    }
}

fn answer_one(work: &Work) {
    if let Taken::Batch(batch) = work.try_take(0) {
        let results = batch.items().iter().map(|_| Ok(())).collect();
        batch.complete(results);
    }
}

#[test]
fn cancel_timeout_and_completion_race_for_each_item() {
    check_random(
        || {
            let scene = Scene::new(3, config());
            let tickets: Vec<_> = (0..3).map(|id| scene.submit(id)).collect();
            let clock = scene.clock.clone();
            let threads = [
                scene.spawn(|work| {
                    answer_one(work);
                    answer_one(work);
                }),
                scene.spawn(move |work| tickets.into_iter().for_each(|ticket| _ = work.cancel(ticket))),
                scene.spawn(move |work| {
                    clock.advance(TIMEOUT);
                    work.tick();
                }),
            ];
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            scene.work.tick();
            scene.check();
            scene.check_permits(3);
        },
        ORDERS,
    );
}

#[test]
fn a_worker_that_dies_a_panic_a_cancellation_and_an_early_answer_race() {
    check_random(
        || {
            let scene = Scene::new(2, config());
            let ticket = scene.submit(0);
            scene.submit(1);
            let threads = [
                scene.spawn(|work| {
                    let panicked = catch_unwind(AssertUnwindSafe(|| {
                        if let Taken::Batch(mut batch) = work.try_take(7) {
                            batch.resolve(1, Ok(()));
                            thread::yield_now();
                            std::panic::resume_unwind(Box::new("the function panics"));
                        }
                    }));
                    assert!(panicked.is_err() || work.stats().cancelled > 0 || work.stats().failed > 0);
                }),
                scene.spawn(|work| work.lose(7)),
                scene.spawn(move |work| _ = work.cancel(ticket)),
            ];
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            scene.check();
            scene.check_permits(3);
        },
        ORDERS,
    );
}

#[test]
fn closing_races_with_submitting_taking_and_cancelling() {
    check_random(
        || {
            let scene = Scene::new(2, config());
            let ledger = Arc::clone(&scene.ledger);
            let threads = [
                scene.spawn(move |work| {
                    for id in 0..2 {
                        match work.submit(id, Told(id, Arc::clone(&ledger)), CLIENT) {
                            Ok(ticket) => _ = work.cancel(ticket),
                            // Refused, nobody is told.
                            Err(_) => ledger.tell(id),
                        }
                    }
                }),
                scene.spawn(|work| {
                    while let Some(batch) = work.next_batch(0) {
                        let results = batch.items().iter().map(|_| Ok(())).collect();
                        batch.complete(results);
                    }
                }),
                scene.spawn(Work::close),
            ];
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            scene.check();
            assert!(scene.work.is_quiet());
        },
        ORDERS,
    );
}

#[test]
fn a_permit_is_free_before_its_caller_is_told() {
    check_random(
        || {
            let scene = Scene::new(4, BatchConfig { max_in_flight_per_client: Some(1), ..config() });
            let worker = scene.spawn(|work| {
                while let Some(batch) = work.next_batch(0) {
                    let results = batch.items().iter().map(|_| Ok(())).collect();
                    batch.complete(results);
                }
            });
            // One at a time: each is submitted as soon as the one before it has been told.
            for id in 0..4 {
                scene.submit(id);
                scene.ledger.wait_for(id);
            }
            scene.work.close();
            worker.join().unwrap();
            scene.check();
        },
        ORDERS,
    );
}

#[test]
fn no_worker_sleeps_while_there_is_work() {
    check_random(
        || {
            let config = BatchConfig { max_batch_size: 1, workers: 2, ..BatchConfig::default() };
            let scene = Scene::new(4, config);
            let workers: Vec<_> = (0..2)
                .map(|worker| {
                    scene.spawn(move |work| {
                        while work.wait_ready() {
                            if let Taken::Batch(batch) = work.try_take(worker) {
                                batch.complete(vec![Ok(())]);
                            }
                        }
                    })
                })
                .collect();
            let submitters: Vec<_> = (0..2)
                .map(|half| {
                    let ledger = Arc::clone(&scene.ledger);
                    scene.spawn(move |work| {
                        for id in [2 * half, 2 * half + 1] {
                            let told = Told(id, Arc::clone(&ledger));
                            work.submit(id, told, Terms::default()).expect("admitted");
                        }
                    })
                })
                .collect();
            // Deadlock is a failure: every item is answered without anybody closing.
            (0..4).for_each(|id| scene.ledger.wait_for(id));
            submitters.into_iter().for_each(|thread| thread.join().unwrap());
            assert!(scene.work.drain(None));
            workers.into_iter().for_each(|thread| thread.join().unwrap());
            scene.check();
        },
        ORDERS,
    );
}

/// Plans a look for later, as an event loop does, and then wakes a worker.
#[derive(Default)]
struct Loop {
    planned: Mutex<bool>,
    turn: Condvar,
}

impl Notice for Loop {
    fn ready(&self, _cause: Cause) {
        *self.planned.lock().unwrap() = true;
        self.turn.notify_all();
    }
}

#[test]
fn a_notice_that_gathers_loses_no_arrival() {
    check_random(
        || {
            let turns = Arc::new(Loop::default());
            let notice = Arc::clone(&turns) as Arc<dyn Notice>;
            let mut scene = Scene::new(4, BatchConfig::default());
            scene.work = Work::with_notice(BatchConfig::default(), notice, scene.clock.clone()).unwrap();
            let worker = scene.spawn(|work| {
                while let Some(batch) = work.next_batch(0) {
                    let results = batch.items().iter().map(|_| Ok(())).collect();
                    batch.complete(results);
                }
            });
            // The loop's thread wakes workers only when it was told that there is something.
            let looping = scene.spawn(move |work| {
                loop {
                    let mut planned = turns.planned.lock().unwrap();
                    while !*planned {
                        planned = turns.turn.wait(planned).unwrap();
                    }
                    *planned = false;
                    drop(planned);
                    if work.is_closed() {
                        break;
                    }
                    work.wake_workers();
                }
            });
            for id in 0..4 {
                let told = Told(id, Arc::clone(&scene.ledger));
                scene.work.submit(id, told, Terms::default()).expect("admitted");
                if id % 2 == 1 {
                    scene.ledger.wait_for(id);
                }
            }
            (0..4).for_each(|id| scene.ledger.wait_for(id));
            scene.work.close();
            worker.join().unwrap();
            looping.join().unwrap();
            scene.check();
        },
        ORDERS,
    );
}
