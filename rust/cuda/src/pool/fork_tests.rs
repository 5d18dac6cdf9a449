//! What a forked child may do with a pool of its parent: nothing, without waiting for a lock that was held as the
//! process was forked.

use std::task::{Context, Poll, Waker};

use super::*;
use crate::child::in_child;
use crate::pool::StreamPool;
use crate::sim::{SimSettings, Simulation};

#[test]
fn a_forked_child_is_refused_and_takes_no_lock_of_its_parent() {
    let device = OpenDevice::simulated(&Simulation::new(SimSettings::default()));
    let pool = StreamPool::new(device, PoolSettings::default()).unwrap();
    let lease = pool.try_lease(None).unwrap();
    let (event, buffer) = (lease.record_event().unwrap(), lease.allocate(100).unwrap());
    let shared = Arc::clone(&pool.owner.shared);
    let core = Arc::clone(&lease.core);
    let mut parts = Some((pool, lease, event, buffer));
    let held = (shared.state.lock(), core.lease.write());
    let wrong = in_child(|| {
        let Some((pool, lease, event, buffer)) = parts.take() else { return 100 };
        let forked = Some(CudaError::Forked);
        let mut in_line = Box::pin(pool.lease(None, None));
        let asked = match in_line.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => answer.err(),
            Poll::Pending => None,
        };
        let answers = [
            pool.try_lease(None).err() == forked,
            asked == forked,
            pool.close().result().and_then(Result::err) == forked,
            pool.resolve(1).is_none() && !pool.is_closed() && !pool.is_healthy() && !lease.is_live(),
            pool.device().synchronize().err() == forked,
            lease.query().err() == forked && lease.completion().result().and_then(Result::err) == forked,
            lease.record_event().err() == forked && lease.allocate(1).err() == forked,
            event.query().err() == forked && buffer.record_use(&lease).err() == forked,
        ];
        drop((in_line, lease, event, buffer, pool));
        answers.iter().position(|is_so| !is_so).map_or(0, |index| index as i32 + 1)
    });
    drop(held);
    assert_eq!(wrong, 0, "which answer was wrong, or the signal that ended it");
    let (_, lease, event, _) = parts.as_ref().unwrap();
    assert!(lease.query().unwrap() && event.query().unwrap());
}
