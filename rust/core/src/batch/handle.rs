//! A batcher for Rust programs: items are awaited one by one, a function on threads of its own gets them many
//! at a time. The threads are in [`super::threads`].

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Notify, oneshot};

use super::answer::{BatchError, Waiting, Work};
use super::clock::BatchClock;
use super::config::BatchConfig;
use super::coordinator::Coordinator;
use super::lease::{LeaseSource, NoLeases};
use super::notice::{Cause, Notice};
use super::stats::BatchStats;
use super::terms::{Refused, Terms, Ticket};
use super::threads::{BatchFunction, Crew, Plain, Presence};
use crate::config::refused;
use crate::error::StartError;

/// Hears what the coordinator has to say, for tasks that wait.
#[derive(Default)]
struct Ears {
    room: Notify,
    quiet: Notify,
    /// Starts a thread in the place of a worker that was given up.
    replace: OnceLock<Box<dyn Fn(u32) + Send + Sync>>,
}

impl Notice for Ears {
    fn gathers(&self) -> bool {
        false
    }

    fn ready(&self, _cause: Cause) {}

    fn room(&self) {
        self.room.notify_waiters();
    }

    fn quiet(&self) {
        self.quiet.notify_waiters();
    }

    fn lost(&self, worker: u32) {
        if let Some(replace) = self.replace.get() {
            replace(worker);
        }
    }
}

/// Why a batcher did not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BatchStartError {
    /// A setting is out of range.
    #[error(transparent)]
    Setting(#[from] StartError),
    /// The system refused a thread.
    #[error("a worker's thread cannot be started: {0}")]
    Thread(#[source] std::io::Error),
    /// A worker's `on_start` or `warm_up` failed or panicked.
    #[error("worker {worker} did not start: {reason}")]
    Failed {
        /// Which worker.
        worker: u32,
        /// What it said.
        reason: String,
    },
    /// They took too long.
    #[error("the workers did not start within {timeout:?} (startup_timeout)")]
    TimedOut {
        /// How long they had.
        timeout: Duration,
    },
}

/// Collects items into batches for a function on `workers` threads of its own.
///
/// ```
/// use headrace::batch::{BatchConfig, Batcher};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let squares = Batcher::new(BatchConfig::default(), |items: &[u64]| {
///     items.iter().map(|item| Ok::<_, std::convert::Infallible>(item * item)).collect()
/// })?;
/// assert_eq!(squares.submit(12).await?, 144);
/// # Ok(())
/// # }
/// ```
///
/// Dropping it closes it, without waiting for batches in flight.
pub struct Batcher<T: Send + 'static, R: Send + 'static, E: Send + Sync + 'static> {
    work: Work<T, R, E>,
    ears: Arc<Ears>,
    crew: Arc<Presence>,
}

