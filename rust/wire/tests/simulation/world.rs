//! The world of one seed: a router and a worker, the links between them one after the other, and a clock that
//! jumps from event to event. Everything that happens is drawn from the seed, so a seed repeats exactly.
//!
//! ```text
//!  agenda (by time) ──▶ an end acts: reads, writes, opens, pushes, takes, stops, kills, ends, drains
//!                   ──▶ a link is lost; each end learns of it in its own time and acts on until then
//!                   ──▶ the router connects again
//! ```

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;

use fastrand::Rng;
use headrace_wire::limits::LINK_WINDOW_MIN;

use crate::calls::{Call, Ending, Stand};
use crate::network::Pipe;
use crate::port::Port;
use crate::router::RouterEnd;
use crate::worker::WorkerEnd;

/// Events that a failure tells of.
const TRACE_MAX: usize = 40;

/// The latest events, for whoever looks into a failure.
#[derive(Default)]
pub(crate) struct Trace(RefCell<VecDeque<String>>);

impl Trace {
    pub(crate) fn note(&self, now_us: u64, what: fmt::Arguments<'_>) {
        let mut lines = self.0.borrow_mut();
        if lines.len() == TRACE_MAX {
            lines.pop_front();
        }
        lines.push_back(format!("{now_us:>9} us  {what}"));
    }

    pub(crate) fn lines(&self) -> String {
        self.0.borrow().iter().map(|line| format!("{line}\n")).collect()
    }
}

/// What has happened in how many worlds: shows that the simulation reaches what it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    pub(crate) clean: u64,
    pub(crate) stopped: u64,
    pub(crate) faults: u64,
    pub(crate) rejected: u64,
    pub(crate) killed: u64,
    pub(crate) killed_unsent: u64,
    pub(crate) lost_perhaps_run: u64,
    pub(crate) lost_unsent: u64,
    pub(crate) beyond_goaway: u64,
    pub(crate) retried: u64,
    pub(crate) fragments: u64,
    pub(crate) request_items: u64,
    pub(crate) probes: u64,
    pub(crate) events: u64,
}

impl Coverage {
    pub(crate) const fn counts(&self) -> [(&'static str, u64); 14] {
        [
            ("clean ends", self.clean),
            ("clean ends after STOP", self.stopped),
            ("failures", self.faults),
            ("refusals to the last", self.rejected),
            ("kills", self.killed),
            ("kills before anything was sent", self.killed_unsent),
            ("losses after the request", self.lost_perhaps_run),
            ("losses before the request was written", self.lost_unsent),
            ("requests beyond GOAWAY", self.beyond_goaway),
            ("further attempts", self.retried),
            ("fragments", self.fragments),
            ("items of request streams", self.request_items),
            ("streams whose credit was used to the last byte", self.probes),
            ("events", self.events),
        ]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Router(u32),
    Worker(u32),
    Lose(u32),
    RouterLearns(u32),
    WorkerLearns(u32),
    Connect,
}

/// A connection; an end that has learned of its loss, or has closed it, is gone.
pub(crate) struct Link {
    pub(crate) router: Option<RouterEnd>,
    pub(crate) worker: Option<WorkerEnd>,
    pub(crate) there: Pipe,
    pub(crate) back: Pipe,
    pub(crate) lost: bool,
    /// What the router grants for the link, and what the worker does.
    pub(crate) windows: (u32, u32),
}

pub(crate) struct World<'a> {
    pub(crate) dice: Rng,
    pub(crate) now_us: u64,
    sequence: u64,
    agenda: BinaryHeap<Reverse<(u64, u64, Event)>>,
    pub(crate) calls: Vec<Call>,
    pub(crate) links: BTreeMap<u32, Link>,
    links_made: u32,
    /// Of a hundred messages, how many are large: few in most worlds, many in some.
    pub(crate) large_percent: u8,
    /// Nothing goes wrong any more.
    pub(crate) calm: bool,
    pub(crate) cover: Coverage,
    pub(crate) trace: &'a Trace,
}

impl<'a> World<'a> {
    pub(crate) fn new(seed: u64, trace: &'a Trace) -> Self {
        let mut dice = Rng::with_seed(seed);
        Self {
            large_percent: if dice.u8(..4) == 0 { dice.u8(10..60) } else { 3 },
            dice,
            now_us: 0,
            sequence: 0,
            agenda: BinaryHeap::new(),
            calls: Vec::new(),
            links: BTreeMap::new(),
            links_made: 0,
            calm: false,
            cover: Coverage::default(),
            trace,
        }
    }

    /// Lives through one seed; panics where something is not as it must be.
    pub(crate) fn run(mut self) -> Coverage {
        self.connect();
        let events = self.dice.usize(200..2_500);
        for event in 0..events {
            self.step();
            if event % 400 == 399 {
                self.settle(false);
                self.check_quiet(false);
            }
        }
        self.end();
        self.cover.events += events as u64;
        self.count_endings();
        self.cover
    }

