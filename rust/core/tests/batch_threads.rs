//! The coordinator and its handle over real threads.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use headrace::batch::threads::Results;
use headrace::batch::{
    BatchConfig, BatchError, BatchFunction, BatchStartError, Batcher, Coordinator, LeaseError, LeaseSource,
    Outcome, RejectReason, Reply, Terms, Timeout, WorkBatch,
};

/// No test waits that long unless it hangs.
const LONG: Duration = Duration::from_secs(60);

/// Hands the outcome to whoever waits.
struct Answer(Sender<Outcome<u64, Infallible>>);

impl Reply<u64> for Answer {
    type Output = u64;
    type Error = Infallible;

    fn resolve(self, outcome: Outcome<u64, Infallible>, _item: Option<u64>) {
        let _ = self.0.send(outcome);
    }
}

fn call(coordinator: &Coordinator<u64, Answer>, item: u64, terms: Terms) -> Outcome<u64, Infallible> {
    let (sender, receiver) = channel();
    coordinator.submit(item, Answer(sender), terms).expect("admitted");
    receiver.recv_timeout(LONG).expect("an answer")
}

#[test]
fn never_more_than_the_cap_in_flight_and_never_a_refusal_below_it() {
    const CLIENTS: usize = 8;
    const CAP: usize = 8;
    const CALLS: u64 = 200;
    let config = BatchConfig {
        max_batch_size: 16,
        workers: 3,
        max_in_flight_per_client: Some(CAP),
        ..BatchConfig::default()
    };
    let coordinator = Coordinator::<u64, Answer>::new(config).unwrap();
    let running: Arc<[AtomicUsize; CLIENTS]> = Arc::default();
    let workers: Vec<_> = (0..3)
        .map(|worker| {
            let (coordinator, running) = (coordinator.clone(), Arc::clone(&running));
            thread::spawn(move || {
                while let Some(batch) = coordinator.next_batch(worker) {
                    for &client in batch.items() {
                        let before = running[client as usize].fetch_add(1, Ordering::SeqCst);
                        assert!(before < CAP, "client {client} has too many");
                    }
                    thread::yield_now();
                    for &client in batch.items() {
                        running[client as usize].fetch_sub(1, Ordering::SeqCst);
                    }
                    let results = batch.items().iter().map(|client| Ok(*client)).collect();
                    batch.complete(results);
                }
            })
        })
        .collect();
    // As many threads for each client as it may have in flight, each with one at a time: were a permit
    // released after its caller is told, one of them would be refused.
    thread::scope(|scope| {
        for thread in 0..64_u64 {
            let (coordinator, client) = (&coordinator, thread % CLIENTS as u64);
            scope.spawn(move || {
                let terms = Terms { client: Some(client), ..Terms::default() };
                for _ in 0..CALLS {
                    assert_eq!(call(coordinator, client, terms), Outcome::Completed(client));
                }
            });
        }
    });
    assert!(coordinator.drain(Some(LONG)));
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    let stats = coordinator.stats();
    assert!(stats.is_conserved());
    assert_eq!((stats.completed, stats.rejected.total()), (64 * CALLS, 0));
}

#[test]
fn parked_workers_are_woken_for_windows_and_end_when_it_closes() {
    let latency = Duration::from_millis(2);
    let config = BatchConfig { max_latency: latency, workers: 2, ..BatchConfig::default() };
    let coordinator = Coordinator::<u64, Answer>::new(config).unwrap();
    let workers: Vec<_> = (0..2)
        .map(|worker| {
            let coordinator = coordinator.clone();
            thread::spawn(move || {
                while let Some(batch) = coordinator.next_batch(worker) {
                    let results = batch.items().iter().map(|item| Ok(item + 1)).collect();
                    batch.complete(results);
                }
            })
        })
        .collect();
    for item in 0..20 {
        let begun = Instant::now();
        assert_eq!(call(&coordinator, item, Terms::default()), Outcome::Completed(item + 1));
        assert!(begun.elapsed() >= latency, "never before its time");
    }
    coordinator.close();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}

