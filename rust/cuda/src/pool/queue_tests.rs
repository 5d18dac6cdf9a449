//! Tests of [`LeaseQueue`]: by example, over all short histories, and against a model over long ones.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// A queue whose streams are all leased.
fn all_leased(max: u32) -> LeaseQueue {
    let mut queue = LeaseQueue::new(max as usize);
    for id in 1..=max {
        assert_eq!(queue.request(None), Answer::Create(id));
        queue.created(id);
    }
    queue
}

#[test]
fn streams_are_created_one_by_one_and_then_everybody_waits_in_line() {
    let mut queue = all_leased(2);
    assert_eq!(queue.request(None), Answer::Full);
    let (first, second) = (queue.wait(None, None), queue.wait(None, None));
    assert_eq!(queue.release(2), Next::Lease(first, 2));
    assert_eq!(queue.release(1), Next::Lease(second, 1));
    assert_eq!(queue.release(1), Next::Nothing);
}

#[test]
fn the_stream_used_last_is_lent_first_unless_a_key_names_another() {
    let mut queue = all_leased(3);
    for id in [2, 3, 1] {
        assert_eq!(queue.release(id), Next::Nothing);
    }
    assert_eq!(queue.request(Some(7)), Answer::Lease(1));
    assert_eq!(queue.request(Some(8)), Answer::Lease(3));
    assert_eq!(queue.release(1), Next::Nothing);
    assert_eq!(queue.release(3), Next::Nothing);
    assert_eq!(queue.request(Some(7)), Answer::Lease(1), "the stream of that key");
    assert_eq!(queue.request(Some(9)), Answer::Lease(3), "the stream that was used last");
    assert_eq!(queue.request(Some(9)), Answer::Lease(2));
}

#[test]
fn a_place_where_no_stream_could_be_created_goes_to_the_next_in_line() {
    let mut queue = all_leased(1);
    let (first, second) = (queue.wait(Some(1), None), queue.wait(None, None));
    // The stream is given up.
    queue.drain(1);
    assert_eq!(queue.not_created(1), Next::Create(first, 1));
    assert_eq!(queue.not_created(1), Next::Create(second, 1));
    queue.created(1);
    assert_eq!(queue.release(1), Next::Nothing);
    assert_eq!(queue.request(None), Answer::Lease(1));
}

#[test]
fn a_drained_stream_is_not_lent_before_it_is_done() {
    let mut queue = all_leased(1);
    queue.drain(1);
    assert_eq!(queue.request(None), Answer::Full);
    assert!(!queue.is_quiet());
    let ticket = queue.wait(None, None);
    assert_eq!(queue.release(1), Next::Lease(ticket, 1));
}

#[test]
fn those_whose_time_is_over_leave_the_line_and_nobody_else_does() {
    let mut queue = all_leased(1);
    let tickets = [queue.wait(None, Some(30)), queue.wait(None, None), queue.wait(None, Some(10))];
    assert_eq!(queue.next_deadline_us(), Some(10));
    assert_eq!(queue.expire(9), []);
    assert_eq!(queue.expire(10), [tickets[2]]);
    assert_eq!(queue.expire(100), [tickets[0]]);
    assert_eq!(queue.next_deadline_us(), None);
    assert_eq!(queue.release(1), Next::Lease(tickets[1], 1));
}

#[test]
fn a_closed_queue_refuses_everybody_and_takes_streams_back() {
    let mut queue = all_leased(2);
    let waiting = queue.wait(None, None);
    assert_eq!(queue.close(), [waiting]);
    assert_eq!(queue.request(None), Answer::Full);
    assert!(!queue.is_quiet());
    assert_eq!(queue.release(1), Next::Nothing);
    assert_eq!(queue.release(2), Next::Nothing);
    assert!(queue.is_quiet() && queue.is_closed());
    assert_eq!(queue.request(None), Answer::Full, "idle streams are not lent either");
}

/// What can happen to a queue.
#[derive(Clone, Copy, Debug)]
enum Step {
    Request(Option<u64>),
    CreationFails,
    Creates,
    Drain,
    Release,
    GiveUp,
    Cancel(usize),
    Expire,
    Close,
}

/// The same queue, written to be obviously right instead of fast: who has what, and who stands in line.
struct Model {
    max: usize,
    creating: Vec<(u32, Option<Ticket>)>,
    leased: Vec<u32>,
    draining: Vec<u32>,
    idle: HashSet<u32>,
    line: Vec<(Ticket, Option<u64>)>,
    closed: bool,
    now_us: u64,
}

impl Model {
    fn new(max: usize) -> Self {
        let none = Vec::new;
        Self {
            max,
            creating: Vec::new(),
            leased: none(),
            draining: none(),
            idle: HashSet::new(),
            line: Vec::new(),
            closed: false,
            now_us: 0,
        }
    }

    fn created(&self) -> usize {
        self.leased.len() + self.draining.len() + self.idle.len()
    }

    /// What came of a place that is free must go to the first in line, and to nobody if there is none.
    fn follow(&mut self, next: Next) {
        let first = if self.line.is_empty() { None } else { Some(self.line.remove(0).0) };
        match next {
            Next::Lease(ticket, id) => {
                assert_eq!(first, Some(ticket));
                self.leased.push(id);
            }
            Next::Create(ticket, id) => {
                assert_eq!(first, Some(ticket));
                self.creating.push((id, Some(ticket)));
            }
            Next::Nothing => assert_eq!(first, None),
        }
    }

