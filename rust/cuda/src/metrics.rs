//! What pools count, among the metrics of the process, and lost devices in its health. Counts of pools that are
//! gone are kept, so that no counter ever falls.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use headrace::health::{set_fit, set_unfit};
use headrace::metrics::names;
use headrace::metrics::{Samples, Source, register};
use parking_lot::Mutex;

use crate::device::Backend;
use crate::open::LostHook;
use crate::pool::{PoolStats, Shared, WAIT_BOUNDS_US};

/// A pool that is alive, and what it said last: it may be going at this moment.
struct Known {
    pool: Weak<Shared>,
    device: String,
    last: PoolStats,
    /// What is told to be unfit when its device is lost.
    what: String,
    _hook: LostHook,
}

/// The counts of pools that are gone.
#[derive(Clone, Default)]
struct Totals {
    leases: u64,
    timeouts: u64,
    refused: u64,
    waits: [u64; WAIT_BOUNDS_US.len() + 1],
    wait_sum_us: u64,
    to_device: u64,
    to_host: u64,
    errors: u64,
}

impl Totals {
    fn add(&mut self, stats: &PoolStats) {
        self.leases += stats.leases;
        self.timeouts += stats.timeouts;
        self.refused += stats.refused;
        for (sum, count) in self.waits.iter_mut().zip(stats.wait_times.counts) {
            *sum += count;
        }
        self.wait_sum_us = self.wait_sum_us.saturating_add(stats.wait_times.sum_us);
        self.to_device += stats.bytes_to_device;
        self.to_host += stats.bytes_to_host;
        self.errors += stats.errors;
    }

    fn tell(&self, device: &str, samples: &mut Samples) {
        samples.count(&names::CUDA_LEASES, &[device], self.leases);
        samples.count(&names::CUDA_LEASE_TIMEOUTS, &[device], self.timeouts);
        samples.count(&names::CUDA_CAPACITY_ERRORS, &[device], self.refused);
        samples.count(&names::CUDA_ERRORS, &[device], self.errors);
        samples.count(&names::CUDA_COPIED_BYTES, &[device, "to_device"], self.to_device);
        samples.count(&names::CUDA_COPIED_BYTES, &[device, "to_host"], self.to_host);
        let bounds = WAIT_BOUNDS_US.iter().map(|&us| us as f64 / 1e6).chain([f64::INFINITY]);
        let mut total = 0;
        let cumulative = bounds.zip(self.waits).map(|(bound, count)| {
            total += count;
            (bound, total)
        });
        samples.histogram(&names::CUDA_LEASE_WAIT, &[device], cumulative, self.wait_sum_us as f64 / 1e6);
    }
}

#[derive(Default)]
struct Pools {
    live: Vec<Known>,
    gone: BTreeMap<String, Totals>,
}

struct Everything(Mutex<Pools>);

static POOLS: LazyLock<Arc<Everything>> = LazyLock::new(|| {
    let pools = Arc::new(Everything(Mutex::default()));
    let source: Weak<Everything> = Arc::downgrade(&pools);
    register(source);
    pools
});

/// Has a pool's numbers told from now on.
pub(crate) fn watch(pool: &Arc<Shared>) {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let device = pool.device();
    let name = match device.backend() {
        Backend::Cuda => device.info().ordinal.to_string(),
        Backend::Sim => "sim".to_owned(),
    };
    let what = format!("CUDA device {name}, pool {}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let hook = device.on_lost({
        let what = what.clone();
        move |error| set_unfit(&what, &error.to_string())
    });
    let known = Known { pool: Arc::downgrade(pool), device: name, last: pool.stats(), what, _hook: hook };
    POOLS.0.lock().live.push(known);
}

/// A pool is going. It depends on its device no more.
pub(crate) fn gone(pool: &Shared) {
    // In a forked child a thread that is not there may hold the locks.
    if pool.device().is_foreign() {
        return;
    }
    let stats = pool.stats();
    let known = {
        let mut pools = POOLS.0.lock();
        let place = pools.live.iter().position(|known| std::ptr::eq(known.pool.as_ptr(), pool));
        let known = place.map(|place| pools.live.swap_remove(place));
        if let Some(known) = &known {
            pools.gone.entry(known.device.clone()).or_default().add(&stats);
        }
        known
    };
    if let Some(known) = known {
        set_fit(&known.what);
    }
}

impl Source for Everything {
    fn collect(&self, samples: &mut Samples) {
        // Dropped after the lock: whoever holds the last of a pool says that it is gone.
        let mut alive = Vec::new();
        let mut pools = self.0.lock();
        let mut totals = pools.gone.clone();
        for known in &mut pools.live {
            if let Some(pool) = known.pool.upgrade() {
                known.last = pool.stats();
                tell_now(&known.device, &known.last, samples);
                alive.push(pool);
            }
            totals.entry(known.device.clone()).or_default().add(&known.last);
        }
        for (device, totals) in &totals {
            totals.tell(device, samples);
            // A device without pools is at rest, not unknown.
            for family in [&names::CUDA_STREAMS, &names::CUDA_LEASED, &names::CUDA_WAITING] {
                samples.count(family, &[device], 0);
            }
            for family in [&names::CUDA_ALLOCATED_BYTES, &names::CUDA_POISONED] {
                samples.count(family, &[device], 0);
            }
        }
        drop(pools);
    }
}

fn tell_now(device: &str, stats: &PoolStats, samples: &mut Samples) {
    for (family, value) in [
        (&names::CUDA_STREAMS, stats.created as u64),
        (&names::CUDA_STREAMS_LIMIT, stats.max_streams as u64),
        (&names::CUDA_LEASED, stats.in_use as u64),
        (&names::CUDA_WAITING, stats.waiting as u64),
        (&names::CUDA_ALLOCATED_BYTES, stats.device_bytes),
        (&names::CUDA_BUDGET_BYTES, stats.budget_bytes),
        (&names::CUDA_POISONED, u64::from(stats.poisoned)),
    ] {
        samples.count(family, &[device], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::in_child;
    use crate::{OpenDevice, PoolSettings, SimSettings, Simulation, StreamPool};

    #[test]
    fn a_pool_that_goes_in_a_forked_child_takes_no_lock_of_its_parent() {
        let device = OpenDevice::simulated(&Simulation::new(SimSettings::default()));
        let mut pool = Some(StreamPool::new(device, PoolSettings::default()).unwrap());
        let held = POOLS.0.lock();
        let ended = in_child(|| {
            drop(pool.take());
            0
        });
        drop(held);
        assert_eq!(ended, 0, "it hung, or another signal ended it");
    }
}
