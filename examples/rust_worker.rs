//! A worker in Rust: `rust_worker [ADDRESS]` prints the address it listens on and serves three endpoints.
//! `words` answers raw bytes with one raw item for each word; `upper` takes a stream of raw items and answers
//! each in capitals; `fail` yields one item and then fails. A client in any language can call it:
//! `rust_client ADDRESS words "to be or not"`.

use std::error::Error;
use std::io::{Write, stdout};
use std::sync::Arc;

use headrace::engine::{Answer, AsyncEngine};
use headrace::link::TokioDriver;
use headrace::wire::body::{Fault, FaultCode};
use headrace::wire::kind::Encoding;
use headrace::{Address, Engine, Request, Worker, WorkerConfig};
use tokio::runtime::Handle;

async fn words(request: Request, answer: Answer) -> Result<(), Fault> {
    let payload = &request.payload.payload;
    for word in payload.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
        // The caller has gone: there is nobody to tell.
        if answer.is_stopped() || answer.send(Encoding::Raw as u8, payload.slice_ref(word)).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn upper(mut request: Request, answer: Answer) -> Result<(), Fault> {
    let Some(mut items) = request.requests.take() else { return words(request, answer).await };
    // A stream that is cut off has nobody left to tell.
    while let Some(Ok(item)) = items.next().await {
        let capitals = item.payload.to_ascii_uppercase();
        if answer.send(Encoding::Raw as u8, capitals.into()).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn fail(request: Request, answer: Answer) -> Result<(), Fault> {
    // The failure that follows is what matters, whether or not anybody reads this.
    let _ = answer.send(Encoding::Raw as u8, request.payload.payload).await;
    Err(Fault {
        code: FaultCode::Engine,
        kind: "ExampleError".to_owned(),
        message: "this endpoint always fails".to_owned(),
        traceback: String::new(),
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let address: Address = std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:0").parse()?;
    let runtime = Handle::current();
    let engines: Vec<(String, Arc<dyn Engine>)> = vec![
        ("words".to_owned(), Arc::new(AsyncEngine::new(runtime.clone(), words))),
        ("upper".to_owned(), Arc::new(AsyncEngine::new(runtime.clone(), upper).taking_streams())),
        ("fail".to_owned(), Arc::new(AsyncEngine::new(runtime.clone(), fail))),
    ];
    let driver = Arc::new(TokioDriver::new(runtime.clone()));
    let worker = Worker::bind(&address, engines, WorkerConfig::default(), runtime, driver).await?;
    // Flushed at once, since whoever started this process reads it from a pipe.
    writeln!(stdout(), "{}", worker.address())?;
    stdout().flush()?;
    worker.wait_closed().await;
    Ok(())
}