    fn step(&mut self, queue: &mut LeaseQueue, step: Step) {
        match step {
            Step::Request(key) => match queue.request(key) {
                Answer::Lease(id) => {
                    assert!(self.idle.remove(&id), "{id} was not idle");
                    assert!(!self.closed && self.line.is_empty(), "somebody was overtaken");
                    self.leased.push(id);
                }
                Answer::Create(id) => {
                    assert!(self.idle.is_empty() && !self.closed, "an idle stream was there");
                    self.creating.push((id, None));
                }
                Answer::Full if self.closed => {}
                Answer::Full => {
                    assert!(self.idle.is_empty());
                    assert_eq!(self.created() + self.creating.len(), self.max);
                    let deadline = self.now_us + key.unwrap_or(1000);
                    self.line.push((queue.wait(key, Some(deadline)), Some(deadline)));
                }
            },
            Step::Creates => {
                if let Some((id, _)) = self.creating.pop() {
                    queue.created(id);
                    self.leased.push(id);
                }
            }
            Step::CreationFails => {
                if let Some((id, _)) = self.creating.pop() {
                    let next = queue.not_created(id);
                    self.follow(next);
                }
            }
            Step::Drain => {
                if let Some(id) = self.leased.pop() {
                    queue.drain(id);
                    self.draining.push(id);
                }
            }
            Step::Release => {
                if let Some(id) = self.draining.pop().or_else(|| self.leased.pop()) {
                    let next = queue.release(id);
                    if next == Next::Nothing {
                        self.idle.insert(id);
                    }
                    self.follow(next);
                }
            }
            Step::GiveUp => {
                if let Some(id) = self.draining.pop() {
                    let next = queue.not_created(id);
                    self.follow(next);
                }
            }
            Step::Cancel(index) => {
                if !self.line.is_empty() {
                    let (ticket, _) = self.line.remove(index % self.line.len());
                    assert!(queue.cancel(ticket));
                    assert!(!queue.cancel(ticket), "cancelled twice");
                }
            }
            Step::Expire => {
                self.now_us += 1;
                let is_over = |it: &(Ticket, Option<u64>)| it.1.is_some_and(|at| at <= self.now_us);
                let over: Vec<Ticket> = self.line.iter().filter(|it| is_over(it)).map(|it| it.0).collect();
                self.line.retain(|it| it.1.is_none_or(|at| at > self.now_us));
                assert_eq!(queue.expire(self.now_us), over);
            }
            Step::Close => {
                let waiting: Vec<Ticket> = self.line.drain(..).map(|it| it.0).collect();
                assert_eq!(queue.close(), waiting);
                self.closed = true;
            }
        }
        self.agrees_with(queue);
    }

    fn agrees_with(&self, queue: &LeaseQueue) {
        let expected = Counts {
            created: self.created(),
            idle: self.idle.len(),
            leased: self.leased.len(),
            draining: self.draining.len(),
            waiting: self.line.len(),
        };
        assert_eq!(queue.counts(), expected);
        assert!(self.created() + self.creating.len() <= self.max);
        assert_eq!(
            queue.is_quiet(),
            (self.creating.len(), self.leased.len(), self.draining.len()) == (0, 0, 0)
        );
        if !self.line.is_empty() {
            assert!(self.idle.is_empty(), "somebody waits beside an idle stream");
            assert_eq!(
                self.created() + self.creating.len(),
                self.max,
                "somebody waits beside an empty place"
            );
        }
    }
}

/// Every history of six steps of a queue of one stream and one of two.
#[test]
fn every_short_history_agrees_with_the_model() {
    const STEPS: [Step; 9] = [
        Step::Request(None),
        Step::Creates,
        Step::Drain,
        Step::Release,
        Step::CreationFails,
        Step::GiveUp,
        Step::Cancel(0),
        Step::Request(Some(1)),
        Step::Close,
    ];
    const LENGTH: u32 = 6;
    for max in [1, 2] {
        for history in 0..STEPS.len().pow(LENGTH) {
            let (mut queue, mut model) = (LeaseQueue::new(max), Model::new(max));
            let mut rest = history;
            for _ in 0..LENGTH {
                model.step(&mut queue, STEPS[rest % STEPS.len()]);
                rest /= STEPS.len();
            }
        }
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::option::of(0_u64..4).prop_map(Step::Request),
        4 => Just(Step::Creates),
        1 => Just(Step::CreationFails),
        2 => Just(Step::Drain),
        5 => Just(Step::Release),
        1 => Just(Step::GiveUp),
        2 => (0_usize..8).prop_map(Step::Cancel),
        2 => Just(Step::Expire),
    ]
}

proptest! {
    #[test]
    fn long_histories_agree_with_the_model(
        max in 1_usize..6,
        steps in proptest::collection::vec(any_step(), 0..300),
    ) {
        let (mut queue, mut model) = (LeaseQueue::new(max), Model::new(max));
        for step in steps {
            model.step(&mut queue, step);
        }
        model.step(&mut queue, Step::Close);
    }
}
