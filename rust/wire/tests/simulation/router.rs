//! The router's end of a link, as the runtime drives the protocol: it opens streams, sorts what arrives,
//! grants credit for what is taken, and when the link is gone says of each stream whether it may have run.

use std::collections::BTreeMap;

use bytes::Bytes;
use headrace_wire::body::{
    Goaway, GoawayReason, KillReason, Reject, RequestHead, Shape, Status, decode_accept,
};
use headrace_wire::kind::{Kind, STOPPED};
use headrace_wire::outbound::{Finish, Pushed};
use headrace_wire::stream::Inbound;

use crate::calls::{Arrivals, Call, Ending, Pushes, Stand};
use crate::pipe::payload;
use crate::port::{Frame, MESSAGE_MAX, Port};
use crate::world::Coverage;

pub(crate) struct RouterEnd {
    pub(crate) link: u32,
    pub(crate) port: Port,
    /// The calls of the streams that have not ended.
    pub(crate) table: BTreeMap<u64, usize>,
    last_id: u64,
    /// The worker takes no new requests here.
    pub(crate) draining: bool,
}

impl RouterEnd {
    pub(crate) const fn new(link: u32, port: Port) -> Self {
        Self { link, port, table: BTreeMap::new(), last_id: 0, draining: false }
    }

    /// Sends a call that waits.
    pub(crate) fn open(&mut self, call: &mut Call) {
        assert_eq!(call.stand, Stand::Waiting);
        self.last_id += 1;
        call.attempts += 1;
        let head = RequestHead {
            request_shape: if call.many { Shape::Many } else { Shape::Single },
            window: call.window,
            request_id: call.number.to_string(),
            ..RequestHead::default()
        };
        let mut encoded = Vec::new();
        head.encode(&mut encoded).unwrap();
        let body = Bytes::from(payload(call.answer_tag(), 0, call.request_bytes));
        self.port.out.request(self.last_id, encoded, body).unwrap();
        let inbound = Inbound::response(call.window, MESSAGE_MAX);
        call.answer = Some(Arrivals::new(inbound, call.window));
        call.request = Pushes::default();
        call.stopped = false;
        call.stand = Stand::Active { link: self.link, stream: self.last_id };
        self.table.insert(self.last_id, call.number);
    }

    pub(crate) fn stop(&mut self, stream: u64, call: &mut Call) {
        if !std::mem::replace(&mut call.stopped, true) {
            self.port.out.stop(stream);
        }
    }

    /// The caller wants no more of it. True when the worker will never have heard of it.
    pub(crate) fn kill(&mut self, stream: u64, call: &mut Call) -> bool {
        self.table.remove(&stream);
        let known = self.port.out.kill(stream, KillReason::Cancelled);
        if let Some(answer) = &mut call.answer {
            answer.drop_unread();
        }
        if !known {
            assert!(call.execution.is_none(), "a request that was never sent did not run");
        }
        call.end(Ending::Killed);
        !known
    }

    /// Pushes an item of a request stream, unless the call has none or must wait; true when it did.
    pub(crate) fn push(&mut self, stream: u64, call: &mut Call, size: usize) -> bool {
        let pushes = &call.request;
        if !call.many || pushes.waiting || pushes.finished {
            return false;
        }
        let item = payload(call.request_tag(), pushes.sizes.len() as u64, size);
        let pushed = self.port.out.item(stream, 0, &item).unwrap();
        call.request.sizes.push(size);
        call.request.waiting = pushed == Pushed::Waiting;
        true
    }

    pub(crate) fn half_close(&mut self, stream: u64, call: &mut Call) {
        if call.many && !call.request.finished {
            self.port.out.finish(stream, Finish::HalfClose);
            call.request.finished = true;
        }
    }

    pub(crate) fn receive(&mut self, bytes: &[u8], calls: &mut [Call], cover: &mut Coverage) {
        for frame in self.port.decode(bytes) {
            match frame.kind {
                Kind::Status => drop(Status::decode(&frame.body).unwrap()),
                Kind::Goaway => self.goaway(&Goaway::decode(&frame.body).unwrap(), calls, cover),
                _ => self.stream_frame(&frame, calls, cover),
            }
        }
        self.wake(calls);
    }

