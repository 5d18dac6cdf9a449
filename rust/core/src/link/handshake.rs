//! How a link begins: preface and HELLO of the router, then of the worker, each within five seconds. Until
//! the peer's HELLO has been checked, it costs one socket and a buffer for the largest HELLO.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use headrace_wire::body::{Goaway, GoawayReason, Hello, Role, VERSION, VERSION_MIN};
use headrace_wire::decoder::Decoder;
use headrace_wire::error::DecodeError;
use headrace_wire::kind::Kind;
use headrace_wire::limits::{HANDSHAKE_TIMEOUT_MS, HELLO_BODY_MAX};
use headrace_wire::outbound::Outbound;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::socket::Socket;
use crate::address::{Address, AddressError};

/// What this side says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) role: Role,
    pub(crate) instance_id: String,
    pub(crate) namespace: String,
    pub(crate) token: Option<String>,
    pub(crate) endpoints: Vec<String>,
    pub(crate) message_max: usize,
    pub(crate) streams_max: u32,
    pub(crate) link_window: u32,
    pub(crate) stream_window: u32,
}

/// What the other side said.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) instance_id: Arc<str>,
    pub(crate) is_worker: bool,
    pub(crate) endpoints: Vec<String>,
    pub(crate) message_max: u32,
    pub(crate) streams_max: u32,
    pub(crate) link_window: u32,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub(crate) struct Greeting {
    pub(super) socket: Socket,
    pub(super) peer: Peer,
    pub(super) decoder: Decoder,
    pub(super) out: Outbound,
    /// Bytes that came behind the peer's HELLO.
    pub(super) rest: Vec<u8>,
}

impl Greeting {
    /// Who is at the other end.
    pub(crate) const fn peer(&self) -> &Peer {
        &self.peer
    }
}

/// Why two sides did not come together.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum HandshakeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("no HELLO within {} s", HANDSHAKE_TIMEOUT_MS / 1000)]
    TimedOut,
    #[error("the peer closed the connection before its HELLO")]
    Closed,
    #[error("{0}")]
    Protocol(#[from] DecodeError),
    #[error("the peer speaks versions {min} to {max} of the protocol, this side {VERSION_MIN} to {VERSION}")]
    Version { min: u16, max: u16 },
    #[error("{0}")]
    VersionRefused(String),
    #[error("authentication was refused: {0}")]
    Unauthenticated(String),
    #[error("the peer serves namespace {theirs:?}, this side uses {ours:?}")]
    Namespace { ours: String, theirs: String },
    #[error("the peer refused the link: {0}")]
    Refused(String),
}

/// A router's side: connects to `address` and exchanges HELLOs.
pub(crate) async fn connect(
    address: &Address,
    local: &Local,
    insecure: bool,
) -> Result<Greeting, HandshakeError> {
    within_limit(async {
        match address {
            Address::Unix(path) => greet_over(UnixStream::connect(path).await?, local).await,
            Address::Tcp { .. } => {
                let mut stream = connect_tcp(address, insecure).await?;
                let agreed = greet(&mut stream, local).await?;
                Ok(agreed.over(Socket::Tcp(stream.into_std()?)))
            }
        }
    })
    .await
}

/// A router's side over a connection that is there already.
pub(crate) async fn greet_over(mut stream: UnixStream, local: &Local) -> Result<Greeting, HandshakeError> {
    let agreed = greet(&mut stream, local).await?;
    Ok(agreed.over(Socket::Unix(stream.into_std()?)))
}

