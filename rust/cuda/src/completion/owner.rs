//! The reactor's end of what its threads work on. They have the other ends, and end when this one is gone.

use std::ops::Deref;
use std::sync::Arc;

use crate::error::CudaError;
use crate::open::OpenDevice;
use crate::process::spawn;

/// What threads of one mode work on.
pub(super) trait Work: Send + Sync + 'static {
    fn device(&self) -> &OpenDevice;

    /// What a thread does until it is not wanted any more.
    fn run(&self);

    /// From now on a thread ends that finds nothing to do.
    fn stop(&self);
}

/// See the module's text.
pub(super) struct Owner<W: Work>(Arc<W>);

impl<W: Work> Owner<W> {
    pub(super) fn new(work: W) -> Self {
        Self(Arc::new(work))
    }

    /// Starts a thread.
    pub(super) fn start(&self) -> Result<(), CudaError> {
        let work = self.share();
        spawn(move || work.run())
    }

    pub(super) fn share(&self) -> Arc<W> {
        Arc::clone(&self.0)
    }
}

impl<W: Work> Deref for Owner<W> {
    type Target = W;

    fn deref(&self) -> &W {
        &self.0
    }
}

impl<W: Work> Drop for Owner<W> {
    fn drop(&mut self) {
        // In a forked child a thread that is not there may hold the locks.
        if !self.0.device().is_foreign() {
            self.0.stop();
        }
    }
}
