//! What a caller asks for.

use std::time::Duration;

use crate::link::Item;

/// What a caller asks for. `None` in the timeouts means none at all; the router's defaults are in
/// [`crate::RouterConfig`].
#[derive(Clone, Debug)]
pub struct CallOptions {
    /// The request.
    pub payload: Item,
    /// The endpoint; empty for the only one there is.
    pub endpoint: String,
    /// The caller's name for the request; a random one when empty.
    pub request_id: String,
    /// Deadline of the whole call.
    pub timeout: Option<Duration>,
    /// How long to wait on an empty stream.
    pub item_timeout: Option<Duration>,
    /// Metadata for the engine.
    pub metadata: Vec<(String, String)>,
    /// W3C trace context.
    pub traceparent: String,
    /// The instance to use, by id or address; any when empty.
    pub instance: String,
    /// Calls with the same affinity go to the same instance, as long as there is room; none when empty.
    pub affinity: String,
    /// Whether the request may run more than once: a call that was lost is then tried again even if it may
    /// have run. Not for request streams, see [`crate::Router::call_streaming`].
    pub idempotent: bool,
    /// Whether the caller will continue a lost stream by [`crate::ResponseStream::resume`]. That permits a second run
    /// before the first item too. Not for request streams.
    pub resumable: bool,
    /// Whether one item or a stream is wanted.
    pub single: bool,
}

impl CallOptions {
    /// Options with the documented defaults for this payload.
    #[must_use]
    pub const fn new(payload: Item) -> Self {
        Self {
            payload,
            endpoint: String::new(),
            request_id: String::new(),
            timeout: Some(Duration::from_secs(600)),
            item_timeout: Some(Duration::from_secs(60)),
            metadata: Vec::new(),
            traceparent: String::new(),
            instance: String::new(),
            affinity: String::new(),
            idempotent: false,
            resumable: false,
            single: false,
        }
    }
}
