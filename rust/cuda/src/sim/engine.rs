//! Which work of a simulated device runs when: streams are queues, events are marks in them, and each kind of
//! work has a lane with room for so many at once. Pure: time is a number that the caller moves on.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::device::{HostCall, RawEvent, RawStream};

/// What work needs to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The copy engine towards the device.
    ToDevice,
    /// The copy engine towards the host.
    ToHost,
    /// Room for a kernel.
    Kernel,
}

/// When a piece of work ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What it needed.
    pub lane: Lane,
    /// The handle of its stream.
    pub stream: usize,
    /// When it began, in nanoseconds of the device's clock.
    pub begin_ns: u64,
    /// When it ended.
    pub end_ns: u64,
}

/// What is done when a span ends, or at once where there is none.
#[derive(Debug)]
pub(super) enum Effect {
    None,
    ToDevice { to: u64, from: usize, bytes: usize },
    ToHost { to: usize, from: u64, bytes: usize },
    Free { address: u64 },
    Fail { code: u32 },
}

#[derive(Debug)]
enum Work {
    Run { lane: Lane, ns: u64, effect: Effect },
    Now(Effect),
    Record { event: usize, serial: u64 },
    Wait { event: usize, serial: u64 },
    Host(HostCall),
}

#[derive(Debug, Default)]
struct Queue {
    work: VecDeque<Work>,
    /// Of the first one, if it runs: when it began and when it ends.
    running: Option<(u64, u64)>,
    /// The first one is a host function that was called and has not returned.
    calling: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    recorded: u64,
    reached: u64,
    reached_ns: u64,
}

/// What has to be done outside: bytes to move, in order, and functions to call.
#[derive(Debug)]
pub(super) enum Act {
    Effect(Effect),
    Call(RawStream, HostCall),
}

#[derive(Debug)]
pub(super) struct Engine {
    now_ns: u64,
    streams: BTreeMap<usize, Queue>,
    marks: HashMap<usize, Mark>,
    next_handle: usize,
    kernels_max: usize,
    spans: Vec<Span>,
}

/// Spans that are remembered. The oldest are forgotten.
const SPANS_MAX: usize = 65_536;

impl Engine {
    pub(super) fn new(kernels_max: usize) -> Self {
        // The default stream is always there.
        let streams = BTreeMap::from([(0, Queue::default())]);
        let kernels_max = kernels_max.max(1);
        Self { now_ns: 0, streams, marks: HashMap::new(), next_handle: 1, kernels_max, spans: Vec::new() }
    }

    pub(super) const fn now_ns(&self) -> u64 {
        self.now_ns
    }

    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    const fn handle(&mut self) -> usize {
        // Far apart, so that a stream's handle is not taken for an event's.
        self.next_handle += 1;
        self.next_handle << 4
    }

    pub(super) fn create_stream(&mut self) -> RawStream {
        let handle = self.handle();
        self.streams.insert(handle, Queue::default());
        RawStream(handle)
    }

    /// The stream is forgotten once its work has ended.
    pub(super) fn has_stream(&self, stream: RawStream) -> bool {
        self.streams.contains_key(&stream.0)
    }

    pub(super) fn destroy_stream(&mut self, stream: RawStream) {
        if stream.0 != 0 && self.streams.get(&stream.0).is_some_and(|queue| queue.work.is_empty()) {
            self.streams.remove(&stream.0);
        }
    }

    pub(super) fn create_event(&mut self) -> RawEvent {
        let handle = self.handle();
        self.marks.insert(handle, Mark::default());
        RawEvent(handle)
    }

    pub(super) fn destroy_event(&mut self, event: RawEvent) {
        self.marks.remove(&event.0);
    }

    pub(super) fn has_event(&self, event: RawEvent) -> bool {
        self.marks.contains_key(&event.0)
    }

    pub(super) fn is_reached(&self, event: RawEvent) -> bool {
        self.marks.get(&event.0).is_none_or(|mark| mark.reached >= mark.recorded)
    }

