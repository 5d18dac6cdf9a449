//! The proxy over real sockets: what each end sees of each fault.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::future::Future;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use headrace_faults::plan::Direction;
use headrace_faults::{Corruption, Fault, Plan, Proxy, Script, Scripts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const DIRECTIONS: [Direction; 2] = [Direction::ToServer, Direction::ToClient];

/// Fails the test when `work` takes absurdly long: a hang is a failure, a loaded machine is not.
async fn guard<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.unwrap_or_else(|_| panic!("hangs: {what}"))
}

/// Waits for a state that nothing announces.
async fn eventually(what: &str, state: impl Fn() -> bool) {
    guard(what, async {
        while !state() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A listener, a proxy to it, and connections through the proxy.
struct Net {
    listener: TcpListener,
    proxy: Proxy,
}

impl Net {
    async fn start(plan: Plan) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap(), plan).await.unwrap();
        Self { listener, proxy }
    }

    /// Both ends of a new connection: the one that connected, and the one behind the proxy.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.proxy.address()).await.unwrap();
        let (server, _) = guard("a connection", self.listener.accept()).await.unwrap();
        (client, server)
    }

    /// As [`Self::connect`], with a script for one direction: its sending end first, then its receiving end.
    async fn connect_with(&self, direction: Direction, script: Script) -> (TcpStream, TcpStream) {
        self.proxy.set_plan(Plan::First(Scripts::of(direction, script)));
        let (client, server) = self.connect().await;
        match direction {
            Direction::ToServer => (client, server),
            Direction::ToClient => (server, client),
        }
    }
}

/// Bytes that tell their position.
fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|position| (position % 251) as u8 ^ (position / 251) as u8).collect()
}

