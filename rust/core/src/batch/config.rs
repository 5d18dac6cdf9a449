//! The settings of a batcher: a plain struct whose `Default` is the documented default, checked in one place.

use std::time::Duration;

use crate::config::{at_least_one, refused};
use crate::error::StartError;

/// Most items of one batch: what a size may be at all. A batch is copied into one list.
pub const BATCH_SIZE_MAX: usize = 65_536;

/// Most items that may wait. Tickets have 32 bits for their place, and memory is to stay bounded.
pub const QUEUE_CAPACITY_MAX: usize = 1 << 24;

/// Most levels of priority. Each open bucket has a lane for each.
pub const PRIORITIES_MAX: usize = 64;

/// Most batches in flight.
pub const WORKERS_MAX: usize = 1024;

/// Longest name in bytes; threads carry it, and metrics do.
pub const NAME_MAX: usize = 256;

/// Quiet periods that a batch waits at most, counted from its oldest item.
pub const LINGERS_MAX: u32 = 10;

/// Settings of a batcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchConfig {
    /// Most items of one batch. Default 32.
    pub max_batch_size: usize,
    /// How long the oldest item of a batch that is not full waits for others, from its submission on. Default
    /// zero: a free worker takes what is there.
    pub max_latency: Duration,
    /// Quiet period: a batch that is not full is closed when nothing has come for this long, at the latest
    /// after ten times this, or after `max_latency` if that is set. Default zero: none.
    pub linger: Duration,
    /// Most cost of one batch. Default none.
    pub max_cost: Option<u64>,
    /// The cost of a batch is its largest item's times its size, as for padded tensors. Default false: the sum.
    pub padded_cost: bool,
    /// Sizes that the function likes, rising, the last one `max_batch_size`; see [`super::Batch::padded_size`].
    /// Default empty: any.
    pub allowed_sizes: Vec<usize>,
    /// Batches in flight. Default 1.
    pub workers: usize,
    /// Items that may wait; beyond it a submit is refused. Default the larger of 64 and four batches for each
    /// worker.
    pub queue_capacity: Option<usize>,
    /// Cost that may wait. Default none. An item is never refused for it while nothing waits.
    pub queue_cost: Option<u64>,
    /// Items of one client that may be queued or with the function. Default none.
    pub max_in_flight_per_client: Option<usize>,
    /// Bounds a submit as a whole. Default 60 s; `None` for no bound.
    pub timeout: Option<Duration>,
    /// Bounds the wait for the function, from dispatch on. Default none.
    pub response_timeout: Option<Duration>,
    /// Expires early what would miss its deadline anyway, while others wait that can make theirs, and refuses what
    /// would miss its own behind what waits, but for items with a key, items of maps, and takers with a limit.
    /// Default true.
    pub predictive_expiry: bool,
    /// Levels of priority; 0 is the most urgent. Default 1.
    pub priorities: usize,
    /// An item of priority `p` stands in the queue as if it had come `p` times this later. Default none:
    /// priorities are strict.
    pub aging: Option<Duration>,
    /// A batch that fails as a whole is halved and run again, until the items that fail are alone. Default
    /// false.
    pub isolate_failures: bool,
    /// How long the workers may take to start. Default 30 s.
    pub startup_timeout: Duration,
    /// After this long a function that has not returned is given up: its batch fails and its worker is
    /// replaced. Default none.
    pub callback_timeout: Option<Duration>,
    /// What threads and metrics call it. Default `"batcher"`.
    pub name: String,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            max_batch_size: 32,
            max_latency: Duration::ZERO,
            linger: Duration::ZERO,
            max_cost: None,
            padded_cost: false,
            allowed_sizes: Vec::new(),
            workers: 1,
            queue_capacity: None,
            queue_cost: None,
            max_in_flight_per_client: None,
            timeout: Some(Duration::from_secs(60)),
            response_timeout: None,
            predictive_expiry: true,
            priorities: 1,
            aging: None,
            isolate_failures: false,
            startup_timeout: Duration::from_secs(30),
            callback_timeout: None,
            name: "batcher".to_owned(),
        }
    }
}

