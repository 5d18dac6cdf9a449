//! One direction of a link: what is written comes out again frame by frame, and the link's credit is kept.

use std::io;

use headrace_wire::credit::ReceiveWindow;
use headrace_wire::decoder::Decoder;
use headrace_wire::frame::Frame;
use headrace_wire::kind::Kind;
use headrace_wire::outbound::Outbound;

pub(crate) struct Pipe {
    pub(crate) out: Outbound,
    wire: Vec<u8>,
    decoder: Decoder,
    link: ReceiveWindow,
    /// Grants that are on their way to the sender: stream and bytes.
    pub(crate) grants: Vec<(u64, u64)>,
}

impl Pipe {
    pub(crate) fn new(link_window: u32, message_max: usize) -> Self {
        let mut out = Outbound::new();
        out.preface();
        out.configure(link_window, message_max);
        let mut decoder = Decoder::new();
        decoder.allow_full_frames();
        Self { out, wire: Vec::new(), decoder, link: ReceiveWindow::new(link_window), grants: Vec::new() }
    }

    /// Writes up to `limit` bytes, at most `per_call` of them in one call.
    pub(crate) fn write(&mut self, limit: usize, per_call: usize) -> usize {
        let mut left = limit;
        let wire = &mut self.wire;
        let before = wire.len();
        let written = self.out.write_to(|slices| {
            let mut taken = 0;
            for slice in slices {
                let step = slice.len().min(left).min(per_call - taken);
                wire.extend_from_slice(&slice[..step]);
                taken += step;
                left -= step;
            }
            if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
        });
        assert_eq!(written.unwrap(), wire.len() - before, "every written byte is reported");
        wire.len() - before
    }

    /// Hands up to `limit` bytes to the decoder and its frames to `on_frame`, with the grants that are late.
    pub(crate) fn deliver(
        &mut self,
        limit: usize,
        mut on_frame: impl FnMut(Frame<'_>, &mut Vec<(u64, u64)>),
    ) {
        let bytes: Vec<u8> = self.wire.drain(..limit.min(self.wire.len())).collect();
        let mut input = &bytes[..];
        while let Some(frame) = self.decoder.next(&mut input).expect("every frame starts at a boundary") {
            if matches!(frame.kind, Kind::Data | Kind::Request) {
                let length = frame.body.len() as u64;
                self.link.receive(length).expect("the link's credit is respected");
                self.link.buffer(length);
                self.link.take(length);
                if let Some(bytes) = self.link.grant() {
                    self.grants.push((0, bytes));
                }
            }
            on_frame(frame, &mut self.grants);
        }
        assert!(input.is_empty());
    }

    /// Lets the grant at `index` arrive.
    pub(crate) fn grant(&mut self, index: usize) {
        if !self.grants.is_empty() {
            let (stream, bytes) = self.grants.swap_remove(index % self.grants.len());
            self.out.granted(stream, bytes).expect("nothing beyond a window is granted");
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.wire.is_empty() && self.grants.is_empty() && !self.out.wants_write()
    }
}

/// A payload that says which item of which stream it is, at both ends if there is room.
pub(crate) fn payload(stream: u64, item: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![stream as u8; length];
    let stamp = item.to_le_bytes();
    let room = length.min(8);
    bytes[..room].copy_from_slice(&stamp[..room]);
    bytes[length - room..].copy_from_slice(&stamp[..room]);
    bytes
}
