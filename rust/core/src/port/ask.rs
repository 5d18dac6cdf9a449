//! Asking the port of a worker process, over its Unix socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::http::Page;

/// How long it may take: a process that is stopped shall not hold up the scrape of the others. Whoever asks for
/// health waits for a second, often, and such an answer takes no time to make.
const fn time_max(page: Page) -> Duration {
    match page {
        Page::Metrics => Duration::from_secs(2),
        Page::Live | Page::Ready => Duration::from_millis(500),
    }
}

/// Bytes of an answer: many times what a process with all the series it may have says.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// Nobody listens there: it starts, or has ended.
    Absent,
    /// It is there, and says nothing of use.
    Mute,
    /// It was not waited for: what another one said was enough.
    Unheard,
}

/// What a worker process answers, and whether it is well.
pub(super) async fn ask(socket: &Path, page: Page) -> Result<(bool, Bytes), Silence> {
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Silence::Absent,
        _ => Silence::Mute,
    })?;
    let answer = tokio::time::timeout(time_max(page), exchange(stream, page)).await;
    answer.ok().flatten().ok_or(Silence::Mute)
}

async fn exchange(stream: UnixStream, page: Page) -> Option<(bool, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::get(page.path()).header(HOST, "localhost").body(Empty::<Bytes>::new()).ok()?;
    let answer = async move {
        let response = sender.send_request(request).await.ok()?;
        let well = match response.status() {
            StatusCode::OK => true,
            StatusCode::SERVICE_UNAVAILABLE => false,
            _ => return None,
        };
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.ok()?;
        Some((well, body.to_bytes()))
    };
    let driven = async {
        // How it ends, the answer tells.
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = answer => answer,
        () = driven => None,
    }
}