impl<T: Send + 'static, R: Send + 'static, E: Send + Sync + 'static> Batcher<T, R, E> {
    /// A batcher over a plain function of a batch's items, which answers each in its place.
    ///
    /// # Errors
    /// [`BatchStartError`].
    pub fn new<F>(config: BatchConfig, function: F) -> Result<Self, BatchStartError>
    where
        F: Fn(&[T]) -> Vec<Result<R, E>> + Send + Sync + 'static,
    {
        let function = Arc::new(function);
        Self::start(config, move |_| Plain(Arc::clone(&function)))
    }

    /// A batcher whose workers are made by `make` on the threads where they run. Blocks until all have
    /// started, at most for `startup_timeout`.
    ///
    /// # Errors
    /// [`BatchStartError`]; nothing runs then, but a worker that has not come back yet.
    pub fn start<F, M>(config: BatchConfig, make: M) -> Result<Self, BatchStartError>
    where
        F: BatchFunction<T, (), Output = R, Error = E>,
        M: Fn(u32) -> F + Send + Sync + 'static,
    {
        Self::start_with_leases(config, Arc::new(NoLeases), make)
    }

    /// The same, with something lent by `leases` for each batch in flight.
    ///
    /// # Errors
    /// [`BatchStartError`].
    pub fn start_with_leases<S, F, M>(
        config: BatchConfig,
        leases: Arc<S>,
        make: M,
    ) -> Result<Self, BatchStartError>
    where
        S: LeaseSource,
        F: BatchFunction<T, S::Lease, Output = R, Error = E>,
        M: Fn(u32) -> F + Send + Sync + 'static,
    {
        let ears = Arc::new(Ears::default());
        let notice = Arc::clone(&ears) as Arc<dyn Notice>;
        let work = Coordinator::with_notice(config, notice, BatchClock::default())?;
        let crew = Crew::new(work.clone(), leases, make);
        let members = Arc::downgrade(&crew);
        // A crew that has gone needs nobody replaced.
        let replace = move |worker| _ = members.upgrade().map(|crew| crew.replace(worker));
        _ = ears.replace.set(Box::new(replace));
        let batcher = Self { work, ears, crew: crew.presence() };
        // On failure the batcher is dropped here, which ends those that did start.
        crew.start()?;
        Ok(batcher)
    }

    /// Submits an item when first polled, and waits for its answer. Dropping the future cancels it.
    ///
    /// # Errors
    /// [`BatchError`].
    pub async fn submit(&self, item: T) -> Result<R, BatchError<E>> {
        match self.submit_with(item, Terms::default()) {
            Ok(submission) => submission.await,
            Err(refused) => Err(rejected(&refused)),
        }
    }

    /// Submits an item at once; awaiting what it returns gives the answer, dropping that cancels it.
    ///
    /// # Errors
    /// The item with the reason, if it is not admitted.
    pub fn submit_with(&self, item: T, terms: Terms) -> Result<Submission<T, R, E>, NotAdmitted<T, R, E>> {
        self.submit_by(item, terms, Work::submit)
    }

    fn submit_by(
        &self,
        item: T,
        terms: Terms,
        submit: impl FnOnce(&Work<T, R, E>, T, Waiting<R, E>, Terms) -> Result<Ticket, NotAdmitted<T, R, E>>,
    ) -> Result<Submission<T, R, E>, NotAdmitted<T, R, E>> {
        let (sender, receiver) = oneshot::channel();
        let ticket = submit(&self.work, item, Waiting(sender), terms)?;
        Ok(Submission { work: self.work.clone(), ticket, receiver, done: false })
    }

    /// Submits many items, as room frees, and waits for all answers, which come in the order of the items.
    /// It is never refused for how many they are. Dropping the future cancels those that have no answer.
    pub async fn map(
        &self,
        items: impl IntoIterator<Item = T>,
        terms: Terms,
    ) -> Vec<Result<R, BatchError<E>>> {
        let mut answers = Vec::new();
        let mut submissions = Vec::new();
        for item in items {
            submissions.push(self.submit_when_room(item, terms).await);
        }
        for submission in submissions {
            answers.push(match submission {
                Ok(submission) => submission.await,
                Err(error) => Err(error),
            });
        }
        answers
    }

    async fn submit_when_room(
        &self,
        mut item: T,
        terms: Terms,
    ) -> Result<Submission<T, R, E>, BatchError<E>> {
        loop {
            let mut room = pin!(self.ears.room.notified());
            // Room that is made between the refusal and the wait counts.
            room.as_mut().enable();
            match self.submit_by(item, terms, Work::offer) {
                Ok(submission) => return Ok(submission),
                Err(refused) if refused.reason.passes() => item = refused.item,
                Err(refused) => return Err(rejected(&refused)),
            }
            room.await;
        }
    }

    /// Takes nothing new and waits until everything has run; false after `timeout`, when what still waits
    /// is told [`BatchError::Closed`]. Needs a tokio runtime with its timer when there is a `timeout`.
    pub async fn drain(&self, timeout: Option<Duration>) -> bool {
        self.work.begin_drain();
        let all_ran = match timeout {
            None => {
                self.quiet().await;
                true
            }
            Some(timeout) => tokio::time::timeout(timeout, self.quiet()).await.is_ok(),
        };
        self.work.close();
        all_ran
    }

    async fn quiet(&self) {
        loop {
            let mut quiet = pin!(self.ears.quiet.notified());
            quiet.as_mut().enable();
            if self.work.is_quiet() {
                return;
            }
            quiet.await;
        }
    }

    /// Ends what waits, lets batches in flight finish, and blocks until the workers have ended: at most for
    /// `timeout`. Batches in flight then fail as [`BatchError::WorkerLost`], and false says that their
    /// threads are still there.
    pub fn close(&self, timeout: Duration) -> bool {
        self.work.close();
        let all_gone = self.crew.wait_gone(timeout);
        if !all_gone {
            self.work.lose_all();
        }
        all_gone
    }

    /// Changes the settings. The number of workers and the name stay.
    ///
    /// # Errors
    /// [`StartError::Setting`] for a setting out of range, and for another `workers` or `name`.
    pub fn configure(&self, config: BatchConfig) -> Result<(), StartError> {
        let present = self.work.config();
        if config.workers != present.workers {
            return Err(refused("workers", "what it was at the start", &config.workers));
        }
        if config.name != present.name {
            return Err(refused("name", "what it was at the start", &config.name));
        }
        self.work.configure(config)
    }

    /// The coordinator, for what is not repeated here: pausing, flushing, cancelling.
    #[must_use]
    pub const fn coordinator(&self) -> &Coordinator<T, Waiting<R, E>> {
        &self.work
    }

    /// A consistent snapshot of its counts.
    #[must_use]
    pub fn stats(&self) -> BatchStats {
        self.work.stats()
    }
}

