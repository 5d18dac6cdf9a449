//! What the two ends of a link do when it is their turn: one thing, drawn by weight.

use fastrand::Rng;

use crate::calls::{Call, Stand};
use crate::router::take;
use crate::world::{Link, World};

/// Calls of one world at most.
const CALLS_MAX: usize = 60;

#[derive(Clone, Copy, Debug)]
enum RouterAct {
    Read,
    Write,
    Take,
    Push,
    HalfClose,
    Stop,
    Call,
    Kill,
    Ping,
}

const ROUTER_ACTS: [(RouterAct, u32); 9] = [
    (RouterAct::Read, 25),
    (RouterAct::Write, 25),
    (RouterAct::Take, 15),
    (RouterAct::Push, 13),
    (RouterAct::HalfClose, 2),
    (RouterAct::Stop, 4),
    (RouterAct::Call, 10),
    (RouterAct::Kill, 2),
    (RouterAct::Ping, 4),
];

#[derive(Clone, Copy, Debug)]
enum WorkerAct {
    Read,
    Write,
    Open,
    Push,
    Take,
    Finish,
    FinishIfStopped,
    Fail,
    Drain,
    Ping,
}

const WORKER_ACTS: [(WorkerAct, u32); 10] = [
    (WorkerAct::Read, 250),
    (WorkerAct::Write, 200),
    (WorkerAct::Open, 50),
    (WorkerAct::Push, 300),
    (WorkerAct::Take, 80),
    (WorkerAct::Finish, 17),
    (WorkerAct::FinishIfStopped, 40),
    (WorkerAct::Fail, 20),
    (WorkerAct::Drain, 2),
    (WorkerAct::Ping, 41),
];

fn draw<T: Copy>(dice: &mut Rng, acts: &[(T, u32)]) -> T {
    let sum: u32 = acts.iter().map(|(_, weight)| weight).sum();
    let mut left = dice.u32(..sum);
    for (act, weight) in acts {
        match left.checked_sub(*weight) {
            Some(rest) => left = rest,
            None => return *act,
        }
    }
    panic!("the weights add up to their sum")
}

impl World<'_> {
    /// Few bytes as a rule, sometimes many.
    fn size(&mut self) -> usize {
        if self.dice.u8(..100) < self.large_percent {
            return self.dice.usize(..200_000);
        }
        match self.dice.u8(..10) {
            0..7 => self.dice.usize(..200),
            7..9 => self.dice.usize(..8_000),
            _ => self.dice.usize(..70_000),
        }
    }

    /// How much of what is there is read or written in one go.
    fn limit(&mut self) -> usize {
        if self.dice.bool() { usize::MAX } else { self.dice.usize(1..40_000) }
    }

    pub(crate) fn router_acts(&mut self, number: u32) {
        let act = draw(&mut self.dice, &ROUTER_ACTS);
        let (limit, size, now_us) = (self.limit(), self.size(), self.now_us);
        if matches!(act, RouterAct::Call) {
            return self.call(number, size);
        }
        let Self { dice, calls, links, cover, trace, .. } = self;
        let Some(Link { router: Some(router), there, back, .. }) = links.get_mut(&number) else { return };
        let open: Vec<u64> = router.table.keys().copied().collect();
        let picked = dice.choice(open).and_then(|stream| Some((stream, *router.table.get(&stream)?)));
        trace.note(now_us, format_args!("link {number}: router, {act:?}, stream and call {picked:?}"));
        match (act, picked) {
            (RouterAct::Read, _) => {
                let bytes = back.read(limit, now_us);
                router.receive(&bytes, calls, cover);
            }
            (RouterAct::Write, _) => drop(router.port.flush(there, limit, now_us, dice)),
            (RouterAct::Take, _) => {
                if let Some(call) = dice.choice(calls.iter_mut())
                    && !matches!(call.stand, Stand::Active { link, .. } if link != router.link)
                {
                    take(call, dice.usize(1..30), Some(router));
                }
            }
            (RouterAct::Push, Some((stream, call))) => {
                cover.request_items += u64::from(router.push(stream, &mut calls[call], size));
            }
            (RouterAct::HalfClose, Some((stream, call))) => router.half_close(stream, &mut calls[call]),
            (RouterAct::Stop, Some((stream, call))) => router.stop(stream, &mut calls[call]),
            (RouterAct::Kill, Some((stream, call))) => {
                cover.killed_unsent += u64::from(router.kill(stream, &mut calls[call]));
            }
            (RouterAct::Ping, _) => router.port.ping(now_us),
            _ => {}
        }
        router.wake(calls);
    }

    /// Makes a call with so large a request, or sends one again that waits.
    fn call(&mut self, number: u32, request_bytes: usize) {
        let waiting = self.calls.iter().position(|call| call.stand == Stand::Waiting);
        let index = match waiting {
            Some(index) => index,
            None if self.calls.len() == CALLS_MAX => return,
            None => {
                let window = match self.dice.u8(..3) {
                    0 => 4096,
                    1 => self.dice.u32(4096..30_000),
                    _ => self.dice.u32(30_000..300_000),
                };
                let many = self.dice.u8(..4) == 0;
                self.calls.push(Call::new(self.calls.len(), request_bytes, many, window));
                self.calls.len() - 1
            }
        };
        let router = self.links.get_mut(&number).and_then(|link| link.router.as_mut());
        if let Some(router) = router.filter(|router| !router.draining) {
            self.trace.note(self.now_us, format_args!("link {number}: router, call {index}"));
            router.open(&mut self.calls[index]);
        }
    }

    pub(crate) fn worker_acts(&mut self, number: u32) {
        let act = draw(&mut self.dice, &WORKER_ACTS);
        let (limit, size, now_us) = (self.limit(), self.size(), self.now_us);
        let Self { dice, calls, links, trace, .. } = self;
        let Some(Link { worker: Some(worker), there, back, .. }) = links.get_mut(&number) else { return };
        let running: Vec<u64> = worker.table.keys().copied().collect();
        let picked = dice.choice(running);
        trace.note(now_us, format_args!("link {number}: worker, {act:?}, stream {picked:?}"));
        match (act, picked) {
            (WorkerAct::Read, _) => {
                let bytes = there.read(limit, now_us);
                worker.receive(&bytes, calls, dice);
            }
            (WorkerAct::Write, _) => drop(worker.port.flush(back, limit, now_us, dice)),
            (WorkerAct::Open, Some(stream)) => worker.open(stream),
            (WorkerAct::Push, Some(stream)) => {
                // A burst, as engines have them.
                for _ in 0..dice.usize(1..12) {
                    worker.push(stream, calls, size / dice.usize(1..40), dice.bool());
                }
            }
            (WorkerAct::Take, Some(stream)) => drop(worker.take(stream, dice.usize(1..30))),
            (WorkerAct::Finish, Some(stream)) => worker.finish(stream, calls),
            (WorkerAct::FinishIfStopped, Some(stream))
                if worker.table.get(&stream).is_some_and(|running| running.stopped) =>
            {
                worker.finish(stream, calls);
            }
            (WorkerAct::Fail, Some(stream)) => worker.fail(stream, calls, dice.bool()),
            (WorkerAct::Drain, _) => worker.drain(),
            (WorkerAct::Ping, _) => worker.port.ping(now_us),
            _ => {}
        }
        worker.wake(calls);
    }
}
