//! What the tests share: a worker with a scripted engine, a router, and peers made of raw sockets.
//!
//! Tests of one file take turns, because the process ceiling is one number for the process: each closes its
//! [`Net`], which asserts that every gauge is back at zero.

#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]
// Not inside a `#[test]`, so the lints take it for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

pub mod raw;
pub mod scrape;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use headrace::engine::{Answer, AsyncEngine};
use headrace::link::{Driver, TokioDriver};
use headrace::wire::body::{Fault, FaultCode};
use headrace::{
    Address, CallError, CallErrorKind, CallOptions, Engine, Item, Request, ResponseStream, Router,
    RouterConfig, Worker, WorkerConfig, budget,
};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, MutexGuard};

static TURN: Mutex<()> = Mutex::const_new(());

/// Fails the test when `work` takes absurdly long: a hang is a failure, a loaded machine is not.
pub async fn guard<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.unwrap_or_else(|_| panic!("hangs: {what}"))
}

/// Waits for a state that nothing announces.
pub async fn eventually(what: &str, state: impl Fn() -> bool) {
    guard(what, async {
        while !state() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

pub fn fault(message: &str) -> Fault {
    Fault { code: FaultCode::Engine, kind: "Test".into(), message: message.into(), traceback: String::new() }
}

pub fn driver() -> Arc<dyn Driver> {
    Arc::new(TokioDriver::new(Handle::current()))
}

pub fn local() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

/// Counts engines that have begun and that still run.
#[derive(Clone, Debug, Default)]
pub struct Running {
    pub begun: Arc<AtomicUsize>,
    pub now: Arc<AtomicUsize>,
}

impl Running {
    /// Counts one more until what is returned is dropped.
    pub fn enter(&self) -> Inside {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.now.fetch_add(1, Ordering::SeqCst);
        Inside(Arc::clone(&self.now))
    }

    pub fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }

    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

pub struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An engine that does what the request says: `"COUNT SIZE END"`. COUNT items (`inf` for endless) of SIZE
/// bytes, each filled with its number, then END: `clean`, `fail`, `hang`, or `stop` (hang until stopped).
pub fn script(running: &Running) -> Arc<dyn Engine> {
    let running = running.clone();
    Arc::new(AsyncEngine::new(Handle::current(), move |request: Request, answer: Answer| {
        let inside = running.enter();
        async move {
            let _inside = inside;
            play(&request, &answer).await
        }
    }))
}

async fn play(request: &Request, answer: &Answer) -> Result<(), Fault> {
    let text = std::str::from_utf8(&request.payload.payload).unwrap();
    let mut words = text.split_whitespace();
    let count = words.next().unwrap();
    let count = if count == "inf" { u64::MAX } else { count.parse().unwrap() };
    let size: usize = words.next().unwrap().parse().unwrap();
    for number in 0..count {
        let item = Bytes::from(vec![number as u8; size]);
        answer.send(0, item).await.map_err(|error| fault(&format!("{error:?}")))?;
    }
    match words.next().unwrap() {
        "clean" => Ok(()),
        "fail" => Err(fault("as asked")),
        "stop" => {
            while !answer.is_stopped() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        }
        _ => std::future::pending().await,
    }
}

/// A worker with the scripted engine as `script`, a router to it, and what counts its engines.
pub struct Net {
    pub worker: Worker,
    pub router: Router,
    pub running: Running,
    turn: MutexGuard<'static, ()>,
}

impl Net {
    pub async fn start() -> Self {
        Self::with(WorkerConfig::default(), RouterConfig::default()).await
    }

    pub async fn with(worker: WorkerConfig, router: RouterConfig) -> Self {
        Self::at(&local(), worker, router, driver(), Vec::new()).await
    }

    pub async fn at(
        address: &Address,
        worker: WorkerConfig,
        router: RouterConfig,
        worker_driver: Arc<dyn Driver>,
        mut engines: Vec<(String, Arc<dyn Engine>)>,
    ) -> Self {
        let turn = TURN.lock().await;
        let running = Running::default();
        engines.push(("script".to_owned(), script(&running)));
        let worker = Worker::bind(address, engines, worker, Handle::current(), worker_driver).await.unwrap();
        let router = router_to(&[worker.address()], router);
        Self { worker, router, running, turn }
    }

    pub async fn open(&self, script: &str) -> Result<ResponseStream, CallError> {
        guard("the call", self.router.call(options(script))).await
    }

    /// Closes both sides and checks that nothing is left.
    pub async fn close(self) {
        let Self { worker, router, running, turn } = self;
        eventually("the router's gauges return to zero", || {
            let stats = router.stats();
            (stats.streams, stats.in_flight) == (0, 0)
                && router.instances().iter().all(|instance| instance.in_flight == 0)
        })
        .await;
        eventually("the worker's gauges return to zero", || {
            let stats = worker.stats();
            (stats.running, stats.queued, stats.streams) == (0, 0, 0)
        })
        .await;
        eventually("no engine runs", || running.now() == 0).await;
        router.close();
        guard("draining", worker.drain(None)).await;
        eventually("every link is gone", || worker.stats().links + router.stats().links == 0).await;
        eventually("nothing is claimed", || budget::claimed_bytes() == 0).await;
        drop(turn);
    }
}

/// The turn of a test that makes its own workers and routers.
pub async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

pub async fn worker(running: &Running, config: WorkerConfig) -> Worker {
    worker_at(&local(), running, config).await
}

pub async fn worker_at(address: &Address, running: &Running, config: WorkerConfig) -> Worker {
    let engines = vec![("script".to_owned(), script(running))];
    Worker::bind(address, engines, config, Handle::current(), driver()).await.unwrap()
}

pub fn router_to(targets: &[&Address], config: RouterConfig) -> Router {
    let targets: Vec<Address> = targets.iter().map(|&target| target.clone()).collect();
    Router::new(&targets, config, Handle::current(), driver()).unwrap()
}

pub fn raw(payload: impl Into<Bytes>) -> Item {
    Item { encoding: 0, payload: payload.into() }
}

pub fn options(script: &str) -> CallOptions {
    CallOptions { endpoint: "script".to_owned(), ..CallOptions::new(raw(script.as_bytes().to_vec())) }
}

/// What a stream gave: its items' sizes, and the error it ended with, if it did.
pub async fn collect(stream: &mut ResponseStream) -> (Vec<usize>, Option<CallErrorKind>) {
    let mut sizes = Vec::new();
    loop {
        match guard("the next item", stream.next()).await {
            Some(Ok(item)) => {
                let number = sizes.len() as u8;
                assert!(item.payload.iter().all(|&byte| byte == number), "items arrive in order and whole");
                sizes.push(item.payload.len());
            }
            Some(Err(error)) => return (sizes, Some(error.kind)),
            None => return (sizes, None),
        }
    }
}

/// Does what its payload says with its items: `echo` them; `end` or `fail` at the first; `hang` without
/// reading. A cut-off stream is an error of its own.
pub fn request_reader(running: &Running) -> (String, Arc<dyn Engine>) {
    let running = running.clone();
    let function = move |mut request: Request, answer: Answer| {
        let inside = running.enter();
        async move {
            let _inside = inside;
            let order = request.payload.payload.clone();
            if order == "hang" {
                std::future::pending::<()>().await;
            }
            let mut requests = request.requests.take().ok_or_else(|| fault("a single request"))?;
            while let Some(item) = requests.next().await {
                let item = item.map_err(|error| fault(&error.to_string()))?;
                answer.send(0, item.payload).await.map_err(|error| fault(&format!("{error:?}")))?;
                match &order[..] {
                    b"end" => return Ok(()),
                    b"fail" => return Err(fault("as asked")),
                    _ => {}
                }
            }
            Ok(())
        }
    };
    ("requests".to_owned(), Arc::new(AsyncEngine::new(Handle::current(), function).taking_streams()))
}

/// A net with that engine, and what counts it.
pub async fn net_with_reader(worker: WorkerConfig) -> (Net, Running) {
    let running = Running::default();
    let engines = vec![request_reader(&running)];
    (Net::at(&local(), worker, RouterConfig::default(), driver(), engines).await, running)
}

/// Options for it.
pub fn order(order: &str) -> CallOptions {
    CallOptions { endpoint: "requests".to_owned(), ..CallOptions::new(raw(order.as_bytes().to_vec())) }
}
