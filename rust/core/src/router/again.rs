//! A second run for a stream that was lost: by itself while nothing has been read and the call is idempotent,
//! or where the caller makes a request for the rest. The caller reads one stream.
//!
//! Every run is a [`ResponseStream`] of its own; those that continue the first hang on it, and it hands through
//! what the last one has.

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use headrace_wire::body::RequestHead;
use parking_lot::Mutex;

use super::Shared;
use super::call::Call;
use super::response::{Ready, ResponseStream};
use crate::clock::now_ms;
use crate::error::{CallError, CallErrorKind, Phase};
use crate::link::Item;
use crate::metrics::router::{ROUTER, RetryReason};

/// What a further run of a call takes.
pub(super) struct Plan {
    pub(super) router: Arc<Shared>,
    pub(super) head: RequestHead,
    pub(super) payload: Bytes,
    pub(super) item_timeout: Option<Duration>,
    pub(super) instance: String,
    pub(super) affinity: String,
    pub(super) idempotent: bool,
    pub(super) resumable: bool,
    pub(super) began_ms: u64,
    pub(super) deadline_ms: u64,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("request_id", &self.head.request_id).finish_non_exhaustive()
    }
}

/// What a stream that may be continued knows beyond its own run.
#[derive(Debug)]
pub(super) struct Again {
    plan: Plan,
    /// Runs that continued the first, newest last. Each is set once, so that readers need no lock.
    next: OnceLock<Box<ResponseStream>>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// The call that will continue the stream.
    call: Option<Box<Call>>,
    /// It is being polled at this moment, and so not here.
    polling: bool,
    /// What the caller has read, for the request for the rest.
    kept: Vec<Item>,
    kept_bytes: usize,
    /// More was read than may be kept.
    overflowed: bool,
    /// Items read in all runs.
    items: u64,
    /// Items there were when the last run began, and runs since that brought none.
    items_before: u64,
    fruitless: u32,
    resumed: u32,
    stopped: bool,
    closed: bool,
    /// The caller has learned that the last run was lost.
    lost: bool,
    /// The error of the last run is among the metrics.
    counted: bool,
    /// What the stream failed with for good.
    failed: Option<CallError>,
}

impl Again {
    pub(super) fn new(plan: Plan) -> Self {
        Self { plan, next: OnceLock::new(), progress: Mutex::default() }
    }

    /// The newest of the runs that continue the first; `None` before there is one.
    pub(super) fn last(&self) -> Option<&ResponseStream> {
        let mut last = &**self.next.get()?;
        while let Some(next) = last.again.as_deref().and_then(|again| again.next.get()) {
            last = next;
        }
        Some(last)
    }

    pub(super) fn try_next(&self, head: &ResponseStream) -> Ready {
        let mut progress = self.progress.lock();
        if progress.is_calling() {
            return Ready::Pending;
        }
        if let Some(error) = &progress.failed {
            return Ready::Failed(error.clone());
        }
        let ready = self.last().unwrap_or(head).try_own();
        self.seen(&mut progress, ready)
    }

    pub(super) fn poll_next(&self, head: &ResponseStream, cx: &Context<'_>) -> Poll<Ready> {
        self.poll_runs(head, cx, Ready::Failed, |progress, run| match run.poll_own(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(ready) => Poll::Ready(match self.seen(progress, ready) {
                // Lost, and a further run has begun.
                Ready::Pending => None,
                ready => Some(ready),
            }),
        })
    }

    pub(super) fn poll_single(
        &self,
        head: &ResponseStream,
        cx: &Context<'_>,
    ) -> Poll<Result<Item, CallError>> {
        self.poll_runs(head, cx, Err, |progress, run| match run.poll_own_single(cx) {
            Poll::Pending => Poll::Pending,
            // Nobody has seen an item of a call that has not ended.
            Poll::Ready(Err(error)) => Poll::Ready(self.repeat(progress, error).map(Err)),
            Poll::Ready(found) => Poll::Ready(Some(found)),
        })
    }

