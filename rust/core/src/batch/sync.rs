//! The lock and the parking that a coordinator uses: parking_lot's, or under `--cfg headrace_model` those of a
//! model checker, which tries the orders in which threads may take them. Nothing else of the batcher is
//! shared between threads.

#[cfg(not(headrace_model))]
pub(super) use parking_lot::{Condvar, Mutex, MutexGuard};

#[cfg(headrace_model)]
pub(super) use self::model::{Condvar, Mutex, MutexGuard};

#[cfg(headrace_model)]
mod model {
    use std::ops::{Deref, DerefMut};
    use std::sync::PoisonError;
    use std::time::Instant;

    use shuttle::sync;

    /// A mutex that a panic does not poison.
    #[derive(Debug)]
    pub(in super::super) struct Mutex<V>(sync::Mutex<V>);

    /// There but while its owner waits.
    pub(in super::super) struct MutexGuard<'a, V>(Option<sync::MutexGuard<'a, V>>);

    #[derive(Debug, Default)]
    pub(in super::super) struct Condvar(sync::Condvar);

    impl<V> Mutex<V> {
        pub(in super::super) fn new(value: V) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub(in super::super) fn lock(&self) -> MutexGuard<'_, V> {
            MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
        }

        pub(in super::super) fn get_mut(&mut self) -> &mut V {
            self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl<V> Deref for MutexGuard<'_, V> {
        type Target = V;

        #[allow(clippy::expect_used, reason = "only a test can meet it")]
        fn deref(&self) -> &V {
            self.0.as_ref().expect("not waiting")
        }
    }

    impl<V> DerefMut for MutexGuard<'_, V> {
        #[allow(clippy::expect_used, reason = "only a test can meet it")]
        fn deref_mut(&mut self) -> &mut V {
            self.0.as_mut().expect("not waiting")
        }
    }

    impl Condvar {
        pub(in super::super) fn wait<V>(&self, guard: &mut MutexGuard<'_, V>) {
            guard.0 = guard.0.take().map(|held| self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
        }

        /// The model has no time: nothing is ever too late.
        pub(in super::super) fn wait_until<V>(&self, guard: &mut MutexGuard<'_, V>, _until: Instant) {
            self.wait(guard);
        }

        pub(in super::super) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(in super::super) fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}
