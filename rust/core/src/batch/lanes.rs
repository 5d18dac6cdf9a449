//! What waits, sorted: a bucket for each key, in it a lane for each priority, in each lane the items in the
//! order in which they came. Buckets of which a batch may be taken are ordered by their first item, so that a
//! rare key has its turn when its item is the oldest; the others by when they will be ready.
//!
//! A bucket's place among those that ripen may be too early, never too late: what would move it later (an
//! arrival while it lingers) is only looked at when its time comes.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::policy::{Rank, Ripe, Rules, Waiting, ripe};
use super::slab::{LANE, List, NOWHERE, Slab};
use super::stats::DispatchReason;
use crate::clock::NEVER;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Ready(Rank),
    Ripening(u64),
}

/// The items of one key and priority.
#[derive(Debug, Default)]
struct Lane {
    list: List<LANE>,
    count: usize,
}

impl Lane {
    fn head(&self) -> Option<u32> {
        self.list.head()
    }
}

#[derive(Debug)]
struct Bucket {
    key: u64,
    lanes: Vec<Lane>,
    count: usize,
    cost: u128,
    /// No item costs more. The largest may have left.
    peak: u64,
    newest_ns: u64,
    place: Place,
}

#[derive(Debug, Default)]
pub(super) struct Buckets {
    buckets: Vec<Bucket>,
    free: Vec<u32>,
    by_key: FxHashMap<u64, u32>,
    ready: BTreeSet<(Rank, u32)>,
    ripening: BTreeSet<(u64, u32)>,
    /// Items admitted before this one were there at the last flush.
    flushed: u64,
    draining: bool,
}

impl Buckets {
    /// Puts an item last in its lane.
    pub(super) fn push<T, P>(
        &mut self,
        slab: &mut Slab<T, P>,
        rules: &Rules,
        index: u32,
        key: u64,
        now_ns: u64,
    ) {
        let at = self.open(key);
        let slot = &mut slab[index];
        slot.bucket = at;
        let (lane, cost) = (slot.lane, slot.cost);
        let rank = Rank::new(rules, lane, slot.enqueued_ns, slot.sequence);
        let bucket = &mut self.buckets[at as usize];
        if bucket.lanes.len() <= usize::from(lane) {
            bucket.lanes.resize_with(usize::from(lane) + 1, Lane::default);
        }
        let lane = &mut bucket.lanes[usize::from(lane)];
        lane.list.push_back(slab, index);
        lane.count += 1;
        bucket.count += 1;
        bucket.cost += u128::from(cost);
        bucket.peak = bucket.peak.max(cost);
        bucket.newest_ns = now_ns;
        let place = self.buckets[at as usize].place;
        match place {
            Place::Ready(first) if first < rank => {}
            // An arrival can fill a batch; otherwise it can only let it ripen later.
            Place::Ripening(_) if !self.is_full(slab, rules, at, now_ns) => {}
            _ => self.settle(slab, rules, at, now_ns),
        }
    }

    /// Takes an item out of its lane, from wherever it stands. [`Self::settle`] is to follow, or another.
    pub(super) fn unlink<T, P>(&mut self, slab: &mut Slab<T, P>, index: u32) -> u32 {
        let slot = &mut slab[index];
        let at = std::mem::replace(&mut slot.bucket, NOWHERE);
        let (lane, cost) = (slot.lane, slot.cost);
        let bucket = &mut self.buckets[at as usize];
        let lane = &mut bucket.lanes[usize::from(lane)];
        lane.list.remove(slab, index);
        lane.count -= 1;
        bucket.count -= 1;
        bucket.cost -= u128::from(cost);
        at
    }

    /// Brings a bucket's place up to date; closes it if nothing is left.
    pub(super) fn settle<T, P>(&mut self, slab: &Slab<T, P>, rules: &Rules, at: u32, now_ns: u64) {
        let place = match self.head(slab, rules, at) {
            None => Place::Nowhere,
            Some((rank, _)) => match self.ripe(slab, rules, at, now_ns) {
                Ripe::Now(_) => Place::Ready(rank),
                Ripe::At(at_ns) => Place::Ripening(at_ns),
            },
        };
        let bucket = &mut self.buckets[at as usize];
        if place != bucket.place {
            match std::mem::replace(&mut bucket.place, place) {
                Place::Nowhere => {}
                Place::Ready(rank) => _ = self.ready.remove(&(rank, at)),
                Place::Ripening(at_ns) => _ = self.ripening.remove(&(at_ns, at)),
            }
            match place {
                Place::Nowhere => {}
                Place::Ready(rank) => _ = self.ready.insert((rank, at)),
                Place::Ripening(at_ns) => _ = self.ripening.insert((at_ns, at)),
            }
        }
        // One that was closed before may have left its key to another.
        if bucket.count == 0 && self.by_key.get(&bucket.key) == Some(&at) {
            self.by_key.remove(&bucket.key);
            bucket.peak = 0;
            self.free.push(at);
        }
    }

    /// Moves on what has ripened. Whether a batch may be taken.
    pub(super) fn ripen<T, P>(&mut self, slab: &Slab<T, P>, rules: &Rules, now_ns: u64) -> bool {
        while let Some(&(at_ns, at)) = self.ripening.first()
            && at_ns <= now_ns
        {
            self.settle(slab, rules, at, now_ns);
        }
        !self.ready.is_empty()
    }

