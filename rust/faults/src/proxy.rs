//! The proxy: a listener, and for each connection that it accepts one to the target. Both live until both
//! directions have ended; a direction in a black hole ends with the other one. Dropping the proxy ends
//! everything.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use crate::plan::{Plan, Scripts};
use crate::pump::{End, Way, pump};
use crate::script::Fault;

/// Connections whose records are kept: the latest ones.
const RECORDS_MAX: usize = 1024;

/// Pause after the system refused to accept, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// What is known of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number, from 0 when the proxy started.
    pub number: u64,
    /// Bytes passed on to the target.
    pub to_server: u64,
    /// Bytes passed on from the target.
    pub to_client: u64,
    /// A fault that a script has brought about; that of the direction to the target when both have.
    pub fired: Option<Fault>,
    /// Whether the proxy still holds its sockets.
    pub open: bool,
}

#[derive(Debug)]
struct Tally {
    number: u64,
    to_server: Way,
    to_client: Way,
    open: AtomicBool,
}

impl Tally {
    fn record(&self) -> Record {
        Record {
            number: self.number,
            to_server: self.to_server.bytes.load(Ordering::Relaxed),
            to_client: self.to_client.bytes.load(Ordering::Relaxed),
            fired: self.to_server.fired.get().or_else(|| self.to_client.fired.get()).copied(),
            open: self.open.load(Ordering::Acquire),
        }
    }
}

#[derive(Debug)]
struct State {
    plan: Plan,
    /// The first connection under this plan.
    plan_from: u64,
    next: u64,
    tallies: VecDeque<Arc<Tally>>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    /// A connection has ended.
    ended: Notify,
}

/// A running proxy. Dropping it closes its listener and its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and connects what comes there to `target`. Runs on the current
    /// tokio runtime.
    ///
    /// # Errors
    /// The system refuses to listen.
    pub async fn start(target: SocketAddr, plan: Plan) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = State { plan, plan_from: 0, next: 0, tallies: VecDeque::new() };
        let shared = Arc::new(Shared { target, state: Mutex::new(state), ended: Notify::new() });
        let accepting = tokio::spawn(accept_forever(listener, Arc::clone(&shared))).abort_handle();
        Ok(Self { address, shared, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes another plan for the connections from now on; they count from 0 for it. Returns the number of the
    /// next one.
    pub fn set_plan(&self, plan: Plan) -> u64 {
        let mut state = self.shared.state();
        state.plan_from = state.next;
        state.plan = plan;
        state.next
    }

    /// The latest 1,024 connections in the order they came.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.shared.state().tallies.iter().map(|tally| tally.record()).collect()
    }

    /// Waits until the connection of this number has come and ended. `None` when it is no longer among the
    /// records.
    pub async fn wait_ended(&self, number: u64) -> Option<Record> {
        loop {
            let ended = self.shared.ended.notified();
            {
                let state = self.shared.state();
                let tally = state.tallies.iter().find(|tally| tally.number == number);
                if tally.is_none() && number < state.next {
                    return None;
                }
                if let Some(record) = tally.map(|tally| tally.record()).filter(|record| !record.open) {
                    return Some(record);
                }
            }
            ended.await;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a new connection: its scripts and where it reports.
    fn begin(&self) -> (Scripts, Arc<Tally>) {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        let tally = Arc::new(Tally {
            number,
            to_server: Way::default(),
            to_client: Way::default(),
            open: AtomicBool::new(true),
        });
        if state.tallies.len() == RECORDS_MAX {
            state.tallies.pop_front();
        }
        state.tallies.push_back(Arc::clone(&tally));
        (state.plan.scripts(number - state.plan_from), tally)
    }
}

async fn accept_forever(listener: TcpListener, shared: Arc<Shared>) {
    // Aborted with this task.
    let mut connections = JoinSet::new();
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match client {
            Ok((client, _)) => {
                // Here, so that connections are numbered in the order they came.
                let (scripts, tally) = shared.begin();
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    connect_through(client, shared.target, scripts, &tally).await;
                    tally.open.store(false, Ordering::Release);
                    shared.ended.notify_waiters();
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn connect_through(mut client: TcpStream, target: SocketAddr, scripts: Scripts, tally: &Tally) {
    let reset = match TcpStream::connect(target).await {
        Err(_) => true,
        Ok(mut server) => {
            // It fails when the peer has gone, which the pumps find out.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let reset = pass_on(&mut client, &mut server, scripts, tally).await;
            if reset {
                reset_on_close(&server);
            }
            reset
        }
    };
    if reset {
        reset_on_close(&client);
    }
}

/// Passes bytes both ways until both have ended; true when both sockets are to be reset.
async fn pass_on(client: &mut TcpStream, server: &mut TcpStream, scripts: Scripts, tally: &Tally) -> bool {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let mut there = pin!(pump(from_client, to_server, scripts.to_server, &tally.to_server));
    let mut back = pin!(pump(from_server, to_client, scripts.to_client, &tally.to_client));
    let (first, other) = tokio::select! {
        end = there.as_mut() => (end, back),
        end = back.as_mut() => (end, there),
    };
    match first {
        End::Reset => true,
        End::Passed => other.await == End::Reset,
        End::Swallowed => match other.await {
            // Nobody is told anything any more, until the proxy ends.
            End::Swallowed => pending().await,
            end => end == End::Reset,
        },
    }
}

/// Closing shall reset the connection instead of ending it in order.
fn reset_on_close(socket: &TcpStream) {
    // It fails when the connection has gone already.
    let _ = socket.set_zero_linger();
}
