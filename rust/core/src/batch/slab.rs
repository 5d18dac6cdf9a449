//! Where items are kept while they are queued or with the function: places that are used again, each linked
//! into at most one lane and one run of deadlines. A ticket names a place and how often it had been used, so
//! one that is out of date finds nothing.

use std::ops::{Index, IndexMut};

use super::outcome::TimeLimit;
use super::terms::Ticket;
use crate::clock::NEVER;

/// No place.
pub(super) const NOWHERE: u32 = u32::MAX;

/// The links of lanes, and those of runs of deadlines.
pub(super) const LANE: usize = 0;
pub(super) const DUE: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    Queued,
    /// The function has it, and somebody waits.
    Dispatched,
    /// The function has it, and nobody waits any more. Its client's permit is still held.
    Abandoned,
}

/// Where an item's deadline is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DueIn {
    Nowhere,
    Run(u8),
    Heap,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    prev: u32,
    next: u32,
}

const UNLINKED: Links = Links { prev: NOWHERE, next: NOWHERE };

#[derive(Debug)]
pub(super) struct Slot<T, P> {
    generation: u32,
    pub(super) state: State,
    pub(super) due_in: DueIn,
    pub(super) limit: TimeLimit,
    /// Whether `response_ns` came with the item; others share the configured one.
    pub(super) own_response: bool,
    pub(super) lane: u8,
    pub(super) bucket: u32,
    links: [Links; 2],
    /// Rises with each admission.
    pub(super) sequence: u64,
    pub(super) enqueued_ns: u64,
    pub(super) dispatched_ns: u64,
    /// When it expires, or times out.
    pub(super) until_ns: u64,
    /// How long the function may have it.
    pub(super) response_ns: u64,
    pub(super) cost: u64,
    pub(super) client: Option<u64>,
    /// There until it is dispatched.
    pub(super) item: Option<T>,
    /// There until it is resolved.
    pub(super) reply: Option<P>,
}

#[derive(Debug)]
pub(super) struct Slab<T, P> {
    slots: Vec<Slot<T, P>>,
    free: Vec<u32>,
}

impl<T, P> Default for Slab<T, P> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T, P> Slab<T, P> {
    /// A place for an item, in state `Queued`, linked nowhere.
    pub(super) fn insert(&mut self, item: T, reply: P) -> u32 {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.state = State::Queued;
            (slot.item, slot.reply) = (Some(item), Some(reply));
            return index;
        }
        let index = self.slots.len() as u32;
        self.slots.push(Slot {
            generation: 0,
            state: State::Queued,
            due_in: DueIn::Nowhere,
            limit: TimeLimit::Whole,
            own_response: false,
            lane: 0,
            bucket: NOWHERE,
            links: [UNLINKED; 2],
            sequence: 0,
            enqueued_ns: 0,
            dispatched_ns: 0,
            until_ns: NEVER,
            response_ns: NEVER,
            cost: 0,
            client: None,
            item: Some(item),
            reply: Some(reply),
        });
        index
    }

    /// Makes a place free; whatever named it names nothing any more.
    pub(super) fn remove(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        debug_assert!(slot.state != State::Free && slot.due_in == DueIn::Nowhere, "still linked");
        debug_assert!(slot.item.is_none() && slot.reply.is_none(), "still owed an answer");
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
    }

    pub(super) fn ticket(&self, index: u32) -> Ticket {
        Ticket { index, generation: self[index].generation }
    }

    /// The place that a ticket names, unless it has been left.
    pub(super) fn find(&self, ticket: Ticket) -> Option<u32> {
        let slot = self.slots.get(ticket.index as usize)?;
        (slot.generation == ticket.generation && slot.state != State::Free).then_some(ticket.index)
    }
}

// Places are named by lists and by `find` only, both of which name places that there are.
impl<T, P> Index<u32> for Slab<T, P> {
    type Output = Slot<T, P>;

    fn index(&self, index: u32) -> &Slot<T, P> {
        &self.slots[index as usize]
    }
}

impl<T, P> IndexMut<u32> for Slab<T, P> {
    fn index_mut(&mut self, index: u32) -> &mut Slot<T, P> {
        &mut self.slots[index as usize]
    }
}

/// A queue of places, linked through them: any can leave at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct List<const LINKS: usize> {
    head: u32,
    tail: u32,
}

impl<const LINKS: usize> Default for List<LINKS> {
    fn default() -> Self {
        Self { head: NOWHERE, tail: NOWHERE }
    }
}

impl<const LINKS: usize> List<LINKS> {
    pub(super) fn head(&self) -> Option<u32> {
        (self.head != NOWHERE).then_some(self.head)
    }

    pub(super) fn tail(&self) -> Option<u32> {
        (self.tail != NOWHERE).then_some(self.tail)
    }

    /// The one behind `index`, which must be in this list.
    pub(super) fn after<T, P>(slab: &Slab<T, P>, index: u32) -> Option<u32> {
        let next = slab[index].links[LINKS].next;
        (next != NOWHERE).then_some(next)
    }

    pub(super) fn push_back<T, P>(&mut self, slab: &mut Slab<T, P>, index: u32) {
        slab[index].links[LINKS] = Links { prev: self.tail, next: NOWHERE };
        match self.tail() {
            Some(tail) => slab[tail].links[LINKS].next = index,
            None => self.head = index,
        }
        self.tail = index;
    }

    /// Takes out `index`, which must be in this list.
    pub(super) fn remove<T, P>(&mut self, slab: &mut Slab<T, P>, index: u32) {
        let Links { prev, next } = std::mem::replace(&mut slab[index].links[LINKS], UNLINKED);
        match prev {
            NOWHERE => self.head = next,
            prev => slab[prev].links[LINKS].next = next,
        }
        match next {
            NOWHERE => self.tail = prev,
            next => slab[next].links[LINKS].prev = prev,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_names_nothing_once_its_item_has_gone() {
        let mut slab = Slab::default();
        let index = slab.insert("item", "reply");
        let ticket = slab.ticket(index);
        assert_eq!(slab.find(ticket), Some(index));
        (slab[index].item, slab[index].reply) = (None, None);
        slab.remove(index);
        assert_eq!(slab.find(ticket), None);
        assert_eq!(slab.insert("another", "reply"), index, "places are used again");
        assert_eq!(slab.find(ticket), None);
        assert_eq!(slab.find(Ticket { index: 99, generation: 0 }), None);
    }

    #[test]
    fn any_place_can_leave_a_list_at_once() {
        for leaving in 0..4_u32 {
            let mut slab = Slab::default();
            let mut list = List::<LANE>::default();
            for item in 0..4 {
                let index = slab.insert(item, ());
                list.push_back(&mut slab, index);
            }
            list.remove(&mut slab, leaving);
            let mut left = Vec::new();
            while let Some(head) = list.head() {
                left.push(head);
                list.remove(&mut slab, head);
            }
            assert_eq!(left, (0..4).filter(|&index| index != leaving).collect::<Vec<_>>());
            assert_eq!(list.tail(), None);
        }
    }
}
