//! Which item's time is over next. Items with the configured time-out come in the order of their deadlines,
//! so they stand in a list, at no cost but two links; so do items that bring their own, as long as they come
//! in order. Only what does not goes to a heap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::slab::{DUE, DueIn, List, Slab};
use super::terms::Ticket;
use crate::clock::NEVER;

/// A list for each of: queued and dispatched, with the configured time-out and with one of its own. Mixed,
/// one item with an hour would send all others to the heap.
const RUNS: usize = 4;

/// Entries of the heap that may be out of date before it is swept.
const STALE_MAX: usize = 64;

/// Which list an item belongs to.
pub(super) const fn run(dispatched: bool, own: bool) -> u8 {
    (dispatched as u8) << 1 | own as u8
}

#[derive(Debug, Default)]
pub(super) struct Deadlines {
    runs: [List<DUE>; RUNS],
    heap: BinaryHeap<Reverse<(u64, Ticket)>>,
    /// Entries of the heap that are not out of date.
    live: usize,
}

impl Deadlines {
    /// Watches an item's `until_ns`.
    pub(super) fn insert<T, P>(&mut self, slab: &mut Slab<T, P>, index: u32, run: u8) {
        let until_ns = slab[index].until_ns;
        if until_ns == NEVER {
            return;
        }
        let list = &mut self.runs[usize::from(run) % RUNS];
        if list.tail().is_none_or(|tail| slab[tail].until_ns <= until_ns) {
            list.push_back(slab, index);
            slab[index].due_in = DueIn::Run(run);
        } else {
            self.heap.push(Reverse((until_ns, slab.ticket(index))));
            slab[index].due_in = DueIn::Heap;
            self.live += 1;
        }
    }

    /// Watches it no more.
    pub(super) fn remove<T, P>(&mut self, slab: &mut Slab<T, P>, index: u32) {
        match std::mem::replace(&mut slab[index].due_in, DueIn::Nowhere) {
            DueIn::Nowhere => {}
            DueIn::Run(run) => self.runs[usize::from(run) % RUNS].remove(slab, index),
            DueIn::Heap => {
                self.live -= 1;
                if self.heap.len() > 2 * self.live + STALE_MAX {
                    self.heap.retain(|&Reverse(entry)| is_live(slab, entry));
                }
            }
        }
    }

    /// The item whose time is over first.
    pub(super) fn first<T, P>(&mut self, slab: &Slab<T, P>) -> Option<u32> {
        while let Some(&Reverse(entry)) = self.heap.peek()
            && !is_live(slab, entry)
        {
            self.heap.pop();
        }
        let heads = self.runs.iter().filter_map(List::head);
        let top = self.heap.peek().and_then(|&Reverse((_, ticket))| slab.find(ticket));
        heads.chain(top).min_by_key(|&index| slab[index].until_ns)
    }

    /// When that is; [`NEVER`] without one.
    pub(super) fn first_ns<T, P>(&mut self, slab: &Slab<T, P>) -> u64 {
        self.first(slab).map_or(NEVER, |index| slab[index].until_ns)
    }
}

fn is_live<T, P>(slab: &Slab<T, P>, (until_ns, ticket): (u64, Ticket)) -> bool {
    slab.find(ticket)
        .is_some_and(|index| slab[index].due_in == DueIn::Heap && slab[index].until_ns == until_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(deadlines: &mut Deadlines, slab: &mut Slab<(), ()>, until_ns: u64, run: u8) -> u32 {
        let index = slab.insert((), ());
        slab[index].until_ns = until_ns;
        deadlines.insert(slab, index, run);
        index
    }

    #[test]
    fn deadlines_come_in_their_order_however_they_went_in() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let (mut slab, mut deadlines) = (Slab::default(), Deadlines::default());
            let mut expected = Vec::new();
            for _ in 0..random.usize(1..300) {
                let until_ns = random.u64(..1000);
                let index = insert(&mut deadlines, &mut slab, until_ns, random.u8(..RUNS as u8));
                if random.u8(..4) == 0 {
                    deadlines.remove(&mut slab, index);
                } else {
                    expected.push(until_ns);
                }
            }
            expected.sort_unstable();
            let mut found = Vec::new();
            while let Some(index) = deadlines.first(&slab) {
                found.push(deadlines.first_ns(&slab));
                deadlines.remove(&mut slab, index);
            }
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn uniform_deadlines_never_reach_the_heap() {
        let (mut slab, mut deadlines) = (Slab::default(), Deadlines::default());
        for now in 0..1000 {
            insert(&mut deadlines, &mut slab, now + 60, run(false, false));
            insert(&mut deadlines, &mut slab, now + 5, run(false, true));
            insert(&mut deadlines, &mut slab, NEVER, run(false, false));
        }
        assert_eq!(deadlines.heap.len(), 0);
    }

    #[test]
    fn entries_that_are_out_of_date_are_swept() {
        let (mut slab, mut deadlines) = (Slab::default(), Deadlines::default());
        insert(&mut deadlines, &mut slab, 1_000_000, 0);
        for until_ns in (0..10_000).rev() {
            let index = insert(&mut deadlines, &mut slab, until_ns, 0);
            deadlines.remove(&mut slab, index);
            (slab[index].item, slab[index].reply) = (None, None);
            slab.remove(index);
        }
        assert!(deadlines.heap.len() <= STALE_MAX + 1, "{}", deadlines.heap.len());
    }
}
