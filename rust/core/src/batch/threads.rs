//! The threads of a [`super::Batcher`]. Everything of a worker happens on one thread: making it, starting,
//! warming up, running, stopping; so it may hold what belongs to a thread, as a GPU context does.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::answer::{BatchError, Work, WorkBatch};
use super::coordinator::Taken;
use super::handle::BatchStartError;
use super::lease::{LeaseError, LeaseSource, wait_for};

/// What a function answers a batch: a result for each item, in their order.
pub type Results<R, E> = Vec<Result<R, E>>;

/// What a worker of a [`super::Batcher`] runs. All of it is called on the worker's own thread.
pub trait BatchFunction<T: Send + 'static, L = ()>: 'static {
    /// The answer to one item.
    type Output: Send + 'static;
    /// How it fails.
    type Error: Send + Sync + 'static;

    /// Called once, before anything else.
    ///
    /// # Errors
    /// Why the worker cannot start; the batcher then does not.
    fn on_start(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Called once after [`Self::on_start`]: whatever makes the first batch as fast as the others.
    ///
    /// # Errors
    /// Why the worker cannot start; the batcher then does not.
    fn warm_up(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Answers a batch: as many results as it has items, in their order. `lease` is what was lent for it.
    ///
    /// # Errors
    /// What fails all of it. With `isolate_failures` it is called again with either half, unless it has taken
    /// the items out. A panic does the same.
    fn run(
        &mut self,
        batch: &mut WorkBatch<T, Self::Output, Self::Error>,
        lease: &mut L,
    ) -> Result<Results<Self::Output, Self::Error>, Self::Error>;

    /// Called once, after the last batch.
    fn on_stop(&mut self) {}
}

/// A plain function as a worker.
pub(super) struct Plain<F>(pub(super) Arc<F>);

impl<T, R, E, F> BatchFunction<T> for Plain<F>
where
    T: Send + 'static,
    R: Send + 'static,
    E: Send + Sync + 'static,
    F: Fn(&[T]) -> Vec<Result<R, E>> + 'static,
{
    type Output = R;
    type Error = E;

    fn run(&mut self, batch: &mut WorkBatch<T, R, E>, _lease: &mut ()) -> Result<Results<R, E>, E> {
        Ok((self.0)(batch.items()))
    }
}

#[derive(Debug, Default)]
struct Counts {
    /// Threads that have not ended.
    threads: usize,
    /// Of those, the ones that were not given up.
    able: usize,
}

/// How many threads are there.
#[derive(Debug, Default)]
pub(super) struct Presence {
    counts: Mutex<Counts>,
    gone: Condvar,
}

impl Presence {
    /// Blocks until all have ended; false after `timeout`.
    pub(super) fn wait_gone(&self, timeout: Duration) -> bool {
        let until = Instant::now().checked_add(timeout);
        let mut counts = self.counts.lock();
        while counts.threads > 0 {
            match until {
                None => self.gone.wait(&mut counts),
                Some(until) if Instant::now() < until => _ = self.gone.wait_until(&mut counts, until),
                Some(_) => return false,
            }
        }
        true
    }
}

/// What the threads of a batcher share.
pub(super) struct Crew<T, S, F, M>
where
    T: Send + 'static,
    S: LeaseSource,
    F: BatchFunction<T, S::Lease>,
{
    work: Work<T, F::Output, F::Error>,
    leases: Arc<S>,
    make: M,
    presence: Arc<Presence>,
    /// Numbers are not used again: a batch that was given up must not be taken for its successor's.
    next_worker: AtomicU32,
    me: Weak<Self>,
}

/// A batch of what a worker `F` answers.
type BatchOf<T, S, F> = WorkBatch<
    T,
    <F as BatchFunction<T, <S as LeaseSource>::Lease>>::Output,
    <F as BatchFunction<T, <S as LeaseSource>::Lease>>::Error,
>;

/// What was lent for a batch, or why nothing was.
type Lent<S> = Result<<S as LeaseSource>::Lease, LeaseError>;

type Started = Result<(), (u32, String)>;

impl<T, S, F, M> Crew<T, S, F, M>
where
    T: Send + 'static,
    S: LeaseSource,
    F: BatchFunction<T, S::Lease>,
    M: Fn(u32) -> F + Send + Sync + 'static,
{
    pub(super) fn new(work: Work<T, F::Output, F::Error>, leases: Arc<S>, make: M) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            work,
            leases,
            make,
            presence: Arc::default(),
            next_worker: AtomicU32::new(0),
            me: Weak::clone(me),
        })
    }

    pub(super) fn presence(&self) -> Arc<Presence> {
        Arc::clone(&self.presence)
    }

    /// Starts all workers and waits until each has said that it is ready.
    pub(super) fn start(&self) -> Result<(), BatchStartError> {
        let config = self.work.config();
        let (started, starting) = channel();
        for _ in 0..config.workers {
            self.spawn(Some(started.clone())).map_err(BatchStartError::Thread)?;
        }
        drop(started);
        let timeout = config.startup_timeout;
        let begun = Instant::now();
        for _ in 0..config.workers {
            match starting.recv_timeout(timeout.saturating_sub(begun.elapsed())) {
                Ok(Ok(())) => {}
                Ok(Err((worker, reason))) => return Err(BatchStartError::Failed { worker, reason }),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(BatchStartError::TimedOut { timeout });
                }
            }
        }
        Ok(())
    }

    /// Starts another worker in the place of one that was given up. Its thread ends when its function comes
    /// back, if it ever does.
    pub(super) fn replace(&self, worker: u32) {
        if self.work.is_closed() && self.work.is_quiet() {
            return;
        }
        tracing::warn!(worker, "a batcher's function did not return within callback_timeout");
        if let Err(error) = self.spawn(None) {
            tracing::error!(%error, "a batcher's worker cannot be replaced");
        }
        self.one_less();
    }

    /// A worker takes nothing any more. Without any, what waits would wait for ever.
    fn one_less(&self) {
        let mut counts = self.presence.counts.lock();
        counts.able = counts.able.saturating_sub(1);
        let last = counts.able == 0;
        drop(counts);
        if last {
            self.work.close();
        }
    }

    fn spawn(&self, started: Option<Sender<Started>>) -> std::io::Result<()> {
        let Some(crew) = self.me.upgrade() else { return Ok(()) };
        let worker = self.next_worker.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{worker}", self.work.config().name);
        let mut counts = self.presence.counts.lock();
        (counts.threads, counts.able) = (counts.threads + 1, counts.able + 1);
        drop(counts);
        let present = Present(Arc::clone(&self.presence));
        // A thread that is refused drops what it would have owned, and so counts itself out.
        let spawned = thread::Builder::new().name(name).spawn(move || {
            let present = present;
            // One that was given up has been counted out already.
            if !crew.work(worker, started) {
                crew.one_less();
            }
            drop(crew);
            drop(present);
        });
        if spawned.is_err() {
            self.one_less();
        }
        spawned.map(drop)
    }

    /// The life of a worker. Whether it was given up.
    fn work(&self, worker: u32, started: Option<Sender<Started>>) -> bool {
        let begun = catch_unwind(AssertUnwindSafe(|| {
            let mut function = (self.make)(worker);
            function.on_start().and_then(|()| function.warm_up()).map(|()| function)
        }));
        let function = begun.unwrap_or_else(|panic| Err(format!("it panicked: {}", message(&*panic))));
        let mut function = match function {
            Ok(function) => {
                // Nobody listens any more when the start has timed out: there is nothing to run then.
                started.map(|started| started.send(Ok(())));
                function
            }
            Err(reason) => {
                tracing::error!(worker, reason, "a batcher's worker did not start");
                started.map(|started| started.send(Err((worker, reason))));
                return false;
            }
        };
        let mut lost = false;
        while !lost && let Some((batch, lease)) = self.next(worker) {
            lost = match lease {
                Ok(lease) => self.run(&mut function, batch, lease),
                Err(error) => Failure::<F::Error>::Lease(error).tell(batch),
            };
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| function.on_stop())) {
            tracing::error!(worker, message = message(&*panic), "a batcher's on_stop panicked");
        }
        lost
    }

    /// The next batch with its lease, or with why it has none. The lease comes first: until there is one, items
    /// may join, leave and expire.
    fn next(&self, worker: u32) -> Option<(BatchOf<T, S, F>, Lent<S>)> {
        while self.work.wait_ready() {
            let lease = wait_for(self.leases.lease());
            // Any other error is this batch's alone: the next may get a lease.
            if let Err(error @ LeaseError::Closed) = &lease {
                tracing::error!(worker, %error, "a batcher's worker gets no lease and ends");
                self.work.wake_workers();
                return None;
            }
            match self.work.try_take(worker) {
                Taken::Batch(batch) => return Some((batch, lease)),
                // Others were faster. The lease goes back.
                Taken::Nothing => {}
                Taken::Closed => return None,
            }
        }
        None
    }

    /// Runs a batch, and its parts if it is to be isolated. Whether the worker was given up meanwhile.
    fn run(&self, function: &mut F, batch: WorkBatch<T, F::Output, F::Error>, mut lease: S::Lease) -> bool {
        let mut left = vec![batch];
        let mut lost = false;
        while let Some(mut batch) = left.pop() {
            batch.rearm();
            let answer = catch_unwind(AssertUnwindSafe(|| function.run(&mut batch, &mut lease)));
            // Before anybody is told, what was started on the lease has ended.
            let finished = catch_unwind(AssertUnwindSafe(|| wait_for(self.leases.finish(&mut lease))));
            let finished =
                finished.unwrap_or_else(|panic| Err(LeaseError::Failed { reason: message(&*panic) }));
            let failure = match (answer, finished) {
                (Ok(Ok(results)), Ok(())) => {
                    let results = results.into_iter().map(|result| result.map_err(BatchError::Failed));
                    lost |= batch.complete(results.collect()).lost;
                    continue;
                }
                (Ok(Err(error)), _) => Failure::Error(error),
                (Err(panic), _) => Failure::Panic(message(&*panic)),
                (_, Err(error)) => Failure::Lease(error),
            };
            let whole = batch.items().len() == batch.len();
            batch = if whole && batch.isolates() {
                match batch.split() {
                    Ok((first, second)) => {
                        left.extend([second, first]);
                        continue;
                    }
                    Err(batch) => batch,
                }
            } else {
                batch
            };
            lost |= failure.tell(batch);
        }
        lost
    }
}

