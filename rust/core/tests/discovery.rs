//! Workers that come and go: finding them, forgetting them, and what calls meet meanwhile.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use headrace::discovery::{Directory, Discovery, DiscoveryError, Fixed, Found, Listing, Registration};
use headrace::wire::kind::Kind;
use headrace::wire::outbound::Finish;
use headrace::{
    Address, CallErrorKind, CallOptions, InstanceState, Router, RouterConfig, Worker, WorkerConfig,
};
use support::raw::{Raw, listen};
use support::{Running, collect, driver, eventually, guard, options, turn, worker};
use tokio::runtime::Handle;
use tokio::sync::watch;

const LONG: Duration = Duration::from_secs(10);

/// A directory of this test's own, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("headrace-discovery-{}-{number}", std::process::id()));
        Self(path)
    }

    fn directory(&self) -> Arc<Directory> {
        Arc::new(Directory::new(self.0.clone()))
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).map(Iterator::flatten).into_iter().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    /// An entry whose worker has been killed: it is whole, and nobody holds its lock.
    fn leave_entry(&self, name: &str, address: &Address) {
        let text = format!("headrace 1\naddress {address}\ninstance {name}\nendpoint script\n");
        fs::write(self.0.join(name), text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Discovery by hand.
#[derive(Debug)]
struct Board(watch::Sender<Found>);

impl Board {
    fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(Some(Arc::from([])))))
    }

    fn list(&self, workers: &[&Worker]) {
        let listings = workers.iter().map(|worker| Listing::at(worker.address().clone())).collect();
        self.0.send_replace(Some(listings));
    }
}

impl Discovery for Board {
    fn watch(&self, _runtime: &Handle) -> watch::Receiver<Found> {
        self.0.subscribe()
    }

    fn register(&self, _listing: &Listing) -> Result<Registration, DiscoveryError> {
        Ok(Registration::new(()))
    }

    fn place(&self) -> String {
        "the board".to_owned()
    }
}

fn router_in(place: Arc<dyn Discovery>, config: RouterConfig) -> Router {
    Router::discovering(vec![place], config, Handle::current(), driver()).unwrap()
}

