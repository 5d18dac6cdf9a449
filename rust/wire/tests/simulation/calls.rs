//! The calls of a simulation, with what both sides know of each: the caller's attempts and what it has read,
//! the worker's execution and what its engine has pushed. Having both in one place is what lets every arrival
//! be compared with what was sent.

use std::collections::VecDeque;

use headrace_wire::frame::split_item;
use headrace_wire::stream::{Arrived, Inbound};

use crate::pipe::payload;

/// Where a call stands for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    /// Nothing is under way: it has not begun, or its last attempt provably did not run.
    Waiting,
    /// Sent.
    Active { link: u32, stream: u64 },
    /// Over, but perhaps for items that have not been taken.
    Ended(Ending),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Clean { stopped: bool },
    Fault,
    Rejected,
    Lost,
    Killed,
}

/// What arrives on one direction of a stream, compared with what was pushed there.
pub(crate) struct Arrivals {
    pub(crate) inbound: Inbound,
    /// The first credit.
    pub(crate) granted_first: u64,
    /// Bytes of DATA so far.
    pub(crate) received: u64,
    /// Credit of each item that was not taken.
    ring: VecDeque<u64>,
    pub(crate) arrived: u64,
    pub(crate) fragments: u64,
}

impl Arrivals {
    pub(crate) const fn new(inbound: Inbound, window: u32) -> Self {
        let ring = VecDeque::new();
        let granted_first = window as u64;
        Self { inbound, granted_first, received: 0, ring, arrived: 0, fragments: 0 }
    }

    /// DATA came; `sizes` are those of the items that were pushed. Returns the credit to send.
    pub(crate) fn data(&mut self, flags: u8, body: &[u8], tag: u64, sizes: &[usize]) -> Option<u64> {
        self.received += body.len() as u64;
        match self.inbound.data(flags, body).expect("the stream's credit is respected") {
            Arrived::Fragment => {
                self.fragments += 1;
                return self.inbound.grant();
            }
            Arrived::Whole { payload, credit, .. } => self.item(&payload, credit, tag, sizes),
            Arrived::Items { count } => {
                let mut rest = body;
                for _ in 0..count {
                    let (item, used) = split_item(rest).unwrap().unwrap();
                    self.item(item.payload, used as u64, tag, sizes);
                    rest = &rest[used..];
                }
                assert!(rest.is_empty());
            }
        }
        None
    }

    fn item(&mut self, bytes: &[u8], credit: u64, tag: u64, sizes: &[usize]) {
        let size = *sizes.get(self.arrived as usize).expect("no item arrives that was not pushed");
        assert_eq!(bytes.len(), size, "item {} of {tag}", self.arrived);
        assert!(
            bytes == payload(tag, self.arrived, size),
            "item {} of {tag} arrives as it was",
            self.arrived
        );
        self.ring.push_back(credit);
        self.arrived += 1;
    }

    /// Takes up to `items`; returns how many and the credit to send.
    pub(crate) fn take(&mut self, items: usize) -> (usize, Option<u64>) {
        let taken = items.min(self.ring.len());
        let credit = self.ring.drain(..taken).sum();
        (taken, if taken == 0 { None } else { self.inbound.take(credit) })
    }

    pub(crate) fn is_taken(&self) -> bool {
        self.ring.is_empty()
    }

    /// Nobody reads any more.
    pub(crate) fn drop_unread(&mut self) {
        self.ring.clear();
    }
}

/// What is pushed on one direction of a stream.
#[derive(Debug, Default)]
pub(crate) struct Pushes {
    pub(crate) sizes: Vec<usize>,
    /// The producer was told to wait.
    pub(crate) waiting: bool,
    pub(crate) finished: bool,
}

/// One execution.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) link: u32,
    pub(crate) stream: u64,
    pub(crate) items: Pushes,
    /// How the engine ended, if it did; it may have been killed.
    pub(crate) ended: Option<Ending>,
}

pub(crate) struct Call {
    pub(crate) number: usize,
    pub(crate) request_bytes: usize,
    /// Its request is a stream too.
    pub(crate) many: bool,
    pub(crate) window: u32,
    pub(crate) attempts: u32,
    pub(crate) stand: Stand,
    /// The answer of the present attempt, or of the last one.
    pub(crate) answer: Option<Arrivals>,
    /// The request stream of the present attempt.
    pub(crate) request: Pushes,
    pub(crate) stopped: bool,
    /// The ledger: at most one, ever.
    pub(crate) execution: Option<Execution>,
}

impl Call {
    pub(crate) const fn new(number: usize, request_bytes: usize, many: bool, window: u32) -> Self {
        Self {
            number,
            request_bytes,
            many,
            window,
            attempts: 0,
            stand: Stand::Waiting,
            answer: None,
            request: Pushes { sizes: Vec::new(), waiting: false, finished: false },
            stopped: false,
            execution: None,
        }
    }

    /// What items of the answer are marked with.
    pub(crate) const fn answer_tag(&self) -> u64 {
        self.number as u64
    }

    /// What items of the request stream are marked with.
    pub(crate) const fn request_tag(&self) -> u64 {
        self.number as u64 + 100
    }

    /// The attempt is over and the caller knows it ended this way.
    pub(crate) fn end(&mut self, ending: Ending) {
        self.check_ending(ending);
        self.stand = Stand::Ended(ending);
        self.request.waiting = false;
    }

    /// The attempt provably did not run: the call may be sent again, or ends when it was sent too often.
    pub(crate) fn did_not_run(&mut self, ending: Ending) {
        assert!(self.execution.is_none(), "call {} ran and is said not to have", self.number);
        self.stand = if self.attempts < 3 { Stand::Waiting } else { Stand::Ended(ending) };
        self.request.waiting = false;
    }

    fn check_ending(&self, ending: Ending) {
        let arrived = self.answer.as_ref().map_or(0, |answer| answer.arrived);
        let pushed = self.execution.as_ref().map_or(0, |execution| execution.items.sizes.len() as u64);
        let engine = self.execution.as_ref().and_then(|execution| execution.ended);
        assert!(arrived <= pushed);
        match ending {
            Ending::Clean { .. } => {
                assert_eq!(engine, Some(ending), "only the engine ends a stream cleanly");
                assert_eq!(arrived, pushed, "call {} looks complete", self.number);
            }
            Ending::Fault => assert_eq!(engine, Some(ending)),
            Ending::Rejected => assert!(self.execution.is_none()),
            Ending::Lost | Ending::Killed => {}
        }
    }
}
