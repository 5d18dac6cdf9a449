//! The conversation that every fault is tried on, and what must be true of it afterwards: two streams at once,
//! one with an item in fragments and one that is stopped, then a stream that is cancelled and a unary call.
//! Every item carries its number and a checksum over all before it; the engine keeps a ledger of what it ran.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use headrace::engine::{Answer, AsyncEngine};
use headrace::wire::body::Fault;
use headrace::{CallError, CallErrorKind, CallOptions, Engine, Request, ResponseStream, Router};
use tokio::runtime::Handle;

use crate::support::{fault, raw};

/// Larger than what is left of the stream's window when its turn comes, so that it travels in fragments.
const FRAGMENTED: usize = 2_500;
/// No item that is asked for is larger; a changed byte may ask for one.
const ITEM_MAX: usize = 100_000;
/// An item's number and the checksum.
const STAMP: usize = 12;

/// Executions by request id, as the engine counts them.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<HashMap<String, u64>>>);

impl Ledger {
    fn note(&self, id: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id.to_owned()).or_default() += 1;
    }

    pub fn executions(&self, id: &str) -> u64 {
        self.0.lock().unwrap().get(id).copied().unwrap_or(0)
    }

    /// Executions of the request that ran most often, and of all together.
    pub fn most_and_total(&self) -> (u64, u64) {
        let ledger = self.0.lock().unwrap();
        (ledger.values().copied().max().unwrap_or(0), ledger.values().sum())
    }
}

/// The items of one stream so far, the same at both ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub items: u32,
    pub sum: u64,
}

impl Tally {
    /// The next item, of at least [`STAMP`] bytes.
    fn stamp(&mut self, size: usize) -> Bytes {
        let mut payload = self.items.to_le_bytes().to_vec();
        payload.extend_from_slice(&self.sum.to_le_bytes());
        payload.extend((payload.len()..size).map(|at| (at as u32 ^ self.items) as u8));
        self.add(&payload);
        payload.into()
    }

    /// Takes an item that arrived; false when it is not the next one, unchanged.
    fn take(&mut self, payload: &[u8]) -> bool {
        let mut expected = *self;
        let same = payload.len() >= STAMP && expected.stamp(payload.len()) == payload;
        *self = expected;
        same
    }

