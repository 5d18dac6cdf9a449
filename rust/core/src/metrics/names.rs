//! Every family of metrics: its name, what it counts, in which unit, by which labels. Names, labels and
//! meanings are what dashboards are built on, so one that has been released is never changed.
//!
//! A label is either a *word* of a fixed set (a reason, a side) or a *name* that somebody chose (an endpoint
//! that this process serves, a batcher, a device). Of names there are at most [`NAMES_MAX`] in each family;
//! what comes later is counted under [`OVERFLOW`]. Families of workers also carry the labels that their owners
//! gave them, see `labels`. No label of ours ever holds a request id, an address, or anything a peer sent.

/// Most names of one label, in one process. A worker has at most 128 endpoints.
pub const NAMES_MAX: usize = 128;

/// The name under which those beyond [`NAMES_MAX`] are counted together.
pub const OVERFLOW: &str = "_overflow";

/// Upper bounds of histograms of time in seconds: from what a call on one machine takes to the longest
/// deadline that is usual. Batchers have their own, powers of two from 1 us to 134 s.
pub const TIME_BOUNDS_S: [f64; TIME_BOUNDS] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0, 120.0, 300.0, 600.0,
];

/// How many there are.
pub const TIME_BOUNDS: usize = 21;

/// What a family is, in Prometheus' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only rises.
    Counter,
    /// It rises and falls.
    Gauge,
    /// How values are distributed.
    Histogram,
}

/// What its values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A share of 1.
    Ratio,
    /// A number of what the name says.
    Count,
}

/// One family of metrics.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What its values are.
    pub unit: Unit,
    /// What an operator reads about it.
    pub help: &'static str,
    /// Its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
}

macro_rules! families {
    ($($ident:ident = $name:literal, $kind:ident, $unit:ident, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $ident: Family = Family {
                name: $name,
                kind: Kind::$kind,
                unit: Unit::$unit,
                help: $help,
                labels: &[$($label),*],
            };
        )*

        /// All of them.
        pub const ALL: &[&Family] = &[$(&$ident),*];
    };
}

