//! What a worker runs: the [`Engine`] trait, the request it gets and the [`Responder`] it answers through.
//!
//! A responder that is dropped before it has finished answers for its engine: the caller sees an error,
//! never a clean end and never silence.

use std::borrow::Cow;
use std::fmt::Debug;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use headrace_wire::body::{Fault, FaultCode, Shape};
use headrace_wire::error::EncodeError;
use headrace_wire::outbound::{Finish, Outbound, Pushed};

use crate::clock::{NEVER, now_ms};
use crate::link::{Item, Stream};
use crate::metrics::worker::{Account, ErrorType, Outcome};
use crate::requests::RequestStream;
use crate::worker::{Permit, Pulse};

/// A model, or anything that answers requests with items.
pub trait Engine: Send + Sync + Debug + 'static {
    /// Begins to answer. It must not block: it runs on whichever thread read the request, and others wait.
    fn start(&self, request: Request, responder: Responder);

    /// Why it does not take requests of this shape, for the caller to read; `None` when it does. Such
    /// requests are rejected and do not reach it. By default it takes single requests, and no streams of
    /// them.
    fn refuses(&self, request_shape: Shape) -> Option<Cow<'_, str>> {
        (request_shape == Shape::Many).then_some(NO_STREAMS.into())
    }

    /// A small request that it can always answer, asked once as the worker is bound. While nobody else gets
    /// an answer it is sent this from time to time; one that then answers nobody makes its worker not ready
    /// (see [`crate::WorkerConfig::health_interval`]). By default there is none, and it is not checked.
    fn health_check(&self) -> Option<Item> {
        None
    }
}

const NO_STREAMS: &str = "this endpoint takes one request, not a stream of them";

/// A request as it reaches an engine.
#[derive(Debug)]
pub struct Request {
    /// The caller's request id.
    pub id: String,
    /// The endpoint it came for.
    pub endpoint: Arc<str>,
    /// The payload.
    pub payload: Item,
    /// The items that follow, when the request is a stream. Dropping it tells the caller that no more of them
    /// are wanted.
    pub requests: Option<RequestStream>,
    /// The caller's metadata.
    pub metadata: Vec<(String, String)>,
    /// W3C trace context; empty without a trace.
    pub traceparent: String,
    /// The router that sent it.
    pub client_id: Arc<str>,
}

/// Why an item was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PushError {
    /// Nobody wants it any more: the stream was killed or its link is gone.
    Killed,
    /// It is larger than the limit.
    TooLarge {
        /// The limit in force.
        limit: usize,
        /// Its size.
        actual: usize,
    },
}

/// The answering side of one stream.
#[derive(Debug)]
pub struct Responder {
    stream: Arc<Stream>,
    permit: Option<Permit>,
    pulse: Option<Pulse>,
    account: Option<Account>,
    prologue_sent: AtomicBool,
    finished: bool,
}

impl Responder {
    pub(crate) const fn new(
        stream: Arc<Stream>,
        permit: Permit,
        pulse: Option<Pulse>,
        account: Option<Account>,
    ) -> Self {
        let prologue_sent = AtomicBool::new(false);
        Self { stream, permit: Some(permit), pulse, account, prologue_sent, finished: false }
    }

    /// An item has been pushed, or not: only one that has been tells of a sound engine.
    #[inline]
    fn pushed(&self, pushed: Result<Pushed, EncodeError>) -> Result<Pushed, PushError> {
        let pushed = push_result(pushed)?;
        self.answered();
        Ok(pushed)
    }

    /// Counts an item that was pushed, while the link's lock is held.
    #[inline]
    fn count(&self, bytes: usize, pushed: Result<Pushed, EncodeError>) -> Result<Pushed, EncodeError> {
        if pushed.is_ok()
            && let Some(account) = &self.account
        {
            account.pushed(bytes);
        }
        pushed
    }

    /// Counts the request as ended, if it is not already.
    fn settle(&mut self, outcome: Outcome) {
        if let Some(account) = self.account.take() {
            account.requested(self.stream.requested_bytes());
            account.ended(outcome);
        }
    }

    #[inline]
    fn answered(&self) {
        if let Some(pulse) = &self.pulse {
            pulse.answered();
        }
    }

    /// Says that the engine has returned its stream. The first item says so too.
    pub fn open(&self) {
        if !self.prologue_sent.load(Ordering::Relaxed) && !self.is_killed() {
            self.stream.link.send_lazily(|out| self.open_first(out));
        }
    }

    /// PROLOGUE, once. Under the link's lock, so that no item of another thread comes before it.
    fn open_first(&self, out: &mut Outbound) {
        if !self.prologue_sent.swap(true, Ordering::Relaxed) && out.is_open(self.stream.id) {
            out.prologue(self.stream.id, None);
        }
    }