/// Reads until the end: what came, and whether the end was a reset.
async fn drain(socket: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    loop {
        match guard("a read", socket.read_buf(&mut got)).await {
            Ok(0) => return (got, false),
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                return (got, true);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_and_ends_pass_unchanged_and_are_counted() {
    let net = Net::start(Plan::default()).await;
    let (there, back) = (bytes(3_000_000), bytes(1_234_567));
    let (mut client, mut server) = net.connect().await;
    let (from_client, from_server) = (there.clone(), back.clone());
    let (at_client, at_server) = tokio::try_join!(
        tokio::spawn(async move {
            let (mut reading, mut writing) = client.split();
            let mut got = Vec::new();
            let write = async {
                writing.write_all(&from_client).await.unwrap();
                writing.shutdown().await.unwrap();
            };
            tokio::join!(write, async { reading.read_to_end(&mut got).await.unwrap() });
            got
        }),
        tokio::spawn(async move {
            let (mut reading, mut writing) = server.split();
            let mut got = Vec::new();
            let write = async {
                writing.write_all(&from_server).await.unwrap();
                writing.shutdown().await.unwrap();
            };
            tokio::join!(write, async { reading.read_to_end(&mut got).await.unwrap() });
            got
        }),
    )
    .unwrap();
    assert!(at_server == there && at_client == back);
    let record = guard("the end", net.proxy.wait_ended(0)).await.unwrap();
    assert_eq!((record.to_server, record.to_client), (there.len() as u64, back.len() as u64));
    assert_eq!((record.fired, record.open), (None, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_comes_after_exactly_its_bytes_at_both_ends() {
    let net = Net::start(Plan::default()).await;
    for direction in DIRECTIONS {
        for at in 1..48 {
            let script = Script::cut(Fault::Reset, at);
            let (mut sender, mut receiver) = net.connect_with(direction, script).await;
            // The reset may come before the write, which is then what it is reported to.
            let written = sender.write_all(&bytes(100)).await;
            let (got, reset) = drain(&mut receiver).await;
            assert_eq!((got, reset), (bytes(at as usize), true), "{direction:?} at {at}");
            assert!(written.is_err() || drain(&mut sender).await.1, "{direction:?} at {at}");
            let number = net.proxy.records().last().unwrap().number;
            let record = guard("the end", net.proxy.wait_ended(number)).await.unwrap();
            assert_eq!(record.fired, Some(Fault::Reset));
            assert_eq!(record.to_server + record.to_client, at);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_half_close_the_other_direction_goes_on() {
    let net = Net::start(Plan::default()).await;
    for direction in DIRECTIONS {
        for at in [0, 1, 50, 100] {
            let script = Script::cut(Fault::HalfClose, at);
            let (mut sender, mut receiver) = net.connect_with(direction, script).await;
            sender.write_all(&bytes(100)).await.unwrap();
            assert_eq!(drain(&mut receiver).await, (bytes(at as usize), false), "{direction:?} at {at}");
            // What is written into the closed direction is dropped, not refused.
            sender.write_all(&bytes(100)).await.unwrap();
            receiver.write_all(b"still here").await.unwrap();
            let mut answer = [0; 10];
            guard("the other direction", sender.read_exact(&mut answer)).await.unwrap();
            assert_eq!(&answer, b"still here");
            drop(receiver);
            let (rest, _) = drain(&mut sender).await;
            assert!(rest.is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn into_a_black_hole_nothing_passes_and_nobody_is_told() {
    let net = Net::start(Plan::default()).await;
    for direction in DIRECTIONS {
        let script = Script::cut(Fault::BlackHole, 30);
        let (mut sender, mut receiver) = net.connect_with(direction, script).await;
        let number = net.proxy.records().last().unwrap().number;
        sender.write_all(&bytes(100)).await.unwrap();
        let mut got = vec![0; 30];
        guard("what passes", receiver.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, bytes(30));
        let fired = || net.proxy.records().last().unwrap().fired == Some(Fault::BlackHole);
        eventually("the fault", fired).await;
        // The other direction works, so what can be seen through it is settled.
        receiver.write_all(b"?").await.unwrap();
        guard("the other direction", sender.read_exact(&mut [0])).await.unwrap();
        assert_eq!(receiver.try_read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(sender.try_read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
        // A sender that goes away is not told of either; a receiver that does ends the connection.
        drop(sender);
        assert!(net.proxy.records().last().unwrap().open);
        drop(receiver);
        guard("the end", net.proxy.wait_ended(number)).await;
    }
}

/// A sender into a black hole is held up once the buffers on the way are full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_takes_no_more_than_the_buffers_on_the_way() {
    let net = Net::start(Plan::Every(Scripts::both(Script::cut(Fault::BlackHole, 0)))).await;
    let (mut client, _server) = net.connect().await;
    eventually("the fault", || net.proxy.records().iter().any(|record| record.fired.is_some())).await;
    let chunk = bytes(1 << 20);
    let mut taken = 0;
    // Two turns without room, and time between them: the kernel has moved what it can.
    for _ in 0..2 {
        while let Ok(Ok(written)) =
            tokio::time::timeout(Duration::from_millis(200), client.write(&chunk)).await
        {
            taken += written;
            assert!(taken < 256 << 20, "somebody reads what falls into the hole");
        }
    }
    assert!(taken > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_delay_and_jitter_change_no_byte_and_no_order() {
    let net = Net::start(Plan::default()).await;
    let sent = bytes(20_000);
    for slice in [1, 7, 4096] {
        let script = Script {
            delay: Duration::from_millis(5),
            jitter: Duration::from_millis(3),
            seed: slice as u64,
            ..Script::slices(slice)
        };
        let (mut sender, mut receiver) = net.connect_with(Direction::ToServer, script).await;
        let began = Instant::now();
        for chunk in sent.chunks(999) {
            sender.write_all(chunk).await.unwrap();
            tokio::task::yield_now().await;
        }
        drop(sender);
        assert_eq!(drain(&mut receiver).await, (sent.clone(), false), "slices of {slice}");
        assert!(began.elapsed() >= Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_the_named_bytes_arrive_changed() {
    let net = Net::start(Plan::default()).await;
    for direction in DIRECTIONS {
        let corrupt = [0, 17, 99].map(|at| Corruption { at, mask: 0x55 }).to_vec();
        let script = Script { corrupt, ..Script::default() };
        let (mut sender, mut receiver) = net.connect_with(direction, script).await;
        sender.write_all(&bytes(100)).await.unwrap();
        drop(sender);
        let mut expected = bytes(100);
        [0, 17, 99].into_iter().for_each(|at| expected[at] ^= 0x55);
        assert_eq!(drain(&mut receiver).await.0, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_at_one_end_is_a_reset_at_the_other() {
    let net = Net::start(Plan::default()).await;
    let (client, mut server) = net.connect().await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert!(drain(&mut server).await.1);
    // Nobody listens behind the proxy.
    let Net { listener, proxy } = net;
    drop(listener);
    assert_reset_at_once(&proxy).await;
}

/// Connects and finds a reset: at once, or when it reads.
async fn assert_reset_at_once(proxy: &Proxy) {
    match TcpStream::connect(proxy.address()).await {
        Ok(mut client) => assert!(drain(&mut client).await.1),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_before_the_first_byte_needs_no_byte() {
    for direction in DIRECTIONS {
        let net = Net::start(Plan::Every(Scripts::of(direction, Script::cut(Fault::Reset, 0)))).await;
        for number in 0..20 {
            assert_reset_at_once(&net.proxy).await;
            let record = guard("the end", net.proxy.wait_ended(number)).await.unwrap();
            assert_eq!((record.fired, record.to_server, record.to_client), (Some(Fault::Reset), 0, 0));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_proxy_ends_its_connections_also_those_in_a_black_hole() {
    let net = Net::start(Plan::First(Scripts::both(Script::cut(Fault::BlackHole, 0)))).await;
    let (mut held, _held_server) = net.connect().await;
    let (mut usual, _usual_server) = net.connect().await;
    let Net { listener: _listener, proxy } = net;
    let address = proxy.address();
    drop(proxy);
    drain(&mut held).await;
    drain(&mut usual).await;
    let mut refused = false;
    for _ in 0..10_000 {
        refused = TcpStream::connect(address).await.is_err();
        if refused {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(refused, "its listener is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_plan_counts_its_connections_from_the_first() {
    let net = Net::start(Plan::default()).await;
    net.connect().await;
    let scripts = Scripts::of(Direction::ToServer, Script::cut(Fault::Reset, 0));
    assert_eq!(net.proxy.set_plan(Plan::First(scripts)), 1, "the next one's number");
    assert_reset_at_once(&net.proxy).await;
    guard("the connection that was reset", net.listener.accept()).await.unwrap();
    let (mut second, mut behind) = net.connect().await;
    second.write_all(b"x").await.unwrap();
    guard("a byte", behind.read_exact(&mut [0])).await.unwrap();
    let fired: Vec<_> = net.proxy.records().iter().map(|record| record.fired).collect();
    assert_eq!(fired, [None, Some(Fault::Reset), None]);
}
