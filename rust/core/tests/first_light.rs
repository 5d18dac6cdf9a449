//! A worker and a router over a real socket, both on tokio.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headrace::engine::{Answer, AsyncEngine};
use headrace::link::TokioDriver;
use headrace::{Address, CallOptions, Engine, Item, Request, Router, RouterConfig, Worker, WorkerConfig};
use tokio::runtime::Handle;

async fn count(request: Request, answer: Answer) -> Result<(), headrace::wire::body::Fault> {
    let n = request.payload.payload.first().copied().unwrap_or(3);
    for i in 0..n {
        if answer.send(0, Bytes::from(vec![i; 3])).await.is_err() {
            break;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_items_then_a_clean_end() {
    let runtime = Handle::current();
    let driver = Arc::new(TokioDriver::new(runtime.clone()));
    let engine: Arc<dyn Engine> = Arc::new(AsyncEngine::new(runtime.clone(), count));
    let address: Address = "127.0.0.1:0".parse().unwrap();
    let engines = vec![("count".to_owned(), engine)];
    let worker = Worker::bind(&address, engines, WorkerConfig::default(), runtime.clone(), driver.clone())
        .await
        .unwrap();
    let router =
        Router::new(&[worker.address().clone()], RouterConfig::default(), runtime.clone(), driver).unwrap();
    for n in [3_u8, 0, 200] {
        let payload = Item { encoding: 0, payload: Bytes::from(vec![n]) };
        let mut stream = router.call(CallOptions::new(payload)).await.unwrap();
        let mut items = 0;
        while let Some(item) = stream.next().await {
            assert_eq!(item.unwrap().payload, vec![items; 3]);
            items += 1;
        }
        assert_eq!(items, n);
    }
    assert_eq!(worker.stats().running, 0);
    // The reader of the socket wakes the caller before it takes the stream out of its table.
    while router.stats().streams > 0 {
        tokio::task::yield_now().await;
    }
    worker.drain(Some(Duration::from_secs(1))).await;
}
