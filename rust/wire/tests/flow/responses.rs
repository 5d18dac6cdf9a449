//! A worker's streams: whatever happens, credit is respected, nothing is lost, doubled or stuck.

use std::collections::VecDeque;

use headrace_wire::body::{Fault, FaultCode};
use headrace_wire::error::EncodeError;
use headrace_wire::frame::{Frame, split_item};
use headrace_wire::kind::{FRAGMENT, Kind};
use headrace_wire::outbound::{Finish, Pushed};
use headrace_wire::stream::{Arrived, Inbound, State};
use proptest::prelude::*;

use super::pipe::{Pipe, payload};

const MESSAGE_MAX: usize = 400_000;

#[derive(Clone, Debug)]
enum Op {
    Push {
        stream: usize,
        bytes: usize,
        shared: bool,
    },
    Write {
        limit: usize,
        per_call: usize,
    },
    Deliver {
        limit: usize,
    },
    Take {
        stream: usize,
        items: usize,
    },
    Grant {
        index: usize,
    },
    Finish {
        stream: usize,
        cleanly: bool,
    },
    Abandon {
        stream: usize,
    },
    /// The router's KILL has arrived: both sides forget the stream.
    Kill {
        stream: usize,
    },
    Ping,
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 0..200_usize,
        2 => 200..30_000_usize,
        1 => 65_500..65_600_usize,
        1 => 65_600..MESSAGE_MAX,
    ]
}

fn ops() -> impl Strategy<Value = Op> {
    let stream = 0..6_usize;
    prop_oneof![
        12 => (stream.clone(), sizes(), any::<bool>())
            .prop_map(|(stream, bytes, shared)| Op::Push { stream, bytes, shared }),
        6 => (1..100_000_usize, 1..70_000_usize).prop_map(|(limit, per_call)| Op::Write { limit, per_call }),
        6 => (1..150_000_usize).prop_map(|limit| Op::Deliver { limit }),
        6 => (stream.clone(), 1..20_usize).prop_map(|(stream, items)| Op::Take { stream, items }),
        6 => any::<usize>().prop_map(|index| Op::Grant { index }),
        1 => (stream.clone(), any::<bool>()).prop_map(|(stream, cleanly)| Op::Finish { stream, cleanly }),
        1 => stream.clone().prop_map(|stream| Op::Abandon { stream }),
        1 => stream.prop_map(|stream| Op::Kill { stream }),
        1 => Just(Op::Ping),
    ]
}

fn fault() -> Fault {
    Fault {
        code: FaultCode::Engine,
        kind: "ValueError".into(),
        message: String::new(),
        traceback: String::new(),
    }
}

/// One stream with both of its ends.
struct Stream {
    id: u64,
    inbound: Inbound,
    sizes: Vec<usize>,
    waiting: bool,
    finished: bool,
    /// Ended with items in its backlog.
    abandoned: bool,
    killed: bool,
    /// What arrived and was not taken.
    ring: VecDeque<Buffered>,
    arrived: u64,
}

struct Buffered {
    credit: u64,
    in_fragments: bool,
}

impl Stream {
    fn check_item(&mut self, bytes: &[u8], credit: u64, in_fragments: bool) {
        let length = self.sizes[self.arrived as usize];
        assert_eq!(bytes, payload(self.id, self.arrived, length), "items arrive once and in order");
        self.ring.push_back(Buffered { credit, in_fragments });
        self.arrived += 1;
    }

    fn receive(&mut self, frame: Frame<'_>, grants: &mut Vec<(u64, u64)>) {
        match frame.kind {
            Kind::Accept => self.inbound.accept().unwrap(),
            Kind::Prologue => assert_eq!(self.inbound.prologue(frame.body).unwrap(), None),
            Kind::Data => self.receive_data(frame),
            Kind::End => self.inbound.end(frame.body).expect("the count is right"),
            Kind::Error => assert_eq!(self.inbound.error(frame.body).expect("the count is right"), fault()),
            other => panic!("a worker does not send {other:?}"),
        }
        grants.extend(self.inbound.grant().map(|bytes| (self.id, bytes)));
        self.check_window();
    }

    fn receive_data(&mut self, frame: Frame<'_>) {
        match self.inbound.data(frame.flags, frame.body).expect("the stream's credit is respected") {
            Arrived::Fragment => assert_ne!(frame.flags & FRAGMENT, 0),
            Arrived::Whole { payload, credit, .. } => {
                self.check_item(&payload, credit, true);
            }
            Arrived::Items { count } => {
                let mut rest = frame.body;
                for _ in 0..count {
                    let (item, used) = split_item(rest).unwrap().unwrap();
                    self.check_item(item.payload, used as u64, false);
                    rest = &rest[used..];
                }
                assert!(rest.is_empty());
            }
        }
    }

    fn take(&mut self, items: usize) -> Option<u64> {
        let taken = self.ring.drain(..items.min(self.ring.len()));
        let credit = taken.map(|item| item.credit).sum();
        let granted = self.inbound.take(credit);
        self.check_window();
        granted
    }

    fn check_window(&self) {
        let window = self.inbound.window();
        // Credit that went back while an item arrived in fragments is there until that item is taken.
        let in_fragments = self.ring.iter().filter(|item| item.in_fragments);
        let extra = in_fragments.map(|item| item.credit).max().unwrap_or(0);
        assert!(window.unused() + window.buffered() <= window.size() + window.expected() + extra);
        assert_eq!(window.buffered(), self.ring.iter().map(|item| item.credit).sum::<u64>());
    }
}

struct Simulation {
    pipe: Pipe,
    streams: Vec<Stream>,
}

