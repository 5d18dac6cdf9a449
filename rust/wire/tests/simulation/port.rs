//! What both ends of a link have: the sending half, the decoder, the link's credit both ways, and who pinged
//! whom. It keeps books of credit beside the protocol's own, from what really arrived.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use fastrand::Rng;
use headrace_wire::body::{decode_credit, decode_ping, decode_pong};
use headrace_wire::credit::ReceiveWindow;
use headrace_wire::decoder::Decoder;
use headrace_wire::kind::Kind;
use headrace_wire::outbound::Outbound;

use crate::network::Pipe;

/// Largest message on every link.
pub(crate) const MESSAGE_MAX: usize = 300_000;

pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) stream: u64,
    pub(crate) body: Vec<u8>,
}

pub(crate) struct Port {
    pub(crate) out: Outbound,
    decoder: Decoder,
    /// What this side has granted for the link.
    pub(crate) window: ReceiveWindow,
    /// Bytes of DATA and REQUEST that have arrived.
    pub(crate) received: u64,
    /// CREDIT that has arrived, by stream; 0 is the link.
    pub(crate) credited: BTreeMap<u64, u64>,
    pings: VecDeque<u64>,
}

impl Port {
    /// `own_window` is what this side grants for the link, `peer_window` what the other one does.
    pub(crate) fn new(own_window: u32, peer_window: u32) -> Self {
        let mut out = Outbound::new();
        out.preface();
        out.configure(peer_window, MESSAGE_MAX);
        let mut decoder = Decoder::new();
        decoder.allow_full_frames();
        Self {
            out,
            decoder,
            window: ReceiveWindow::new(own_window),
            received: 0,
            credited: BTreeMap::new(),
            pings: VecDeque::new(),
        }
    }

    /// Writes if there is something to write: as over a real socket, nobody is woken for anything else.
    pub(crate) fn flush(&mut self, pipe: &mut Pipe, limit: usize, now_us: u64, dice: &mut Rng) -> usize {
        if !self.out.wants_write() {
            // A write would let streams take turns; whoever could do so must have had its turn before.
            let written = self.out.write_to(|_| Err(io::ErrorKind::WouldBlock.into()));
            assert_eq!((written.unwrap(), self.out.unwritten()), (0, 0), "a stream that could send did not");
            return 0;
        }
        pipe.write(&mut self.out, limit, now_us, dice)
    }

    pub(crate) fn ping(&mut self, stamp: u64) {
        self.out.ping(stamp);
        self.pings.push_back(stamp);
    }

    /// Decodes what was read; answers what concerns the link alone, returns the other frames.
    pub(crate) fn decode(&mut self, bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut input = bytes;
        while let Some(frame) = self.decoder.next(&mut input).expect("every frame starts at a boundary") {
            if matches!(frame.kind, Kind::Data | Kind::Request) {
                let length = frame.body.len() as u64;
                self.window.receive(length).expect("the link's credit is respected");
                self.received += length;
                if let Some(bytes) = self.window.grant() {
                    self.out.credit(0, bytes);
                }
            }
            match frame.kind {
                Kind::Ping => self.out.pong(decode_ping(frame.body).unwrap(), 0),
                Kind::Pong => {
                    let (echo, _) = decode_pong(frame.body).unwrap();
                    assert_eq!(Some(echo), self.pings.pop_front(), "PONG answers PING, in order");
                }
                Kind::Credit => {
                    let bytes = decode_credit(frame.body).unwrap();
                    *self.credited.entry(frame.stream).or_default() += bytes;
                    self.out.granted(frame.stream, bytes).expect("nothing beyond a window is granted");
                }
                kind => frames.push(Frame {
                    kind,
                    flags: frame.flags,
                    stream: frame.stream,
                    body: frame.body.to_vec(),
                }),
            }
        }
        assert!(input.is_empty());
        frames
    }

    pub(crate) fn credited(&self, stream: u64) -> u64 {
        self.credited.get(&stream).copied().unwrap_or(0)
    }
}
