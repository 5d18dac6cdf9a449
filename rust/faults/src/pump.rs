//! One direction of one connection: reads, holds the bytes back as long as the script says, writes them as it
//! says. What is read and not yet due waits in a queue of bounded size, so delay costs no throughput and a
//! source that outruns its receiver is held up as by any network.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::script::{Fault, Progress, Script, Step};

/// Bytes of one read, and reads that may wait for their time: 1 MiB on its way.
const READ_BYTES: usize = 16 * 1024;
const READS_MAX: usize = 64;

/// How a direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its source ended, and its receiver has been told.
    Passed,
    /// One of its ends failed, or the script says so: both ends are to be reset.
    Reset,
    /// The script swallows everything from here on.
    Swallowed,
}

/// What a direction reports while it runs.
#[derive(Debug, Default)]
pub(crate) struct Way {
    /// Bytes passed on.
    pub(crate) bytes: AtomicU64,
    /// The fault that ended it.
    pub(crate) fired: OnceLock<Fault>,
}

/// What a read brought, and when.
struct Arrival {
    at: Instant,
    brought: Brought,
}

enum Brought {
    Bytes(Vec<u8>),
    /// The source said that nothing more comes.
    Ended,
    /// The source was reset.
    Failed,
}

/// Runs a direction to its end.
pub(crate) async fn pump(from: ReadHalf<'_>, to: WriteHalf<'_>, script: Script, way: &Way) -> End {
    let (queue, arrivals) = mpsc::channel(READS_MAX);
    let writer = Writer { to, progress: Progress::new(script), way };
    tokio::select! {
        biased;
        end = writer.run(arrivals) => end,
        // It goes on until the writer is done.
        () = read_on(from, queue) => End::Passed,
    }
}

async fn read_on(mut from: ReadHalf<'_>, queue: mpsc::Sender<Arrival>) {
    loop {
        let mut bytes = vec![0; READ_BYTES];
        let brought = match from.read(&mut bytes).await {
            Ok(0) => Brought::Ended,
            Ok(read) => {
                bytes.truncate(read);
                Brought::Bytes(bytes)
            }
            Err(_) => Brought::Failed,
        };
        let last = !matches!(brought, Brought::Bytes(_));
        let arrival = Arrival { at: Instant::now(), brought };
        if queue.send(arrival).await.is_err() || last {
            return queue.closed().await;
        }
    }
}

struct Writer<'a> {
    to: WriteHalf<'a>,
    progress: Progress,
    way: &'a Way,
}

impl Writer<'_> {
    async fn run(mut self, mut arrivals: mpsc::Receiver<Arrival>) -> End {
        let mut due = Instant::now();
        loop {
            if let Some(fault) = self.progress.due() {
                return self.carry_out(fault, arrivals).await;
            }
            let Some(arrival) = arrivals.recv().await else { return End::Passed };
            // Never before what came earlier.
            due = due.max(arrival.at + self.progress.lateness());
            if due > Instant::now() {
                sleep_until(due).await;
            }
            match arrival.brought {
                Brought::Ended => return self.pass_the_end().await,
                Brought::Failed => return End::Reset,
                Brought::Bytes(mut bytes) => match self.write(&mut bytes).await {
                    Ok(None) => {}
                    Ok(Some(fault)) => return self.carry_out(fault, arrivals).await,
                    Err(_) => return End::Reset,
                },
            }
        }
    }

    /// Writes bytes as the script says, as far as the fault that comes within them.
    async fn write(&mut self, bytes: &mut [u8]) -> std::io::Result<Option<Fault>> {
        self.progress.corrupt(bytes);
        let mut rest = &*bytes;
        while !rest.is_empty() {
            let Step::Write(most) = self.progress.next(rest.len()) else { return Ok(self.progress.due()) };
            let (now, later) = rest.split_at(most);
            self.to.write_all(now).await?;
            self.progress.advance(now.len());
            self.way.bytes.fetch_add(now.len() as u64, Ordering::Relaxed);
            rest = later;
            if !rest.is_empty() {
                // So that the receiver may find this slice alone.
                tokio::task::yield_now().await;
            }
        }
        Ok(None)
    }

    async fn pass_the_end(&mut self) -> End {
        if self.to.shutdown().await.is_ok() { End::Passed } else { End::Reset }
    }

    async fn carry_out(mut self, fault: Fault, mut arrivals: mpsc::Receiver<Arrival>) -> End {
        // Set once: a direction has one cut.
        let _ = self.way.fired.set(fault);
        match fault {
            Fault::Reset => End::Reset,
            Fault::BlackHole => End::Swallowed,
            Fault::HalfClose => {
                if self.pass_the_end().await == End::Reset {
                    return End::Reset;
                }
                loop {
                    match arrivals.recv().await.map(|arrival| arrival.brought) {
                        Some(Brought::Bytes(_)) => {}
                        Some(Brought::Ended) | None => return End::Passed,
                        Some(Brought::Failed) => return End::Reset,
                    }
                }
            }
        }
    }
}
