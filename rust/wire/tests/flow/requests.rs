//! A router's requests: ids rise, KILL and STOP never come before their REQUEST, request streams flow.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use headrace_wire::body::{KillReason, RequestHead, Shape, decode_kill};
use headrace_wire::frame::{Frame, split_item};
use headrace_wire::kind::{FRAGMENT, Kind, LAST};
use headrace_wire::limits::HEAD_MAX;
use headrace_wire::outbound::{Finish, Pushed};
use headrace_wire::stream::{Arrived, Assembly, Inbound, State};
use proptest::prelude::*;

use super::pipe::{Pipe, payload};

const MESSAGE_MAX: usize = 300_000;

#[derive(Clone, Debug)]
enum Op {
    Request {
        bytes: usize,
        metadata: usize,
    },
    Push {
        call: usize,
        bytes: usize,
    },
    HalfClose {
        call: usize,
    },
    Stop {
        call: usize,
    },
    Kill {
        call: usize,
    },
    /// The worker's STOP arrives: it takes no more items.
    Unwanted {
        call: usize,
    },
    Accept {
        call: usize,
    },
    Write {
        limit: usize,
    },
    Deliver {
        limit: usize,
    },
    Grant {
        index: usize,
    },
}

fn ops() -> impl Strategy<Value = Op> {
    let call = 0..12_usize;
    let bytes = prop_oneof![4 => 0..300_usize, 1 => 300..70_000_usize, 1 => 65_000..MESSAGE_MAX];
    let metadata = prop_oneof![4 => Just(0), 1 => 1..120_000_usize];
    prop_oneof![
        5 => (bytes.clone(), metadata).prop_map(|(bytes, metadata)| Op::Request { bytes, metadata }),
        6 => (call.clone(), bytes).prop_map(|(call, bytes)| Op::Push { call, bytes }),
        1 => call.clone().prop_map(|call| Op::HalfClose { call }),
        2 => call.clone().prop_map(|call| Op::Stop { call }),
        2 => call.clone().prop_map(|call| Op::Kill { call }),
        1 => call.clone().prop_map(|call| Op::Unwanted { call }),
        4 => call.prop_map(|call| Op::Accept { call }),
        6 => (1..120_000_usize).prop_map(|limit| Op::Write { limit }),
        6 => (1..150_000_usize).prop_map(|limit| Op::Deliver { limit }),
        4 => any::<usize>().prop_map(|index| Op::Grant { index }),
    ]
}

/// What the router knows of a call.
struct Call {
    id: u64,
    bytes: usize,
    items: Vec<usize>,
    waiting: bool,
    closed: bool,
    unwanted: bool,
    stopped: bool,
    accepted: bool,
    /// What `kill` returned.
    killed: Option<bool>,
}

/// What the worker saw.
#[derive(Default)]
struct Worker {
    last_id: u64,
    arriving: HashMap<u64, Assembly>,
    /// Whole requests, with their payload's length.
    requests: HashMap<u64, usize>,
    streams: HashMap<u64, (Inbound, Vec<usize>)>,
    stopped: HashSet<u64>,
    killed: HashSet<u64>,
}

impl Worker {
    fn receive(&mut self, frame: Frame<'_>, grants: &mut Vec<(u64, u64)>) {
        let id = frame.stream;
        match frame.kind {
            Kind::Request => self.request(frame),
            Kind::Stop => {
                assert!(self.requests.contains_key(&id), "STOP follows its REQUEST");
                self.stopped.insert(id);
            }
            Kind::Kill => {
                assert_eq!(decode_kill(frame.body), Ok(KillReason::Deadline));
                assert!(id <= self.last_id, "KILL follows its REQUEST");
                assert!(self.killed.insert(id));
                self.arriving.remove(&id);
                self.streams.remove(&id);
            }
            Kind::Data | Kind::End if self.killed.contains(&id) => {}
            Kind::Data => self.data(frame, grants),
            Kind::End => self.streams.get_mut(&id).unwrap().0.end(frame.body).expect("the count is right"),
            other => panic!("a router does not send {other:?}"),
        }
    }

