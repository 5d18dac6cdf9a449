//! Many conversations, each with a fault of its own, side by side on one runtime. A lane is a worker behind a
//! proxy; it takes one job after the other, each with a new router, so that what a fault does to one
//! conversation is told from all others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use headrace::{Address, RouterConfig, Worker, WorkerConfig, budget};
use headrace_faults::{Plan, Proxy, Record};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::conversation::{Ledger, Said, converse, engine};
use crate::support::{driver, eventually, guard, local, router_to, turn};

/// Conversations at once: most of them wait, for the pause before the next connection or for a time-out. Each
/// holds about nine descriptors.
const LANES: usize = 64;

/// One conversation to be held.
#[derive(Clone, Debug)]
pub struct Job {
    /// Names it in request ids and failures.
    pub tag: String,
    pub plan: Plan,
}

/// How all conversations of a sweep are held.
#[derive(Clone, Debug)]
pub struct Settings {
    pub worker: WorkerConfig,
    pub router: RouterConfig,
    /// Timeout of each call and each item.
    pub patience: Option<Duration>,
}

impl Default for Settings {
    /// Small windows, so that items travel in fragments; time-outs that only a hang reaches.
    fn default() -> Self {
        let router = RouterConfig {
            stream_window: 4096,
            link_window: 256 * 1024,
            instance_timeout: Duration::from_secs(30),
            ..RouterConfig::default()
        };
        Self { worker: WorkerConfig::default(), router, patience: None }
    }
}

impl Settings {
    /// Both sides give a silent peer up after twice `silence`.
    pub fn with_pings(mut self, silence: Duration) -> Self {
        for (interval, timeout) in [
            (&mut self.worker.ping_interval, &mut self.worker.ping_timeout),
            (&mut self.router.ping_interval, &mut self.router.ping_timeout),
        ] {
            (*interval, *timeout) = (silence, silence);
        }
        self
    }
}

/// What became of a job.
#[derive(Debug)]
pub struct Report {
    pub job: Job,
    pub said: Vec<Said>,
    /// The connections of the conversation.
    pub connections: Vec<Record>,
}

impl Report {
    pub fn fired(&self) -> bool {
        self.connections.iter().any(|connection| connection.fired.is_some())
    }
}

/// A worker behind a proxy.
pub struct Lane {
    worker: Worker,
    proxy: Proxy,
    behind_proxy: Address,
    pub ledger: Ledger,
    settings: Settings,
}

impl Lane {
    async fn start(settings: Settings) -> Self {
        let ledger = Ledger::default();
        let engines = vec![("tally".to_owned(), engine(&ledger))];
        let config = settings.worker.clone();
        let worker = Worker::bind(&local(), engines, config, Handle::current(), driver()).await.unwrap();
        let target = worker.address().to_string().parse().unwrap();
        let proxy = Proxy::start(target, Plan::default()).await.unwrap();
        let behind_proxy = proxy.address().to_string().parse().unwrap();
        Self { worker, proxy, behind_proxy, ledger, settings }
    }

    async fn run(&self, job: Job) -> Report {
        let from = self.proxy.set_plan(job.plan.clone());
        let router = router_to(&[&self.behind_proxy], self.settings.router.clone());
        let said = guard(&job.tag, converse(&router, &job.tag, self.settings.patience)).await;
        eventually(&format!("{}: the router's gauges return to zero", job.tag), || {
            let stats = router.stats();
            let in_flight: usize = router.instances().iter().map(|instance| instance.in_flight).sum();
            (stats.streams, stats.in_flight, in_flight) == (0, 0, 0)
        })
        .await;
        router.close();
        eventually(&format!("{}: the worker's gauges return to zero", job.tag), || {
            let stats = self.worker.stats();
            (stats.running, stats.queued, stats.streams, stats.links) == (0, 0, 0, 0)
        })
        .await;
        let connections = self.proxy.records().into_iter().filter(|record| record.number >= from).collect();
        Report { job, said, connections }
    }
}

/// Bytes that a conversation without faults sends to the worker and to the router: the most of several, since
/// frames may share a header or not.
pub async fn recorded(settings: &Settings) -> (u64, u64) {
    let lane = Lane::start(settings.clone()).await;
    let (mut to_server, mut to_client) = (0, 0);
    for round in 0..5 {
        let report = lane.run(Job { tag: format!("recorded {round}"), plan: Plan::default() }).await;
        let [connection] = report.connections[..] else { panic!("one connection: {report:?}") };
        // The last bytes are counted when the connection has ended.
        let connection = guard("the end", lane.proxy.wait_ended(connection.number)).await.unwrap();
        to_server = to_server.max(connection.to_server);
        to_client = to_client.max(connection.to_client);
    }
    (to_server, to_client)
}

/// Holds all the conversations and hands each one's report to `check`, with its lane. Nothing may be left
/// afterwards, and nothing of the library may have panicked.
pub async fn sweep(
    settings: Settings,
    jobs: impl IntoIterator<Item = Job>,
    check: impl Fn(&Lane, &Report) + Send + Sync + 'static,
) {
    let _turn = turn().await;
    let panics = library_panics();
    let jobs: Arc<Mutex<VecDeque<Job>>> = Arc::new(Mutex::new(jobs.into_iter().collect()));
    let check = Arc::new(check);
    let mut lanes = JoinSet::new();
    for _ in 0..LANES.min(jobs.lock().unwrap().len()) {
        let (jobs, check, settings) = (Arc::clone(&jobs), Arc::clone(&check), settings.clone());
        lanes.spawn(async move {
            let lane = Lane::start(settings).await;
            loop {
                let Some(job) = jobs.lock().unwrap().pop_front() else { return };
                check(&lane, &lane.run(job).await);
            }
        });
    }
    while let Some(ended) = lanes.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    eventually("nothing is claimed", || budget::claimed_bytes() == 0).await;
    assert_eq!(library_panics(), panics, "the library panicked on a thread that nobody joins");
}

/// How often code of the library has panicked so far.
fn library_panics() -> usize {
    static WATCH: Once = Once::new();
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    WATCH.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let file = panic.location().map_or("", |location| location.file());
            if ["rust/core/src/", "rust/wire/src/"].iter().any(|folder| file.contains(folder)) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            usual(panic);
        }));
    });
    PANICS.load(Ordering::SeqCst)
}