    /// Pushes an item, copying its payload. After [`Pushed::Waiting`] the next push should wait for
    /// [`Self::drained`], or items gather in memory.
    ///
    /// # Errors
    /// Nobody wants the item any more, or it is too large; nothing was sent.
    pub fn push(&self, encoding: u8, payload: &[u8]) -> Result<Pushed, PushError> {
        let pushed = self.stream.link.send(|out| {
            self.open_first(out);
            let pushed = out.item(self.stream.id, encoding, payload);
            self.count(payload.len(), pushed)
        });
        self.pushed(pushed)
    }

    /// As [`Self::push`], by reference: for large payloads that nobody changes any more.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_shared(&self, encoding: u8, payload: Bytes) -> Result<Pushed, PushError> {
        let pushed = self.stream.link.send(|out| {
            self.open_first(out);
            let bytes = payload.len();
            let pushed = out.item_shared(self.stream.id, encoding, payload);
            self.count(bytes, pushed)
        });
        self.pushed(pushed)
    }

    /// Ready when everything pushed has found its place in the outbound buffer, or the stream is killed.
    pub fn poll_drained(&self, cx: &Context<'_>) -> Poll<()> {
        let waits = self.stream.link.with_outbound(|out| {
            let waits = out.has_backlog(self.stream.id);
            if waits {
                self.stream.await_drained(cx.waker().clone());
            }
            waits
        });
        // KILL is looked for after the waker is in place, so that one of the two is seen.
        if waits && !self.is_killed() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Waits as [`Self::poll_drained`].
    pub async fn drained(&self) {
        poll_fn(|cx| self.poll_drained(cx)).await;
    }

    /// Pushes the last item and ends the stream cleanly, under one lock and in one write.
    ///
    /// # Errors
    /// As [`Self::push`], with the responder, which has not ended then.
    pub fn finish_with(mut self, encoding: u8, payload: &[u8]) -> Result<(), (PushError, Self)> {
        if self.is_killed() {
            return Err((PushError::Killed, self));
        }
        let (id, first) = (self.stream.id, !self.prologue_sent.swap(true, Ordering::Relaxed));
        // The place is free before the caller can know, as in `end`.
        self.permit = None;
        let stopped = self.is_stopped();
        let (stream, account) = (&self.stream, &mut self.account);
        let pushed = stream.link.send(|out| {
            if first {
                out.prologue(id, None);
            }
            out.item(id, encoding, payload)?;
            out.finish(id, Finish::End { stopped });
            // Before anything is written, so that whoever reads the end finds the request counted.
            if let Some(account) = account.take() {
                account.requested(stream.requested_bytes());
                account.ended_with(payload.len());
            }
            Ok(())
        });
        if let Err(error) = push_result(pushed) {
            return Err((error, self));
        }
        self.finished = true;
        self.answered();
        self.stream.link.forget(id);
        self.stream.responded();
        Ok(())
    }

    /// Ends the stream cleanly.
    pub fn finish(mut self) {
        self.answered();
        self.end(Finish::End { stopped: self.is_stopped() });
    }

    /// Ends the stream with the engine's failure; before [`Self::open`] and the first item it is raised by
    /// `generate` itself.
    pub fn fail(mut self, fault: Fault) {
        self.end(Finish::Error(fault));
    }

    fn end(&mut self, finish: Finish) {
        self.finished = true;
        let is_killed = self.is_killed();
        self.settle(match &finish {
            finish if is_killed => self.stream.killed_by().outcome(matches!(finish, Finish::End { .. })),
            Finish::Error(fault) => Outcome::Error(ErrorType::of(fault.code)),
            _ => Outcome::Done,
        });
        // The place is free before the caller can know, or its next request might be refused for nothing.
        self.permit = None;
        if is_killed {
            return;
        }
        let id = self.stream.id;
        self.stream.link.send(|out| {
            // Under the same lock: a drain that no longer finds the stream finds its end in the buffer.
            self.stream.link.forget(id);
            match finish {
                Finish::Error(fault) if !self.prologue_sent.swap(true, Ordering::Relaxed) => {
                    out.prologue(id, Some(&fault));
                }
                finish => {
                    self.open_first(out);
                    out.finish(id, finish);
                }
            }
        });
        self.stream.responded();
    }

    /// Whether the caller, or the engine itself, asked to finish.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stream.is_stopped()
    }

    /// Whether nobody wants the answer any more.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.stream.is_killed()
    }

    /// Another handle on the same stream's flags.
    #[must_use]
    pub fn control(&self) -> Control {
        Control { stream: Arc::clone(&self.stream) }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.finished {
            self.end(Finish::Error(Fault {
                code: FaultCode::Engine,
                kind: String::new(),
                message: "the engine was dropped before it had finished".to_owned(),
                traceback: String::new(),
            }));
        }
    }
}

