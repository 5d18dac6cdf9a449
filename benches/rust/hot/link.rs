//! A worker and a router in one thread, over a real Unix socket: link, ring, admission and routing, as a Rust
//! program has them. A Unix socket delivers at once what is written, so reads are cut alike in every run.

use std::error::Error;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use headrace::link::TokioDriver;
use headrace::wire::outbound::Pushed;
use headrace::{CallOptions, Engine, Item, Request, Responder, Router, RouterConfig, Worker, WorkerConfig};
use tokio::runtime::{Builder, Handle};
use tokio::task::yield_now;

use super::TOKEN;

/// Items between the engine's turns, as the Python package gives them.
const TURN_ITEMS: u32 = 64;

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    /// One stream of so many items.
    Stream,
    /// So many unary calls, one after the other.
    Calls,
}

/// Runs a load against a worker of this process.
pub(super) fn run(load: Load, count: usize) -> Result<(), Box<dyn Error>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(load, u32::try_from(count)?))
}

/// Answers with as many tokens as the request's four bytes say.
#[derive(Debug)]
struct Tokens(Handle);

impl Engine for Tokens {
    fn start(&self, request: Request, responder: Responder) {
        let count = request.payload.payload.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        if count == 1 {
            // As the binding answers for a coroutine.
            drop(responder.finish_with(1, TOKEN));
        } else {
            self.0.spawn(push(responder, count));
        }
    }
}

async fn push(responder: Responder, count: u32) {
    for index in 1..=count {
        match responder.push(1, TOKEN) {
            Ok(Pushed::Buffered) if index % TURN_ITEMS == 0 => yield_now().await,
            Ok(Pushed::Buffered) => {}
            Ok(Pushed::Waiting) => responder.drained().await,
            Err(_) => return,
        }
    }
    responder.finish();
}

async fn serve(load: Load, count: u32) -> Result<(), Box<dyn Error>> {
    let runtime = Handle::current();
    let driver = Arc::new(TokioDriver::new(runtime.clone()));
    let path = std::env::temp_dir().join(format!("headrace-hot-{}", std::process::id()));
    let address = format!("unix:{}", path.display()).parse()?;
    let engines: Vec<(String, Arc<dyn Engine>)> =
        vec![("tokens".to_owned(), Arc::new(Tokens(runtime.clone())))];
    let worker =
        Worker::bind(&address, engines, WorkerConfig::default(), runtime.clone(), driver.clone()).await?;
    let router = Router::new(&[worker.address().clone()], RouterConfig::default(), runtime, driver)?;
    call(&router).await?;
    match load {
        Load::Stream => read(&router, count).await?,
        Load::Calls => {
            for _ in 0..count {
                call(&router).await?;
            }
        }
    }
    router.close();
    worker.drain(None).await;
    Ok(())
}

fn request(count: u32) -> CallOptions {
    CallOptions::new(Item { encoding: 0, payload: Bytes::copy_from_slice(&count.to_le_bytes()) })
}

async fn read(router: &Router, count: u32) -> Result<(), Box<dyn Error>> {
    let mut stream = router.call(request(count)).await?;
    let mut taken = 0;
    while let Some(item) = stream.next().await {
        item?;
        taken += 1;
    }
    if taken == count { Ok(()) } else { Err(format!("{taken} of {count} items came").into()) }
}

async fn call(router: &Router) -> Result<(), Box<dyn Error>> {
    let stream = router.call(CallOptions { single: true, ..request(1) }).await?;
    poll_fn(|cx| stream.poll_single(cx)).await?;
    Ok(())
}
