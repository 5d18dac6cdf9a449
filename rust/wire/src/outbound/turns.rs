//! Streams with a backlog take turns, one frame each, until enough is in the buffer.

use super::Outbound;
use crate::half::{Next, Waiting};
use crate::kind::Kind;
use crate::limits::FILL_BYTES;

impl Outbound {
    pub(super) fn wait(&mut self, stream: u64, waiting: Waiting) {
        if let Some(half) = self.halves.get_mut(&stream) {
            half.backlog.push_back(waiting);
            self.enter_turns(stream);
        }
    }

    pub(super) fn enter_turns(&mut self, stream: u64) {
        if let Some(half) = self.halves.get_mut(&stream)
            && !half.in_turns
        {
            half.in_turns = true;
            self.turns.push_back(stream);
        }
    }

    /// Lets streams with a backlog take turns until enough is in the buffer.
    pub(super) fn fill(&mut self) {
        while self.buffer.unwritten() < FILL_BYTES {
            let Some(stream) = self.turns.pop_front() else { return };
            let Some(half) = self.halves.get_mut(&stream) else { continue };
            match half.next(&mut self.link) {
                Next::NoLinkCredit => return self.turns.push_front(stream),
                // Its next grant lets it in again.
                Next::NoStreamCredit => half.in_turns = false,
                next => {
                    half.in_turns = false;
                    self.send(stream, next);
                    self.after_turn(stream);
                }
            }
        }
    }

    fn send(&mut self, stream: u64, next: Next) {
        match next {
            Next::Item { encoding, payload } => self.buffer.item_shared(stream, encoding, payload),
            Next::Request { head, payload } => {
                self.buffer.fragment(Kind::Request, 0, stream, &head, payload);
                self.mark_request(stream);
            }
            Next::Fragment { kind, flags, prefix, chunk } => {
                self.buffer.fragment(kind, flags, stream, prefix.as_slice(), chunk);
                if kind == Kind::Request {
                    self.mark_request(stream);
                }
            }
            Next::Stop => self.buffer.control(Kind::Stop, 0, stream, false, |_| ()),
            Next::Finish(finish) => self.finish_now(stream, &finish),
            Next::NoStreamCredit | Next::NoLinkCredit | Next::Nothing => {}
        }
    }

    pub(super) fn mark_request(&mut self, stream: u64) {
        if let Some(half) = self.halves.get_mut(&stream) {
            half.request_mark = self.buffer.mark();
        }
    }

    /// A stream whose turn is over goes to the end of the line, or its producer goes on.
    fn after_turn(&mut self, stream: u64) {
        if let Some(half) = self.halves.get_mut(&stream) {
            if !half.backlog.is_empty() {
                self.enter_turns(stream);
            } else if std::mem::take(&mut half.blocked) {
                self.unblocked.push(stream);
            }
        }
    }
}