/// The sending half of a stream that is over is closed, so no push has to look at its flags.
pub(crate) fn push_result<T>(pushed: Result<T, EncodeError>) -> Result<T, PushError> {
    pushed.map_err(|error| match error {
        EncodeError::PayloadTooLarge { limit, actual } => PushError::TooLarge { limit, actual },
        _ => PushError::Killed,
    })
}

/// What an engine can know of its stream, and do, while something else holds the responder.
#[derive(Clone, Debug)]
pub struct Control {
    stream: Arc<Stream>,
}

impl Control {
    /// Whether the caller, or the engine itself, asked to finish.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stream.is_stopped()
    }

    /// Whether nobody wants the answer any more.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.stream.is_killed()
    }

    /// The engine asks itself to finish.
    pub fn stop_generating(&self) {
        self.stream.set_stopped();
    }

    /// Time until the caller's deadline; `None` without one, zero when it has passed.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let deadline_ms = self.stream.timing.deadline_ms;
        (deadline_ms != NEVER).then(|| Duration::from_millis(deadline_ms.saturating_sub(now_ms())))
    }

    /// Registers who is woken when STOP or KILL comes; one at a time. Check the flags again afterwards.
    pub fn watch(&self, waker: Waker) {
        self.stream.watch(waker);
    }

    /// Waits until the stream is killed.
    pub async fn killed(&self) {
        poll_fn(|cx| {
            self.watch(cx.waker().clone());
            if self.is_killed() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// An engine written as an asynchronous Rust function. Its future runs on tokio and is dropped when the
/// stream is killed.
pub struct AsyncEngine<F> {
    function: F,
    runtime: tokio::runtime::Handle,
    takes_streams: bool,
    health_check: Option<Item>,
}

impl<F> AsyncEngine<F> {
    /// Wraps `function(request, answer)`, which pushes through [`Answer::send`] and returns how it ended.
    pub const fn new(runtime: tokio::runtime::Handle, function: F) -> Self {
        Self { function, runtime, takes_streams: false, health_check: None }
    }

    /// Takes request streams as well as single requests: the function looks at [`Request::requests`].
    #[must_use]
    pub fn taking_streams(self) -> Self {
        Self { takes_streams: true, ..self }
    }

    /// Declares what it is asked while nobody else gets an answer: see [`Engine::health_check`].
    #[must_use]
    pub fn checked_with(self, check: Item) -> Self {
        Self { health_check: Some(check), ..self }
    }
}

impl<F> Debug for AsyncEngine<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncEngine").finish_non_exhaustive()
    }
}

/// Where an [`AsyncEngine`] puts its items.
#[derive(Clone, Debug)]
pub struct Answer(Arc<Responder>);

impl Answer {
    /// Sends an item, waiting for credit when the caller is slower.
    ///
    /// # Errors
    /// Nobody wants the item any more, or it is too large.
    pub async fn send(&self, encoding: u8, payload: Bytes) -> Result<(), PushError> {
        if self.0.push_shared(encoding, payload)? == Pushed::Waiting {
            self.0.drained().await;
        }
        Ok(())
    }

    /// Whether the caller asked to finish.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.is_stopped()
    }
}

impl<F, Fut> Engine for AsyncEngine<F>
where
    F: Fn(Request, Answer) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Fault>> + Send + 'static,
{
    fn refuses(&self, request_shape: Shape) -> Option<Cow<'_, str>> {
        (request_shape == Shape::Many && !self.takes_streams).then_some(NO_STREAMS.into())
    }

    fn health_check(&self) -> Option<Item> {
        self.health_check.clone()
    }

    fn start(&self, request: Request, responder: Responder) {
        let control = responder.control();
        responder.open();
        let responder = Arc::new(responder);
        let work = (self.function)(request, Answer(Arc::clone(&responder)));
        self.runtime.spawn(async move {
            let result = tokio::select! {
                result = work => Some(result),
                () = control.killed() => None,
            };
            // The function has returned, so its `Answer` is gone unless it leaked one to another task; then
            // the stream ends when that one is dropped.
            if let (Some(result), Some(responder)) = (result, Arc::into_inner(responder)) {
                match result {
                    Ok(()) => responder.finish(),
                    Err(fault) => responder.fail(fault),
                }
            }
        });
    }
}