families! {
    // --- worker ---
    WORKER_REQUESTS = "headrace_worker_requests_total", Counter, Count, ["endpoint"],
        "Requests that were accepted, to run at once or to wait for a place.";
    WORKER_DURATION = "headrace_worker_request_duration_seconds", Histogram, Seconds, ["endpoint"],
        "From a request's arrival until its engine has ended, waiting for a place included.";
    WORKER_QUEUE = "headrace_worker_queue_seconds", Histogram, Seconds, ["endpoint"],
        "How long an accepted request waited for a place; 0 for one that found one at once.";
    WORKER_FIRST_RESPONSE = "headrace_worker_time_to_first_response_seconds", Histogram, Seconds,
        ["endpoint"],
        "From a request's arrival until its engine pushed the first item.";
    WORKER_TRANSIT = "headrace_worker_network_transit_seconds", Histogram, Seconds, ["endpoint"],
        "From the moment a router sent a request until it arrived: receive time minus send time minus the \
         link's clock offset. Both times are of monotonic clocks, and the offset is estimated from the \
         stamps of PING and PONG, so that no two wall clocks are trusted; what the two directions differ by \
         is not seen. The first requests of a link, before the offset is known, are not in it.";
    WORKER_INFLIGHT = "headrace_worker_inflight_requests", Gauge, Count, ["endpoint"],
        "Requests that an engine has.";
    WORKER_QUEUED = "headrace_worker_queued_requests", Gauge, Count, ["endpoint"],
        "Accepted requests that wait for a place.";
    WORKER_REQUEST_BYTES = "headrace_worker_request_bytes_total", Counter, Bytes, ["endpoint"],
        "Bytes of the payloads of accepted requests, and of those items of request streams that engines \
         took.";
    WORKER_RESPONSE_BYTES = "headrace_worker_response_bytes_total", Counter, Bytes, ["endpoint"],
        "Bytes of the items that engines pushed, counted when the request ends.";
    WORKER_RESPONSE_ITEMS = "headrace_worker_response_items_total", Counter, Count, ["endpoint"],
        "Items that engines pushed, counted when the request ends.";
    WORKER_ERRORS = "headrace_worker_errors_total", Counter, Count, ["endpoint", "error_type"],
        "Accepted requests that ended with an error. A cancelled request is none. deserialization: the \
         request cannot be decoded; generate: the engine failed; refused: it had no room; serialization: an \
         item cannot be encoded; too_large: an item is over the limit; response_stream, publish_response, \
         publish_final: the link was lost before the response was begun, during it, before its end; deadline, \
         item_timeout, slow_consumer: the call's time was over; request_stream: items of its request held too \
         much memory; shutdown: the worker closed. And invalid_message, without an endpoint: a router broke \
         the protocol, and its link was closed.";
    WORKER_CANCELLATION = "headrace_worker_cancellation_total", Counter, Count, ["endpoint"],
        "Accepted requests that their callers cancelled, closed or left. They are no errors.";
    WORKER_REJECTIONS = "headrace_worker_rejections_total", Counter, Count, ["endpoint", "reason"],
        "Requests that were refused. The endpoint is empty where the request names none that is served \
         here.";
    WORKER_READY = "headrace_worker_ready_workers", Gauge, Count, [],
        "Workers of this process that take requests: they do not drain, and their engines answer.";
    WORKER_CONCURRENCY = "headrace_worker_concurrency_limit", Gauge, Count, [],
        "Requests that the workers of this process run at once, at most.";
    WORKER_QUEUE_LIMIT = "headrace_worker_queue_limit", Gauge, Count, [],
        "Requests that may wait at the workers of this process.";
    WORKER_PROCESS_UP = "headrace_worker_process_up", Gauge, Count, ["worker_process"],
        "Whether a worker process answered the scrape: 1 or 0. Told by the parent of worker processes \
         alone.";

    // --- router ---
    ROUTER_REQUESTS = "headrace_router_requests_total", Counter, Count, [],
        "Calls that were begun. Further attempts are retries, and not counted here.";
    ROUTER_QUEUE = "headrace_router_queue_seconds", Histogram, Seconds, [],
        "From a call's beginning until its request was first sent: the wait for a worker that takes it.";
    ROUTER_SEND = "headrace_router_send_seconds", Histogram, Seconds, [],
        "From sending a request until a worker has accepted it.";
    ROUTER_TTFT = "headrace_router_roundtrip_ttft_seconds", Histogram, Seconds, [],
        "From sending a request until the first item of its response arrived.";
    ROUTER_INFLIGHT = "headrace_router_inflight_requests", Gauge, Count, [],
        "Requests that were sent and whose response has not ended.";
    ROUTER_WAITING = "headrace_router_waiting_requests", Gauge, Count, [],
        "Calls that wait for a worker that takes them.";
    ROUTER_ERRORS = "headrace_router_errors_total", Counter, Count, ["error_type"],
        "Calls and streams that ended with an error. A stream that is resumed elsewhere after a loss counts as \
         disconnected each time, a call that runs again by itself only if its last run fails.";
    ROUTER_CANCELLATION = "headrace_router_cancellation_total", Counter, Count, [],
        "Calls and streams that their callers cancelled, closed or left before the end. They are no errors.";
    ROUTER_RETRIES = "headrace_router_retries_total", Counter, Count, ["reason"],
        "Further attempts, by what ended the one before. overloaded, draining, no_such_endpoint: it was \
         refused; unsent: its link was lost before it can have run; lost: it may have run, and the call \
         permits to run it again; shutdown: the worker closed; resumed: its stream was lost, and goes on \
         elsewhere.";
    ROUTER_EJECTIONS = "headrace_router_ejections_total", Counter, Count, [],
        "Times that a worker was taken out of the choice because its link kept being lost under calls.";
    ROUTER_INSTANCES = "headrace_router_instances", Gauge, Count, ["state"],
        "Workers that the routers of this process know, by state.";

    // --- link ---
    LINK_SENT_BYTES = "headrace_link_sent_bytes_total", Counter, Bytes, ["side"],
        "Bytes written to links, by the side that this process is of them: worker or router.";
    LINK_RECEIVED_BYTES = "headrace_link_received_bytes_total", Counter, Bytes, ["side"],
        "Bytes read from links.";
    LINK_SENT_FRAMES = "headrace_link_sent_frames_total", Counter, Count, ["side"],
        "Frames written to links.";
    LINK_RECEIVED_FRAMES = "headrace_link_received_frames_total", Counter, Count, ["side"],
        "Frames read from links.";
    LINK_OPENED = "headrace_link_opened_total", Counter, Count, ["side"],
        "Links that were opened.";
    LINK_OPEN = "headrace_link_open_links", Gauge, Count, ["side"],
        "Links that are open.";
    LINK_STREAMS = "headrace_link_open_streams", Gauge, Count, ["side"],
        "Streams that are open on all links.";
    LINK_ROUND_TRIP = "headrace_link_round_trip_seconds", Histogram, Seconds, ["side"],
        "From PING to PONG, by a monotonic clock. A worker sends PING as a link opens and every \
         ping_interval; a router when the link is silent for that long.";
    LINK_CLOCK_OFFSET = "headrace_link_clock_offset_seconds", Gauge, Seconds, ["side"],
        "The peer's monotonic clock minus the own one, as PING and PONG found it last on any link; it means \
         something only by its changes.";
    LINK_BLOCKED_WRITES = "headrace_link_blocked_writes_total", Counter, Count, ["side"],
        "Times that a socket took less than it was offered, so that what follows had to wait for the peer.";
    LINK_CLAIMED_BYTES = "headrace_link_claimed_bytes", Gauge, Bytes, [],
        "Bytes that peers may make this process hold at present; new windows shrink as it nears 256 MiB.";

    // --- batch ---
    BATCH_SUBMITTED = "headrace_batch_submitted_total", Counter, Count, ["batcher"],
        "Items that were submitted, refused ones included.";
    BATCH_REJECTED = "headrace_batch_rejected_total", Counter, Count, ["batcher", "reason"],
        "Items that were refused.";
    BATCH_COMPLETED = "headrace_batch_completed_total", Counter, Count, ["batcher"],
        "Items that the function answered.";
    BATCH_FAILED = "headrace_batch_failed_total", Counter, Count, ["batcher"],
        "Items for which the function failed, or whose worker was lost.";
    BATCH_EXPIRED = "headrace_batch_expired_total", Counter, Count, ["batcher"],
        "Items whose time was over, or would have been, while they waited.";
    BATCH_CANCELLED = "headrace_batch_cancelled_total", Counter, Count, ["batcher"],
        "Items that were cancelled, waiting or with the function.";
    BATCH_CLOSED = "headrace_batch_closed_total", Counter, Count, ["batcher"],
        "Items that waited when the batcher was closed.";
    BATCH_TIMED_OUT = "headrace_batch_timed_out_total", Counter, Count, ["batcher"],
        "Items whose time was over while the function had them.";
    BATCH_LATE_RESULTS = "headrace_batch_late_results_total", Counter, Count, ["batcher"],
        "Results that came when nobody waited for them any more.";
    BATCH_WORKERS_LOST = "headrace_batch_workers_lost_total", Counter, Count, ["batcher"],
        "Workers that were given up because their function hung or died.";
    BATCH_BATCHES = "headrace_batch_batches_total", Counter, Count, ["batcher", "reason"],
        "Batches that were handed to the function, by why they were closed.";
    BATCH_SIZE = "headrace_batch_size", Histogram, Count, ["batcher"],
        "Items of each batch.";
    BATCH_FILL = "headrace_batch_fill_ratio", Histogram, Ratio, ["batcher"],
        "Items of each batch as a share of max_batch_size.";
    BATCH_COST = "headrace_batch_cost", Histogram, Count, ["batcher"],
        "Cost of each batch.";
    BATCH_QUEUE_WAIT = "headrace_batch_queue_wait_seconds", Histogram, Seconds, ["batcher"],
        "Each item's time from its submission until the function got it.";
    BATCH_FORMATION = "headrace_batch_formation_seconds", Histogram, Seconds, ["batcher"],
        "Each batch's time from its oldest item's submission until the function got it.";
    BATCH_EXECUTION = "headrace_batch_execution_seconds", Histogram, Seconds, ["batcher"],
        "Each batch's time with the function.";
    BATCH_QUEUED = "headrace_batch_queued_items", Gauge, Count, ["batcher"],
        "Items that wait.";
    BATCH_DISPATCHED = "headrace_batch_dispatched_items", Gauge, Count, ["batcher"],
        "Items that the function has and somebody waits for.";
    BATCH_ABANDONED = "headrace_batch_abandoned_items", Gauge, Count, ["batcher"],
        "Items that the function has and nobody waits for any more.";
    BATCH_INFLIGHT = "headrace_batch_inflight_batches", Gauge, Count, ["batcher"],
        "Batches that the function has.";
    BATCH_CONSECUTIVE_ERRORS = "headrace_batch_consecutive_errors", Gauge, Count, ["batcher"],
        "Batches that failed as a whole since one last did not.";

    // --- cuda ---
    CUDA_STREAMS = "headrace_cuda_streams", Gauge, Count, ["device"],
        "Streams of the pool that exist.";
    CUDA_STREAMS_LIMIT = "headrace_cuda_streams_limit", Gauge, Count, ["device"],
        "Streams that the pool may have.";
    CUDA_LEASED = "headrace_cuda_leased_streams", Gauge, Count, ["device"],
        "Streams that are leased.";
    CUDA_WAITING = "headrace_cuda_waiting_leases", Gauge, Count, ["device"],
        "Callers that wait for a stream.";
    CUDA_LEASES = "headrace_cuda_leases_total", Counter, Count, ["device"],
        "Leases that were given.";
    CUDA_LEASE_TIMEOUTS = "headrace_cuda_lease_timeouts_total", Counter, Count, ["device"],
        "Callers that waited for a stream in vain.";
    CUDA_CAPACITY_ERRORS = "headrace_cuda_capacity_errors_total", Counter, Count, ["device"],
        "Leases that were refused at once because every stream was leased.";
    CUDA_LEASE_WAIT = "headrace_cuda_lease_wait_seconds", Histogram, Seconds, ["device"],
        "How long callers waited for the stream that they got.";
    CUDA_ALLOCATED_BYTES = "headrace_cuda_allocated_bytes", Gauge, Bytes, ["device"],
        "Device memory that the pool has allocated; what other libraries allocate is not in it.";
    CUDA_BUDGET_BYTES = "headrace_cuda_budget_bytes", Gauge, Bytes, ["device"],
        "Device memory that the pool may allocate.";
    CUDA_COPIED_BYTES = "headrace_cuda_copied_bytes_total", Counter, Bytes, ["device", "direction"],
        "Bytes that were copied, by direction: to_device or to_host.";
    CUDA_ERRORS = "headrace_cuda_errors_total", Counter, Count, ["device"],
        "Calls of the driver that failed.";
    CUDA_POISONED = "headrace_cuda_poisoned", Gauge, Count, ["device"],
        "Whether the device's context has failed for good: 1 or 0. The process must be started again.";

    // --- the process ---
    LOOP_LAG = "headrace_loop_lag_seconds", Histogram, Seconds, [],
        "How long an event loop took to have a turn when it was asked for one, every half second while \
         metrics are read. A loop that is blocked is in it once it goes on; until then see \
         headrace_loop_blocked_seconds.";
    LOOP_BLOCKED = "headrace_loop_blocked_seconds", Gauge, Seconds, [],
        "For how long the event loop that is worst off has not had the turn that it was asked for.";
    BUILD_INFO = "headrace_build_info", Gauge, Count, ["version"],
        "Always 1; the version of the package is its label.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_are() {
        for family in ALL {
            let Family { name, kind, unit, help, labels } = family;
            assert!(name.starts_with("headrace_") && !name.contains("__"), "{name}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            let stem = name.strip_suffix("_total").unwrap_or(name);
            let suffix = match unit {
                Unit::Seconds => Some("_seconds"),
                Unit::Bytes => Some("_bytes"),
                Unit::Ratio => Some("_ratio"),
                Unit::Count => None,
            };
            assert!(suffix.is_none_or(|suffix| stem.ends_with(suffix)), "{name}");
            assert!(help.ends_with('.') && !help.contains("  "), "{name}: {help}");
            assert!(labels.len() <= 2, "{name}");
        }
    }

    #[test]
    fn names_are_unique() {
        for (index, family) in ALL.iter().enumerate() {
            assert!(ALL.iter().skip(index + 1).all(|other| other.name != family.name), "{}", family.name);
        }
    }

    #[test]
    fn bounds_rise_from_100_us_to_600_s() {
        assert!(TIME_BOUNDS_S.is_sorted_by(|a, b| a < b));
        assert_eq!((TIME_BOUNDS_S.first(), TIME_BOUNDS_S.last()), (Some(&1e-4), Some(&600.0)));
    }
}