    /// Lets producers of request streams go on whose backlog has emptied.
    pub(crate) fn wake(&mut self, calls: &mut [Call]) {
        for stream in self.port.out.take_unblocked() {
            if let Some(call) = self.table.get(&stream).and_then(|&number| calls.get_mut(number)) {
                assert!(std::mem::take(&mut call.request.waiting), "only who waits is told to go on");
            }
        }
    }

    fn goaway(&mut self, goaway: &Goaway, calls: &mut [Call], cover: &mut Coverage) {
        assert_eq!(goaway.reason, GoawayReason::Draining);
        self.draining = true;
        // What the worker had not seen never runs, and can run elsewhere.
        for (stream, number) in self.table.split_off(&(goaway.last_stream + 1)) {
            self.port.out.kill(stream, KillReason::Cancelled);
            calls[number].did_not_run(Ending::Lost);
            cover.beyond_goaway += 1;
        }
    }

    fn stream_frame(&mut self, frame: &Frame, calls: &mut [Call], cover: &mut Coverage) {
        let stream = frame.stream;
        let Some(&number) = self.table.get(&stream) else {
            return assert!(stream <= self.last_id, "a frame for a stream that was never opened");
        };
        let call = &mut calls[number];
        assert_eq!(call.stand, Stand::Active { link: self.link, stream });
        let Call { answer: Some(answer), execution, .. } = call else { panic!("an answer was awaited") };
        let tag = number as u64;
        let ending = match frame.kind {
            Kind::Accept => {
                answer.inbound.accept().unwrap();
                self.port.out.accepted(stream, decode_accept(&frame.body).unwrap()).unwrap();
                None
            }
            Kind::Reject => {
                answer.inbound.reject().unwrap();
                Reject::decode(&frame.body).unwrap();
                Some(Ending::Rejected)
            }
            Kind::Prologue => answer.inbound.prologue(&frame.body).unwrap().map(|_| Ending::Fault),
            Kind::Data => {
                let execution = execution.as_ref().expect("items come from an engine");
                if let Some(bytes) = answer.data(frame.flags, &frame.body, tag, &execution.items.sizes) {
                    self.port.out.credit(stream, bytes);
                }
                cover.fragments += answer.fragments;
                answer.fragments = 0;
                None
            }
            Kind::End => {
                answer.inbound.end(&frame.body).expect("the count is right");
                Some(Ending::Clean { stopped: frame.flags & STOPPED != 0 })
            }
            Kind::Error => {
                answer.inbound.error(&frame.body).expect("the count is right");
                Some(Ending::Fault)
            }
            other => panic!("a worker does not send {other:?}"),
        };
        if let Some(ending) = ending {
            self.table.remove(&stream);
            self.port.out.close(stream);
            match ending {
                Ending::Rejected => call.did_not_run(ending),
                _ => call.end(ending),
            }
        }
    }

    /// The link is gone.
    pub(crate) fn lose(&mut self, calls: &mut [Call], cover: &mut Coverage) {
        for (stream, number) in std::mem::take(&mut self.table) {
            let call = &mut calls[number];
            if self.port.out.request_written(stream) {
                cover.lost_perhaps_run += 1;
                call.end(Ending::Lost);
            } else {
                cover.lost_unsent += 1;
                call.did_not_run(Ending::Lost);
            }
        }
        self.port.out.close_all();
        assert_eq!(self.port.out.streams(), 0);
    }
}

/// A caller takes up to `items` of an answer, which may have ended with its link; returns how many.
pub(crate) fn take(call: &mut Call, items: usize, router: Option<&mut RouterEnd>) -> usize {
    let Some(answer) = &mut call.answer else { return 0 };
    let (taken, grant) = answer.take(items);
    if let (Some(bytes), Stand::Active { link, stream }, Some(router)) = (grant, call.stand, router) {
        assert_eq!(link, router.link);
        router.port.out.credit(stream, bytes);
    }
    taken
}
