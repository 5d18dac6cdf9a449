//! How Python's items go out: encoded the moment they are pushed, into an engine's answer or a caller's
//! request. They lie in the link's outbound buffer when a push returns, so whoever yielded an object may use
//! it again.

use std::fmt::Debug;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use headrace::engine::PushError;
use headrace::wire::limits::REFERENCE_BYTES_MIN;
use headrace::wire::outbound::Pushed;
use headrace::{RequestSink, Responder};
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::bridge::hub::Hub;
use crate::bridge::parking::Parking;
use crate::bridge::waiter::Pause;
use crate::errors::{item_too_large, stream_killed};
use crate::ffi::ForkSafe;
use crate::payload::{Codec, Encoded, share};

/// Items pushed before the loop gets a turn.
const BURST_ITEMS_MAX: u32 = 64;
/// Items that follow each other this closely get as long together before the loop gets a turn.
const BURST_TIME_MAX: Duration = Duration::from_micros(100);
/// The same for items that come slowly, from a generator that computes without ever awaiting.
const SLOW_BURST_TIME_MAX: Duration = Duration::from_millis(10);

/// Where encoded items go.
pub(crate) trait Outlet: Debug {
    fn push(&self, encoding: u8, payload: &[u8]) -> Result<Pushed, PushError>;
    fn push_shared(&self, encoding: u8, payload: Bytes) -> Result<Pushed, PushError>;
    fn poll_drained(&self, cx: &Context<'_>) -> Poll<()>;
}

impl Outlet for Responder {
    fn push(&self, encoding: u8, payload: &[u8]) -> Result<Pushed, PushError> {
        Self::push(self, encoding, payload)
    }

    fn push_shared(&self, encoding: u8, payload: Bytes) -> Result<Pushed, PushError> {
        Self::push_shared(self, encoding, payload)
    }

    fn poll_drained(&self, cx: &Context<'_>) -> Poll<()> {
        Self::poll_drained(self, cx)
    }
}

impl Outlet for RequestSink {
    fn push(&self, encoding: u8, payload: &[u8]) -> Result<Pushed, PushError> {
        Self::push(self, encoding, payload)
    }

    fn push_shared(&self, encoding: u8, payload: Bytes) -> Result<Pushed, PushError> {
        Self::push_shared(self, encoding, payload)
    }

    fn poll_drained(&self, cx: &Context<'_>) -> Poll<()> {
        Self::poll_drained(self, cx)
    }
}

#[derive(Debug)]
struct Burst {
    items: u32,
    turn: u64,
    began: Instant,
    last: Instant,
}

/// What has to happen before the next item.
pub(crate) enum Wait {
    None,
    /// The loop should have a turn.
    Turn,
    /// Credit: this is for the task to wait for.
    For(Py<PyAny>),
}

impl Wait {
    /// What a Python caller awaits, if anything.
    pub(crate) fn awaitable(self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let on = match self {
            Self::None => return Ok(None),
            Self::Turn => py.None(),
            Self::For(future) => future,
        };
        Ok(Some(Py::new(py, Pause::new(on))?.into_any()))
    }
}

/// See the module's text. What a push looks at comes first, for the reason given in the core's `Stream`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Pushing<O: Outlet> {
    pub(crate) hub: Arc<Hub>,
    pub(crate) codec: Py<Codec>,
    outlet: ForkSafe<Mutex<Option<O>>>,
    burst: Mutex<Burst>,
    parking: Mutex<Option<Parking>>,
}

impl<O: Outlet> Pushing<O> {
    pub(crate) fn new(hub: Arc<Hub>, codec: Py<Codec>, outlet: O) -> Self {
        let now = Instant::now();
        let burst = Burst { items: 0, turn: hub.turn(), began: now, last: now };
        Self {
            hub,
            codec,
            outlet: ForkSafe::new(Mutex::new(Some(outlet))),
            burst: Mutex::new(burst),
            parking: Mutex::new(None),
        }
    }

    /// Pushes an item; says what to wait for before the next.
    pub(crate) fn push_item(&self, object: &Bound<'_, PyAny>) -> PyResult<Wait> {
        Ok(match self.push_encoded(&self.codec.get().encode(object)?)? {
            Pushed::Waiting => self.wait_drained(object.py())?,
            Pushed::Buffered if self.wants_turn() => Wait::Turn,
            Pushed::Buffered => Wait::None,
        })
    }

    pub(crate) fn push_encoded(&self, encoded: &Encoded<'_>) -> PyResult<Pushed> {
        let py = encoded.bytes.py();
        let pushed = self.push_bytes(encoded);
        self.hub.settle(py)?;
        pushed.map_err(|error| push_error(py, &error))
    }

    pub(crate) fn push_bytes(&self, encoded: &Encoded<'_>) -> Result<Pushed, PushError> {
        let outlet = self.outlet.lock();
        let Some(outlet) = &*outlet else { return Err(PushError::Killed) };
        let bytes = encoded.bytes.as_bytes();
        if bytes.len() < REFERENCE_BYTES_MIN {
            outlet.push(encoded.encoding, bytes)
        } else {
            outlet.push_shared(encoded.encoding, share(&self.hub, &encoded.bytes))
        }
    }

    /// Whether the loop should have a turn before the next item.
    fn wants_turn(&self) -> bool {
        let mut burst = self.burst.lock();
        let turn = self.hub.turn();
        burst.items += 1;
        if burst.items < BURST_ITEMS_MAX && burst.items % 8 != 1 {
            // The clock is read for the first of every eight.
            return false;
        }
        let now = Instant::now();
        let gap = now - burst.last;
        burst.last = now;
        if turn != burst.turn {
            *burst = Burst { items: 1, turn, began: now, last: now };
            return false;
        }
        let limit = if gap < BURST_TIME_MAX { BURST_TIME_MAX } else { SLOW_BURST_TIME_MAX };
        if burst.items >= BURST_ITEMS_MAX || now - burst.began >= limit {
            *burst = Burst { items: 0, turn, began: now, last: now };
            return true;
        }
        false
    }

    /// What has to happen until the items have found their place.
    pub(crate) fn wait_drained(&self, py: Python<'_>) -> PyResult<Wait> {
        let kept = self.parking.lock().take();
        let place = kept.map_or_else(|| Parking::new(py, &self.hub), Ok)?;
        let cx = Context::from_waker(place.waker());
        let waits = self.with(|outlet| outlet.poll_drained(&cx).is_pending()).unwrap_or(false);
        // Several may wait here for the same.
        let waiter = waits.then(|| place.prepare(py).and_then(|_| place.give(py)));
        *self.parking.lock() = Some(place);
        Ok(waiter.transpose()?.map_or(Wait::None, Wait::For))
    }

    /// Looks at where the items go; `None` once it has been taken.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&O) -> T) -> Option<T> {
        self.outlet.lock().as_ref().map(look)
    }

    /// Takes it, to be ended.
    pub(crate) fn take(&self) -> Option<O> {
        self.outlet.lock().take()
    }

    /// Puts back what could not be ended.
    pub(crate) fn put_back(&self, outlet: O) {
        *self.outlet.lock() = Some(outlet);
    }

    /// Gives up the place to wait.
    pub(crate) fn release(&self) {
        let parking = self.parking.lock().take();
        drop(parking);
    }
}

pub(crate) fn push_error(py: Python<'_>, error: &PushError) -> PyErr {
    match error {
        PushError::TooLarge { limit, actual } => item_too_large(py, *limit, *actual),
        _ => stream_killed(py),
    }
}