    /// Polls the newest run, or the call that will be it, until there is something to hand over. `look` says
    /// `None` when a further run has begun.
    fn poll_runs<T>(
        &self,
        head: &ResponseStream,
        cx: &Context<'_>,
        fail: impl Fn(CallError) -> T,
        look: impl Fn(&mut Progress, &ResponseStream) -> Poll<Option<T>>,
    ) -> Poll<T> {
        let mut progress = self.progress.lock();
        loop {
            if let Some(mut call) = progress.call.take() {
                progress.polling = true;
                // A policy of the caller's own may run within: no lock is held meanwhile.
                drop(progress);
                let polled = call.poll_open(cx);
                progress = self.progress.lock();
                progress.polling = false;
                match polled {
                    Poll::Ready(run) => self.begun(&mut progress, head, run),
                    Poll::Pending if progress.closed => {
                        drop(progress);
                        drop(call);
                        progress = self.progress.lock();
                    }
                    Poll::Pending => {
                        progress.call = Some(call);
                        return Poll::Pending;
                    }
                }
            }
            if let Some(error) = &progress.failed {
                return Poll::Ready(fail(error.clone()));
            }
            match look(&mut progress, self.last().unwrap_or(head)) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(found)) => return Poll::Ready(found),
                Poll::Ready(None) => {}
            }
        }
    }

    /// A further run has opened, or never will.
    fn begun(&self, progress: &mut Progress, head: &ResponseStream, run: Result<ResponseStream, CallError>) {
        match run {
            // Dropping it kills it.
            Ok(run) if progress.closed => drop(run),
            Ok(run) => {
                if progress.stopped {
                    run.stop_own();
                }
                let last = self.last().unwrap_or(head);
                // Its place is free: it is the last one.
                let _ = last.again.as_deref().map(|again| again.next.set(Box::new(run)));
            }
            Err(error) => progress.failed = Some(progress.of_all_runs(error)),
        }
    }

    /// Looks at what the caller is about to get. [`Ready::Pending`] may mean that a further run has begun.
    fn seen(&self, progress: &mut Progress, ready: Ready) -> Ready {
        match ready {
            Ready::Item(item) => {
                progress.items += 1;
                if self.plan.resumable {
                    progress.keep(&item, self.plan.router.config.max_resume_bytes);
                }
                Ready::Item(item)
            }
            Ready::Failed(_) if progress.closed => Ready::End,
            Ready::Failed(error) if progress.items == 0 => match self.repeat(progress, error) {
                None => Ready::Pending,
                Some(error) => Ready::Failed(error),
            },
            Ready::Failed(error) => Ready::Failed(self.told(progress, error)),
            ready => ready,
        }
    }

    /// Begins the same call again, if it was lost and may be repeated; else returns the caller's error.
    fn repeat(&self, progress: &mut Progress, error: CallError) -> Option<CallError> {
        if !self.plan.idempotent || !is_lost(&error) || progress.closed {
            return Some(self.told(progress, error));
        }
        let request = Item { encoding: self.plan.head.encoding, payload: self.plan.payload.clone() };
        let why = self.begin(progress, request, RetryReason::Lost).err()?;
        progress.count(&error);
        Some(progress.of_all_runs(untried(error, why)))
    }

    /// An error as the caller gets it; if the stream could have been resumed but for its length, it says so.
    fn told(&self, progress: &mut Progress, error: CallError) -> CallError {
        progress.count(&error);
        let error = progress.of_all_runs(error);
        progress.lost = is_lost(&error);
        if !progress.overflowed || !progress.lost {
            return error;
        }
        let limit = self.plan.router.config.max_resume_bytes;
        untried(error, &format!("more than max_resume_bytes={limit} were read, so it cannot be resumed"))
    }

    /// Begins a further run, or says why not.
    fn begin(&self, progress: &mut Progress, request: Item, reason: RetryReason) -> Result<(), &'static str> {
        let router = &self.plan.router;
        if progress.items == progress.items_before {
            progress.fruitless += 1;
        } else {
            progress.fruitless = 1;
        }
        progress.items_before = progress.items;
        if progress.fruitless > router.config.retries {
            return Err("the last attempts brought no item");
        }
        if router.is_closed() || now_ms() >= self.plan.deadline_ms {
            return Err("there is no time left");
        }
        if !router.may_retry() {
            return Err("the retry budget is used up");
        }
        (progress.lost, progress.counted) = (false, false);
        ROUTER.retried(reason);
        progress.call = Some(Box::new(Call::continued(&self.plan, request)));
        Ok(())
    }

    fn may_resume(&self, progress: &Progress) -> bool {
        self.plan.resumable && progress.lost && !progress.overflowed && !progress.closed
    }

    pub(super) fn stop(&self) {
        self.progress.lock().stopped = true;
    }

    pub(super) fn close(&self) {
        let mut progress = self.progress.lock();
        progress.closed = true;
        let call = progress.call.take();
        drop(progress);
        drop(call);
    }
}

