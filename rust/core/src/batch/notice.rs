//! Who is told that something can be done. A batcher never calls into its owner but through this and
//! [`super::Reply`].

/// What made a batch ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// An item was submitted. More may come in the same breath, so an owner may gather them before it takes.
    Arrival,
    /// A window ended, a batch was taken and there is another, or the batcher was resumed, flushed,
    /// configured or closed: there is nothing to wait for. Threads that are parked are woken directly then.
    Other,
}

/// Told on edges only, outside every lock, on whatever thread made the difference. Calls must not block and
/// may call back into the coordinator.
///
/// Without one, the coordinator wakes the threads that are parked in
/// [`super::Coordinator::next_batch`] itself. One that gathers decides when: at the end of the breath it wakes
/// them by [`super::Coordinator::wake_workers`], or takes batches itself by
/// [`super::Coordinator::try_take`], until there is nothing or nobody is free.
pub trait Notice: Send + Sync + 'static {
    /// Whether [`Self::ready`] is to hear of arrivals while threads are parked, instead of one of them being
    /// woken at once: so that what is submitted in one breath shares a batch. Asked once. Default true.
    fn gathers(&self) -> bool {
        true
    }

    /// A batch can be taken, and a worker is free: parked, or its last [`super::Coordinator::try_take`] came
    /// back without a batch, or it asked ([`super::Coordinator::ask`]). Not repeated until somebody has tried to take.
    fn ready(&self, cause: Cause);

    /// A submit was refused for lack of room ([`super::RejectReason::passes`]) and now there is some.
    fn room(&self) {}

    /// `worker` was given up: it has not returned within `callback_timeout`, and its batch has failed. The
    /// owner starts another in its place.
    fn lost(&self, worker: u32) {
        let _ = worker;
    }

    /// The batcher is closed, and the last item and batch have gone.
    fn quiet(&self) {}
}