    fn request(&mut self, frame: Frame<'_>) {
        let id = frame.stream;
        assert!(!self.killed.contains(&id), "nothing of a request follows its KILL");
        if let Some(assembly) = self.arriving.get_mut(&id) {
            assembly.push(frame.body).unwrap();
        } else {
            assert!(id > self.last_id, "ids rise on the wire");
            self.last_id = id;
            if frame.flags & FRAGMENT == 0 {
                return self.whole(id, frame.body);
            }
            self.arriving.insert(id, Assembly::request(frame.body, MESSAGE_MAX + HEAD_MAX + 4).unwrap());
        }
        if frame.flags & LAST != 0 {
            let message = self.arriving.remove(&id).unwrap().finish().unwrap();
            self.whole(id, &message);
        }
    }

    fn whole(&mut self, id: u64, message: &[u8]) {
        let (head, body) = RequestHead::decode(message).unwrap();
        assert_eq!(head.request_id, id.to_string());
        assert_eq!(body, payload(id, 0, body.len()));
        self.requests.insert(id, body.len());
    }

    fn data(&mut self, frame: Frame<'_>, grants: &mut Vec<(u64, u64)>) {
        let id = frame.stream;
        let (inbound, items) = self.streams.get_mut(&id).expect("DATA waits for ACCEPT");
        let mut check = |bytes: &[u8]| {
            assert_eq!(bytes, payload(id, items.len() as u64, bytes.len()));
            items.push(bytes.len());
        };
        let taken = match inbound.data(frame.flags, frame.body).expect("credit is respected") {
            Arrived::Fragment => 0,
            Arrived::Whole { payload, credit, .. } => {
                check(&payload);
                credit
            }
            Arrived::Items { .. } => {
                let mut rest = frame.body;
                while let Some((item, used)) = split_item(rest).unwrap() {
                    check(item.payload);
                    rest = &rest[used..];
                }
                frame.body.len() as u64
            }
        };
        grants.extend(inbound.take(taken).map(|bytes| (id, bytes)));
    }
}

struct Simulation {
    pipe: Pipe,
    calls: Vec<Call>,
    worker: Worker,
    window: u32,
}

