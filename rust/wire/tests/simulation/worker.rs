//! The worker's end of a link, as the runtime drives the protocol: admission, engines that push what they
//! please, request streams that somebody reads, a drain.

use std::collections::BTreeMap;

use bytes::Bytes;
use headrace_wire::body::{
    Fault, FaultCode, Goaway, GoawayReason, Reject, RejectReason, RequestHead, Status, decode_kill,
};
use headrace_wire::kind::{FRAGMENT, Kind, LAST};
use headrace_wire::limits::{HEAD_MAX, STREAM_WINDOW_MIN};
use headrace_wire::outbound::{Finish, Pushed};
use headrace_wire::stream::{Assembly, Inbound, State};

use crate::calls::{Arrivals, Call, Ending, Execution, Pushes};
use crate::pipe::payload;
use crate::port::{Frame, MESSAGE_MAX, Port};
use crate::world::Coverage;

/// A stream whose request was accepted and whose engine has not ended.
pub(crate) struct Running {
    pub(crate) call: usize,
    pub(crate) opened: bool,
    pub(crate) stopped: bool,
    pub(crate) request: Option<Arrivals>,
}

pub(crate) struct WorkerEnd {
    pub(crate) link: u32,
    pub(crate) port: Port,
    pub(crate) arriving: BTreeMap<u64, Assembly>,
    pub(crate) table: BTreeMap<u64, Running>,
    last_id: u64,
    pub(crate) draining: bool,
    /// Of a hundred requests, how many are refused.
    pub(crate) reject_percent: u8,
}

pub(crate) fn fault() -> Fault {
    Fault { code: FaultCode::Engine, kind: "E".into(), message: String::new(), traceback: String::new() }
}

impl WorkerEnd {
    pub(crate) const fn new(link: u32, port: Port, reject_percent: u8) -> Self {
        Self {
            link,
            port,
            arriving: BTreeMap::new(),
            table: BTreeMap::new(),
            last_id: 0,
            draining: false,
            reject_percent,
        }
    }

    // --- engines ---

    pub(crate) fn open(&mut self, stream: u64) {
        let Some(running) = self.table.get_mut(&stream) else { return };
        if !std::mem::replace(&mut running.opened, true) {
            self.port.out.prologue(stream, None);
        }
    }

    /// The engine pushes an item, by reference or not, unless it was told to wait.
    pub(crate) fn push(&mut self, stream: u64, calls: &mut [Call], size: usize, shared: bool) {
        self.open(stream);
        let Some((execution, tag)) = self.execution(stream, calls) else { return };
        if execution.items.waiting {
            return;
        }
        let pushes = &mut execution.items;
        let item = payload(tag, pushes.sizes.len() as u64, size);
        // Before the push: it may be written and read before this returns, as far as the books go.
        pushes.sizes.push(size);
        let out = &mut self.port.out;
        let pushed =
            if shared { out.item_shared(stream, 0, Bytes::from(item)) } else { out.item(stream, 0, &item) };
        pushes.waiting = pushed.unwrap() == Pushed::Waiting;
        assert_eq!(out.items(stream), pushes.sizes.len() as u64);
    }