    /// The bucket whose first item is to be served first, of those of which a batch may be taken.
    pub(super) fn first_ready(&self) -> Option<u32> {
        self.ready.first().map(|&(_, at)| at)
    }

    /// Whether a batch may be taken, as of the last [`Self::ripen`].
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When the next bucket may ripen; [`NEVER`] without one.
    pub(super) fn next_ripe_ns(&self) -> u64 {
        self.ripening.first().map_or(NEVER, |&(at_ns, _)| at_ns)
    }

    /// A bucket's first item, and where it stands among all.
    pub(super) fn head<T, P>(&self, slab: &Slab<T, P>, rules: &Rules, at: u32) -> Option<(Rank, u32)> {
        let heads = self.buckets[at as usize].lanes.iter().filter_map(Lane::head);
        heads
            .map(|head| {
                let slot = &slab[head];
                (Rank::new(rules, slot.lane, slot.enqueued_ns, slot.sequence), head)
            })
            .min_by_key(|&(rank, _)| rank)
    }

    /// Why a batch of it may be taken now, if it may.
    pub(super) fn reason<T, P>(
        &mut self,
        slab: &Slab<T, P>,
        rules: &Rules,
        at: u32,
        now_ns: u64,
    ) -> DispatchReason {
        match self.ripe(slab, rules, at, now_ns) {
            Ripe::Now(reason) => reason,
            // It was ready before: nothing but its being full can have ended, by items that expired just now.
            Ripe::At(_) => DispatchReason::Size,
        }
    }

    /// How many items of a key would be served before another of this priority that came now.
    pub(super) fn ahead(&self, key: u64, priority: usize) -> usize {
        let Some(&at) = self.by_key.get(&key) else { return 0 };
        self.buckets[at as usize].lanes.iter().take(priority + 1).map(|lane| lane.count).sum()
    }

    pub(super) fn count(&self, at: u32) -> usize {
        self.buckets[at as usize].count
    }

    pub(super) fn key(&self, at: u32) -> u64 {
        self.buckets[at as usize].key
    }

    /// Everything admitted before `sequence` may be taken now.
    pub(super) fn flush<T, P>(&mut self, slab: &Slab<T, P>, rules: &Rules, sequence: u64, now_ns: u64) {
        self.flushed = sequence;
        self.settle_all(slab, rules, now_ns);
    }

    /// No window is waited for any more.
    pub(super) fn drain<T, P>(&mut self, slab: &Slab<T, P>, rules: &Rules, now_ns: u64) {
        self.draining = true;
        self.settle_all(slab, rules, now_ns);
    }

    /// Brings every place up to date, after the rules have changed.
    pub(super) fn settle_all<T, P>(&mut self, slab: &Slab<T, P>, rules: &Rules, now_ns: u64) {
        for at in 0..self.buckets.len() as u32 {
            self.settle(slab, rules, at, now_ns);
        }
    }

    fn open(&mut self, key: u64) -> u32 {
        *self.by_key.entry(key).or_insert_with(|| {
            if let Some(at) = self.free.pop() {
                self.buckets[at as usize].key = key;
                return at;
            }
            self.buckets.push(Bucket {
                key,
                lanes: Vec::new(),
                count: 0,
                cost: 0,
                peak: 0,
                newest_ns: 0,
                place: Place::Nowhere,
            });
            self.buckets.len() as u32 - 1
        })
    }

    fn is_full<T, P>(&mut self, slab: &Slab<T, P>, rules: &Rules, at: u32, now_ns: u64) -> bool {
        matches!(self.ripe(slab, rules, at, now_ns), Ripe::Now(DispatchReason::Size | DispatchReason::Cost))
    }

    fn ripe<T, P>(&mut self, slab: &Slab<T, P>, rules: &Rules, at: u32, now_ns: u64) -> Ripe {
        let costly = self.is_costly(slab, rules, at);
        let bucket = &self.buckets[at as usize];
        let heads = bucket.lanes.iter().filter_map(Lane::head);
        let Some(oldest) = heads.min_by_key(|&head| slab[head].sequence) else { return Ripe::At(NEVER) };
        let waiting = Waiting {
            count: bucket.count,
            costly,
            oldest_ns: slab[oldest].enqueued_ns,
            newest_ns: bucket.newest_ns,
            flushed: slab[oldest].sequence < self.flushed,
            draining: self.draining,
        };
        ripe(rules, waiting, now_ns)
    }

    /// Whether the items of a bucket that has fewer than a batch's fill one by their cost.
    fn is_costly<T, P>(&mut self, slab: &Slab<T, P>, rules: &Rules, at: u32) -> bool {
        let bucket = &mut self.buckets[at as usize];
        let Some(max_cost) = rules.max_cost() else { return false };
        if !rules.is_padded() {
            return bucket.cost >= u128::from(max_cost);
        }
        let padded = |peak: u64| peak.saturating_mul(bucket.count as u64) >= max_cost;
        if bucket.count >= rules.size || !padded(bucket.peak) {
            return false;
        }
        // The largest item may have left: look.
        let mut peak = 0;
        for lane in &bucket.lanes {
            let mut next = lane.head();
            while let Some(index) = next {
                peak = peak.max(slab[index].cost);
                next = List::<LANE>::after(slab, index);
            }
        }
        let costly = padded(peak);
        bucket.peak = peak;
        costly
    }
}
