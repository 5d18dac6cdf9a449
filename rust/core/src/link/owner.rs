//! Whoever a link belongs to (a worker, a router, or a worker that checks itself), and what it decides about
//! it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headrace_wire::body::{RejectReason, RequestHead, Status};

use super::Link;
use crate::metrics::link::LinkMetrics;

/// What a link reports to its owner.
pub(crate) trait Owner: Send + Sync + std::fmt::Debug {
    /// A whole request arrived. Answers ACCEPT or REJECT at once; never blocks.
    fn on_request(&self, link: &Arc<Link>, id: u64, head: RequestHead, payload: Bytes);
    /// The worker's STATUS came.
    fn on_status(&self, status: Status);
    /// The worker takes no new requests on this link.
    fn on_goaway(&self);
    /// The peer broke the protocol; the link closes.
    fn on_broken(&self);
    /// A request was refused before it was whole, or without being given to the owner.
    fn on_refused(&self, reason: RejectReason);
    /// The link is closed, and so many streams were open on it; called once.
    fn on_closed(&self, reason: &str, lost: usize);
    /// Where the link is counted.
    fn metrics(&self) -> &'static LinkMetrics;
}

/// When a silent peer is asked, and when it is given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Liveness {
    pub(crate) ping_interval: Duration,
    pub(crate) ping_timeout: Duration,
}
