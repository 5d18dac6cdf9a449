//! What one link needs a task for: to flush when the tokio driver asks, and to write on after the socket was
//! full. It waits and costs nothing otherwise; what has to be done from time to time is [`super::ticker`]'s.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::Interest;

use super::Link;
use super::socket::Watch;

pub(super) async fn keep(link: Arc<Link>) {
    let mut closed = link.closed();
    let mut watch: Option<Watch> = None;
    loop {
        tokio::select! {
            biased;
            () = closed.wait() => return,
            () = link.keeper.notified() => link.flush(),
            () = until_writable(watch.as_ref()) => {
                if let Some(watch) = &watch {
                    watch.attempt(Interest::WRITABLE, || {
                        link.flush();
                        !link.is_blocked()
                    });
                }
                // Waiting for a socket costs no budget; without this, no other branch might get a turn.
                tokio::task::coop::consume_budget().await;
            }
        }
        match (link.is_blocked(), &watch) {
            (true, None) => match link.socket.watch() {
                Ok(new) => watch = Some(new),
                Err(error) => return link.close(&format!("the socket cannot be watched: {error}")),
            },
            (false, Some(_)) => watch = None,
            _ => {}
        }
    }
}

async fn until_writable(watch: Option<&Watch>) {
    match watch {
        // An error shows at the next write.
        Some(watch) => drop(watch.writable().await),
        None => std::future::pending().await,
    }
}

impl Link {
    pub(super) fn ask_keeper_to_flush(&self) {
        self.keeper.notify_one();
    }

    fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }
}
