//! A coordinator under a clock that is moved by hand, with replies that write down what they are told.

#![allow(dead_code, unreachable_pub, missing_docs)]
// Not inside a `#[test]`, so the lints take it for production code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use headrace::batch::{
    Batch, BatchClock, BatchConfig, BatchStats, Cause, Coordinator, Notice, Outcome, Refused, RejectReason,
    Reply, Taken, Terms, Ticket,
};

pub type Ended = Outcome<u32, &'static str>;

/// What was told of each item, by its number, and whether the item came back with it.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<HashMap<u32, (Ended, bool)>>>);

impl Log {
    pub fn of(&self, id: u32) -> Option<Ended> {
        self.0.lock().unwrap().get(&id).map(|(ended, _)| ended.clone())
    }

    pub fn came_back(&self, id: u32) -> bool {
        self.0.lock().unwrap().get(&id).is_some_and(|&(_, item)| item)
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// The reply of item `id`.
#[derive(Debug)]
pub struct Told {
    pub id: u32,
    pub log: Log,
}

impl Reply<u32> for Told {
    type Output = u32;
    type Error = &'static str;

    fn resolve(self, outcome: Ended, item: Option<u32>) {
        assert!(item.is_none_or(|item| item == self.id), "the reply's own item");
        let before = self.log.0.lock().unwrap().insert(self.id, (outcome, item.is_some()));
        assert!(before.is_none(), "item {} was resolved twice", self.id);
    }
}

/// Counts notices.
#[derive(Debug, Default)]
pub struct Heard(Mutex<Vec<&'static str>>);

impl Heard {
    /// What was heard since the last call.
    pub fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn hear(&self, word: &'static str) {
        self.0.lock().unwrap().push(word);
    }
}

impl Notice for Heard {
    fn ready(&self, cause: Cause) {
        self.hear(if cause == Cause::Arrival { "arrival" } else { "other" });
    }

    fn room(&self) {
        self.hear("room");
    }

    fn lost(&self, _worker: u32) {
        self.hear("lost");
    }

    fn quiet(&self) {
        self.hear("quiet");
    }
}

pub type TestBatch = Batch<u32, Told>;

/// The bench on which rules are tried.
#[derive(Debug)]
pub struct Bench {
    pub coordinator: Coordinator<u32, Told>,
    pub clock: BatchClock,
    pub heard: Arc<Heard>,
    pub log: Log,
}

pub const MS: Duration = Duration::from_millis(1);

pub fn ms(count: u32) -> Duration {
    MS * count
}

impl Bench {
    pub fn new(config: BatchConfig) -> Self {
        let (clock, heard) = (BatchClock::manual(), Arc::new(Heard::default()));
        let notice = Arc::clone(&heard) as Arc<dyn Notice>;
        let coordinator = Coordinator::with_notice(config, notice, clock.clone()).unwrap();
        Self { coordinator, clock, heard, log: Log::default() }
    }

    pub fn try_submit(&self, id: u32, terms: Terms) -> Result<Ticket, Refused<u32, Told>> {
        let submitted = self.coordinator.submit(id, Told { id, log: self.log.clone() }, terms);
        self.check();
        submitted
    }

    pub fn submit_with(&self, id: u32, terms: Terms) -> Ticket {
        self.try_submit(id, terms).unwrap()
    }

    pub fn submit(&self, id: u32) -> Ticket {
        self.submit_with(id, Terms::default())
    }

    pub fn submit_all(&self, ids: impl IntoIterator<Item = u32>) -> Vec<Ticket> {
        ids.into_iter().map(|id| self.submit(id)).collect()
    }

    pub fn refused(&self, id: u32, terms: Terms) -> RejectReason {
        let refused = self.try_submit(id, terms).expect_err("refused");
        assert_eq!((refused.item, refused.reply.id), (id, id), "what was refused comes back");
        assert_eq!(self.log.of(id), None, "the reply of what was refused is not called");
        refused.reason
    }

    pub fn try_take(&self) -> Option<TestBatch> {
        self.try_take_as(0)
    }

    pub fn try_take_as(&self, worker: u32) -> Option<TestBatch> {
        let taken = self.coordinator.try_take(worker);
        self.check();
        match taken {
            Taken::Batch(batch) => Some(batch),
            Taken::Nothing | Taken::Closed => None,
        }
    }

    pub fn take(&self) -> TestBatch {
        self.try_take().expect("a batch can be taken")
    }

    /// Takes a batch, answers it, and says which items it had.
    pub fn run(&self) -> Vec<u32> {
        let batch = self.take();
        let items = batch.items().to_vec();
        answer(batch);
        self.check();
        items
    }

    /// Everything that can be taken now, batch by batch.
    pub fn run_all(&self) -> Vec<Vec<u32>> {
        let mut batches = Vec::new();
        while let Some(batch) = self.try_take() {
            batches.push(batch.items().to_vec());
            answer(batch);
        }
        batches
    }

    /// Lets time pass, and what the time says happen.
    pub fn after(&self, by: Duration) {
        self.clock.advance(by);
        self.coordinator.tick();
        self.check();
    }

    pub fn stats(&self) -> BatchStats {
        self.coordinator.stats()
    }

    /// The law of conservation.
    pub fn check(&self) {
        let stats = self.stats();
        assert!(stats.is_conserved(), "{stats:?}");
    }
}

/// Answers each item with ten times itself.
pub fn answer(batch: TestBatch) {
    let results = batch.items().iter().map(|item| Ok(item * 10)).collect();
    batch.complete(results);
}

pub fn config() -> BatchConfig {
    BatchConfig { max_batch_size: 4, queue_capacity: Some(100), timeout: None, ..BatchConfig::default() }
}