    fn count_endings(&mut self) {
        for call in &self.calls {
            match call.stand {
                Stand::Ended(Ending::Clean { stopped }) => {
                    self.cover.clean += 1;
                    self.cover.stopped += u64::from(stopped);
                }
                Stand::Ended(Ending::Fault) => self.cover.faults += 1,
                Stand::Ended(Ending::Rejected) => self.cover.rejected += 1,
                Stand::Ended(Ending::Killed) => self.cover.killed += 1,
                Stand::Ended(Ending::Lost) | Stand::Waiting | Stand::Active { .. } => {}
            }
            self.cover.retried += u64::from(call.attempts.saturating_sub(1));
        }
    }

    // --- events ---

    fn after(&mut self, wait_us: u64, event: Event) {
        self.sequence += 1;
        self.agenda.push(Reverse((self.now_us + wait_us, self.sequence, event)));
    }

    fn step(&mut self) {
        let Some(Reverse((at_us, _, event))) = self.agenda.pop() else { return };
        // Settling may have moved the clock beyond it.
        self.now_us = self.now_us.max(at_us);
        match event {
            Event::Router(link) => {
                if self.links.get(&link).is_some_and(|link| link.router.is_some()) {
                    self.router_acts(link);
                    // Beside a link that drains there shall be another.
                    self.connect();
                    let wait_us = self.dice.u64(..200);
                    self.after(wait_us, event);
                }
            }
            Event::Worker(link) => {
                if self.links.get(&link).is_some_and(|link| link.worker.is_some()) {
                    self.worker_acts(link);
                    let wait_us = self.dice.u64(..200);
                    self.after(wait_us, event);
                }
            }
            Event::Lose(link) => self.lose(link),
            Event::RouterLearns(link) => self.router_learns(link),
            Event::WorkerLearns(link) => self.worker_learns(link),
            Event::Connect => self.connect(),
        }
    }

    // --- links ---

    /// The router has no link that takes requests, and makes one.
    pub(crate) fn connect(&mut self) {
        if self.usable_link().is_some() {
            return;
        }
        self.links_made += 1;
        let link = self.links_made;
        let dice = &mut self.dice;
        let mut window =
            || if dice.bool() { LINK_WINDOW_MIN } else { dice.u32(LINK_WINDOW_MIN..2 * LINK_WINDOW_MIN) };
        let windows = (window(), window());
        // Most workers have room, some hardly any.
        let reject_percent = match dice.u8(..8) {
            _ if self.calm => 0,
            0 => 70,
            _ => 4,
        };
        let router = RouterEnd::new(link, Port::new(windows.0, windows.1));
        let worker = WorkerEnd::new(link, Port::new(windows.1, windows.0), reject_percent);
        let (there, back) = (Pipe::new(&mut self.dice), Pipe::new(&mut self.dice));
        let (router, worker) = (Some(router), Some(worker));
        self.trace.note(self.now_us, format_args!("link {link}: connects, windows {windows:?}"));
        self.links.insert(link, Link { router, worker, there, back, lost: false, windows });
        self.after(0, Event::Router(link));
        self.after(0, Event::Worker(link));
        if !self.calm && self.dice.u8(..100) < 60 {
            let wait_us = self.dice.u64(..40_000);
            self.after(wait_us, Event::Lose(link));
        }
    }

    /// The link on which the router may open streams.
    pub(crate) fn usable_link(&self) -> Option<u32> {
        let usable = |link: &Link| link.router.as_ref().is_some_and(|router| !router.draining);
        self.links.iter().find(|(_, link)| usable(link)).map(|(number, _)| *number)
    }

    fn lose(&mut self, number: u32) {
        let Some(link) = self.links.get_mut(&number) else { return };
        link.lost = true;
        self.trace.note(self.now_us, format_args!("link {number}: is lost"));
        link.there.lose(&mut self.dice);
        link.back.lose(&mut self.dice);
        for event in [Event::RouterLearns(number), Event::WorkerLearns(number)] {
            let wait_us = if self.dice.bool() { 0 } else { self.dice.u64(..10_000) };
            self.after(wait_us, event);
        }
    }

    pub(crate) fn router_learns(&mut self, number: u32) {
        let Some(link) = self.links.get_mut(&number) else { return };
        if let Some(mut router) = link.router.take() {
            self.trace.note(self.now_us, format_args!("link {number}: is gone for the router"));
            router.lose(&mut self.calls, &mut self.cover);
            let wait_us = self.dice.u64(..3_000);
            self.after(wait_us, Event::Connect);
        }
    }

    pub(crate) fn worker_learns(&mut self, number: u32) {
        let Some(link) = self.links.get_mut(&number) else { return };
        if let Some(mut worker) = link.worker.take() {
            self.trace.note(self.now_us, format_args!("link {number}: is gone for the worker"));
            worker.lose(&mut self.calls);
        }
    }
}
