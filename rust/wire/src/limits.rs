//! Every maximum of the protocol, each with its reason. Nothing here is negotiated except what HELLO
//! carries: a peer may announce less than these, never more.

/// Bytes of the fixed frame header: `u32` body length, then kind, flags and a 48-bit stream id.
pub const HEADER_BYTES: usize = 12;

/// Largest body of one frame. A neighbour's token waits for at most one fragment of a large item: 64 KiB
/// take about 50 us at 10 Gbit/s, which is the wake-up cost of an idle core.
pub const FRAME_BODY_MAX: usize = 64 * 1024;

/// Largest body accepted before HELLO has been checked, so that an unauthenticated peer costs at most this.
/// The largest HELLO, with every endpoint at its longest, has 34 465 bytes.
pub const HELLO_BODY_MAX: usize = 36 * 1024;

/// Default bound on one reassembled item or request (both sides may set another; the smaller counts).
/// 32 MiB is what the field settled on: a 4k x 4k RGB image with room to spare.
pub const MESSAGE_MAX_DEFAULT: usize = 32 * 1024 * 1024;

/// Absolute bound on one reassembled message: lengths travel as `u32` and are added to small constants.
pub const MESSAGE_MAX: usize = 1 << 30;

/// Largest encoded request head (id, endpoint, metadata, trace): the field's limit, checked by the sender.
pub const HEAD_MAX: usize = 128 * 1024;

/// Most metadata entries in one request head. Each costs the worker two strings.
pub const METADATA_ENTRIES_MAX: usize = 128;

/// Longest endpoint name, in bytes of UTF-8.
pub const ENDPOINT_MAX: usize = 256;

/// Longest request id, in bytes of UTF-8: room for a UUID with a prefix.
pub const REQUEST_ID_MAX: usize = 128;

/// Longest `traceparent` value. Version 00 of W3C trace context has 55 characters.
pub const TRACEPARENT_MAX: usize = 128;

/// Longest free text in REJECT, ERROR and GOAWAY, in bytes of UTF-8; longer text is cut by the sender.
pub const TEXT_MAX: usize = 16 * 1024;

/// Most endpoints a worker announces.
pub const ENDPOINTS_MAX: usize = 128;

/// Largest authentication token in HELLO: 256-bit tokens in any usual spelling, with room.
pub const TOKEN_MAX: usize = 1024;

/// Default credit of one stream. At 50 us of turn-around it allows 5 GB/s, so it never limits one machine.
pub const STREAM_WINDOW_DEFAULT: u32 = 256 * 1024;

/// Smallest stream window. Half of it must hold a useful fragment.
pub const STREAM_WINDOW_MIN: u32 = 4 * 1024;

/// Largest window of a stream or a link: a quarter of what a `u32` counts, so sums cannot overflow.
pub const WINDOW_MAX: u32 = 1 << 30;

/// Default credit of a link: what may be on its way and not yet sorted into rings.
pub const LINK_WINDOW_DEFAULT: u32 = 4 * 1024 * 1024;

/// Smallest link window: four full frames, so that several streams can take turns.
pub const LINK_WINDOW_MIN: u32 = 4 * FRAME_BODY_MAX as u32;

/// Default bound on streams open at once on one link.
pub const STREAMS_PER_LINK_DEFAULT: u32 = 65_536;

/// Links that have not said a valid HELLO yet, per listener. Each holds one socket and 36 KiB.
pub const UNAUTHENTICATED_LINKS_MAX: usize = 256;

/// Milliseconds a peer has to say HELLO. Long enough for a loaded host, short enough to shed a port scan.
pub const HANDSHAKE_TIMEOUT_MS: u64 = 5_000;

/// Largest stream id: ids are 48 bits and never reused, which lasts nine years at a million requests a second.
pub const STREAM_ID_MAX: u64 = (1 << 48) - 1;

/// An item whose payload is immutable and at least this large travels by reference; below it, copying is
/// cheaper than one more entry in the vectored write.
pub const REFERENCE_BYTES_MIN: usize = 16 * 1024;

/// Fragments are put into the outbound buffer until this much is unwritten, so that turns are decided late.
pub const FILL_BYTES: usize = 256 * 1024;

/// First allocation for a message that arrives in fragments. It grows as the bytes really come.
pub const ASSEMBLY_BYTES_FIRST: usize = 256 * 1024;

/// Most bytes of control frames that may wait to be written. No credit bounds them, so a peer that asks
/// without reading the answers (PING after PING) would fill the memory; its link closes instead. An ACCEPT,
/// a PROLOGUE and two CREDITs for each of a link's 65 536 streams take 4 MiB.
pub const CONTROL_BYTES_MAX: usize = 16 * 1024 * 1024;
