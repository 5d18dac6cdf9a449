//! A peer made of a raw socket and the protocol's own encoder: it can break every rule.

use std::future::Future;

use bytes::Bytes;
use headrace::Address;
use headrace::wire::body::{Hello, RequestHead, Role, Shape, VERSION, VERSION_MIN};
use headrace::wire::decoder::Decoder;
use headrace::wire::frame::Header;
use headrace::wire::kind::Kind;
use headrace::wire::limits::{LINK_WINDOW_DEFAULT, MESSAGE_MAX_DEFAULT, STREAM_WINDOW_DEFAULT};
use headrace::wire::outbound::Outbound;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::guard;

pub struct Frame {
    pub kind: Kind,
    pub stream: u64,
    pub body: Vec<u8>,
}

pub struct Raw {
    socket: TcpStream,
    pub out: Outbound,
    decoder: Decoder,
    input: Vec<u8>,
    at: usize,
}

pub fn hello(role: Role) -> Hello {
    Hello {
        version_min: VERSION_MIN,
        version_max: VERSION,
        role,
        features: 0,
        message_max: MESSAGE_MAX_DEFAULT as u32,
        streams_max: 1_000,
        link_window: LINK_WINDOW_DEFAULT,
        instance_id: "raw".into(),
        namespace: "default".into(),
        token: Vec::new(),
        endpoints: if role == Role::Worker { vec!["script".into()] } else { Vec::new() },
    }
}

pub fn head() -> RequestHead {
    RequestHead {
        response_shape: Shape::Many,
        window: STREAM_WINDOW_DEFAULT,
        request_id: "raw".into(),
        endpoint: "script".into(),
        ..RequestHead::default()
    }
}

/// Where a raw worker listens, and its address.
pub async fn listen() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    (listener, address)
}

impl Raw {
    fn over(socket: TcpStream) -> Self {
        let mut out = Outbound::new();
        out.configure(LINK_WINDOW_DEFAULT, MESSAGE_MAX_DEFAULT);
        Self { socket, out, decoder: Decoder::new(), input: Vec::new(), at: 0 }
    }

    /// Connects and says nothing.
    pub async fn connect(address: &Address) -> Self {
        let Address::Tcp { host, port } = address else { panic!("a TCP address") };
        Self::over(TcpStream::connect((host.as_str(), *port)).await.unwrap())
    }

    /// A router whose handshake is done.
    pub async fn router(address: &Address) -> Self {
        let mut peer = Self::connect(address).await;
        peer.out.hello(&hello(Role::Router));
        peer.flush().await;
        assert_eq!(peer.frame().await.unwrap().kind, Kind::Hello);
        peer.decoder.allow_full_frames();
        peer
    }

    /// A worker whose handshake is done, with the next connection of `listener`.
    pub async fn worker(listener: &TcpListener) -> Self {
        Self::worker_that_says(listener, hello(Role::Worker)).await
    }

    pub async fn worker_that_says(listener: &TcpListener, hello: Hello) -> Self {
        let (socket, _) = guard("a connection", listener.accept()).await.unwrap();
        let mut peer = Self::over(socket);
        assert_eq!(peer.frame().await.unwrap().kind, Kind::Hello);
        peer.decoder.allow_full_frames();
        peer.out.hello(&hello);
        peer.flush().await;
        peer
    }

    /// Puts a request into the outbound half.
    pub fn request(&mut self, stream: u64, script: &str) {
        let mut encoded = Vec::new();
        head().encode(&mut encoded).unwrap();
        self.out.request(stream, encoded, Bytes::from(script.as_bytes().to_vec())).unwrap();
    }

    /// Writes what has gathered. A peer that has hung up is no failure here.
    pub async fn flush(&mut self) {
        let mut bytes = Vec::new();
        self.out
            .write_to(|slices| {
                slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
                Ok(slices.iter().map(|slice| slice.len()).sum())
            })
            .unwrap();
        self.bytes(&bytes).await;
    }

    pub async fn bytes(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes).await;
    }

    /// Sends any frame whatever.
    pub async fn send(&mut self, kind: Kind, flags: u8, stream: u64, body: &[u8]) {
        let mut bytes = Header::encode(kind, flags, stream, body.len()).to_vec();
        bytes.extend_from_slice(body);
        self.bytes(&bytes).await;
    }

    /// The next frame; `None` when the peer has hung up.
    pub fn frame(&mut self) -> impl Future<Output = Option<Frame>> {
        guard("a frame", self.read_frame())
    }

    async fn read_frame(&mut self) -> Option<Frame> {
        loop {
            let mut input = &self.input[self.at..];
            let before = input.len();
            let frame = self.decoder.next(&mut input).unwrap().map(|frame| Frame {
                kind: frame.kind,
                stream: frame.stream,
                body: frame.body.to_vec(),
            });
            self.at += before - input.len();
            if frame.is_some() {
                return frame;
            }
            self.input.resize(64 * 1024, 0);
            self.at = 0;
            let read = self.socket.read(&mut self.input).await.unwrap_or(0);
            self.input.truncate(read);
            if read == 0 {
                return None;
            }
        }
    }

    /// The next frame of this kind; others are passed over.
    pub async fn until(&mut self, kind: Kind) -> Frame {
        loop {
            let frame = self.frame().await.unwrap_or_else(|| panic!("hung up before {kind:?}"));
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Reads on until the peer hangs up; returns the kinds that came before.
    pub async fn until_closed(&mut self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        while let Some(frame) = self.frame().await {
            kinds.push(frame.kind);
        }
        kinds
    }

    /// Hangs up as a killed process does that had not read everything: with a reset.
    pub fn reset(self) {
        self.socket.set_zero_linger().unwrap();
    }

    /// Ends both directions in order.
    pub fn hang_up(self) {}
}