    pub(super) fn reached_ns(&self, event: RawEvent) -> Option<u64> {
        self.marks.get(&event.0).filter(|mark| mark.recorded > 0).map(|mark| mark.reached_ns)
    }

    pub(super) fn is_idle(&self, stream: RawStream) -> bool {
        self.streams.get(&stream.0).is_none_or(|queue| queue.work.is_empty())
    }

    fn push(&mut self, stream: RawStream, work: Work) {
        if let Some(queue) = self.streams.get_mut(&stream.0) {
            queue.work.push_back(work);
        }
    }

    pub(super) fn run(&mut self, stream: RawStream, lane: Lane, ns: u64, effect: Effect) {
        self.push(stream, Work::Run { lane, ns, effect });
    }

    pub(super) fn at_once(&mut self, stream: RawStream, effect: Effect) {
        self.push(stream, Work::Now(effect));
    }

    pub(super) fn call(&mut self, stream: RawStream, call: HostCall) {
        self.push(stream, Work::Host(call));
    }

    pub(super) fn record(&mut self, event: RawEvent, stream: RawStream) {
        if let Some(mark) = self.marks.get_mut(&event.0) {
            mark.recorded += 1;
            let serial = mark.recorded;
            self.push(stream, Work::Record { event: event.0, serial });
        }
    }

    /// An event behind what each stream has now.
    pub(super) fn mark_all(&mut self) -> Vec<RawEvent> {
        let streams: Vec<RawStream> = self.streams.keys().copied().map(RawStream).collect();
        let mark = |stream| {
            let event = self.create_event();
            self.record(event, stream);
            event
        };
        streams.into_iter().map(mark).collect()
    }

    /// For the record that was the last one when this was called, as the driver does it.
    pub(super) fn wait(&mut self, stream: RawStream, event: RawEvent) {
        if let Some(mark) = self.marks.get(&event.0) {
            let serial = mark.recorded;
            self.push(stream, Work::Wait { event: event.0, serial });
        }
    }

    /// The host function that a stream stands at has returned.
    pub(super) fn returned(&mut self, stream: RawStream) {
        if let Some(queue) = self.streams.get_mut(&stream.0)
            && queue.calling
        {
            queue.calling = false;
            queue.work.pop_front();
        }
    }

    /// Whether a host function waits to be called.
    pub(super) fn has_calls(&self) -> bool {
        self.streams.values().any(|queue| queue.work.iter().any(|work| matches!(work, Work::Host(_))))
    }

    /// When the next piece of work ends.
    pub(super) fn next_ns(&self) -> Option<u64> {
        self.streams.values().filter_map(|queue| queue.running).map(|(_, end)| end).min()
    }

    /// Does everything up to that time, and says what is to be done outside. It stops early where something
    /// is, so that what comes later sees it done; call it until there is nothing.
    pub(super) fn advance(&mut self, until_ns: u64) -> Option<Act> {
        loop {
            if let Some(act) = self.start() {
                return Some(act);
            }
            match self.next_ns().filter(|end| *end <= until_ns) {
                Some(end) => {
                    self.now_ns = self.now_ns.max(end);
                    if let Some(effect) = self.finish(end) {
                        return Some(Act::Effect(effect));
                    }
                }
                None => {
                    self.now_ns = self.now_ns.max(until_ns);
                    return None;
                }
            }
        }
    }

    /// Starts what can start now, in the order of the streams.
    fn start(&mut self) -> Option<Act> {
        let mut again = true;
        while again {
            again = false;
            let handles: Vec<usize> = self.streams.keys().copied().collect();
            for handle in handles {
                match self.start_first(handle) {
                    Started::Nothing => {}
                    Started::Something => again = true,
                    Started::Act(act) => return Some(act),
                }
            }
        }
        None
    }

