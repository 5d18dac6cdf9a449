//! Long random sequences of everything that can be done to a batcher, each step compared with a model that is
//! too simple to be wrong: a list of items. What is admitted, what is in each batch, what everybody is told
//! and every count must agree, and each item is accounted for exactly once after each step.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod batch_support;

use std::panic::catch_unwind;
use std::time::Duration;

use batch_support::{Bench, Ended, TestBatch};
use fastrand::Rng;
use headrace::batch::{BatchConfig, Outcome, Terms, Ticket, Timeout};

const SEEDS: u64 = 400;
const STEPS: usize = 1500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    Dispatched,
    Abandoned,
    Gone,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    id: u32,
    ticket: Ticket,
    terms: Terms,
    enqueued_ns: u64,
    /// When it expires or times out.
    until_ns: u64,
    response_ns: u64,
    state: State,
}

#[derive(Debug, Default)]
struct Counts {
    submitted: u64,
    rejected: u64,
    completed: u64,
    failed: u64,
    expired: u64,
    cancelled: u64,
    closed: u64,
    timed_out: u64,
    late: u64,
}

struct Model {
    bench: Bench,
    config: BatchConfig,
    random: Rng,
    now_ns: u64,
    items: Vec<Item>,
    flights: Vec<TestBatch>,
    counts: Counts,
    next_id: u32,
    paused: bool,
    closing: bool,
}

fn random_config(random: &mut Rng) -> BatchConfig {
    let some = |random: &mut Rng, least, most| random.bool().then(|| random.u64(least..most));
    let max_cost = some(random, 5, 30);
    let max_batch_size = random.usize(1..8);
    BatchConfig {
        max_batch_size,
        max_latency: Duration::from_nanos(some(random, 1, 50).unwrap_or(0)),
        linger: Duration::from_nanos(some(random, 1, 20).unwrap_or(0)),
        max_cost,
        padded_cost: random.bool(),
        workers: random.usize(1..4),
        queue_capacity: Some(max_batch_size + random.usize(..30)),
        queue_cost: random.bool().then(|| max_cost.unwrap_or(1) + random.u64(..60)),
        max_in_flight_per_client: random.bool().then(|| random.usize(1..6)),
        timeout: some(random, 1, 200).map(Duration::from_nanos),
        response_timeout: some(random, 1, 100).map(Duration::from_nanos),
        priorities: random.usize(1..4),
        aging: random.bool().then(|| Duration::from_nanos(random.u64(1..40))),
        // What is predicted depends on floating-point arithmetic; it has tests of its own.
        predictive_expiry: false,
        ..BatchConfig::default()
    }
}