async fn connect_tcp(address: &Address, insecure: bool) -> Result<TcpStream, HandshakeError> {
    // Literal addresses resolve without blocking; names may ask a server.
    let target = address.clone();
    let found = tokio::task::spawn_blocking(move || target.resolve(insecure))
        .await
        .map_err(|_| HandshakeError::Closed)??;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for candidate in found {
        match TcpStream::connect(candidate).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

/// An accepted connection, not yet greeted.
#[derive(Debug)]
pub(crate) enum Incoming {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A worker's side: waits for the router's HELLO, checks it and answers.
pub(crate) async fn accept(incoming: Incoming, local: &Local) -> Result<Greeting, HandshakeError> {
    within_limit(async {
        match incoming {
            Incoming::Tcp(mut stream) => {
                stream.set_nodelay(true)?;
                let agreed = answer(&mut stream, local).await?;
                Ok(agreed.over(Socket::Tcp(stream.into_std()?)))
            }
            Incoming::Unix(mut stream) => {
                let agreed = answer(&mut stream, local).await?;
                Ok(agreed.over(Socket::Unix(stream.into_std()?)))
            }
        }
    })
    .await
}

async fn within_limit<T>(work: impl Future<Output = Result<T, HandshakeError>>) -> Result<T, HandshakeError> {
    let limit = Duration::from_millis(HANDSHAKE_TIMEOUT_MS);
    tokio::time::timeout(limit, work).await.unwrap_or(Err(HandshakeError::TimedOut))
}

/// Everything agreed but the socket, which the asynchronous stream still owns.
struct Agreed {
    peer: Peer,
    decoder: Decoder,
    out: Outbound,
    rest: Vec<u8>,
}

impl Agreed {
    fn over(self, socket: Socket) -> Greeting {
        let Self { peer, decoder, out, rest } = self;
        Greeting { socket, peer, decoder, out, rest }
    }
}

async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    local: &Local,
) -> Result<Agreed, HandshakeError> {
    let mut out = Outbound::new();
    send_hello(stream, &mut out, local).await?;
    let (hello, decoder, rest) = read_hello(stream).await?;
    check(&hello, local, Role::Worker)?;
    Ok(Agreed { peer: Peer::from(hello), decoder, out, rest })
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    local: &Local,
) -> Result<Agreed, HandshakeError> {
    let mut out = Outbound::new();
    let (hello, decoder, rest) = read_hello(stream).await?;
    if let Err(error) = check(&hello, local, Role::Router) {
        // The refused side learns why, if it still listens.
        let _ = send_refusal(stream, &error).await;
        return Err(error);
    }
    send_hello(stream, &mut out, local).await?;
    Ok(Agreed { peer: Peer::from(hello), decoder, out, rest })
}

fn check(hello: &Hello, local: &Local, expected: Role) -> Result<(), HandshakeError> {
    if hello.common_version().is_none() {
        return Err(HandshakeError::Version { min: hello.version_min, max: hello.version_max });
    }
    if hello.role != expected {
        return Err(HandshakeError::Refused(format!("it is a {:?} too", hello.role)));
    }
    if expected == Role::Router && !tokens_match(local.token.as_deref(), &hello.token) {
        return Err(HandshakeError::Unauthenticated("the token is missing or wrong".into()));
    }
    if hello.namespace != local.namespace {
        let (ours, theirs) = (local.namespace.clone(), hello.namespace.clone());
        return Err(HandshakeError::Namespace { ours, theirs });
    }
    Ok(())
}

/// Compares in a time that does not depend on where the first difference is.
fn tokens_match(expected: Option<&str>, given: &[u8]) -> bool {
    let Some(expected) = expected.map(str::as_bytes) else { return true };
    let differing = expected.iter().zip(given).fold(0, |differing, (a, b)| differing | (a ^ b));
    expected.len() == given.len() && differing == 0
}

async fn send_hello<S: AsyncWrite + Unpin>(
    stream: &mut S,
    out: &mut Outbound,
    local: &Local,
) -> io::Result<()> {
    out.hello(&Hello {
        version_min: VERSION_MIN,
        version_max: VERSION,
        role: local.role,
        features: 0,
        message_max: u32::try_from(local.message_max).unwrap_or(u32::MAX),
        streams_max: local.streams_max,
        link_window: local.link_window,
        instance_id: local.instance_id.clone(),
        namespace: local.namespace.clone(),
        token: local.token.clone().unwrap_or_default().into_bytes(),
        endpoints: local.endpoints.clone(),
    });
    send_all(stream, out).await
}

async fn send_refusal<S: AsyncWrite + Unpin>(stream: &mut S, error: &HandshakeError) -> io::Result<()> {
    let reason = match error {
        HandshakeError::Version { .. } => GoawayReason::Version,
        HandshakeError::Unauthenticated(_) => GoawayReason::Unauthenticated,
        HandshakeError::Namespace { .. } => GoawayReason::Namespace,
        _ => GoawayReason::Protocol,
    };
    let mut out = Outbound::new();
    out.preface();
    out.goaway(&Goaway { last_stream: 0, reason, detail: error.to_string() });
    send_all(stream, &mut out).await
}

async fn send_all<S: AsyncWrite + Unpin>(stream: &mut S, out: &mut Outbound) -> io::Result<()> {
    let mut bytes = Vec::new();
    out.write_to(|slices| {
        slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        Ok(slices.iter().map(|slice| slice.len()).sum())
    })?;
    stream.write_all(&bytes).await
}

async fn read_hello<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<(Hello, Decoder, Vec<u8>), HandshakeError> {
    let mut decoder = Decoder::new();
    // On the heap: the task that connects lives as long as its router, with room for all its locals.
    let mut buffer = vec![0; HELLO_BODY_MAX];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Err(HandshakeError::Closed);
        }
        let mut input = buffer.get(..read).unwrap_or_default();
        let hello = match decoder.next(&mut input)? {
            None => continue,
            Some(frame) if frame.kind == Kind::Hello => Hello::decode(frame.body)?,
            Some(frame) if frame.kind == Kind::Goaway => return Err(refused(Goaway::decode(frame.body)?)),
            Some(frame) => return Err(DecodeError::UnknownKind { kind: frame.kind as u8 }.into()),
        };
        decoder.allow_full_frames();
        return Ok((hello, decoder, input.to_vec()));
    }
}

fn refused(goaway: Goaway) -> HandshakeError {
    match goaway.reason {
        GoawayReason::Version => HandshakeError::VersionRefused(goaway.detail),
        GoawayReason::Unauthenticated => HandshakeError::Unauthenticated(goaway.detail),
        _ => HandshakeError::Refused(goaway.detail),
    }
}

impl From<Hello> for Peer {
    fn from(hello: Hello) -> Self {
        Self {
            instance_id: hello.instance_id.into(),
            is_worker: hello.role == Role::Worker,
            endpoints: hello.endpoints,
            message_max: hello.message_max,
            streams_max: hello.streams_max,
            link_window: hello.link_window,
        }
    }
}