#[test]
fn items_expire_by_themselves() {
    let coordinator = Coordinator::<u64, Answer>::new(BatchConfig::default()).unwrap();
    let terms = Terms { timeout: Timeout::After(Duration::from_millis(5)), ..Terms::default() };
    let Outcome::Expired { waited, .. } = call(&coordinator, 0, terms) else { panic!("expired") };
    assert!(waited >= Duration::from_millis(5));
}

#[test]
fn an_item_with_less_time_than_those_before_it_expires_first() {
    // Nobody takes anything, as while all workers are busy.
    let coordinator = Coordinator::<u64, Answer>::new(BatchConfig::default()).unwrap();
    let wait = |seconds| Terms { timeout: Timeout::After(Duration::from_secs(seconds)), ..Terms::default() };
    let (sender, others) = channel();
    for seconds in [600, 300, 900] {
        coordinator.submit(seconds, Answer(sender.clone()), wait(seconds)).expect("admitted");
    }
    let terms = Terms { timeout: Timeout::After(Duration::from_millis(5)), ..Terms::default() };
    assert!(matches!(call(&coordinator, 0, terms), Outcome::Expired { .. }));
    assert!(others.try_recv().is_err());
}

/// Doubles; fails on 13, panics on 99, waits for a word on 77. Notes on which thread it was called.
struct Doubler {
    calls: Arc<Mutex<Vec<(&'static str, ThreadId)>>>,
    gate: Arc<Mutex<Receiver<()>>>,
}

impl Doubler {
    fn note(&self, call: &'static str) {
        self.calls.lock().unwrap().push((call, thread::current().id()));
    }
}

impl<L: 'static> BatchFunction<u64, L> for Doubler {
    type Output = u64;
    type Error = String;

    fn on_start(&mut self) -> Result<(), String> {
        self.note("on_start");
        Ok(())
    }

    fn warm_up(&mut self) -> Result<(), String> {
        self.note("warm_up");
        Ok(())
    }

    fn run(
        &mut self,
        batch: &mut WorkBatch<u64, u64, String>,
        _lease: &mut L,
    ) -> Result<Results<u64, String>, String> {
        self.note("run");
        assert!(!batch.items().contains(&99), "99 came");
        if batch.items().contains(&77) {
            self.gate.lock().unwrap().recv_timeout(LONG).unwrap();
        }
        if batch.items().contains(&13) {
            return Err("13 came".to_owned());
        }
        Ok(batch
            .items()
            .iter()
            .map(|item| if *item == 7 { Err("7".to_owned()) } else { Ok(item * 2) })
            .collect())
    }

    fn on_stop(&mut self) {
        self.note("on_stop");
    }
}

