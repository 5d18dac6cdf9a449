//! What a pool tells the metrics and the health of its process. One test, since both are the process's.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use headrace::health::unfit;
use headrace::metrics::render;
use headrace_cuda::{CudaError, OpenDevice, PoolSettings, SimSettings, Simulation, StreamPool};

use self::support::until;

fn value(series: &str) -> Option<f64> {
    let text = render();
    let line = text.lines().find(|line| line.starts_with(series))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

fn of(family: &str) -> Option<f64> {
    value(&format!("headrace_cuda_{family}{{device=\"sim\"}}"))
}

fn pool(settings: PoolSettings) -> (Simulation, StreamPool) {
    let simulation = Simulation::new(SimSettings::default());
    let pool = StreamPool::new(OpenDevice::simulated(&simulation), settings).unwrap();
    (simulation, pool)
}

const TO_DEVICE: &str = "headrace_cuda_copied_bytes_total{device=\"sim\",direction=\"to_device\"}";

#[test]
fn pools_are_counted_while_they_are_there_and_a_lost_device_makes_the_process_unfit() {
    let (_simulation, pool_one) =
        pool(PoolSettings { max_streams: 2, budget_mb: 3, ..PoolSettings::default() });
    let (one, two) = (pool_one.try_lease(None).unwrap(), pool_one.try_lease(None).unwrap());
    assert!(matches!(pool_one.try_lease(None), Err(CudaError::Capacity { max: 2 })));
    let (buffer, copied) = one.copy_to_device(&[7; 1000]).unwrap();
    copied.wait(None).unwrap().unwrap();
    assert_eq!((of("streams"), of("streams_limit")), (Some(2.0), Some(2.0)));
    assert_eq!((of("leased_streams"), of("leases_total")), (Some(2.0), Some(2.0)));
    assert_eq!((of("capacity_errors_total"), of("poisoned")), (Some(1.0), Some(0.0)));
    assert_eq!(of("lease_wait_seconds_count"), Some(2.0));
    assert_eq!(of("budget_bytes"), Some(f64::from(3 * 2 * 1024 * 1024)));
    assert!(of("allocated_bytes").is_some_and(|bytes| bytes >= 1000.0));
    assert_eq!(value(TO_DEVICE), Some(1000.0));
    drop((buffer, one, two, pool_one));
    until("the pool's end", || of("streams_limit").is_none());
    assert_eq!(
        (of("leased_streams"), of("streams"), of("allocated_bytes")),
        (Some(0.0), Some(0.0), Some(0.0))
    );
    assert_eq!((of("leases_total"), value(TO_DEVICE)), (Some(2.0), Some(1000.0)));

    let (simulation, lost) = pool(PoolSettings::default());
    let stream = lost.try_lease(None).unwrap();
    assert_eq!(unfit(), []);
    simulation.lose(700);
    assert!(stream.record_event().is_err());
    let (what, why) = unfit().pop().unwrap();
    assert!(what.starts_with("CUDA device sim, pool ") && why.contains("700"), "{what}: {why}");
    assert_eq!((of("poisoned"), of("leases_total")), (Some(1.0), Some(3.0)));
    drop((stream, lost));
    until("the process to be fit", || unfit().is_empty());
    assert_eq!(of("poisoned"), Some(0.0));
}