/// An item that was not admitted.
pub type NotAdmitted<T, R, E> = Refused<T, Waiting<R, E>>;

fn rejected<T, P, E>(refused: &Refused<T, P>) -> BatchError<E> {
    BatchError::Rejected { reason: refused.reason, retry_after: refused.retry_after }
}

impl<T: Send + 'static, R: Send + 'static, E: Send + Sync + 'static> Drop for Batcher<T, R, E> {
    fn drop(&mut self) {
        self.work.close();
    }
}

impl<T: Send + 'static, R: Send + 'static, E: Send + Sync + 'static> fmt::Debug for Batcher<T, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").field("work", &self.work).finish_non_exhaustive()
    }
}

/// An item that was admitted. Awaiting it gives the answer; dropping it cancels the item.
#[must_use = "dropping it cancels the item"]
pub struct Submission<T: Send + 'static, R: Send + 'static, E: Send + Sync + 'static> {
    work: Work<T, R, E>,
    ticket: Ticket,
    receiver: oneshot::Receiver<Result<R, BatchError<E>>>,
    done: bool,
}

impl<T: Send + 'static, R: Send + 'static, E: Send + Sync + 'static> Submission<T, R, E> {
    /// The item's ticket.
    #[must_use]
    pub const fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl<T: Send + 'static, R: Send + 'static, E: Send + Sync + 'static> Future for Submission<T, R, E> {
    type Output = Result<R, BatchError<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.receiver).poll(cx));
        self.done = true;
        // Every reply is called; one that was dropped instead lost its batcher.
        Poll::Ready(answer.unwrap_or(Err(BatchError::Closed)))
    }
}

impl<T: Send + 'static, R: Send + 'static, E: Send + Sync + 'static> Drop for Submission<T, R, E> {
    fn drop(&mut self) {
        if !self.done {
            self.work.cancel(self.ticket);
        }
    }
}

impl<T: Send + 'static, R: Send + 'static, E: Send + Sync + 'static> fmt::Debug for Submission<T, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submission").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}
