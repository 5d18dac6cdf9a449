//! A pool as the source of leases of a batcher of the runtime: each batch in flight has a stream of its own,
//! and its callers are told when that stream is done.

use headrace::batch::{LeaseError, LeaseSource};

use crate::error::CudaError;
use crate::pool::{Lease, StreamPool};

fn refused(error: CudaError) -> LeaseError {
    match error {
        CudaError::PoolClosed => LeaseError::Closed,
        error => LeaseError::Failed { reason: error.to_string() },
    }
}

impl LeaseSource for StreamPool {
    type Lease = Lease;

    fn try_lease(&self) -> Result<Option<Lease>, LeaseError> {
        self.take_free(None).map_err(refused)
    }

    async fn lease(&self) -> Result<Lease, LeaseError> {
        Self::lease(self, None, None).await.map_err(refused)
    }

    async fn finish(&self, lease: &mut Lease) -> Result<(), LeaseError> {
        lease.completion().await.map_err(refused)
    }
}