impl<T, S, F, M> fmt::Debug for Crew<T, S, F, M>
where
    T: Send + 'static,
    S: LeaseSource,
    F: BatchFunction<T, S::Lease>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").field("presence", &self.presence).finish_non_exhaustive()
    }
}

/// Why a batch has failed as a whole.
enum Failure<E> {
    Error(E),
    Panic(String),
    Lease(LeaseError),
}

impl<E: Send + Sync + 'static> Failure<E> {
    /// Tells everybody in the batch, each with an error of their own. Whether the worker was given up.
    fn tell<T: Send + 'static, R: Send + 'static>(self, failed: WorkBatch<T, R, E>) -> bool {
        let batch = failed.len();
        match self {
            Self::Error(error) if batch == 1 => {
                let mut error = Some(error);
                let finished = failed.fail(|_| match error.take() {
                    Some(error) => BatchError::Failed(error),
                    None => BatchError::Closed,
                });
                finished.lost
            }
            Self::Error(error) => {
                let source = Arc::new(error);
                failed.fail(|_| BatchError::BatchFailed { source: Arc::clone(&source), batch }).lost
            }
            Self::Panic(message) => {
                let message = Arc::<str>::from(message);
                failed.fail(|_| BatchError::Panicked { message: Arc::clone(&message), batch }).lost
            }
            Self::Lease(source) => failed.fail(|_| BatchError::Lease { source: source.clone(), batch }).lost,
        }
    }
}

/// Counts a thread out, however it ends.
struct Present(Arc<Presence>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.counts.lock().threads -= 1;
        self.0.gone.notify_all();
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