    fn start_first(&mut self, handle: usize) -> Started {
        let now = self.now_ns;
        let Some(queue) = self.streams.get_mut(&handle).filter(|it| it.running.is_none() && !it.calling)
        else {
            return Started::Nothing;
        };
        match queue.work.front() {
            None => return Started::Nothing,
            Some(&Work::Run { lane, ns, .. }) => return self.start_run(handle, lane, ns),
            Some(&Work::Host(call)) => {
                queue.calling = true;
                return Started::Act(Act::Call(RawStream(handle), call));
            }
            Some(&Work::Wait { event, serial }) => {
                if self.marks.get(&event).is_some_and(|mark| mark.reached < serial) {
                    return Started::Nothing;
                }
            }
            Some(&Work::Record { event, serial }) => {
                if let Some(mark) = self.marks.get_mut(&event) {
                    mark.reached = mark.reached.max(serial);
                    mark.reached_ns = now;
                }
            }
            Some(Work::Now(_)) => {}
        }
        match queue.work.pop_front() {
            Some(Work::Now(effect)) => Started::Act(Act::Effect(effect)),
            _ => Started::Something,
        }
    }

    fn start_run(&mut self, handle: usize, lane: Lane, ns: u64) -> Started {
        let room = if lane == Lane::Kernel { self.kernels_max } else { 1 };
        let runs = |queue: &Queue| {
            queue.running.is_some()
                && matches!(queue.work.front(), Some(Work::Run { lane: it, .. }) if *it == lane)
        };
        if self.streams.values().filter(|queue| runs(queue)).count() >= room {
            return Started::Nothing;
        }
        if let Some(queue) = self.streams.get_mut(&handle) {
            queue.running = Some((self.now_ns, self.now_ns + ns));
        }
        Started::Something
    }

    /// Ends one piece of work whose time has come.
    fn finish(&mut self, end_ns: u64) -> Option<Effect> {
        let is_due = |queue: &Queue| queue.running.is_some_and(|(_, end)| end == end_ns);
        let (handle, queue) = self.streams.iter_mut().find(|(_, queue)| is_due(queue))?;
        let (begin_ns, end_ns) = queue.running.take()?;
        let Some(Work::Run { lane, effect, .. }) = queue.work.pop_front() else { return None };
        if self.spans.len() == SPANS_MAX {
            self.spans.drain(..SPANS_MAX / 2);
        }
        self.spans.push(Span { lane, stream: *handle, begin_ns, end_ns });
        Some(effect)
    }
}

enum Started {
    Nothing,
    Something,
    Act(Act),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(engine: &mut Engine, until_ns: u64) {
        while let Some(act) = engine.advance(until_ns) {
            if let Act::Call(stream, _) = act {
                engine.returned(stream);
            }
        }
    }

    #[test]
    fn lanes_run_beside_each_other_and_one_lane_one_after_the_other() {
        let mut engine = Engine::new(4);
        let streams = [engine.create_stream(), engine.create_stream()];
        for stream in streams {
            engine.run(stream, Lane::ToDevice, 10, Effect::None);
            engine.run(stream, Lane::Kernel, 10, Effect::None);
            engine.run(stream, Lane::ToHost, 10, Effect::None);
        }
        drive(&mut engine, 100);
        let spans = |stream: RawStream| -> Vec<(u64, u64)> {
            engine
                .spans()
                .iter()
                .filter(|it| it.stream == stream.0)
                .map(|it| (it.begin_ns, it.end_ns))
                .collect()
        };
        assert_eq!(spans(streams[0]), [(0, 10), (10, 20), (20, 30)]);
        assert_eq!(spans(streams[1]), [(10, 20), (20, 30), (30, 40)]);
    }

    #[test]
    fn an_event_is_reached_when_its_stream_is_and_another_stream_waits_for_it() {
        let mut engine = Engine::new(4);
        let (first, second, event) = (engine.create_stream(), engine.create_stream(), engine.create_event());
        assert!(engine.is_reached(event));
        engine.run(first, Lane::Kernel, 50, Effect::None);
        engine.record(event, first);
        engine.wait(second, event);
        engine.run(second, Lane::Kernel, 1, Effect::None);
        drive(&mut engine, 49);
        assert!(!engine.is_reached(event) && !engine.is_idle(second));
        drive(&mut engine, 51);
        assert_eq!(engine.reached_ns(event), Some(50));
        assert!(engine.is_idle(second));
    }
}
