//! One direction of a connection under the virtual clock: bytes arrive in order, some time after they were
//! written; only so many fit on the way; from the moment of a loss on, nothing new arrives.

use std::collections::VecDeque;
use std::io;

use fastrand::Rng;
use headrace_wire::outbound::Outbound;

pub(crate) struct Pipe {
    /// Bytes that fit between a write and the read of them, as in the sockets' buffers.
    capacity: usize,
    latency_us: u64,
    jitter_us: u64,
    /// What is on its way, with the time at which it arrives.
    segments: VecDeque<(u64, Vec<u8>)>,
    last_due_us: u64,
    /// What has arrived, and how much of it has been read.
    arrived: Vec<u8>,
    read: usize,
    held: usize,
    lost: Option<AfterLoss>,
}

/// What a writer that does not know of the loss yet finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AfterLoss {
    /// Its bytes are taken and never arrive.
    Vanish,
    /// None are taken any more.
    Stuck,
}

impl Pipe {
    pub(crate) fn new(dice: &mut Rng) -> Self {
        Self {
            capacity: dice.usize(5_000..400_000),
            latency_us: dice.u64(10..2_000),
            jitter_us: dice.u64(..500),
            segments: VecDeque::new(),
            last_due_us: 0,
            arrived: Vec::new(),
            read: 0,
            held: 0,
            lost: None,
        }
    }

    /// Writes up to `limit` bytes, as many as there is room for; returns how many.
    pub(crate) fn write(&mut self, out: &mut Outbound, limit: usize, now_us: u64, dice: &mut Rng) -> usize {
        let mut room = limit.min(match self.lost {
            None => self.capacity - self.held,
            Some(AfterLoss::Vanish) => usize::MAX,
            Some(AfterLoss::Stuck) => 0,
        });
        let mut bytes = Vec::new();
        let written = out.write_to(|slices| {
            let before = bytes.len();
            for slice in slices {
                let step = slice.len().min(room);
                bytes.extend_from_slice(&slice[..step]);
                room -= step;
            }
            if bytes.len() == before {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(bytes.len() - before)
            }
        });
        assert_eq!(written.unwrap(), bytes.len(), "every written byte is reported");
        let count = bytes.len();
        if count > 0 && self.lost.is_none() {
            let due_us = now_us + self.latency_us + dice.u64(..=self.jitter_us);
            self.last_due_us = self.last_due_us.max(due_us);
            self.held += count;
            self.segments.push_back((self.last_due_us, bytes));
        }
        count
    }

    /// Reads up to `limit` of the bytes that have arrived.
    pub(crate) fn read(&mut self, limit: usize, now_us: u64) -> Vec<u8> {
        while self.segments.front().is_some_and(|(due_us, _)| *due_us <= now_us) {
            if let Some((_, bytes)) = self.segments.pop_front() {
                self.arrived.extend_from_slice(&bytes);
            }
        }
        let taken = limit.min(self.arrived.len() - self.read);
        let bytes = self.arrived[self.read..self.read + taken].to_vec();
        self.held -= taken;
        self.read += taken;
        if self.read == self.arrived.len() {
            self.arrived.clear();
            self.read = 0;
        }
        bytes
    }

    /// The connection is lost: a part of what is on its way still arrives, nothing else does.
    pub(crate) fn lose(&mut self, dice: &mut Rng) {
        self.lost = Some(if dice.bool() { AfterLoss::Vanish } else { AfterLoss::Stuck });
        let keep = dice.usize(..=self.segments.len());
        self.segments.truncate(keep);
        if let Some((_, last)) = self.segments.back_mut() {
            last.truncate(dice.usize(..=last.len()));
        }
        self.held = self.arrived.len() - self.read
            + self.segments.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    }

    /// When everything that is on its way will have arrived.
    pub(crate) const fn all_due_us(&self) -> u64 {
        self.last_due_us
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.held == 0
    }
}