fn ns(duration: Option<Duration>) -> u64 {
    duration.map_or(u64::MAX, |duration| duration.as_nanos() as u64)
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let config = random_config(&mut random);
        Self {
            bench: Bench::new(config.clone()),
            config,
            random,
            now_ns: 0,
            items: Vec::new(),
            flights: Vec::new(),
            counts: Counts::default(),
            next_id: 0,
            paused: false,
            closing: false,
        }
    }

    fn queued(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.state == State::Queued)
    }

    fn position(&self, id: u32) -> usize {
        self.items.iter().position(|item| item.id == id).expect("a known item")
    }

    /// The item's end, and what its reply was told.
    fn ended(&mut self, at: usize, count: fn(&mut Counts) -> &mut u64, told: &Ended) {
        let item = &mut self.items[at];
        item.state = if item.state == State::Dispatched { State::Abandoned } else { State::Gone };
        *count(&mut self.counts) += 1;
        assert_eq!(self.bench.log.of(item.id).as_ref(), Some(told), "item {}", item.id);
    }

    fn random_terms(&mut self) -> Terms {
        let random = &mut self.random;
        let timeout = |random: &mut Rng, most| match random.u8(..4) {
            0 => Timeout::After(Duration::from_nanos(random.u64(..most))),
            1 => Timeout::Never,
            _ => Timeout::Configured,
        };
        let beyond = usize::from(random.u8(..20) == 0);
        Terms {
            cost: random.u64(..12),
            key: random.u64(..3) * random.u64(..2),
            client: random.bool().then(|| random.u64(..4)),
            priority: random.usize(..self.config.priorities + beyond),
            timeout: timeout(random, 150),
            response_timeout: timeout(random, 80),
        }
    }

    /// The word for what is to be said to an item, if it is refused.
    fn refusal(&self, terms: &Terms, until_ns: u64) -> Option<&'static str> {
        let config = &self.config;
        let queued_cost: u64 = self.queued().map(|item| item.terms.cost).sum();
        let of_client = |item: &&Item| item.state != State::Gone && item.terms.client == terms.client;
        if self.closing {
            Some("closed")
        } else if until_ns <= self.now_ns || terms.response_timeout == Timeout::After(Duration::ZERO) {
            Some("expired")
        } else if terms.priority >= config.priorities {
            Some("invalid")
        } else if config.max_cost.is_some_and(|most| terms.cost > most) {
            Some("too_large")
        } else if self.queued().count() >= config.capacity() {
            Some("queue_full")
        } else if self.queued().count() > 0
            && config.queue_cost.is_some_and(|most| queued_cost + terms.cost > most)
        {
            Some("queue_cost")
        } else if terms.client.is_some()
            && config
                .max_in_flight_per_client
                .is_some_and(|cap| self.items.iter().filter(of_client).count() >= cap)
        {
            Some("client_cap")
        } else {
            None
        }
    }

    fn submit(&mut self) {
        let (id, terms) = (self.next_id, self.random_terms());
        let bound = |timeout, configured| match timeout {
            Timeout::After(after) => after.as_nanos() as u64,
            Timeout::Configured => ns(configured),
            _ => u64::MAX,
        };
        let until_ns = self.now_ns.saturating_add(bound(terms.timeout, self.config.timeout));
        // The configured one is read at dispatch; no step changes it.
        let response_ns = bound(terms.response_timeout, self.config.response_timeout);
        self.next_id += 1;
        self.counts.submitted += 1;
        let expected = self.refusal(&terms, until_ns);
        match self.bench.try_submit(id, terms) {
            Ok(ticket) => {
                assert_eq!(expected, None, "item {id} was to be refused");
                let (enqueued_ns, state) = (self.now_ns, State::Queued);
                self.items.push(Item { id, ticket, terms, enqueued_ns, until_ns, response_ns, state });
            }
            Err(refused) if refused.reason.as_str() == "would_expire" => {
                let config = &self.config;
                assert!(expected.is_none() && config.predictive_expiry && until_ns != u64::MAX);
                let is_before =
                    |item: &&Item| item.terms.key == terms.key && item.terms.priority <= terms.priority;
                let before = self.queued().filter(is_before).count();
                assert!(before >= 2 * config.max_batch_size * config.workers, "{before} wait before it");
                self.counts.rejected += 1;
            }
            Err(refused) => {
                assert_eq!(Some(refused.reason.as_str()), expected);
                self.counts.rejected += 1;
            }
        }
    }

    fn advance(&mut self) {
        let by = self.random.u64(1..30);
        self.now_ns += by;
        self.bench.after(Duration::from_nanos(by));
        self.expire();
    }

    /// What has no time left has ended.
    fn expire(&mut self) {
        for at in 0..self.items.len() {
            let Item { state, until_ns, enqueued_ns, id, .. } = self.items[at];
            if until_ns > self.now_ns || !matches!(state, State::Queued | State::Dispatched) {
                continue;
            }
            let told = self.bench.log.of(id).unwrap_or_else(|| panic!("item {id} is over"));
            if state == State::Queued {
                let waited = Duration::from_nanos(self.now_ns - enqueued_ns);
                self.ended(at, |c| &mut c.expired, &Outcome::Expired { waited, predicted: false });
            } else {
                assert!(matches!(told, Outcome::TimedOut { .. }), "{told:?}");
                self.ended(at, |c| &mut c.timed_out, &told);
            }
        }
    }

    fn cancel(&mut self) {
        if self.items.is_empty() {
            return;
        }
        let at = self.random.usize(..self.items.len());
        let Item { ticket, state, .. } = self.items[at];
        let cancelled = self.bench.coordinator.cancel(ticket);
        assert_eq!(cancelled, matches!(state, State::Queued | State::Dispatched));
        if cancelled {
            let dispatched = state == State::Dispatched;
            self.ended(at, |c| &mut c.cancelled, &Outcome::Cancelled { dispatched });
        }
    }

    /// Where an item stands: by level and time, or with aging by time alone.
    fn rank(&self, item: &Item) -> (u64, u64, u32) {
        let level = item.terms.priority as u64;
        match self.config.aging {
            Some(aging) => (0, item.enqueued_ns + level * ns(Some(aging)), item.id),
            None => (level, item.enqueued_ns, item.id),
        }
    }

    fn cost(&self, costs: &[u64]) -> u64 {
        if self.config.padded_cost {
            costs.iter().max().unwrap_or(&0) * costs.len() as u64
        } else {
            costs.iter().sum()
        }
    }

    /// The items of a key in the order in which they are served, as many as fit into one batch, and whether
    /// the batch is full.
    fn batch_of(&self, key: u64) -> (Vec<u32>, bool) {
        let mut waiting: Vec<_> = self.queued().filter(|item| item.terms.key == key).collect();
        waiting.sort_by_key(|item| self.rank(item));
        let most = self.config.max_cost.unwrap_or(u64::MAX);
        let (mut ids, mut costs) = (Vec::new(), Vec::new());
        for item in &waiting {
            costs.push(item.terms.cost);
            if !ids.is_empty() && self.cost(&costs) > most {
                return (ids, true);
            }
            ids.push(item.id);
            if ids.len() == self.config.max_batch_size || self.cost(&costs) >= most {
                return (ids, true);
            }
        }
        (ids, false)
    }

    /// Whether the window of a key that has no full batch is over.
    fn window_is_over(&self, key: u64) -> bool {
        let (latency, linger) = (ns(Some(self.config.max_latency)), ns(Some(self.config.linger)));
        let of_key = || self.queued().filter(move |item| item.terms.key == key);
        let oldest_ns = of_key().map(|item| item.enqueued_ns).min().unwrap();
        // One that has left was an arrival too, so a key may linger for longer than its items show.
        let newest_ns = of_key().map(|item| item.enqueued_ns).max().unwrap();
        let by_latency = latency > 0 && oldest_ns + latency <= self.now_ns;
        let by_linger = linger > 0 && (newest_ns + linger).min(oldest_ns + 10 * linger) <= self.now_ns;
        self.closing || (latency == 0 && linger == 0) || by_latency || by_linger
    }

    fn take(&mut self) {
        let keys: std::collections::BTreeSet<_> = self.queued().map(|item| item.terms.key).collect();
        let ready = keys.into_iter().filter(|&key| self.batch_of(key).1 || self.window_is_over(key));
        let first =
            |key: &u64| self.queued().filter(|item| item.terms.key == *key).map(|item| self.rank(item)).min();
        let ready: Vec<_> = ready.collect();
        let expected = ready.iter().min_by_key(|key| first(key)).map(|&key| self.batch_of(key).0);
        let taken = self.bench.try_take_as(self.random.u32(..3));
        let Some(batch) = taken else {
            let lingers = !self.config.linger.is_zero();
            assert!(expected.is_none() || self.paused || lingers, "a batch could be taken: {expected:?}");
            return;
        };
        assert!(!self.paused, "nothing is taken while paused");
        assert_eq!(batch.items().len(), batch.len());
        if self.config.linger.is_zero() {
            assert_eq!(Some(batch.items()), expected.as_deref());
        } else {
            assert_eq!(batch.items(), self.batch_of(batch.key()).0);
        }
        for &id in batch.items() {
            let at = self.position(id);
            let item = &mut self.items[at];
            assert_eq!((item.state, item.terms.key), (State::Queued, batch.key()));
            item.state = State::Dispatched;
            item.until_ns = item.until_ns.min(self.now_ns.saturating_add(item.response_ns));
        }
        self.flights.push(batch);
    }

    /// A batch is answered, in one of the ways there are.
    fn answer(&mut self) {
        if self.flights.is_empty() {
            return;
        }
        let at = self.random.usize(..self.flights.len());
        let mut batch = self.flights.swap_remove(at);
        let places: Vec<_> = batch.tickets().iter().map(|&ticket| self.place_of(ticket)).collect();
        match self.random.u8(..6) {
            0 if batch.len() > 1 => {
                let (first, second) = batch.split().expect("several items");
                self.flights.extend([first, second]);
            }
            1 => {
                let ahead = self.random.usize(..places.len());
                let waited_for = self.items[places[ahead]].state == State::Dispatched;
                let late = self.items[places[ahead]].state == State::Abandoned;
                assert_eq!(batch.resolve(ahead, Ok(1)), waited_for);
                self.counts.late += u64::from(late);
                self.counts.completed += u64::from(waited_for);
                self.items[places[ahead]].state = State::Gone;
                self.flights.push(batch);
            }
            2 => {
                self.end_all(&places, true, |c| &mut c.failed);
                batch.fail(|_| "all");
            }
            3 => {
                self.end_all(&places, false, |c| &mut c.failed);
                drop(batch);
            }
            4 => {
                self.end_all(&places, true, |c| &mut c.failed);
                batch.complete(vec![Ok(0); places.len() + 1]);
            }
            _ => {
                self.end_all(&places, true, |c| &mut c.completed);
                batch.complete(vec![Ok(0); places.len()]);
            }
        }
    }

    fn place_of(&self, ticket: Ticket) -> usize {
        self.items.iter().rposition(|item| item.ticket == ticket).expect("a known ticket")
    }

    fn end_all(&mut self, places: &[usize], results: bool, count: fn(&mut Counts) -> &mut u64) {
        for &at in places {
            match std::mem::replace(&mut self.items[at].state, State::Gone) {
                State::Dispatched => *count(&mut self.counts) += 1,
                State::Abandoned => self.counts.late += u64::from(results),
                State::Queued | State::Gone => {}
            }
        }
    }

    fn step(&mut self) {
        match self.random.u8(..100) {
            0..40 => self.submit(),
            40..58 => self.take(),
            58..74 => self.answer(),
            74..86 => self.advance(),
            86..96 => self.cancel(),
            96..98 => {
                self.paused = !self.paused && !self.closing;
                if self.paused { self.bench.coordinator.pause() } else { self.bench.coordinator.resume() }
            }
            _ => {
                // The same, but for what decides who fits.
                self.config.max_batch_size = self.random.usize(1..8);
                self.config.queue_capacity = Some(self.config.max_batch_size + self.random.usize(..30));
                self.config.max_in_flight_per_client = self.random.bool().then(|| self.random.usize(1..6));
                self.bench.coordinator.configure(self.config.clone()).unwrap();
            }
        }
        self.compare();
    }

    fn compare(&mut self) {
        let stats = self.bench.stats();
        let count = |state| self.items.iter().filter(|item| item.state == state).count();
        assert!(stats.is_conserved());
        let gauges = (stats.queued, stats.dispatched, stats.abandoned, stats.in_flight);
        let (queued, dispatched) = (count(State::Queued), count(State::Dispatched));
        assert_eq!(gauges, (queued, dispatched, count(State::Abandoned), self.flights.len()));
        assert_eq!(stats.queued_cost, self.queued().map(|item| item.terms.cost).sum::<u64>());
        let Counts { submitted, rejected, completed, failed, expired, cancelled, closed, timed_out, late } =
            self.counts;
        assert_eq!((stats.submitted, stats.rejected.total()), (submitted, rejected));
        assert_eq!((stats.completed, stats.failed, stats.late_results), (completed, failed, late));
        assert_eq!((stats.expired, stats.cancelled), (expired, cancelled));
        assert_eq!((stats.closed, stats.timed_out), (closed, timed_out));
        let ended = submitted - rejected - (queued + dispatched) as u64;
        assert_eq!(self.bench.log.len() as u64, ended, "each that has ended was told");
        // What nothing names any more is forgotten here too.
        self.items.retain(|item| {
            item.state != State::Gone
                || self.flights.iter().any(|batch| batch.tickets().contains(&item.ticket))
        });
    }

    /// Everything ends: by a drain, or at once.
    fn end(mut self) {
        self.closing = true;
        self.paused = false;
        if self.random.bool() {
            self.bench.coordinator.begin_drain();
            while self.queued().count() > 0 {
                self.take();
            }
        } else {
            self.bench.coordinator.close();
            for at in 0..self.items.len() {
                if self.items[at].state == State::Queued {
                    self.ended(at, |c| &mut c.closed, &Outcome::Closed);
                }
            }
        }
        self.compare();
        while !self.flights.is_empty() {
            self.answer();
            self.compare();
        }
        assert!(self.bench.coordinator.is_quiet());
        let stats = self.bench.stats();
        assert_eq!((stats.queued, stats.dispatched, stats.abandoned, stats.in_flight), (0, 0, 0, 0));
    }
}

#[test]
fn whatever_is_done_in_whatever_order_agrees_with_the_model() {
    for seed in 0..SEEDS {
        let agrees = catch_unwind(|| {
            let mut model = Model::new(seed);
            for _ in 0..STEPS {
                model.step();
            }
            model.end();
        });
        assert!(agrees.is_ok(), "seed {seed}");
    }
}
