//! Engines that are checked: what proves that one answers, and what happens when one does not.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use headrace::engine::{Answer, AsyncEngine};
use headrace::wire::body::Fault;
use headrace::{
    CallErrorKind, CallOptions, Engine, InstanceState, Item, Request, Responder, Router, RouterConfig,
    Worker, WorkerConfig,
};
use parking_lot::Mutex;
use support::{driver, eventually, fault, guard, local, raw, router_to, turn};
use tokio::runtime::Handle;
use tokio::sync::watch;

const LONG: Duration = Duration::from_secs(10);

/// What a checked engine does with a request, and what it has seen.
#[derive(Debug)]
struct Patient {
    mood: watch::Sender<Mood>,
    checks: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    Silent,
    Raising,
}

impl Patient {
    fn new(mood: Mood) -> Arc<Self> {
        Arc::new(Self { mood: watch::Sender::new(mood), checks: AtomicUsize::new(0) })
    }

    fn checks(&self) -> usize {
        self.checks.load(Ordering::SeqCst)
    }

    fn feel(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Answers `hold` once it is well again, and everything else at once or as its mood is.
    fn engine(self: &Arc<Self>) -> Arc<dyn Engine> {
        let patient = Arc::clone(self);
        let engine = AsyncEngine::new(Handle::current(), move |request: Request, answer: Answer| {
            let patient = Arc::clone(&patient);
            async move { patient.treat(&request, &answer).await }
        });
        Arc::new(engine.checked_with(raw("check")))
    }

    async fn treat(&self, request: &Request, answer: &Answer) -> Result<(), Fault> {
        if request.payload.payload == "check" {
            assert_eq!(request.id, "health-check");
            self.checks.fetch_add(1, Ordering::SeqCst);
        }
        let mood = *self.mood.borrow();
        match mood {
            Mood::Raising => return Err(fault("out of memory")),
            Mood::Silent => {
                let _ = self.mood.subscribe().wait_for(|&mood| mood == Mood::Well).await;
            }
            Mood::Well => {}
        }
        answer.send(0, "pong".into()).await.map_err(|error| fault(&format!("{error:?}")))
    }
}

fn quick() -> WorkerConfig {
    WorkerConfig {
        health_interval: Duration::from_millis(20),
        health_timeout: Duration::from_millis(100),
        ..WorkerConfig::default()
    }
}

async fn serve(name: &str, engine: Arc<dyn Engine>, config: WorkerConfig) -> Worker {
    serve_all(vec![(name.to_owned(), engine)], config).await
}

async fn serve_all(engines: Vec<(String, Arc<dyn Engine>)>, config: WorkerConfig) -> Worker {
    Worker::bind(&local(), engines, config, Handle::current(), driver()).await.unwrap()
}

fn call(payload: &'static str) -> CallOptions {
    CallOptions::new(raw(payload))
}

fn state_of(router: &Router, worker: &Worker) -> InstanceState {
    let all = router.instances();
    all.iter()
        .find(|each| each.instance_id == worker.instance_id())
        .map(|each| each.state)
        .unwrap_or_default()
}

async fn answered(router: &Router, options: CallOptions) -> Result<String, CallErrorKind> {
    let mut stream = guard("the call", router.call(options)).await.map_err(|error| error.kind)?;
    guard("the item", stream.next()).await.unwrap().map_err(|error| error.kind)?;
    Ok(stream.instance_id().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_engine_is_checked_and_its_worker_stays_ready() {
    let _turn = turn().await;
    let patient = Patient::new(Mood::Well);
    let worker = serve("patient", patient.engine(), quick()).await;
    eventually("it is checked again and again", || patient.checks() >= 3).await;
    assert!(worker.is_ready());
    assert_eq!(worker.unready_reason(), None);
    // No count tells of checks: they are nobody's requests and nobody's link.
    let stats = worker.stats();
    assert_eq!((stats.links, stats.streams, stats.accepted_total, stats.rejected_total), (0, 0, 0, 0));
    worker.close();
    eventually("no check runs on", || worker.stats().running == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_without_a_check_is_not_asked() {
    let _turn = turn().await;
    let asked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    let engine = AsyncEngine::new(Handle::current(), move |_: Request, _: Answer| {
        seen.store(true, Ordering::SeqCst);
        async { Ok(()) }
    });
    let patient = Patient::new(Mood::Well);
    let engines = vec![
        ("plain".to_owned(), Arc::new(engine) as Arc<dyn Engine>),
        ("patient".to_owned(), patient.engine()),
    ];
    let worker = serve_all(engines, quick()).await;
    eventually("the other one is", || patient.checks() >= 3).await;
    assert!(!asked.load(Ordering::SeqCst));
    worker.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_answers_callers_is_not_checked() {
    let _turn = turn().await;
    let patient = Patient::new(Mood::Well);
    let interval = Duration::from_millis(300);
    let worker =
        serve("patient", patient.engine(), WorkerConfig { health_interval: interval, ..quick() }).await;
    let router = router_to(&[worker.address()], RouterConfig::default());
    let began = Instant::now();
    let (mut last, mut longest) = (began, Duration::ZERO);
    while began.elapsed() < 4 * interval {
        answered(&router, call("hello")).await.unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    // On a machine that stands still for an interval it may be asked, and should be.
    assert!(patient.checks() == 0 || longest * 2 >= interval, "{} checks, {longest:?}", patient.checks());
    worker.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_engine_stops_answering_is_passed_over_until_it_answers_again() {
    let _turn = turn().await;
    let (sick, sound) = (Patient::new(Mood::Well), Patient::new(Mood::Well));
    let first = serve("patient", sick.engine(), quick()).await;
    let second = serve("patient", sound.engine(), quick()).await;
    let router = router_to(&[first.address(), second.address()], RouterConfig::default());
    assert!(router.wait_for_instances(2, LONG).await);
    sick.feel(Mood::Silent);
    eventually("the router knows", || state_of(&router, &first) == InstanceState::Unready).await;
    let reason = first.unready_reason().unwrap();
    assert!(reason.contains("\"patient\" has answered nobody for 0.120 s"), "{reason}");
    for _ in 0..20 {
        assert_eq!(answered(&router, call("hello")).await.unwrap(), second.instance_id());
    }
    // Its link stays up: it is not lost, nor connected to anew.
    assert_eq!((router.stats().links, first.stats().links), (2, 1));
    let named = CallOptions {
        instance: first.instance_id().to_owned(),
        timeout: Some(Duration::from_millis(200)),
        ..call("hello")
    };
    assert!(answered(&router, named).await.is_err());
    sick.feel(Mood::Well);
    eventually("it is back", || state_of(&router, &first) == InstanceState::Up).await;
    assert!(first.is_ready());
    let named = CallOptions { instance: first.instance_id().to_owned(), ..call("hello") };
    assert_eq!(answered(&router, named).await.unwrap(), first.instance_id());
    for worker in [first, second] {
        worker.close();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_other_worker_the_caller_is_told_that_this_one_is_not_ready() {
    let _turn = turn().await;
    let patient = Patient::new(Mood::Silent);
    let worker = serve("patient", patient.engine(), quick()).await;
    eventually("it is not ready", || !worker.is_ready()).await;
    // A router that comes later is told as well.
    let config = RouterConfig { instance_timeout: Duration::from_millis(300), ..RouterConfig::default() };
    let router = router_to(&[worker.address()], config);
    eventually("the router knows", || state_of(&router, &worker) == InstanceState::Unready).await;
    let CallErrorKind::NoInstances { reason, .. } = answered(&router, call("hello")).await.unwrap_err()
    else {
        panic!("the call was made, or failed otherwise");
    };
    assert!(reason.ends_with("is unready"), "{reason}");
    worker.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_fails_its_check_makes_its_worker_not_ready_and_says_why() {
    let _turn = turn().await;
    let patient = Patient::new(Mood::Raising);
    // Longer than the test may take: a failure is an answer, and is not waited for.
    let config = WorkerConfig { health_timeout: Duration::from_secs(600), ..quick() };
    let worker = serve("patient", patient.engine(), config).await;
    eventually("it is not ready", || !worker.is_ready()).await;
    let reason = worker.unready_reason().unwrap();
    assert_eq!(reason, "engine \"patient\" failed its health check: Test: out of memory");
    patient.feel(Mood::Well);
    eventually("it is ready", || worker.is_ready()).await;
    worker.close();
}

/// Keeps whatever it is asked, and cannot be cancelled: a thread that hangs.
#[derive(Debug, Default)]
struct Stuck(Mutex<Vec<Responder>>);

impl Engine for Stuck {
    fn start(&self, _request: Request, responder: Responder) {
        self.0.lock().push(responder);
    }

    fn health_check(&self) -> Option<Item> {
        Some(raw("check"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_stuck_in_its_check_is_not_asked_again() {
    let _turn = turn().await;
    let stuck = Arc::new(Stuck::default());
    let worker = serve("stuck", Arc::clone(&stuck) as Arc<dyn Engine>, quick()).await;
    eventually("the rounds after the first say so", || {
        worker.unready_reason().is_some_and(|reason| reason.contains("its last health check has not ended"))
    })
    .await;
    assert_eq!((stuck.0.lock().len(), worker.stats().running), (1, 1));
    stuck.0.lock().clear();
    eventually("it is asked again", || stuck.0.lock().len() == 1).await;
    let asked = std::mem::take(&mut *stuck.0.lock());
    for responder in asked {
        responder.finish();
    }
    eventually("an end without an item is an answer", || worker.is_ready()).await;
    worker.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_does_not_wait_for_a_check() {
    let _turn = turn().await;
    let patient = Patient::new(Mood::Silent);
    let config = WorkerConfig {
        health_timeout: Duration::from_secs(600),
        drain_timeout: Duration::from_secs(600),
        ..quick()
    };
    let worker = serve("patient", patient.engine(), config).await;
    eventually("it is checked", || patient.checks() == 1).await;
    guard("the drain", worker.drain(None)).await;
    assert_eq!(worker.unready_reason().as_deref(), Some("it is draining"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_worker_of_which_nobody_hears_is_not_ready() {
    let _turn = turn().await;
    let patient = Patient::new(Mood::Silent);
    let config =
        WorkerConfig { concurrency: 1, queue: 0, health_timeout: Duration::from_millis(200), ..quick() };
    let worker = serve("patient", patient.engine(), config).await;
    let router = router_to(&[worker.address()], RouterConfig::default());
    let waiting = router.call(call("hold"));
    let held = tokio::spawn(async move { waiting.await.unwrap().next().await });
    // Whichever of the check and the call had the place first, the worker hears of nothing.
    eventually("it is not ready", || !worker.is_ready()).await;
    patient.feel(Mood::Well);
    eventually("it is ready", || worker.is_ready()).await;
    guard("the call", held).await.unwrap().unwrap().unwrap();
    worker.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_engine_of_two_that_does_not_answer_is_named() {
    let _turn = turn().await;
    let (sick, sound) = (Patient::new(Mood::Silent), Patient::new(Mood::Well));
    let engines = vec![("sound".to_owned(), sound.engine()), ("sick".to_owned(), sick.engine())];
    let worker = serve_all(engines, quick()).await;
    eventually("it is not ready", || !worker.is_ready()).await;
    assert!(worker.unready_reason().unwrap().starts_with("engine \"sick\""));
    worker.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_owner_says_counts_as_what_a_check_finds() {
    let _turn = turn().await;
    let patient = Patient::new(Mood::Well);
    let worker = serve("patient", patient.engine(), WorkerConfig::default()).await;
    let router = router_to(&[worker.address()], RouterConfig::default());
    eventually("it is up", || state_of(&router, &worker) == InstanceState::Up).await;
    worker.declare_unready(Some("the device is lost".to_owned()));
    assert_eq!(worker.unready_reason().as_deref(), Some("the device is lost"));
    eventually("it is passed over", || state_of(&router, &worker) == InstanceState::Unready).await;
    worker.declare_unready(None);
    eventually("it is up again", || state_of(&router, &worker) == InstanceState::Up).await;
    assert!(worker.is_ready());
    worker.close();
}
