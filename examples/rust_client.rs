//! A client in Rust: `rust_client ADDRESS ENDPOINT TEXT...` sends TEXT as raw bytes to any worker, several of
//! them as a request stream, and prints each item on a line of its own as it comes: raw items as text, others
//! as their encoding and hexadecimal bytes. Exits with 0 at a clean end, with 1 and the error otherwise.

use std::error::Error;
use std::io::{Write, stdout};
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use headrace::link::TokioDriver;
use headrace::wire::kind::Encoding;
use headrace::{CallOptions, Item, RequestSink, Router, RouterConfig};
use tokio::runtime::Handle;

fn line(item: &Item) -> String {
    let hex = || item.payload.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match Encoding::from_u8(item.encoding) {
        Some(Encoding::Raw) => String::from_utf8_lossy(&item.payload).into_owned(),
        Some(Encoding::Msgpack) => format!("msgpack {}", hex()),
        Some(Encoding::Ndarray) => format!("ndarray {}", hex()),
        None => format!("encoding {} {}", item.encoding, hex()),
    }
}

/// Sends the items of a request, as fast as the engine takes them.
async fn send_all(sink: RequestSink, texts: Vec<String>) {
    for text in texts {
        if sink.send(Encoding::Raw as u8, text.into()).await.is_err() {
            // Nobody wants more; the response says why.
            return;
        }
    }
    sink.finish();
}

async fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(endpoint), Some(text)) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: rust_client ADDRESS ENDPOINT TEXT...".into());
    };
    let more: Vec<String> = arguments.collect();
    let runtime = Handle::current();
    let driver = Arc::new(TokioDriver::new(runtime.clone()));
    let router = Router::new(&[address.parse()?], RouterConfig::default(), runtime, driver)?;
    let options = |payload: Bytes| {
        let payload = Item { encoding: Encoding::Raw as u8, payload };
        CallOptions { endpoint, ..CallOptions::new(payload) }
    };
    let call = if more.is_empty() {
        router.call(options(Bytes::from(text)))
    } else {
        let (sink, call) = router.call_streaming(options(Bytes::new()));
        tokio::spawn(send_all(sink, std::iter::once(text).chain(more).collect()));
        call
    };
    let mut stream = call.await?;
    while let Some(item) = stream.next().await {
        writeln!(stdout(), "{}", line(&item?))?;
    }
    router.close();
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing can be done about a closed stderr.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}
