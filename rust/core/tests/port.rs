//! The port for metrics and health, over real sockets: what it says in every state that it is there for, and
//! what it bears from whoever connects.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use headrace::health::{set_fit, set_unfit};
use headrace::metrics::{EventLoop, Look, watch_loop};
use headrace::port::Port;
use headrace::{Address, RouterConfig, StartError, WorkerConfig};
use support::{Net, guard, local, options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::runtime::Handle;

const FROZEN_AFTER: Duration = Duration::from_millis(50);

fn port() -> Arc<Port> {
    Port::open(&local(), false, &Handle::current()).unwrap_or_else(|error| unreachable!("{error}"))
}

/// Sends these bytes and reads until the port hangs up.
async fn exchange(address: &Address, request: &[u8]) -> String {
    guard("a response", async {
        let mut socket = TcpStream::connect(address.to_string()).await.ok()?;
        socket.write_all(request).await.ok()?;
        let mut response = Vec::new();
        // A reset behind the response is no failure here.
        let _ = socket.read_to_end(&mut response).await;
        String::from_utf8(response).ok()
    })
    .await
    .unwrap_or_default()
}

async fn get(port: &Port, path: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let response = exchange(port.address(), request.as_bytes()).await;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_default();
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

async fn says(port: &Port, path: &str, status: &str, text: &str) {
    guard(&format!("{path} is {status} with {text:?}"), async {
        loop {
            let (found, body) = get(port, path).await;
            if found.contains(status) && body.contains(text) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_served_process_is_live_and_ready_and_has_metrics() {
    let net = Net::start().await;
    let port = port();
    port.watch(net.worker.reports(), FROZEN_AFTER);
    port.watch(net.router.reports(), FROZEN_AFTER);
    assert!(net.router.wait_for_instances(1, Duration::from_secs(30)).await);
    says(&port, "/live", "200", "\"live\": true").await;
    says(&port, "/ready", "200", "\"ready\": true").await;
    says(&port, "/ready", "200", net.worker.instance_id()).await;
    let (status, body) = get(&port, "/metrics").await;
    assert!(
        status.contains("200") && body.contains("# TYPE headrace_worker_requests_total counter\n"),
        "{status}"
    );
    net.close().await;
    says(&port, "/ready", "503", "nothing is served here any more").await;
}

#[tokio::test]
async fn a_worker_is_not_ready_while_its_queue_is_full_and_when_it_drains() {
    let config = WorkerConfig { concurrency: 1, queue: 0, ..WorkerConfig::default() };
    let net = Net::with(config, RouterConfig::default()).await;
    let port = port();
    port.watch(net.worker.reports(), FROZEN_AFTER);
    let held = net.open("0 0 stop").await.ok();
    says(&port, "/ready", "503", "its queue is full: 1 requests running and 0 queued").await;
    if let Some(held) = &held {
        held.stop();
    }
    says(&port, "/ready", "200", "\"reasons\": []").await;
    drop(held);
    let held = guard("the call", net.router.call(options("0 0 hang"))).await.ok();
    let draining = tokio::spawn({
        let worker = net.worker.clone();
        async move { worker.drain(None).await }
    });
    says(&port, "/ready", "503", "it is draining").await;
    says(&port, "/live", "200", "").await;
    drop(held);
    assert!(guard("draining", draining).await.is_ok());
    net.close().await;
}

#[tokio::test]
async fn a_worker_that_its_owner_declares_unready_is_not_ready() {
    let net = Net::start().await;
    let port = port();
    port.watch(net.worker.reports(), FROZEN_AFTER);
    net.worker.declare_unready(Some("its model is being replaced".to_owned()));
    says(&port, "/ready", "503", "its model is being replaced").await;
    net.worker.declare_unready(None);
    says(&port, "/ready", "200", "\"reasons\": []").await;
    net.close().await;
}

#[tokio::test]
async fn a_device_that_has_failed_for_good_makes_the_process_unready() {
    let net = Net::start().await;
    let port = port();
    port.watch(net.worker.reports(), FROZEN_AFTER);
    set_unfit("CUDA device 0", "an illegal address was read");
    says(&port, "/ready", "503", "CUDA device 0: an illegal address was read").await;
    set_fit("CUDA device 0");
    says(&port, "/ready", "200", "").await;
    net.close().await;
}

#[tokio::test]
async fn a_router_without_a_worker_is_not_ready() {
    let net = Net::start().await;
    let port = port();
    let lonely =
        support::router_to(&[&"127.0.0.1:9".parse().unwrap_or_else(|_| local())], RouterConfig::default());
    port.watch(lonely.reports(), FROZEN_AFTER);
    says(&port, "/ready", "503", "no worker takes requests: 127.0.0.1:9 is down").await;
    lonely.close();
    net.close().await;
}

/// A loop whose turns come when the test allows them.
#[derive(Default)]
struct Blockable {
    blocked: AtomicBool,
    stopped: Arc<AtomicBool>,
}

impl EventLoop for Blockable {
    fn name(&self) -> String {
        "the loop of a test".to_owned()
    }

    fn ask(&self, turn: Box<dyn FnOnce() + Send>) {
        if !self.blocked.load(Ordering::SeqCst) {
            return turn();
        }
        // As a queue does that nobody empties.
        std::mem::forget(turn);
    }

    fn look(&self) -> Look {
        let stopped = Arc::clone(&self.stopped);
        Box::new(move || !stopped.load(Ordering::SeqCst))
    }
}

#[tokio::test]
async fn a_loop_that_has_no_turn_is_named() {
    let net = Net::start().await;
    let port = port();
    port.watch(net.worker.reports(), FROZEN_AFTER);
    let event_loop = Arc::new(Blockable::default());
    let weak = Arc::downgrade(&event_loop);
    watch_loop(weak);
    says(&port, "/live", "200", "").await;
    event_loop.blocked.store(true, Ordering::SeqCst);
    says(&port, "/live", "503", "the loop of a test has had no turn for").await;
    says(&port, "/ready", "503", "the loop of a test has had no turn for").await;
    drop(event_loop);
    says(&port, "/live", "200", "\"reasons\": []").await;
    net.close().await;
}

/// Also if it is the only one, so that no other has a turn in which to find out.
#[tokio::test]
async fn a_loop_that_was_stopped_is_not_frozen_and_one_that_runs_again_may_be() {
    let net = Net::start().await;
    let port = port();
    port.watch(net.worker.reports(), FROZEN_AFTER);
    let silent = Arc::new(Blockable::default());
    silent.blocked.store(true, Ordering::SeqCst);
    let weak = Arc::downgrade(&silent);
    watch_loop(weak);
    says(&port, "/live", "503", "the loop of a test has had no turn for").await;
    silent.stopped.store(true, Ordering::SeqCst);
    says(&port, "/live", "200", "").await;
    says(&port, "/metrics", "200", "headrace_loop_blocked_seconds 0\n").await;
    silent.stopped.store(false, Ordering::SeqCst);
    says(&port, "/live", "503", "the loop of a test has had no turn for").await;
    drop(silent);
    says(&port, "/live", "200", "").await;
    net.close().await;
}

#[tokio::test]
async fn malformed_and_oversized_requests_cost_their_connection_alone() {
    let net = Net::start().await;
    let port = port();
    port.watch(net.worker.reports(), FROZEN_AFTER);
    let huge = [b"GET /metrics HTTP/1.1\r\nX: ".as_slice(), &vec![b'a'; 100_000]].concat();
    for (request, status) in [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n".as_slice(), "400"),
        (b"GET\r\n\r\n", "400"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd", "405"),
        (b"GET /etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        (b"GET http://a/metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        (&huge, "431"),
    ] {
        let response = exchange(port.address(), request).await;
        assert!(response.lines().next().unwrap_or_default().contains(status), "{status}: {response}");
    }
    says(&port, "/live", "200", "").await;
    net.close().await;
}

#[tokio::test]
async fn connections_are_bounded_and_those_that_say_nothing_are_closed() {
    let net = Net::start().await;
    let port = port();
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.extend(TcpStream::connect(port.address().to_string()).await);
    }
    let refused = exchange(port.address(), b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(refused, "", "the connection after the last was answered");
    // They are closed by the time-out of their request, and others served again.
    says(&port, "/live", "200", "").await;
    drop(silent);
    net.close().await;
}

#[tokio::test]
async fn one_address_is_one_port_and_another_process_cannot_have_it() {
    let first = port();
    let address = first.address().clone();
    // As somebody else's: it was opened as port 0.
    let taken = Port::open(&address, false, &Handle::current());
    let text = taken.map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("metrics: cannot listen on") && text.contains("metrics="), "{text}");
    drop(first);
    let one = Port::open(&address, false, &Handle::current()).unwrap_or_else(|error| unreachable!("{error}"));
    let other =
        Port::open(&address, false, &Handle::current()).unwrap_or_else(|error| unreachable!("{error}"));
    assert!(Arc::ptr_eq(&one, &other));
}

#[tokio::test]
async fn an_address_off_loopback_is_refused_unless_told() {
    let address: Address = "0.0.0.0:0".parse().unwrap();
    let refused = Port::open(&address, false, &Handle::current()).map(|_| ()).unwrap_err();
    assert!(
        matches!(refused, StartError::MetricsAddress { .. }) && refused.to_string().contains("insecure=True")
    );
    assert!(Port::open(&address, true, &Handle::current()).is_ok());
}

#[tokio::test]
async fn the_ports_of_worker_processes_are_one_scrape() {
    let net = Net::start().await;
    let folder = std::env::temp_dir().join(format!("headrace-port-{}", std::process::id()));
    assert!(std::fs::create_dir_all(&folder).is_ok());
    let sockets: Vec<_> = (0..3).map(|number| folder.join(number.to_string())).collect();
    let part = |path: &std::path::Path| {
        let port = Port::open(&Address::Unix(path.to_owned()), false, &Handle::current());
        let port = port.unwrap_or_else(|error| unreachable!("{error}"));
        port.watch(net.worker.reports(), FROZEN_AFTER);
        port
    };
    let parts = [part(&sockets[0]), part(&sockets[1])];
    let merged = Port::open_merged(&local(), false, sockets.clone(), &Handle::current());
    let merged = merged.unwrap_or_else(|error| unreachable!("{error}"));
    let (_, text) = get(&merged, "/metrics").await;
    for (number, up) in [(0, 1), (1, 1), (2, 0)] {
        assert!(
            text.contains(&format!("headrace_worker_process_up{{worker_process=\"{number}\"}} {up}\n")),
            "{text}"
        );
        let series =
            format!("headrace_worker_requests_total{{worker_process=\"{number}\",endpoint=\"script\"}}");
        assert_eq!(text.contains(&series), up == 1, "{text}");
    }
    assert_eq!(text.matches("# TYPE headrace_worker_requests_total").count(), 1);
    says(&merged, "/ready", "200", "it is not there").await;
    says(&merged, "/live", "200", "").await;
    // One that is frozen: the system connects to it, and nobody reads.
    let frozen = UnixListener::bind(&sockets[2]).unwrap();
    let (status, body) = get(&merged, "/ready").await;
    assert!(status.contains("200") && body.contains("it was not waited for"), "{body}");
    let began = Instant::now();
    let (status, body) = get(&merged, "/live").await;
    assert!(status.contains("503") && body.contains("worker process 2: it does not answer"), "{body}");
    assert!(began.elapsed() < Duration::from_millis(1_800), "it waited for as long as a scrape may");
    drop(frozen);
    drop(parts);
    says(&merged, "/ready", "503", "worker process 1: it is not there").await;
    net.close().await;
    assert!(std::fs::remove_dir_all(&folder).is_ok());
}
