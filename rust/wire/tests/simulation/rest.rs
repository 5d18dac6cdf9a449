//! How a world comes to rest, and what must be true of it then: at quiet points credit is conserved and
//! nobody waits for what is there; at the end everything has ended and nothing is open.

use headrace_wire::stream::State;

use crate::calls::{Arrivals, Stand};
use crate::router::take;
use crate::world::{Link, World};

/// Rounds after which a world that still moves never rests.
const ROUNDS_MAX: usize = 20_000;

impl World<'_> {
    /// Lets everything that is written arrive, on links that are not lost, until nothing moves any more; with
    /// `taking`, readers take what comes.
    pub(crate) fn settle(&mut self, taking: bool) {
        self.trace.note(self.now_us, format_args!("it settles, taking: {taking}"));
        for _ in 0..ROUNDS_MAX {
            if !self.settle_once(taking) {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn settle_once(&mut self, taking: bool) -> bool {
        let mut moved = 0;
        let Self { links, calls, dice, now_us, cover, .. } = self;
        for link in links.values_mut().filter(|link| !link.lost) {
            let Link { router: Some(router), worker: Some(worker), there, back, .. } = link else { continue };
            moved += router.port.flush(there, usize::MAX, *now_us, dice);
            moved += worker.port.flush(back, usize::MAX, *now_us, dice);
            *now_us = (*now_us).max(there.all_due_us()).max(back.all_due_us());
            let (to_worker, to_router) = (there.read(usize::MAX, *now_us), back.read(usize::MAX, *now_us));
            moved += to_worker.len() + to_router.len();
            worker.receive(&to_worker, calls, dice);
            router.receive(&to_router, calls, cover);
            if taking {
                let streams: Vec<u64> = worker.table.keys().copied().collect();
                moved += streams.into_iter().map(|stream| worker.take(stream, usize::MAX)).sum::<usize>();
                for call in calls.iter_mut() {
                    let here = matches!(call.stand, Stand::Active { link, .. } if link == router.link);
                    if here || matches!(call.stand, Stand::Ended(_)) {
                        moved += take(call, usize::MAX, Some(&mut *router));
                    }
                }
            }
            router.wake(calls);
            worker.wake(calls);
        }
        moved > 0
    }

    /// Nothing moves: what was granted is what was used and what is available, on every link that is not
    /// lost. With `taken`, readers have taken everything, so nobody may wait for credit.
    pub(crate) fn check_quiet(&self, taken: bool) {
        for link in self.links.values().filter(|link| !link.lost) {
            let Link { router: Some(router), worker: Some(worker), there, back, windows, .. } = link else {
                continue;
            };
            assert!(there.is_empty() && back.is_empty());
            for port in [&router.port, &worker.port] {
                assert_eq!((port.out.unwritten(), port.out.unwritten_control()), (0, 0));
            }
            let available =
                |first: u32, credited: u64, received: u64| (u64::from(first) + credited) - received;
            let to_router = available(windows.0, worker.port.credited(0), router.port.received);
            let to_worker = available(windows.1, router.port.credited(0), worker.port.received);
            assert_eq!(router.port.window.unused(), to_router, "the link's credit towards the router");
            assert_eq!(worker.port.window.unused(), to_worker, "the link's credit towards the worker");
            for (&stream, running) in &worker.table {
                let call = &self.calls[running.call];
                let Some(answer) = &call.answer else { panic!("call {} was sent", call.number) };
                if call.stand == (Stand::Active { link: router.link, stream }) {
                    conserved(answer, worker.port.credited(stream));
                    if let Some(request) = &running.request {
                        conserved(request, router.port.credited(stream));
                    }
                }
                if taken {
                    assert!(!worker.port.out.has_backlog(stream) && !router.port.out.has_backlog(stream));
                    let waits = call.execution.as_ref().is_some_and(|execution| execution.items.waiting);
                    assert!(!waits && !call.request.waiting, "no producer waits for ever");
                }
            }
        }
    }

    /// Uses up the credit of one stream of each link to the last byte.
    pub(crate) fn probe(&mut self) {
        let Self { links, calls, cover, .. } = self;
        for link in links.values_mut().filter(|link| !link.lost) {
            let Link { router: Some(router), worker: Some(worker), .. } = link else { continue };
            let found = worker.table.iter().find_map(|(&stream, running)| {
                let call = &calls[running.call];
                let open = call.stand == (Stand::Active { link: router.link, stream });
                open.then_some(call.answer.as_ref()).flatten().map(|answer| (stream, answer))
            });
            let Some((stream, answer)) = found else { continue };
            let credit = answer.inbound.window().unused().min(router.port.window.unused());
            worker.probe(stream, calls, credit, cover);
        }
    }

    /// The end: nothing goes wrong any more, whoever waits is served, every engine finishes.
    pub(crate) fn end(&mut self) {
        self.calm = true;
        let lost: Vec<u32> =
            self.links.iter().filter(|(_, link)| link.lost).map(|(number, _)| *number).collect();
        for link in lost {
            self.router_learns(link);
            self.worker_learns(link);
        }
        self.settle(true);
        self.check_quiet(true);
        self.probe();
        self.settle(true);
        self.check_quiet(true);
        // A call may be refused by a link that drains, once, and wait for the next.
        for _ in 0..5 {
            self.serve_who_waits();
            self.settle(true);
            self.finish_engines();
            self.settle(true);
            self.check_quiet(true);
            self.close_drained();
        }
        self.check_end();
    }

    fn serve_who_waits(&mut self) {
        self.connect();
        let Some(number) = self.usable_link() else { panic!("a link was made") };
        let Some(Link { router: Some(router), worker: Some(worker), .. }) = self.links.get_mut(&number)
        else {
            return;
        };
        worker.reject_percent = 0;
        for call in self.calls.iter_mut().filter(|call| call.stand == Stand::Waiting) {
            router.open(call);
        }
    }

    fn finish_engines(&mut self) {
        for Link { router, worker, .. } in self.links.values_mut() {
            let (Some(router), Some(worker)) = (router, worker) else { continue };
            for (&stream, &number) in &router.table.clone() {
                router.half_close(stream, &mut self.calls[number]);
            }
            // Every second engine waits for the whole of its request first.
            for stream in worker.table.keys().copied().collect::<Vec<_>>() {
                if stream.is_multiple_of(2) || worker.request_is_over(stream) {
                    worker.finish(stream, &mut self.calls);
                }
            }
        }
    }

    /// A worker that drains closes its links when they are quiet.
    fn close_drained(&mut self) {
        let drained = |link: &Link| link.worker.as_ref().is_some_and(|worker| worker.draining);
        let numbers: Vec<u32> =
            self.links.iter().filter(|(_, link)| drained(link)).map(|(number, _)| *number).collect();
        for number in numbers {
            let idle = |link: &Link| link.worker.as_ref().is_some_and(|worker| worker.table.is_empty());
            if self.links.get(&number).is_some_and(idle) {
                self.router_learns(number);
                self.worker_learns(number);
            }
        }
    }

    fn check_end(&self) {
        for call in &self.calls {
            assert!(
                matches!(call.stand, Stand::Ended(_)),
                "call {} never ends: {:?}",
                call.number,
                call.stand
            );
            assert!(call.answer.as_ref().is_none_or(Arrivals::is_taken), "all that arrived can be taken");
            assert!(!call.request.waiting, "no producer waits for ever");
            if let Some(execution) = &call.execution {
                let (link, stream) = (execution.link, execution.stream);
                assert!(execution.ended.is_some(), "the engine on link {link}, stream {stream} never ends");
                assert!(!execution.items.waiting, "no producer waits for ever");
            }
        }
        for link in self.links.values() {
            if let Some(router) = &link.router {
                assert_eq!((router.table.len(), router.port.out.streams()), (0, 0));
            }
            if let Some(worker) = &link.worker {
                assert_eq!((worker.table.len(), worker.port.out.streams()), (0, 0));
                assert!(worker.arriving.is_empty(), "no request stays half arrived");
            }
        }
    }
}

/// On an open stream the receiver's books say what the sender's must: what was granted and did arrive, less
/// what was sent.
fn conserved(arrivals: &Arrivals, credited: u64) {
    if arrivals.inbound.state() != State::Ended {
        let available = arrivals.granted_first + credited - arrivals.received;
        assert_eq!(arrivals.inbound.window().unused(), available, "the stream's credit");
    }
}