    fn add(&mut self, payload: &[u8]) {
        self.items += 1;
        // FNV-1a: any change of any byte changes all that follows.
        self.sum = payload.iter().fold(self.sum ^ 0xcbf2_9ce4_8422_2325, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
    }
}

/// An engine that does what the request says, `SIZE,SIZE,... END`: an item of each size, then END: `clean`,
/// `hang`, or `stop` (one more item once it is asked to finish).
pub fn engine(ledger: &Ledger) -> Arc<dyn Engine> {
    let ledger = ledger.clone();
    Arc::new(AsyncEngine::new(Handle::current(), move |request: Request, answer: Answer| {
        ledger.note(&request.id);
        async move { play(&request, &answer).await }
    }))
}

async fn play(request: &Request, answer: &Answer) -> Result<(), Fault> {
    let text = String::from_utf8_lossy(&request.payload.payload);
    let (sizes, end) = text.split_once(' ').ok_or_else(|| fault("no request"))?;
    let mut tally = Tally::default();
    for size in sizes.split(',') {
        let size = size.parse().ok().filter(|&size| size <= ITEM_MAX).ok_or_else(|| fault("no size"))?;
        send(answer, tally.stamp(size)).await?;
    }
    match end {
        "clean" => Ok(()),
        "stop" => {
            while !answer.is_stopped() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            send(answer, tally.stamp(STAMP)).await
        }
        _ => std::future::pending().await,
    }
}

async fn send(answer: &Answer, item: Bytes) -> Result<(), Fault> {
    answer.send(0, item).await.map_err(|error| fault(&format!("{error:?}")))
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Cleanly, with these items.
    Complete { tally: Tally, stopped: bool },
    /// With an error after so many items.
    Failed { kind: CallErrorKind, items: u32 },
    /// The caller cancelled it, having read an item.
    Cancelled,
    /// An item came that was not the next one.
    Garbled,
}

/// One call of the conversation.
#[derive(Clone, Debug)]
pub struct Said {
    pub id: String,
    /// Items of a whole answer.
    pub items: u32,
    pub outcome: Outcome,
}

/// Makes all the calls of a conversation; their request ids begin with `tag`. `patience` is the timeout of
/// each call and of each item.
pub async fn converse(router: &Router, tag: &str, patience: Option<Duration>) -> Vec<Said> {
    let call = |name: &str, script: &str| CallOptions {
        endpoint: "tally".to_owned(),
        request_id: format!("{tag}/{name}"),
        timeout: patience,
        item_timeout: patience,
        ..CallOptions::new(raw(script.as_bytes().to_vec()))
    };
    let said =
        |name: &str, items: u32, outcome: Outcome| Said { id: format!("{tag}/{name}"), items, outcome };

    let long = router.call(call("long", &format!("40,1700,{FRAGMENTED},40 clean"))).await;
    let stopped = router.call(call("stopped", "40,40 stop")).await;
    let long = said("long", 4, read_to_end(long).await);
    if let Ok(stream) = &stopped {
        stream.stop();
    }
    let stopped = said("stopped", 3, read_to_end(stopped).await);
    let cancelled = said("cancelled", 1, read_one(router.call(call("cancelled", "40 hang")).await).await);
    let unary = CallOptions { single: true, ..call("unary", "40 clean") };
    let unary = said("unary", 1, read_single(router.call(unary).await).await);
    vec![long, stopped, cancelled, unary]
}

fn failed(error: CallError, tally: Tally) -> Outcome {
    assert_eq!(error.items, u64::from(tally.items), "an error says how many items came before: {error}");
    Outcome::Failed { kind: error.kind, items: tally.items }
}

async fn read_to_end(stream: Result<ResponseStream, CallError>) -> Outcome {
    let mut tally = Tally::default();
    let mut stream = match stream {
        Ok(stream) => stream,
        Err(error) => return failed(error, tally),
    };
    loop {
        match stream.next().await {
            Some(Ok(item)) if tally.take(&item.payload) => {}
            Some(Ok(_)) => return Outcome::Garbled,
            Some(Err(error)) => return failed(error, tally),
            None => return Outcome::Complete { tally, stopped: stream.stopped() },
        }
    }
}

async fn read_one(stream: Result<ResponseStream, CallError>) -> Outcome {
    let mut tally = Tally::default();
    let item = match stream {
        Ok(mut stream) => stream.next().await,
        Err(error) => Some(Err(error)),
    };
    match item {
        Some(Ok(item)) if tally.take(&item.payload) => Outcome::Cancelled,
        Some(Err(error)) => failed(error, tally),
        Some(Ok(_)) | None => Outcome::Garbled,
    }
}

async fn read_single(stream: Result<ResponseStream, CallError>) -> Outcome {
    let mut tally = Tally::default();
    let item = match stream {
        Ok(stream) => poll_fn(|cx| stream.poll_single(cx)).await,
        Err(error) => Err(error),
    };
    match item {
        Ok(item) if tally.take(&item.payload) => Outcome::Complete { tally, stopped: false },
        Ok(_) => Outcome::Garbled,
        Err(error) => Outcome::Failed { kind: error.kind, items: 0 },
    }
}

/// What must be true whatever happened to the connection, as long as no byte was changed: a clean end has all
/// its items, nothing ran twice, and what is said not to have run did not.
pub fn judge(said: &[Said], ledger: &Ledger, what: &str) {
    for Said { id, items, outcome } in said {
        let executions = ledger.executions(id);
        assert!(executions <= 1, "{what}: {id} ran {executions} times");
        match outcome {
            Outcome::Complete { tally, .. } => {
                assert_eq!(tally.items, *items, "{what}: {id} looked complete");
                assert_eq!(executions, 1, "{what}: {id} was answered");
            }
            Outcome::Cancelled => assert_eq!(executions, 1, "{what}: {id} was answered"),
            Outcome::Garbled => panic!("{what}: {id} got an item that was not the next one"),
            Outcome::Failed { kind, items: came } => {
                assert!(came <= items, "{what}: {id} got {came} items");
                let may_have_run = match kind {
                    CallErrorKind::Disconnected { maybe_executed, .. } => *maybe_executed,
                    CallErrorKind::CannotConnect { .. } | CallErrorKind::NoInstances { .. } => false,
                    other => panic!("{what}: {id} failed with {other}"),
                };
                assert!(may_have_run || executions == 0, "{what}: {id} ran and is said not to have");
            }
        }
    }
}