impl Simulation {
    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Request { bytes, metadata } => self.request(bytes, metadata),
            Op::Push { call, bytes } => self.push(call, bytes),
            Op::HalfClose { call } => self.half_close(call),
            Op::Stop { call } => {
                if let Some(call) = self.calls.get_mut(call).filter(|call| call.killed.is_none()) {
                    self.pipe.out.stop(call.id);
                    call.stopped = true;
                }
            }
            Op::Kill { call } => {
                if let Some(call) = self.calls.get_mut(call).filter(|call| call.killed.is_none()) {
                    call.killed = Some(self.pipe.out.kill(call.id, KillReason::Deadline));
                }
            }
            Op::Unwanted { call } => self.unwanted(call),
            Op::Accept { call } => self.accept(call),
            Op::Write { limit } => {
                self.pipe.write(limit, limit);
            }
            Op::Deliver { limit } => {
                let worker = &mut self.worker;
                self.pipe.deliver(limit, |frame, grants| worker.receive(frame, grants));
            }
            Op::Grant { index } => self.pipe.grant(index),
        }
        for id in self.pipe.out.take_unblocked() {
            let call = self.calls.iter_mut().find(|call| call.id == id).unwrap();
            assert!(std::mem::take(&mut call.waiting), "only who waits is told to go on");
        }
        for call in &self.calls {
            let arrived = self.worker.requests.contains_key(&call.id);
            assert!(!arrived || call.killed.is_some() || self.pipe.out.request_written(call.id));
        }
    }

    fn request(&mut self, bytes: usize, metadata: usize) {
        if self.calls.len() == 12 {
            return;
        }
        let id = 2 * self.calls.len() as u64 + 1;
        let head = RequestHead {
            request_shape: Shape::Many,
            window: 4096,
            request_id: id.to_string(),
            metadata: vec![("k".to_owned(), "v".repeat(metadata))],
            ..RequestHead::default()
        };
        let mut encoded = Vec::new();
        head.encode(&mut encoded).unwrap();
        self.pipe.out.request(id, encoded, Bytes::from(payload(id, 0, bytes))).unwrap();
        self.calls.push(Call {
            id,
            bytes,
            items: Vec::new(),
            waiting: false,
            closed: false,
            unwanted: false,
            stopped: false,
            accepted: false,
            killed: None,
        });
    }

    fn push(&mut self, call: usize, bytes: usize) {
        let Some(call) = self.calls.get_mut(call) else { return };
        if call.waiting {
            return;
        }
        let pushed = self.pipe.out.item(call.id, 0, &payload(call.id, call.items.len() as u64, bytes));
        if call.closed || call.unwanted || call.killed.is_some() {
            assert!(pushed.is_err());
        } else {
            call.items.push(bytes);
            call.waiting = pushed.unwrap() == Pushed::Waiting;
        }
    }

    fn half_close(&mut self, call: usize) {
        if let Some(call) = self.calls.get_mut(call).filter(|call| call.accepted) {
            self.pipe.out.finish(call.id, Finish::HalfClose);
            call.closed = true;
        }
    }

    fn unwanted(&mut self, call: usize) {
        if let Some(call) = self.calls.get_mut(call).filter(|call| call.accepted && call.killed.is_none()) {
            self.pipe.out.requests_unwanted(call.id);
            assert!(!self.pipe.out.has_backlog(call.id), "nothing waits that nobody wants");
            call.unwanted = true;
            call.waiting = false;
        }
    }

    /// The worker's ACCEPT arrives, if the worker has the request.
    fn accept(&mut self, call: usize) {
        let Some(call) = self.calls.get_mut(call) else { return };
        if !call.accepted && call.killed.is_none() && self.worker.requests.contains_key(&call.id) {
            call.accepted = true;
            let inbound = Inbound::request_stream(self.window, MESSAGE_MAX);
            self.worker.streams.insert(call.id, (inbound, Vec::new()));
            self.pipe.out.accepted(call.id, self.window).unwrap();
        }
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            (0..12).for_each(|call| self.accept(call));
            self.apply(&Op::Write { limit: usize::MAX });
            self.apply(&Op::Deliver { limit: usize::MAX });
            self.apply(&Op::Grant { index: 0 });
            let accepted = self.calls.iter().all(|call| call.accepted || call.killed.is_some());
            if self.pipe.is_quiet() && accepted {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn check_end(&self) {
        for call in &self.calls {
            match call.killed {
                Some(false) => assert!(
                    !self.worker.requests.contains_key(&call.id) && !self.worker.killed.contains(&call.id),
                    "a request that is killed unsent leaves no trace"
                ),
                Some(true) => assert!(self.worker.killed.contains(&call.id)),
                None => {
                    assert_eq!(self.worker.requests.get(&call.id), Some(&call.bytes));
                    assert_eq!(self.worker.stopped.contains(&call.id), call.stopped, "STOP arrives");
                    let (inbound, items) = &self.worker.streams[&call.id];
                    if call.unwanted {
                        // What had reached the buffer still comes; whether END had, nobody asks.
                        assert_eq!(items[..], call.items[..items.len()]);
                        continue;
                    }
                    assert_eq!(items, &call.items);
                    assert_eq!(inbound.state(), if call.closed { State::Ended } else { State::Open });
                }
            }
        }
        assert!(self.worker.arriving.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn requests_and_their_streams_arrive_in_order_unless_killed(
        link_window in prop_oneof![Just(262_144_u32), Just(4 << 20)],
        window in prop_oneof![Just(4096_u32), Just(100_000)],
        script in proptest::collection::vec(ops(), 1..250),
    ) {
        let pipe = Pipe::new(link_window, MESSAGE_MAX);
        let mut simulation = Simulation { pipe, calls: Vec::new(), worker: Worker::default(), window };
        script.iter().for_each(|op| simulation.apply(op));
        simulation.settle();
        simulation.check_end();
        (0..12).for_each(|call| simulation.half_close(call));
        simulation.settle();
        simulation.check_end();
    }
}
