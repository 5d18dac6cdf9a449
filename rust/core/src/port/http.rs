//! HTTP/1.1 as little as it takes: one request for each connection, no bodies. What a peer can hold is
//! bounded: so many connections, so many bytes of a request, so long a time. Whatever it sends costs its own
//! connection alone.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};

use crate::address::Address;
use crate::error::StartError;
use crate::metrics;
use crate::worker::remove_stale;

/// Connections at once; further ones are closed. A few scrapers and probes, each with a connection a request.
const CONNECTIONS_MAX: usize = 64;
/// Bytes of a request: what a browser sends, several times.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// How long a request may take to arrive, and a connection to be done.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);
/// Pause after the system refused to accept.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) const JSON: &str = "application/json";

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Metrics,
    Live,
    Ready,
}

impl Page {
    /// All of them, by path.
    const ALL: [(&'static str, Self); 3] =
        [("/metrics", Self::Metrics), ("/live", Self::Live), ("/ready", Self::Ready)];

    pub(super) fn path(self) -> &'static str {
        Self::ALL.iter().find(|(_, page)| *page == self).map_or("/", |(path, _)| path)
    }
}

/// An answer to a request.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// Whether it is as it should be: status 200, or 503.
    pub(super) well: bool,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Answer {
    pub(super) const fn metrics(body: String) -> Self {
        Self { well: true, content_type: metrics::CONTENT_TYPE, body }
    }

    pub(super) fn json(well: bool, body: &serde_json::Value) -> Self {
        Self { well, content_type: JSON, body: format!("{body:#}\n") }
    }
}

pub(super) type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What answers at a port.
pub(super) trait Site: Send + Sync + 'static {
    fn answer(self: Arc<Self>, page: Page) -> Answering;
}

/// An open port. Dropping it closes it, with its connections.
pub(super) struct Listening {
    address: Address,
    /// Taken away to close it at once, so that whoever opens the same address next finds it free.
    bound: Arc<Mutex<Option<Bound>>>,
    task: AbortHandle,
    socket_file: Option<PathBuf>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        drop(self.bound.lock().take());
        self.task.abort();
        if let Some(path) = &self.socket_file {
            // It may be gone already, which is what this wants.
            let _ = std::fs::remove_file(path);
        }
    }
}

enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Bound {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        match self {
            Self::Tcp(listener) => {
                listener.poll_accept(cx).map(|accepted| accepted.map(|(stream, _)| Stream::Tcp(stream)))
            }
            Self::Unix(listener) => {
                listener.poll_accept(cx).map(|accepted| accepted.map(|(stream, _)| Stream::Unix(stream)))
            }
        }
    }
}

impl Listening {
    pub(super) fn open(
        address: &Address,
        insecure: bool,
        site: Arc<impl Site>,
        runtime: &Handle,
    ) -> Result<Self, StartError> {
        let refused = |source| StartError::MetricsAddress { source };
        let failed = |source| StartError::MetricsBind { address: address.to_string(), source };
        address.check(insecure).map_err(refused)?;
        // Tokio registers sockets with the runtime of the thread.
        let _entered = runtime.enter();
        let (bound, actual, socket_file) = match address {
            Address::Unix(path) => {
                remove_stale(path).map_err(failed)?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                (Bound::Unix(listener), address.clone(), Some(path.clone()))
            }
            Address::Tcp { host, .. } => {
                let candidates = address.resolve(insecure).map_err(refused)?;
                let listener = listen(&candidates).map_err(failed)?;
                let port = listener.local_addr().map_err(failed)?.port();
                (Bound::Tcp(listener), Address::Tcp { host: host.clone(), port }, None)
            }
        };
        let bound = Arc::new(Mutex::new(Some(bound)));
        let task = runtime.spawn(accept_for_ever(Arc::clone(&bound), site)).abort_handle();
        Ok(Self { address: actual, bound, task, socket_file })
    }

    pub(super) const fn address(&self) -> &Address {
        &self.address
    }
}

fn listen(candidates: &[std::net::SocketAddr]) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(candidates)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn accept_for_ever(bound: Arc<Mutex<Option<Bound>>>, site: Arc<impl Site>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let accepted = poll_fn(|cx| match &*bound.lock() {
            Some(bound) => bound.poll_accept(cx).map(Some),
            None => Poll::Ready(None),
        });
        let Some(accepted) = accepted.await else { return };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok(_) if connections.len() >= CONNECTIONS_MAX => {
                tracing::warn!("too many connections to the metrics port; one was closed");
            }
            Ok(Stream::Tcp(stream)) => drop(connections.spawn(serve(stream, Arc::clone(&site)))),
            Ok(Stream::Unix(stream)) => drop(connections.spawn(serve(stream, Arc::clone(&site)))),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection to the metrics port failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, site: Arc<impl Site>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(respond(&request, site).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(REQUEST_BYTES_MAX)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIME_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIME_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the metrics port failed"),
        Err(_) => tracing::debug!("a connection to the metrics port took too long"),
    }
}

async fn respond(request: &Request<Incoming>, site: Arc<impl Site>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let path = request.uri().path();
    let Some(&(_, page)) = Page::ALL.iter().find(|(known, _)| *known == path) else {
        return plain(StatusCode::NOT_FOUND, "there are /metrics, /live and /ready\n");
    };
    let answer = site.answer(page).await;
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = if answer.well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