async fn call(router: &Router) -> String {
    guard("the call", router.call(options("1 1 clean"))).await.unwrap().instance_id().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_finds_workers_that_start_before_and_after_it() {
    let _turn = turn().await;
    let (folder, running) = (Folder::new(), Running::default());
    let first = worker(&running, WorkerConfig::default()).await;
    first.list_in(folder.directory()).await.unwrap();
    let router = router_in(folder.directory(), RouterConfig::default());
    assert_eq!(call(&router).await, first.instance_id());

    let second = worker(&running, WorkerConfig::default()).await;
    second.list_in(folder.directory()).await.unwrap();
    assert!(router.wait_for_instances(2, LONG).await);
    let mut ids: Vec<_> = router.instances().into_iter().map(|found| found.instance_id).collect();
    ids.sort();
    let mut expected = [first.instance_id().to_owned(), second.instance_id().to_owned()];
    expected.sort();
    assert_eq!(ids, expected);
    assert_eq!(fs::metadata(&folder.0).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_waits_for_the_first_worker_in_a_directory_that_is_not_there_yet() {
    let _turn = turn().await;
    let (folder, running) = (Folder::new(), Running::default());
    let router =
        router_in(folder.directory(), RouterConfig { instance_timeout: LONG, ..RouterConfig::default() });
    let waiting = tokio::spawn(router.call(options("1 1 clean")));
    let worker = worker(&running, WorkerConfig::default()).await;
    worker.list_in(folder.directory()).await.unwrap();
    let stream = guard("the call", waiting).await.unwrap().unwrap();
    assert_eq!(stream.instance_id(), worker.instance_id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_listed_is_an_error_that_names_the_place() {
    let _turn = turn().await;
    let folder = Folder::new();
    let impatient = RouterConfig { instance_timeout: Duration::from_millis(50), ..RouterConfig::default() };
    let router = router_in(folder.directory(), impatient);
    let error = guard("the call", router.call(options("1 1 clean"))).await.unwrap_err();
    let CallErrorKind::NoInstances { reason, .. } = error.kind else { panic!("{error}") };
    assert!(reason.contains(&format!("file://{}", folder.0.display())), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_drains_leaves_the_list_and_its_streams_end_as_they_will() {
    let _turn = turn().await;
    let (folder, running) = (Folder::new(), Running::default());
    let (leaving, staying) =
        (worker(&running, WorkerConfig::default()).await, worker(&running, WorkerConfig::default()).await);
    leaving.list_in(folder.directory()).await.unwrap();
    staying.list_in(folder.directory()).await.unwrap();
    let router = router_in(folder.directory(), RouterConfig::default());
    assert!(router.wait_for_instances(2, LONG).await);
    let on_leaving = CallOptions { instance: leaving.instance_id().to_owned(), ..options("3 3 stop") };
    let mut stream = guard("the call", router.call(on_leaving)).await.unwrap();
    let drained = tokio::spawn({
        let leaving = leaving.clone();
        async move { leaving.drain(None).await }
    });
    eventually("it is taken off the list", || folder.names() == [staying.instance_id()]).await;
    eventually("the router knows", || {
        router.instances().iter().any(|found| found.state == InstanceState::Tombstoned)
    })
    .await;
    for _ in 0..20 {
        assert_eq!(call(&router).await, staying.instance_id());
    }
    stream.stop();
    assert_eq!(collect(&mut stream).await, (vec![3; 3], None));
    drop(stream);
    guard("draining", drained).await.unwrap();
    eventually("it is forgotten", || router.instances().len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_entry_of_a_killed_worker_is_never_used_and_is_removed() {
    let _turn = turn().await;
    let (folder, running) = (Folder::new(), Running::default());
    let alive = worker(&running, WorkerConfig::default()).await;
    alive.list_in(folder.directory()).await.unwrap();
    // Another lives at the address of the one that was killed, and must not be taken for it.
    let (_listener, address) = listen().await;
    folder.leave_entry("killed", &address);
    let router = router_in(folder.directory(), RouterConfig::default());
    eventually("the entry is removed", || folder.names() == [alive.instance_id()]).await;
    assert!(router.wait_for_instances(1, LONG).await);
    assert_eq!(router.instances().len(), 1);
    assert_eq!(call(&router).await, alive.instance_id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_entry_is_passed_over_and_left_alone() {
    let _turn = turn().await;
    let (folder, running) = (Folder::new(), Running::default());
    let alive = worker(&running, WorkerConfig::default()).await;
    alive.list_in(folder.directory()).await.unwrap();
    let foreign = fs::File::create(folder.0.join("notes")).unwrap();
    foreign.lock().unwrap();
    fs::create_dir(folder.0.join(".cache")).unwrap();
    fs::write(folder.0.join(".unfinished"), "headrace 1\naddr").unwrap();
    let router = router_in(folder.directory(), RouterConfig::default());
    assert_eq!(call(&router).await, alive.instance_id());
    assert_eq!(router.instances().len(), 1);
    assert_eq!(folder.names().len(), 4, "{:?}", folder.names());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_everybody_may_write_to_is_refused() {
    let _turn = turn().await;
    let (folder, running) = (Folder::new(), Running::default());
    fs::create_dir(&folder.0).unwrap();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
    let worker = worker(&running, WorkerConfig::default()).await;
    let error = worker.list_in(folder.directory()).await.unwrap_err();
    assert!(matches!(error, DiscoveryError::Insecure { .. }), "{error}");
    assert!(error.to_string().contains("others may write"), "{error}");
    // Nor does a router believe what is written there.
    folder.leave_entry("planted", worker.address());
    let held = fs::File::open(folder.0.join("planted")).unwrap();
    held.lock().unwrap();
    let list = folder.directory().watch(&Handle::current());
    let impatient = RouterConfig { instance_timeout: Duration::from_millis(500), ..RouterConfig::default() };
    let router = router_in(folder.directory(), impatient);
    let error = guard("the call", router.call(options("1 1 clean"))).await.unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::NoInstances { .. }), "{error}");
    assert!(list.borrow().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fixed_list_takes_no_registrations() {
    let _turn = turn().await;
    let worker = worker(&Running::default(), WorkerConfig::default()).await;
    let error = worker.list_in(Arc::new(Fixed::new(&[]))).await.unwrap_err();
    assert!(matches!(error, DiscoveryError::Fixed { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_nobody_can_reach_is_passed_over_at_once() {
    let _turn = turn().await;
    let running = Running::default();
    let alive = worker(&running, WorkerConfig::default()).await;
    let gone = worker(&running, WorkerConfig::default()).await;
    gone.close();
    let board = Board::new();
    board.list(&[&gone, &alive]);
    let router = router_in(board, RouterConfig { instance_timeout: LONG, ..RouterConfig::default() });
    for _ in 0..50 {
        assert_eq!(call(&router).await, alive.instance_id());
    }
    assert_eq!(router.stats().retries_total, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_no_longer_listed_is_tombstoned_and_back_when_it_reappears() {
    let _turn = turn().await;
    let running = Running::default();
    let (first, second) =
        (worker(&running, WorkerConfig::default()).await, worker(&running, WorkerConfig::default()).await);
    let board = Board::new();
    board.list(&[&first, &second]);
    let router = router_in(
        Arc::clone(&board) as _,
        RouterConfig { instance_timeout: LONG, ..RouterConfig::default() },
    );
    assert!(router.wait_for_instances(2, LONG).await);
    let named = |script| CallOptions { instance: first.instance_id().to_owned(), ..options(script) };
    let mut accepted = guard("the call", router.call(named("2 2 stop"))).await.unwrap();
    let begun = running.begun();

    board.list(&[&second]);
    let state = || router.instances()[0].state;
    eventually("its tombstone stands", || state() == InstanceState::Tombstoned).await;
    assert_eq!(call(&router).await, second.instance_id());
    // A call that names it fails at once, with nothing written.
    let asked = Instant::now();
    let error = guard("the call", router.call(named("1 1 clean"))).await.unwrap_err();
    assert!(asked.elapsed() < LONG / 2, "it waited for an instance");
    let CallErrorKind::NoInstances { reason, .. } = error.kind else { panic!("{error}") };
    assert!(reason.contains("no longer listed"), "{reason}");
    assert_eq!(running.begun(), begun + 1);
    // What it had accepted goes on.
    accepted.stop();
    assert_eq!(collect(&mut accepted).await, (vec![2; 2], None));
    drop(accepted);

    board.list(&[&first, &second]);
    eventually("it is back", || state() == InstanceState::Up).await;
    guard("the call", router.call(named("1 1 clean"))).await.unwrap();
    assert_eq!(first.stats().links, 1, "on the link that it had");

    board.list(&[&second]);
    eventually("it is forgotten", || router.instances().len() == 1).await;
    eventually("and its link is closed", || first.stats().links == 0).await;
}

/// Whether it runs nobody can know, so it is neither taken back nor sent elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_already_written_waits_on_the_live_link_of_a_worker_that_is_no_longer_listed() {
    let _turn = turn().await;
    let (listener, address) = listen().await;
    let other = worker(&Running::default(), WorkerConfig::default()).await;
    let board = Board::new();
    let removed = Listing::at(address);
    board.0.send_replace(Some(Arc::from([removed])));
    let router = router_in(Arc::clone(&board) as _, RouterConfig::default());
    let mut peer = Raw::worker(&listener).await;
    let written = tokio::spawn(router.call(options("x")));
    let request = peer.until(Kind::Request).await;

    board.list(&[&other]);
    eventually("its tombstone stands", || {
        router.instances().iter().any(|found| found.state == InstanceState::Tombstoned)
    })
    .await;
    assert_eq!(call(&router).await, other.instance_id());
    assert!(!written.is_finished());
    peer.out.accept(request.stream, 4096, 256 * 1024);
    peer.out.prologue(request.stream, None);
    peer.out.finish(request.stream, Finish::End { stopped: false });
    peer.flush().await;
    let mut stream = guard("the call that was written", written).await.unwrap().unwrap();
    assert_eq!(stream.instance_id(), "raw");
    assert_eq!(collect(&mut stream).await, (vec![], None));
    assert_eq!(router.stats().retries_total, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_move_on_when_their_only_worker_is_replaced() {
    let _turn = turn().await;
    let running = Running::default();
    let old = worker(&running, WorkerConfig::default()).await;
    old.close();
    let board = Board::new();
    board.list(&[&old]);
    let router = router_in(
        Arc::clone(&board) as _,
        RouterConfig { instance_timeout: LONG, ..RouterConfig::default() },
    );
    let waiting: Vec<_> = (0..20).map(|_| tokio::spawn(router.call(options("1 1 clean")))).collect();
    eventually("the first attempt failed", || router.instances()[0].last_error.is_some()).await;
    let new = worker(&running, WorkerConfig::default()).await;
    board.list(&[&new]);
    for call in waiting {
        let stream = guard("a call that waited", call).await.unwrap().unwrap();
        assert_eq!(stream.instance_id(), new.instance_id());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_is_not_missing_before_every_place_was_looked_at() {
    let _turn = turn().await;
    let alive = worker(&Running::default(), WorkerConfig::default()).await;
    let (known, unknown) = (Board::new(), Board::new());
    unknown.0.send_replace(None);
    let config = RouterConfig { instance_timeout: LONG, ..RouterConfig::default() };
    let places: Vec<Arc<dyn Discovery>> = vec![known, Arc::clone(&unknown) as _];
    let router = Router::discovering(places, config, Handle::current(), driver()).unwrap();
    let other = CallOptions { endpoint: "other".to_owned(), ..options("1 1 clean") };
    let missing = tokio::spawn(router.call(other));
    unknown.list(&[&alive]);
    assert_eq!(call(&router).await, alive.instance_id());
    let error = guard("the call", missing).await.unwrap().unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::NoSuchEndpoint { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_listed_off_loopback_is_not_used_unless_asked_for() {
    let _turn = turn().await;
    let alive = worker(&Running::default(), WorkerConfig::default()).await;
    let board = Board::new();
    let router = router_in(Arc::clone(&board) as _, RouterConfig::default());
    let outside = Listing::at("192.0.2.1:1".parse().unwrap());
    board.0.send_replace(Some(Arc::from([outside, Listing::at(alive.address().clone())])));
    assert_eq!(call(&router).await, alive.instance_id());
    assert_eq!(router.instances().len(), 1);
}