struct Rig {
    batcher: Batcher<u64, u64, String>,
    calls: Arc<Mutex<Vec<(&'static str, ThreadId)>>>,
    open: Sender<()>,
}

fn rig(config: BatchConfig) -> Rig {
    let calls = Arc::<Mutex<Vec<_>>>::default();
    let (open, gate) = channel();
    let gate = Arc::new(Mutex::new(gate));
    let noted = Arc::clone(&calls);
    let make = move |_| Doubler { calls: Arc::clone(&noted), gate: Arc::clone(&gate) };
    Rig { batcher: Batcher::start(config, make).unwrap(), calls, open }
}

#[tokio::test]
async fn all_of_a_worker_happens_on_one_thread_in_order() {
    let Rig { batcher, calls, .. } = rig(BatchConfig { workers: 2, ..BatchConfig::default() });
    for item in 20..30 {
        assert_eq!(batcher.submit(item).await.unwrap(), item * 2);
    }
    assert!(batcher.close(LONG));
    let mut threads = HashMap::<ThreadId, Vec<&str>>::new();
    for (call, thread) in calls.lock().unwrap().iter() {
        threads.entry(*thread).or_default().push(call);
    }
    assert_eq!(threads.len(), 2);
    for calls in threads.values() {
        assert_eq!((calls[0], calls[1], calls[calls.len() - 1]), ("on_start", "warm_up", "on_stop"));
        assert!(calls[2..calls.len() - 1].iter().all(|call| *call == "run"));
    }
}

#[tokio::test]
async fn map_keeps_the_order_and_is_never_refused_for_its_size() {
    let Rig { batcher, .. } = rig(BatchConfig { queue_capacity: Some(32), ..BatchConfig::default() });
    let answers = batcher.map(1000..3000, Terms::default()).await;
    assert!(answers.into_iter().map(Result::unwrap).eq((1000..3000).map(|item| item * 2)));
    assert!(batcher.stats().is_conserved());
}

#[tokio::test]
async fn errors_and_panics_end_their_batch_and_nothing_else() {
    let Rig { batcher, .. } = rig(BatchConfig::default());
    assert!(matches!(batcher.submit(7).await, Err(BatchError::Failed(error)) if error == "7"));
    assert!(matches!(batcher.submit(13).await, Err(BatchError::Failed(error)) if error == "13 came"));
    let Err(BatchError::Panicked { message, batch: 1 }) = batcher.submit(99).await else {
        panic!("panicked")
    };
    assert_eq!(&*message, "99 came");
    assert_eq!(batcher.submit(1).await.unwrap(), 2);
}

#[tokio::test]
async fn a_poisoned_batch_is_bisected() {
    let config = BatchConfig { isolate_failures: true, ..BatchConfig::default() };
    let Rig { batcher, .. } = rig(config);
    batcher.coordinator().pause();
    let items = [1, 2, 99, 4, 13, 6, 7];
    let waiting: Vec<_> =
        items.iter().map(|item| batcher.submit_with(*item, Terms::default()).unwrap()).collect();
    batcher.coordinator().resume();
    for (item, submission) in items.into_iter().zip(waiting) {
        match (item, submission.await) {
            (99, Err(BatchError::Panicked { batch: 1, .. })) => {}
            (13 | 7, Err(BatchError::Failed(_))) => {}
            (_, answer) => assert_eq!(answer.unwrap(), item * 2),
        }
    }
}

#[tokio::test]
async fn a_function_that_hangs_is_replaced_and_close_returns() {
    let config = BatchConfig { callback_timeout: Some(Duration::from_millis(20)), ..BatchConfig::default() };
    let Rig { batcher, open, calls } = rig(config);
    assert!(matches!(batcher.submit(77).await, Err(BatchError::WorkerLost { hung: true, .. })));
    assert_eq!(batcher.submit(1).await.unwrap(), 2, "another worker answers");
    assert!(!batcher.close(Duration::from_millis(1)), "the first is still inside");
    open.send(()).unwrap();
    assert!(batcher.close(LONG), "it ends when its function returns");
    let stopped = calls.lock().unwrap().iter().filter(|(call, _)| *call == "on_stop").count();
    assert_eq!(stopped, 2);
}

#[tokio::test]
async fn dropping_a_submission_cancels_it() {
    let Rig { batcher, .. } = rig(BatchConfig::default());
    batcher.coordinator().pause();
    drop(batcher.submit_with(1, Terms::default()).unwrap());
    batcher.coordinator().resume();
    assert_eq!(batcher.submit(2).await.unwrap(), 4);
    assert_eq!((batcher.stats().cancelled, batcher.stats().completed), (1, 1));
}

#[tokio::test]
async fn a_drain_runs_what_waits() {
    let Rig { batcher, .. } =
        rig(BatchConfig { max_latency: Duration::from_secs(3600), ..BatchConfig::default() });
    let waiting: Vec<_> = (20..25).map(|item| batcher.submit_with(item, Terms::default()).unwrap()).collect();
    assert!(batcher.drain(Some(LONG)).await);
    for (item, submission) in (20..25).zip(waiting) {
        assert_eq!(submission.await.unwrap(), item * 2);
    }
    let refused = batcher.submit(1).await;
    assert!(matches!(refused, Err(BatchError::Rejected { reason: RejectReason::Closed, .. })));
}

#[test]
fn a_worker_that_does_not_start_is_an_error_with_its_reason() {
    struct Broken(bool);

    impl BatchFunction<u64> for Broken {
        type Output = u64;
        type Error = String;

        fn on_start(&mut self) -> Result<(), String> {
            assert!(!self.0, "no device");
            Err("no model".to_owned())
        }

        fn run(
            &mut self,
            _batch: &mut WorkBatch<u64, u64, String>,
            _lease: &mut (),
        ) -> Result<Results<u64, String>, String> {
            Err("unreachable".to_owned())
        }
    }

    for (panics, expected) in [(false, "no model"), (true, "it panicked: no device")] {
        let started = Batcher::start(BatchConfig::default(), move |_| Broken(panics));
        let Err(BatchStartError::Failed { reason, worker: 0 }) = started else { panic!("failed") };
        assert_eq!(reason, expected);
    }
}

#[test]
fn a_start_that_takes_too_long_is_given_up() {
    let (open, gate) = channel::<()>();
    let gate = Mutex::new(gate);
    let config = BatchConfig { startup_timeout: Duration::from_millis(5), ..BatchConfig::default() };
    let started = Batcher::start(config, move |_| {
        let _ = gate.lock().unwrap().recv_timeout(LONG);
        Doubler { calls: Arc::default(), gate: Arc::new(Mutex::new(channel().1)) }
    });
    assert!(matches!(started, Err(BatchStartError::TimedOut { .. })));
    drop(open);
}

/// Lends `free` numbers, and counts what is out and what was finished.
#[derive(Default)]
struct Shelf {
    free: Mutex<Vec<usize>>,
    returned: tokio::sync::Notify,
    out: AtomicUsize,
    most_out: AtomicUsize,
    finished: AtomicUsize,
    breaks: AtomicBool,
}

struct Loan(Arc<Shelf>, usize);

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.out.fetch_sub(1, Ordering::SeqCst);
        self.0.free.lock().unwrap().push(self.1);
        self.0.returned.notify_one();
    }
}