impl Simulation {
    fn new(link_window: u32, stream_windows: &[u32]) -> Self {
        let mut pipe = Pipe::new(link_window, MESSAGE_MAX);
        let streams = stream_windows.iter().zip((1..).step_by(2)).map(|(&window, id)| {
            pipe.out.accept(id, 4096, window);
            pipe.out.prologue(id, None);
            Stream {
                id,
                inbound: Inbound::response(window, MESSAGE_MAX),
                sizes: Vec::new(),
                waiting: false,
                finished: false,
                abandoned: false,
                killed: false,
                ring: VecDeque::new(),
                arrived: 0,
            }
        });
        let streams = streams.collect();
        Self { pipe, streams }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Push { stream, bytes, shared } => self.push(stream, bytes, shared),
            Op::Write { limit, per_call } => {
                self.pipe.write(limit, per_call);
            }
            Op::Deliver { limit } => self.deliver(limit),
            Op::Take { stream, items } => self.take(stream, items),
            Op::Grant { index } => self.pipe.grant(index),
            Op::Finish { stream, cleanly } => self.finish(stream, cleanly),
            Op::Abandon { stream } => {
                let stream = &mut self.streams[stream];
                stream.abandoned |= self.pipe.out.has_backlog(stream.id);
                self.pipe.out.abandon(stream.id, fault());
                stream.finished = true;
                stream.waiting = false;
            }
            Op::Kill { stream } => {
                let stream = &mut self.streams[stream];
                stream.killed = true;
                self.pipe.out.close(stream.id);
            }
            Op::Ping => self.pipe.out.ping(7),
        }
        for id in self.pipe.out.take_unblocked() {
            let stream = self.streams.iter_mut().find(|stream| stream.id == id).unwrap();
            assert!(std::mem::take(&mut stream.waiting), "only who waits is told to go on");
        }
    }

    fn push(&mut self, index: usize, bytes: usize, shared: bool) {
        let stream = &mut self.streams[index];
        // Most producers wait when they are told to; order must hold for those that do not.
        if stream.waiting && (!bytes.is_multiple_of(3) || bytes > 1000) {
            return;
        }
        let item = payload(stream.id, stream.sizes.len() as u64, bytes);
        let pushed = if shared {
            self.pipe.out.item_shared(stream.id, 0, item.into())
        } else {
            self.pipe.out.item(stream.id, 0, &item)
        };
        if stream.finished || stream.killed {
            assert_eq!(pushed, Err(EncodeError::Closed));
            return;
        }
        stream.waiting = pushed.unwrap() == Pushed::Waiting;
        stream.sizes.push(bytes);
        assert_eq!(self.pipe.out.items(stream.id), stream.sizes.len() as u64);
    }

    fn finish(&mut self, index: usize, cleanly: bool) {
        let stream = &mut self.streams[index];
        let finish = if cleanly { Finish::End { stopped: false } } else { Finish::Error(fault()) };
        self.pipe.out.finish(stream.id, finish);
        stream.finished = true;
        stream.waiting = false;
    }

    fn deliver(&mut self, limit: usize) {
        let streams = &mut self.streams;
        self.pipe.deliver(limit, |frame, grants| {
            if let Some(stream) =
                streams.iter_mut().find(|stream| stream.id == frame.stream && !stream.killed)
            {
                stream.receive(frame, grants);
            }
        });
    }

    fn take(&mut self, index: usize, items: usize) {
        let stream = &mut self.streams[index];
        if !stream.killed
            && let Some(bytes) = stream.take(items)
        {
            self.pipe.grants.push((stream.id, bytes));
        }
    }

    /// Lets everything run until nothing moves any more.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            self.apply(&Op::Write { limit: usize::MAX, per_call: 1 << 20 });
            self.deliver(usize::MAX);
            (0..self.streams.len()).for_each(|index| self.take(index, usize::MAX));
            self.apply(&Op::Grant { index: 0 });
            if self.pipe.is_quiet() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn check_end(&self) {
        for stream in self.streams.iter().filter(|stream| !stream.killed) {
            let all = stream.arrived == stream.sizes.len() as u64;
            assert!(all || stream.abandoned, "everything arrives on stream {}", stream.id);
            assert!(!stream.waiting, "no producer waits for ever");
            let expected = if stream.finished { State::Ended } else { State::Open };
            assert_eq!(stream.inbound.state(), expected);
        }
        assert_eq!((self.pipe.out.unwritten(), self.pipe.out.unwritten_control()), (0, 0));
    }
}

fn windows() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(prop_oneof![Just(4096), 4097..70_000_u32, Just(262_144)], 6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn credit_is_respected_and_everything_arrives(
        link_window in prop_oneof![Just(262_144_u32), Just(4 << 20)],
        windows in windows(),
        script in proptest::collection::vec(ops(), 1..250),
    ) {
        let mut simulation = Simulation::new(link_window, &windows);
        script.iter().for_each(|op| simulation.apply(op));
        simulation.settle();
        simulation.check_end();
        (0..6).for_each(|stream| simulation.finish(stream, true));
        simulation.settle();
        simulation.check_end();
        prop_assert_eq!(simulation.pipe.out.streams(), 0);
    }
}

#[test]
fn items_of_every_size_around_the_window_arrive_with_every_amount_of_credit_gone() {
    // The smallest window, so that halves, whole windows and the fragment prefix all come into play.
    for used in (0..4096).step_by(61) {
        for bytes in [1, 2040, 2043, 2048, 2049, 4089, 4091, 4096, 5000, 70_000] {
            let mut simulation = Simulation::new(1 << 20, &[4096]);
            simulation.push(0, used, false);
            simulation.push(0, bytes, true);
            simulation.settle();
            simulation.check_end();
        }
    }
}
