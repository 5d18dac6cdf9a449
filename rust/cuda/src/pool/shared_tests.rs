//! What happens to a pool between two of its steps, where a test from outside cannot stand.

use super::*;
use crate::sim::{SimCall, SimFault, SimSettings, Simulation, When};

fn pool(max_streams: usize) -> (Simulation, Arc<Shared>) {
    let simulation = Simulation::new(SimSettings::default());
    let settings = PoolSettings { max_streams, ..PoolSettings::default() };
    let shared = Shared::new(OpenDevice::simulated(&simulation), settings).unwrap();
    (simulation, shared)
}

#[test]
fn nobody_looks_after_a_close_that_was_given_up() {
    let (_, shared) = pool(1);
    let _lease = shared.try_lease(None).unwrap();
    let closed = shared.close();
    assert!(shared.state.lock().has_keeper);
    drop(closed);
    let begun = Instant::now();
    while shared.state.lock().has_keeper {
        assert!(begun.elapsed() < Duration::from_secs(20), "its thread looks after it for ever");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_pool_that_is_closed_while_a_stream_is_created_is_quiet_when_that_fails() {
    let (simulation, shared) = pool(1);
    let answer = shared.state.lock().queue.request(None);
    assert_eq!(answer, Answer::Create(1));
    let closed = shared.close();
    assert_eq!(closed.result(), None);
    simulation.fail(SimFault { call: SimCall::CreateStream, nth: 1, code: 2, when: When::Called });
    assert!(matches!(shared.create_now(1), Err(CudaError::ForkFailed(_))));
    assert_eq!(closed.result(), Some(Ok(())));
}