/// A source of leases is shared; this one hands out references to itself.
struct Shelves(Arc<Shelf>);

impl LeaseSource for Shelves {
    type Lease = Loan;

    fn try_lease(&self) -> Result<Option<Loan>, LeaseError> {
        let free = self.0.free.lock().unwrap().pop();
        Ok(free.map(|number| {
            let out = self.0.out.fetch_add(1, Ordering::SeqCst) + 1;
            self.0.most_out.fetch_max(out, Ordering::SeqCst);
            Loan(Arc::clone(&self.0), number)
        }))
    }

    async fn lease(&self) -> Result<Loan, LeaseError> {
        loop {
            if let Some(loan) = self.try_lease()? {
                return Ok(loan);
            }
            self.0.returned.notified().await;
        }
    }

    async fn finish(&self, _lease: &mut Loan) -> Result<(), LeaseError> {
        self.0.finished.fetch_add(1, Ordering::SeqCst);
        if self.0.breaks.load(Ordering::SeqCst) {
            return Err(LeaseError::Failed { reason: "illegal address".to_owned() });
        }
        Ok(())
    }
}

#[tokio::test]
async fn each_batch_in_flight_has_a_lease_that_is_finished_before_anybody_is_told() {
    let shelf = Arc::new(Shelf { free: Mutex::new(vec![1, 2]), ..Shelf::default() });
    let config = BatchConfig { workers: 4, max_batch_size: 2, ..BatchConfig::default() };
    let gate = Arc::new(Mutex::new(channel().1));
    let make = move |_| Doubler { calls: Arc::default(), gate: Arc::clone(&gate) };
    let leases = Arc::new(Shelves(Arc::clone(&shelf)));
    let batcher = Batcher::start_with_leases(config, leases, make).unwrap();
    for item in 20..40 {
        let finished = shelf.finished.load(Ordering::SeqCst);
        assert_eq!(batcher.submit(item).await.unwrap(), item * 2);
        assert!(shelf.finished.load(Ordering::SeqCst) > finished);
    }
    let answers = batcher.map(100..400, Terms::default()).await;
    assert!(answers.into_iter().all(|answer| answer.is_ok()));
    assert!(shelf.most_out.load(Ordering::SeqCst) <= 2, "four workers share two leases");
    shelf.breaks.store(true, Ordering::SeqCst);
    let failed = batcher.submit(20).await;
    assert!(matches!(failed, Err(BatchError::Lease { .. })), "{failed:?}");
    assert!(batcher.close(LONG));
    assert_eq!(shelf.out.load(Ordering::SeqCst), 0, "all came back");
}
