//! The tokio side of a link: the tasks that write, read and stand in for a blocked loop.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::*;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::shared::{Shared, bump, lock};
use crate::socket::{READ_CHUNK, read_is_due, recv_some, send_some};

pub(crate) type Registered = AsyncFd<Arc<OwnedFd>>;

pub(crate) async fn write_task(shared: Arc<Shared>, sock: Arc<Registered>) {
    let mut chunk = Vec::new();
    loop {
        shared.kick.notified().await;
        loop {
            chunk.clear();
            {
                // The lock covers a swap, never a system call, so that the loop's thread can
                // queue while this one writes.
                let mut out = lock(&shared.out);
                std::mem::swap(&mut out.buf, &mut chunk);
                if chunk.is_empty() {
                    out.tokio_owns = false;
                    break;
                }
            }
            let mut at = 0;
            while at < chunk.len() {
                let sent = sock
                    .async_io(Interest::WRITABLE, |fd| {
                        bump(&shared.stats.tokio_writes);
                        send_some(fd.as_raw_fd(), &chunk[at..])
                    })
                    .await;
                match sent {
                    Ok(n) => at += n,
                    Err(_) => return shared.close(),
                }
            }
        }
    }
}

pub(crate) async fn read_task(shared: Arc<Shared>, sock: Arc<Registered>) {
    let mut buf = BytesMut::with_capacity(READ_CHUNK);
    loop {
        let Ok(mut ready) = sock.readable().await else {
            return shared.close();
        };
        bump(&shared.stats.tokio_reads);
        match recv_some(shared.sock.as_raw_fd(), &mut buf) {
            Ok((0, _)) => return shared.close(),
            Ok((_, more)) => {
                if !more {
                    // Sound under edge-triggered epoll: new bytes raise a new edge.
                    ready.clear_ready();
                }
                match shared.sort(&mut buf, false) {
                    Ok(true) => shared.wake_loop(),
                    Ok(false) => {}
                    Err(_) => return shared.close(),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(_) => return shared.close(),
        }
    }
}

pub(crate) async fn guardian_task(shared: Arc<Shared>, period: Duration) {
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen = shared.stats.loop_reads.load(Relaxed);
    while !shared.closed.load(Acquire) {
        tick.tick().await;
        bump(&shared.stats.guardian_ticks);
        let reads = shared.stats.loop_reads.load(Relaxed);
        if reads != seen {
            seen = reads;
            continue;
        }
        if !read_is_due(shared.sock.as_raw_fd()) {
            continue;
        }
        // The loop holds this lock only inside a read: then it is not blocked after all.
        let Ok(mut rx) = shared.rx.try_lock() else {
            continue;
        };
        bump(&shared.stats.guardian_reads);
        if shared.read_here(&mut rx, false) {
            shared.wake_loop();
        }
    }
}

pub(crate) fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        // One worker: a link's tasks are few, and the machine's other cores belong to the engine.
        // It starts on the first link, after the process has pinned itself, and inherits that.
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("the tokio runtime starts")
    })
}
