//! Who gets which stream: first come, first served, as pure logic. No clock (times are numbers that the
//! caller brings), no lock, no driver.
//!
//! Invariants: somebody waits only while no stream is idle and none can be created; a stream is in exactly
//! one place of its life; whoever was refused, timed out or gave up is nowhere in it.

use std::collections::VecDeque;

/// Names one who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(pub u64);

/// What one who asks is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The stream is theirs.
    Lease(u32),
    /// The stream is theirs once they have created it: [`LeaseQueue::created`], [`LeaseQueue::not_created`].
    Create(u32),
    /// All are leased.
    Full,
}

/// What happens when a stream, or the place of one, is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It goes to this one.
    Lease(Ticket, u32),
    /// It has to be created for this one.
    Create(Ticket, u32),
    /// Nobody waits.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    None,
    Creating,
    Idle,
    Leased,
    Draining,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: Ticket,
    key: Option<u64>,
    /// When they give up, in microseconds of the caller's clock.
    deadline_us: Option<u64>,
}

/// How many streams are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub created: usize,
    pub idle: usize,
    pub leased: usize,
    pub draining: usize,
    pub waiting: usize,
}

#[derive(Debug)]
pub(crate) struct LeaseQueue {
    /// The stream of id n at n - 1.
    slots: Vec<Slot>,
    /// With what key each was last lent.
    keys: Vec<Option<u64>>,
    /// Ids, the one used last at the end.
    idle: Vec<u32>,
    waiting: VecDeque<Waiting>,
    next_ticket: u64,
    closed: bool,
}

impl LeaseQueue {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            slots: vec![Slot::None; max],
            keys: vec![None; max],
            idle: Vec::with_capacity(max),
            waiting: VecDeque::new(),
            next_ticket: 0,
            closed: false,
        }
    }

    /// Asks for a stream without waiting.
    pub(crate) fn request(&mut self, key: Option<u64>) -> Answer {
        if self.closed {
            return Answer::Full;
        }
        let same = key.and_then(|_| self.idle.iter().rposition(|id| self.keys[*id as usize - 1] == key));
        let idle = match same {
            Some(index) => Some(self.idle.remove(index)),
            None => self.idle.pop(),
        };
        if let Some(id) = idle {
            self.lend(id, key);
            return Answer::Lease(id);
        }
        match self.slots.iter().position(|slot| *slot == Slot::None) {
            Some(index) => {
                self.slots[index] = Slot::Creating;
                self.keys[index] = key;
                Answer::Create(index as u32 + 1)
            }
            None => Answer::Full,
        }
    }

    /// Stands in line, after [`Answer::Full`].
    pub(crate) fn wait(&mut self, key: Option<u64>, deadline_us: Option<u64>) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiting.push_back(Waiting { ticket, key, deadline_us });
        ticket
    }

    fn lend(&mut self, id: u32, key: Option<u64>) {
        self.slots[id as usize - 1] = Slot::Leased;
        self.keys[id as usize - 1] = key;
    }

    /// The stream was created, and is leased.
    pub(crate) fn created(&mut self, id: u32) {
        debug_assert_eq!(self.slots[id as usize - 1], Slot::Creating, "created what was not asked for");
        self.slots[id as usize - 1] = Slot::Leased;
    }

    /// The stream could not be created, or is given up. Its place goes to the next who waits.
    pub(crate) fn not_created(&mut self, id: u32) -> Next {
        let index = id as usize - 1;
        debug_assert!(self.slots[index] != Slot::Idle, "an idle stream is nobody's to give up");
        self.slots[index] = Slot::None;
        self.keys[index] = None;
        match self.waiting.pop_front() {
            Some(waiting) => {
                self.slots[index] = Slot::Creating;
                self.keys[index] = waiting.key;
                Next::Create(waiting.ticket, id)
            }
            None => Next::Nothing,
        }
    }

    /// The lease has ended, but not what was queued under it.
    pub(crate) fn drain(&mut self, id: u32) {
        debug_assert_eq!(self.slots[id as usize - 1], Slot::Leased, "drains what is not leased");
        self.slots[id as usize - 1] = Slot::Draining;
    }

    /// The stream is nobody's and nothing runs on it.
    pub(crate) fn release(&mut self, id: u32) -> Next {
        let index = id as usize - 1;
        debug_assert!(matches!(self.slots[index], Slot::Leased | Slot::Draining), "released twice");
        match self.waiting.pop_front() {
            Some(waiting) => {
                self.lend(id, waiting.key);
                Next::Lease(waiting.ticket, id)
            }
            None => {
                self.slots[index] = Slot::Idle;
                self.idle.push(id);
                Next::Nothing
            }
        }
    }

    /// Gives up a place in the line. False if it is not there any more.
    pub(crate) fn cancel(&mut self, ticket: Ticket) -> bool {
        let position = self.waiting.iter().position(|waiting| waiting.ticket == ticket);
        position.and_then(|index| self.waiting.remove(index)).is_some()
    }

    /// Those whose time is over, who are not in the line any more.
    pub(crate) fn expire(&mut self, now_us: u64) -> Vec<Ticket> {
        let is_over = |waiting: &Waiting| waiting.deadline_us.is_some_and(|deadline| deadline <= now_us);
        let over: Vec<Ticket> = self.waiting.iter().filter(|it| is_over(it)).map(|it| it.ticket).collect();
        self.waiting.retain(|waiting| !is_over(waiting));
        over
    }

    /// When somebody's time will next be over.
    pub(crate) fn next_deadline_us(&self) -> Option<u64> {
        self.waiting.iter().filter_map(|waiting| waiting.deadline_us).min()
    }

    /// Nobody gets anything any more. Those who waited.
    pub(crate) fn close(&mut self) -> Vec<Ticket> {
        self.closed = true;
        self.waiting.drain(..).map(|waiting| waiting.ticket).collect()
    }

    pub(crate) const fn is_closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn max(&self) -> usize {
        self.slots.len()
    }

    /// Whether everything that was lent is back.
    pub(crate) fn is_quiet(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot, Slot::None | Slot::Idle))
    }

    pub(crate) fn counts(&self) -> Counts {
        let count = |wanted: Slot| self.slots.iter().filter(|slot| **slot == wanted).count();
        let (idle, leased, draining) = (count(Slot::Idle), count(Slot::Leased), count(Slot::Draining));
        Counts { created: idle + leased + draining, idle, leased, draining, waiting: self.waiting.len() }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