impl Progress {
    const fn is_calling(&self) -> bool {
        self.call.is_some() || self.polling
    }

    /// The caller is told of this. One that has left counts as that.
    fn count(&mut self, error: &CallError) {
        if !std::mem::replace(&mut self.counted, true) && !self.closed {
            ROUTER.failed(&error.kind);
        }
    }

    fn keep(&mut self, item: &Item, bytes_max: usize) {
        if self.overflowed {
            return;
        }
        self.kept_bytes += item.payload.len();
        if self.kept_bytes > bytes_max {
            self.overflowed = true;
            self.kept = Vec::new();
            return;
        }
        // Copied: a slice would keep all that was read with it.
        let payload = Bytes::copy_from_slice(&item.payload);
        self.kept.push(Item { encoding: item.encoding, payload });
    }

    /// An error of one run, with what came in the runs before it.
    fn of_all_runs(&self, mut error: CallError) -> CallError {
        error.items = self.items;
        if self.items > 0 {
            error.phase = Phase::Streaming;
        }
        error
    }
}

impl ResponseStream {
    /// The items read so far, if the stream was lost and [`Self::resume`] may continue it: for calls with
    /// [`crate::CallOptions::resumable`] of which no more than
    /// [`max_resume_bytes`](crate::RouterConfig::max_resume_bytes) were read.
    #[must_use]
    pub fn kept(&self) -> Option<Vec<Item>> {
        let again = self.again.as_deref()?;
        let progress = again.progress.lock();
        again.may_resume(&progress).then(|| progress.kept.clone())
    }

    /// Continues a lost stream: `request` asks for what is missing, and is sent to any instance within the
    /// deadline of the call. What is read next comes from there.
    ///
    /// # Errors
    /// `lost`, the failure that the stream ended with, and why it is not continued: attempts that bring nothing,
    /// the retry budget, or the deadline have come to an end. Also where [`Self::kept`] has nothing.
    pub fn resume(&self, request: Item, lost: CallError) -> Result<(), Box<CallError>> {
        let Some(again) = self.again.as_deref() else { return Err(Box::new(lost)) };
        let mut progress = again.progress.lock();
        if !again.may_resume(&progress) {
            return Err(Box::new(lost));
        }
        again
            .begin(&mut progress, request, RetryReason::Resumed)
            .map_err(|why| Box::new(untried(lost, why)))?;
        progress.resumed += 1;
        Ok(())
    }

    /// How often [`Self::resume`] has continued it.
    #[must_use]
    pub fn resumed(&self) -> u32 {
        self.again.as_deref().map_or(0, |again| again.progress.lock().resumed)
    }
}

const fn is_lost(error: &CallError) -> bool {
    matches!(error.kind, CallErrorKind::Disconnected { .. })
}

/// A loss, and why it was not made good.
fn untried(mut error: CallError, why: &str) -> CallError {
    if let CallErrorKind::Disconnected { reason, .. } = &mut error.kind {
        reason.push_str("; ");
        reason.push_str(why);
    }
    error
}