impl BatchConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// The first one that is out of range, by name.
    pub fn check(&self) -> Result<(), StartError> {
        within("max_batch_size", self.max_batch_size, 1, BATCH_SIZE_MAX, "1 to 65,536")?;
        within("workers", self.workers, 1, WORKERS_MAX, "1 to 1,024")?;
        within("priorities", self.priorities, 1, PRIORITIES_MAX, "1 to 64")?;
        if let Some(capacity) = self.queue_capacity {
            let expected = "at least max_batch_size and at most 16,777,216";
            within("queue_capacity", capacity, self.max_batch_size, QUEUE_CAPACITY_MAX, expected)?;
        }
        for (setting, count) in [("max_cost", self.max_cost), ("queue_cost", self.queue_cost)] {
            count.map_or(Ok(()), |count| at_least_one(setting, count))?;
        }
        if let (Some(waiting), Some(batch)) = (self.queue_cost, self.max_cost)
            && waiting < batch
        {
            return Err(refused("queue_cost", "at least max_cost", &waiting));
        }
        if let Some(cap) = self.max_in_flight_per_client {
            at_least_one("max_in_flight_per_client", cap as u64)?;
        }
        for (setting, timeout) in [
            ("timeout", self.timeout),
            ("response_timeout", self.response_timeout),
            ("aging", self.aging),
            ("startup_timeout", Some(self.startup_timeout)),
            ("callback_timeout", self.callback_timeout),
        ] {
            if timeout.is_some_and(|timeout| timeout.is_zero()) {
                return Err(refused(setting, "positive", &"0"));
            }
        }
        self.check_allowed_sizes()?;
        if self.name.is_empty() || self.name.len() > NAME_MAX || self.name.contains('\0') {
            return Err(refused("name", "1 to 256 bytes without a zero", &format_args!("{:?}", self.name)));
        }
        Ok(())
    }

    fn check_allowed_sizes(&self) -> Result<(), StartError> {
        let sizes = &self.allowed_sizes;
        let Some(last) = sizes.last() else { return Ok(()) };
        let rising = sizes.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
        if sizes.first() == Some(&0) || !rising || *last != self.max_batch_size {
            let expected = "rising, from 1 on, and end with max_batch_size";
            return Err(refused("allowed_sizes", expected, &format_args!("{sizes:?}")));
        }
        Ok(())
    }

    /// Items that may wait: `queue_capacity`, or its default.
    #[must_use]
    pub fn capacity(&self) -> usize {
        let usual = self.max_batch_size.saturating_mul(self.workers).saturating_mul(4);
        self.queue_capacity.unwrap_or_else(|| usual.clamp(64, QUEUE_CAPACITY_MAX))
    }

    /// The smallest allowed size that holds `len` items; `len` itself where any size is allowed.
    #[must_use]
    pub fn padded_size(&self, len: usize) -> usize {
        self.allowed_sizes.iter().copied().find(|&size| size >= len).unwrap_or(len)
    }
}

fn within(
    setting: &'static str,
    given: usize,
    least: usize,
    most: usize,
    expected: &'static str,
) -> Result<(), StartError> {
    if (least..=most).contains(&given) { Ok(()) } else { Err(refused(setting, expected, &given)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spoil = fn(&mut BatchConfig);

    #[test]
    fn defaults_are_valid() {
        BatchConfig::default().check().unwrap();
    }

    #[test]
    fn a_setting_out_of_range_is_refused_by_name() {
        let spoils: [(&str, Spoil); 24] = [
            ("max_batch_size", |c| c.max_batch_size = 0),
            ("max_batch_size", |c| c.max_batch_size = BATCH_SIZE_MAX + 1),
            ("workers", |c| c.workers = 0),
            ("workers", |c| c.workers = WORKERS_MAX + 1),
            ("priorities", |c| c.priorities = 0),
            ("priorities", |c| c.priorities = PRIORITIES_MAX + 1),
            ("queue_capacity", |c| c.queue_capacity = Some(31)),
            ("queue_capacity", |c| c.queue_capacity = Some(QUEUE_CAPACITY_MAX + 1)),
            ("max_cost", |c| c.max_cost = Some(0)),
            ("queue_cost", |c| c.queue_cost = Some(0)),
            ("queue_cost", |c| (c.queue_cost, c.max_cost) = (Some(1), Some(2))),
            ("max_in_flight_per_client", |c| c.max_in_flight_per_client = Some(0)),
            ("timeout", |c| c.timeout = Some(Duration::ZERO)),
            ("response_timeout", |c| c.response_timeout = Some(Duration::ZERO)),
            ("aging", |c| c.aging = Some(Duration::ZERO)),
            ("startup_timeout", |c| c.startup_timeout = Duration::ZERO),
            ("callback_timeout", |c| c.callback_timeout = Some(Duration::ZERO)),
            ("allowed_sizes", |c| c.allowed_sizes = vec![0, 32]),
            ("allowed_sizes", |c| c.allowed_sizes = vec![8, 4, 32]),
            ("allowed_sizes", |c| c.allowed_sizes = vec![4, 4, 32]),
            ("allowed_sizes", |c| c.allowed_sizes = vec![4, 16]),
            ("name", |c| c.name = String::new()),
            ("name", |c| c.name = "n".repeat(257)),
            ("name", |c| c.name = "a\0b".to_owned()),
        ];
        for (setting, spoil) in spoils {
            let mut config = BatchConfig::default();
            spoil(&mut config);
            let message = config.check().unwrap_err().to_string();
            assert!(message.starts_with(&format!("{setting} must be ")), "{message}");
        }
    }

    #[test]
    fn the_queue_holds_four_batches_for_each_worker_and_no_less_than_64() {
        let of = |max_batch_size, workers| {
            BatchConfig { max_batch_size, workers, ..BatchConfig::default() }.capacity()
        };
        assert_eq!((of(1, 1), of(32, 1), of(32, 4)), (64, 128, 512));
        assert_eq!(BatchConfig { queue_capacity: Some(40), ..BatchConfig::default() }.capacity(), 40);
    }

    #[test]
    fn a_batch_is_padded_to_the_next_allowed_size() {
        let config = BatchConfig { allowed_sizes: vec![1, 8, 32], ..BatchConfig::default() };
        config.check().unwrap();
        assert_eq!([1, 2, 8, 9, 32].map(|len| config.padded_size(len)), [1, 8, 8, 32, 32]);
        assert_eq!(BatchConfig::default().padded_size(5), 5);
    }
}
