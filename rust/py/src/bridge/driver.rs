//! A hub as the driver of its loop's links.

use std::sync::Arc;

use headrace::link::{Driver, Link};

use super::hub::{Event, Hub};

/// The hub as links see it. (A type of its own, since the trait is the core's.)
#[derive(Debug)]
pub(crate) struct HubDriver(pub(crate) Arc<Hub>);

impl Driver for HubDriver {
    fn attach(&self, link: Arc<Link>) {
        self.0.push(Event::Attach(link));
    }

    fn flush_soon(&self, link: &Arc<Link>) {
        if self.0.is_loop_thread() {
            self.0.flush_at_end_of_turn(link);
        } else {
            self.0.push(Event::Flush(Arc::clone(link)));
        }
    }

    fn turns(&self) -> Option<u64> {
        Some(self.0.turn())
    }
}
