//! A batcher whose batches run on streams of a pool, without Python: the copies of one batch overlap the
//! kernel of another. `batched_streams [CALLERS]` runs on the first GPU, or on the simulated device where
//! there is none, and says which. Needs the feature `headrace`.

use std::error::Error;
use std::io::{Write, stdout};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headrace::batch::{BatchConfig, BatchError, BatchFunction, Batcher, WorkBatch};
use headrace_cuda::{
    CudaError, Lease, OpenDevice, PoolSettings, SimSettings, Simulation, SpinKernel, StreamPool,
    unavailable_reason,
};

const CALLS: usize = 8;
const BATCH: usize = 16;
const ITEM_BYTES: usize = 1 << 20;
const KERNEL_US: u64 = 2000;

/// One worker: copies its batch to the device, runs a kernel, and copies the results back.
struct Model {
    kernel: SpinKernel,
}

impl BatchFunction<Vec<u8>, Lease> for Model {
    type Output = u64;
    type Error = CudaError;

    fn run(
        &mut self,
        batch: &mut WorkBatch<Vec<u8>, u64, CudaError>,
        lease: &mut Lease,
    ) -> Result<Vec<Result<u64, CudaError>>, CudaError> {
        let mut pinned = lease.pinned(batch.items().len() * ITEM_BYTES)?;
        for (place, item) in pinned.chunks_exact_mut(ITEM_BYTES).zip(batch.items()) {
            place.copy_from_slice(item);
        }
        let (buffer, _) = lease.upload(pinned)?;
        self.kernel.launch(lease, KERNEL_US)?;
        let results = lease.download(&buffer, 0, buffer.len())?;
        // The worker waits for its own results. Meanwhile others have batches on streams of their own.
        if let Some(Err(error)) = results.completion().wait(None) {
            return Err(error);
        }
        let bytes = results.take()?;
        let items = bytes.iter().flat_map(|bytes| bytes.chunks_exact(ITEM_BYTES));
        Ok(items.map(|item| Ok(u64::from(item[0]))).collect())
    }
}

/// Items a second with so many streams, and so many workers to use them.
async fn rate(device: &OpenDevice, streams: usize, callers: usize) -> Result<f64, Box<dyn Error>> {
    let settings = PoolSettings { max_streams: streams, warm_streams: streams, ..PoolSettings::default() };
    let pool = Arc::new(StreamPool::new(device.clone(), settings)?);
    let config = BatchConfig {
        max_batch_size: BATCH,
        workers: streams,
        linger: Duration::from_millis(1),
        queue_capacity: Some(callers.max(64)),
        name: "model".to_owned(),
        ..BatchConfig::default()
    };
    let kernel = SpinKernel::load(device)?;
    let make = move |_| Model { kernel: kernel.clone() };
    let batcher = Arc::new(Batcher::start_with_leases(config, Arc::clone(&pool), make)?);
    let begun = Instant::now();
    let callers = (0..callers).map(|caller| {
        let batcher = Arc::clone(&batcher);
        tokio::spawn(async move {
            for _ in 0..CALLS {
                let answer = batcher.submit(vec![caller as u8; ITEM_BYTES]).await?;
                assert_eq!(answer, u64::from(caller as u8));
            }
            Ok::<usize, BatchError<CudaError>>(CALLS)
        })
    });
    let callers: Vec<_> = callers.collect();
    let mut items = 0;
    for caller in callers {
        items += caller.await??;
    }
    let rate = items as f64 / begun.elapsed().as_secs_f64();
    batcher.drain(None).await;
    Ok(rate)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let callers = std::env::args().nth(1).map_or(Ok(64), |callers| callers.parse())?;
    let device = match unavailable_reason() {
        None => OpenDevice::open(0)?,
        Some(reason) => {
            writeln!(stdout(), "{reason}: a simulated device instead")?;
            OpenDevice::simulated(&Simulation::new(SimSettings::default()))
        }
    };
    writeln!(stdout(), "{} ({})", device.info().name, device.backend())?;
    for streams in [1, 4] {
        let rate = rate(&device, streams, callers).await?;
        writeln!(stdout(), "{streams} streams: {rate:.0} items/s")?;
    }
    Ok(())
}
