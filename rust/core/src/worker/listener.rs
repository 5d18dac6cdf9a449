//! Accepting connections: a bounded number of handshakes at a time, back-off when the system has no more
//! descriptors, and a socket file that is removed when the worker stops.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use headrace_wire::limits::UNAUTHENTICATED_LINKS_MAX;
use parking_lot::Mutex;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::Shared;
use super::session::Session;
use crate::address::Address;
use crate::error::StartError;
use crate::link::{Driver, Incoming, Link, accept};

/// First and longest pause after the system refused to accept.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The running accept loop. Dropping it stops it and closes the worker.
#[derive(Debug)]
pub(super) struct Listener {
    shared: Arc<Shared>,
    task: AbortHandle,
    socket_file: Mutex<Option<PathBuf>>,
}

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Bound {
    async fn accept(&self) -> io::Result<Incoming> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| Incoming::Tcp(stream)),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Incoming::Unix(stream)),
        }
    }
}

impl Listener {
    pub(super) async fn bind(
        address: &Address,
        shared: Arc<Shared>,
        runtime: Handle,
        driver: Arc<dyn Driver>,
    ) -> Result<(Self, Address), StartError> {
        let failed = |source| StartError::Bind { address: address.to_string(), source };
        let (bound, actual, socket_file) = match address {
            Address::Unix(path) => {
                remove_stale(path).map_err(failed)?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                (Bound::Unix(listener), address.clone(), Some(path.clone()))
            }
            Address::Tcp { host, .. } => {
                let candidates = address.resolve(shared.config.insecure)?;
                let listener = TcpListener::bind(candidates.as_slice()).await.map_err(failed)?;
                let port = listener.local_addr().map_err(failed)?.port();
                (Bound::Tcp(listener), Address::Tcp { host: host.clone(), port }, None)
            }
        };
        let accepting = accept_forever(bound, Arc::clone(&shared), runtime.clone(), driver);
        let task = runtime.spawn(accepting).abort_handle();
        Ok((Self { shared, task, socket_file: Mutex::new(socket_file) }, actual))
    }

    /// Takes no more connections.
    pub(super) fn stop(&self) {
        self.task.abort();
        // Once: another worker may listen there by the next call.
        if let Some(path) = self.socket_file.lock().take() {
            // It may be gone already, which is what this wants.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
        self.shared.close();
    }
}

/// Removes a socket file that nobody listens on any more; never a file that is no socket.
pub(crate) fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"));
        }
        Err(_) | Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another worker listens there")),
        Err(_) => Ok(()),
    }
}

async fn accept_forever(bound: Bound, shared: Arc<Shared>, runtime: Handle, driver: Arc<dyn Driver>) {
    let handshakes = Arc::new(Semaphore::new(UNAUTHENTICATED_LINKS_MAX));
    let mut pause = PAUSE_FIRST;
    loop {
        let incoming = match bound.accept().await {
            Ok(incoming) => incoming,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
                continue;
            }
        };
        pause = PAUSE_FIRST;
        let Ok(place) = Arc::clone(&handshakes).try_acquire_owned() else {
            tracing::warn!("too many connections wait for their handshake; one was closed");
            continue;
        };
        let (shared, driver) = (Arc::clone(&shared), Arc::clone(&driver));
        runtime.spawn(async move {
            let _place = place;
            let local = shared.local();
            match accept(incoming, &local).await {
                Ok(greeting) => {
                    let session = Arc::new(Session::of_router(Arc::clone(&shared)));
                    let liveness = shared.config.liveness();
                    let list = |link: &Arc<Link>| shared.list_link(link);
                    let link = Link::start(greeting, session, driver, &shared.ticker, liveness, &local, list);
                    shared.started(&link);
                }
                Err(error) => tracing::debug!(%error, "a connection was refused"),
            }
        });
    }
}