    fn execution<'a>(&self, stream: u64, calls: &'a mut [Call]) -> Option<(&'a mut Execution, u64)> {
        let call = calls.get_mut(self.table.get(&stream)?.call)?;
        let tag = call.answer_tag();
        Some((call.execution.as_mut()?, tag))
    }

    /// The engine ends cleanly.
    pub(crate) fn finish(&mut self, stream: u64, calls: &mut [Call]) {
        self.open(stream);
        let Some(Running { stopped, .. }) = self.table.get(&stream) else { return };
        let stopped = *stopped;
        self.port.out.finish(stream, Finish::End { stopped });
        self.ended(stream, calls, Ending::Clean { stopped });
    }

    /// The engine fails: before its stream is open, behind its items, or (`at_once`) without them.
    pub(crate) fn fail(&mut self, stream: u64, calls: &mut [Call], at_once: bool) {
        let Some(running) = self.table.get(&stream) else { return };
        if at_once {
            self.port.out.abandon(stream, fault());
        } else if running.opened {
            self.port.out.finish(stream, Finish::Error(fault()));
        } else {
            self.port.out.prologue(stream, Some(&fault()));
        }
        self.ended(stream, calls, Ending::Fault);
    }

    fn ended(&mut self, stream: u64, calls: &mut [Call], ending: Ending) {
        if let Some((execution, _)) = self.execution(stream, calls) {
            execution.ended = Some(ending);
            execution.items.waiting = false;
        }
        self.table.remove(&stream);
    }

    /// Somebody reads up to `items` of a request stream.
    pub(crate) fn take(&mut self, stream: u64, items: usize) -> usize {
        let Some(request) = self.table.get_mut(&stream).and_then(|running| running.request.as_mut()) else {
            return 0;
        };
        let (taken, grant) = request.take(items);
        if let Some(bytes) = grant {
            self.port.out.credit(stream, bytes);
        }
        taken
    }

    /// Takes no new requests from here on.
    pub(crate) fn drain(&mut self) {
        if !std::mem::replace(&mut self.draining, true) {
            self.port.out.status(&Status::default());
            self.port.out.goaway(&Goaway {
                last_stream: self.last_id,
                reason: GoawayReason::Draining,
                detail: String::new(),
            });
        }
    }

    // --- what arrives ---

    pub(crate) fn receive(&mut self, bytes: &[u8], calls: &mut [Call], dice: &mut fastrand::Rng) {
        for frame in self.port.decode(bytes) {
            self.frame(&frame, calls, dice);
        }
        self.wake(calls);
    }

    /// Lets engines go on whose backlog has emptied.
    pub(crate) fn wake(&mut self, calls: &mut [Call]) {
        for stream in self.port.out.take_unblocked() {
            if let Some((execution, _)) = self.execution(stream, calls) {
                assert!(std::mem::take(&mut execution.items.waiting), "only who waits is told to go on");
            }
        }
    }

    fn frame(&mut self, frame: &Frame, calls: &mut [Call], dice: &mut fastrand::Rng) {
        let stream = frame.stream;
        if frame.kind == Kind::Request {
            return self.request(frame, calls, dice);
        }
        assert!(stream <= self.last_id, "{:?} comes before its REQUEST", frame.kind);
        match frame.kind {
            Kind::Stop => {
                assert!(!self.arriving.contains_key(&stream), "STOP follows the whole request");
                if let Some(running) = self.table.get_mut(&stream) {
                    running.stopped = true;
                }
            }
            Kind::Kill => {
                decode_kill(&frame.body).unwrap();
                self.arriving.remove(&stream);
                self.port.out.close(stream);
                self.ended(stream, calls, Ending::Killed);
            }
            Kind::Data | Kind::End => {
                // A stream whose engine has ended needs no more of its request.
                let Some(running) = self.table.get_mut(&stream) else { return };
                let call = &calls[running.call];
                let Some(request) = &mut running.request else { panic!("a request stream was announced") };
                if frame.kind == Kind::End {
                    return request.inbound.end(&frame.body).expect("the count is right");
                }
                let grant = request.data(frame.flags, &frame.body, call.request_tag(), &call.request.sizes);
                if let Some(bytes) = grant {
                    self.port.out.credit(stream, bytes);
                }
            }
            other => panic!("a router does not send {other:?}"),
        }
    }

    fn request(&mut self, frame: &Frame, calls: &mut [Call], dice: &mut fastrand::Rng) {
        let stream = frame.stream;
        if let Some(assembly) = self.arriving.get_mut(&stream) {
            assembly.push(&frame.body).unwrap();
        } else {
            assert!(stream > self.last_id, "ids rise on the wire");
            self.last_id = stream;
            if frame.flags & FRAGMENT == 0 {
                return self.admit(stream, &frame.body, calls, dice);
            }
            let limit = MESSAGE_MAX + HEAD_MAX + 4;
            self.arriving.insert(stream, Assembly::request(&frame.body, limit).unwrap());
        }
        if frame.flags & LAST != 0 {
            let message = self.arriving.remove(&stream).unwrap().finish().unwrap();
            self.admit(stream, &message, calls, dice);
        }
    }

    fn admit(&mut self, stream: u64, message: &[u8], calls: &mut [Call], dice: &mut fastrand::Rng) {
        let (head, body) = RequestHead::decode(message).unwrap();
        let number: usize = head.request_id.parse().unwrap();
        let call = &mut calls[number];
        assert!(body == payload(call.answer_tag(), 0, call.request_bytes), "a request arrives as it was");
        if self.draining || dice.u8(..100) < self.reject_percent {
            let reason = if self.draining { RejectReason::Draining } else { RejectReason::Overloaded };
            let reject = Reject { reason, retry_after_ms: 0, detail: String::new() };
            return self.port.out.reject(stream, &reject);
        }
        assert!(call.execution.is_none(), "call {number} runs a second time");
        call.execution = Some(Execution { link: self.link, stream, items: Pushes::default(), ended: None });
        let window = if dice.bool() { STREAM_WINDOW_MIN } else { dice.u32(STREAM_WINDOW_MIN..200_000) };
        let inbound = Inbound::request_stream(window, MESSAGE_MAX);
        let request = call.many.then(|| Arrivals::new(inbound, window));
        self.port.out.accept(stream, window, head.window);
        self.table.insert(stream, Running { call: number, opened: false, stopped: false, request });
    }

    /// The link is gone.
    pub(crate) fn lose(&mut self, calls: &mut [Call]) {
        let streams: Vec<u64> = self.table.keys().copied().collect();
        streams.into_iter().for_each(|stream| self.ended(stream, calls, Ending::Killed));
        self.arriving.clear();
        self.port.out.close_all();
        assert_eq!(self.port.out.streams(), 0);
    }

    /// Pushes exactly the credit that is left on a stream, `credit` bytes: all of it goes at once, and not a
    /// byte more does.
    pub(crate) fn probe(&mut self, stream: u64, calls: &mut [Call], credit: u64, cover: &mut Coverage) {
        let mut left = credit as usize;
        while left > 1 {
            // An item of `size` bytes takes `size` and 2 to 4 more; the rest must be nothing or 2 at least.
            let size = match left {
                2..=128 => left - 2,
                129..=200 => 60,
                _ => (left - 40).min(60_000),
            };
            self.push(stream, calls, size, left.is_multiple_of(2));
            let used = headrace_wire::frame::item_bytes(size);
            left -= used;
            let (execution, _) = self.execution(stream, calls).unwrap();
            assert!(!execution.items.waiting, "{used} of {credit} bytes of credit are there to be used");
        }
        self.push(stream, calls, 1, false);
        let (execution, _) = self.execution(stream, calls).unwrap();
        assert!(execution.items.waiting, "nothing is sent beyond its credit");
        cover.probes += 1;
    }

    /// Whether the request stream of a running call has been read to its end.
    pub(crate) fn request_is_over(&self, stream: u64) -> bool {
        let Some(Running { request: Some(request), .. }) = self.table.get(&stream) else { return true };
        request.inbound.state() == State::Ended && request.is_taken()
    }
}
