//! The class that Python sees. All its methods run on the event loop's thread.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::frame::{Frame, HEADER, MAX_FRAME, encode};
use crate::shared::{Arm, Flush, Out, Shared, Stats, bump, lock};
use crate::socket::READ_CHUNK;
use crate::tasks::{guardian_task, read_task, runtime, write_task};

/// Items closer together than this belong to one burst.
pub(crate) const BURST: Duration = Duration::from_micros(50);

/// One end of a link, used from its event loop's thread.
#[pyclass(frozen)]
pub(crate) struct Link {
    shared: Arc<Shared>,
    dispatch: Py<PyAny>,
    call_soon: Py<PyAny>,
    /// The bound `flush`, kept so that scheduling it makes no method object each time.
    flush: OnceLock<Py<PyAny>>,
    /// The emptied vector of the last drain, to be swapped in at the next.
    spare: Mutex<Vec<Frame>>,
}

impl Link {
    /// What the coming dispatch sends answers something new: it opens a burst of its own, however
    /// short ago the last write was. Without this, fast round trips look like a burst.
    fn turn_begins(&self) {
        if self.shared.policy == Flush::Adaptive {
            lock(&self.shared.out).last_direct = None;
        }
    }

    /// Takes all waiting frames and gives each to Python. No lock is held while Python runs.
    fn deliver(&self, py: Python<'_>) -> PyResult<()> {
        self.turn_begins();
        let mut batch = std::mem::take(&mut *lock(&self.spare));
        std::mem::swap(&mut batch, &mut *lock(&self.shared.inbox));
        for frame in batch.drain(..) {
            let body = PyBytes::new(py, &frame.body);
            self.dispatch.call1(py, (frame.stream, frame.kind, body))?;
        }
        *lock(&self.spare) = batch;
        Ok(())
    }
}

#[pymethods]
impl Link {
    /// Takes over `fd`, a connected stream socket.
    #[new]
    fn new(
        fd: RawFd,
        arm: &str,
        policy: &str,
        guardian_ms: u64,
        dispatch: Py<PyAny>,
        call_soon: Py<PyAny>,
    ) -> PyResult<Self> {
        let arm = match arm {
            "a" => Arm::A,
            "b" => Arm::B,
            "c" => Arm::C,
            _ => return Err(PyValueError::new_err("the arm is a, b or c")),
        };
        let policy = match policy {
            "soon" => Flush::Soon,
            "direct" => Flush::Direct,
            "adaptive" => Flush::Adaptive,
            _ => return Err(PyValueError::new_err("the policy is soon, direct or adaptive")),
        };
        // SAFETY: plain system call; the result is checked.
        let wake_fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if wake_fd < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: the caller detached `fd` from its Python socket; it is ours alone to close.
        let sock = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        let shared = Arc::new(Shared {
            arm,
            policy,
            sock: sock.clone(),
            // SAFETY: just made, and nobody else has it.
            wake_fd: unsafe { OwnedFd::from_raw_fd(wake_fd) },
            wake_pending: AtomicBool::new(false),
            out: Mutex::new(Out {
                buf: Vec::with_capacity(READ_CHUNK),
                tokio_owns: false,
                flush_scheduled: false,
                last_direct: None,
                gathered: 0,
                bursty: false,
            }),
            kick: Notify::new(),
            inbox: Mutex::default(),
            rx: Mutex::new(BytesMut::with_capacity(READ_CHUNK)),
            closed: AtomicBool::new(false),
            stats: Stats::default(),
        });
        let rt = runtime();
        let _context = rt.enter();
        // In arm `c` tokio must not watch for readability, or each arrival would wake it as well.
        let interest = if arm == Arm::C {
            Interest::WRITABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        // SAFETY: `registered` holds the descriptor open for as long as it is registered.
        let registered = unsafe { AsyncFd::register_with_interest(sock, interest) };
        let registered = Arc::new(registered.map_err(io::Error::from)?);
        rt.spawn(write_task(shared.clone(), registered.clone()));
        if arm != Arm::C {
            rt.spawn(read_task(shared.clone(), registered));
        } else if guardian_ms > 0 {
            rt.spawn(guardian_task(shared.clone(), Duration::from_millis(guardian_ms)));
        }
        Ok(Link {
            shared,
            dispatch,
            call_soon,
            flush: OnceLock::new(),
            spare: Mutex::default(),
        })
    }

    #[getter]
    fn wake_fd(&self) -> RawFd {
        self.shared.wake_fd.as_raw_fd()
    }

    /// Gives the link its own bound `flush` to schedule.
    fn bind_flush(&self, flush: Py<PyAny>) -> PyResult<()> {
        self.flush
            .set(flush)
            .map_err(|_| PyRuntimeError::new_err("bound already"))
    }

    /// Queues one frame; writes it at once if it opens a burst, else once for the whole burst.
    fn send(&self, py: Python<'_>, stream: u32, kind: u8, body: &[u8]) -> PyResult<()> {
        let shared = &*self.shared;
        if body.len() + HEADER > MAX_FRAME {
            return Err(PyValueError::new_err("the payload is larger than a frame"));
        }
        {
            let mut out = lock(&shared.out);
            encode(&mut out.buf, stream, kind, body);
            out.gathered += 1;
            if out.flush_scheduled || out.tokio_owns {
                return Ok(());
            }
            out.gathered = 1;
            if shared.policy == Flush::Direct || shared.policy == Flush::Adaptive && !out.bursty {
                let now = Instant::now();
                if out.last_direct.is_none_or(|then| now - then >= BURST) {
                    out.last_direct = Some(now);
                    shared.emit(&mut out);
                    return Ok(());
                }
            }
            out.flush_scheduled = true;
        }
        bump(&shared.stats.flushes_scheduled);
        let flush = self
            .flush
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("not bound"))?;
        self.call_soon.call1(py, (flush,))?;
        Ok(())
    }

    /// Scheduled on the loop: writes what gathered during the turn.
    fn flush(&self) {
        let mut out = lock(&self.shared.out);
        out.flush_scheduled = false;
        out.bursty = out.gathered > 1;
        self.shared.emit(&mut out);
        if self.shared.policy == Flush::Direct {
            out.last_direct = Some(Instant::now());
        }
    }

    /// The eventfd's reader callback: frames that tokio has decoded.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        let mut count: u64 = 0;
        // SAFETY: eight bytes into a live integer.
        unsafe { libc::read(self.shared.wake_fd.as_raw_fd(), (&raw mut count).cast(), 8) };
        // Cleared before the queue is taken: a frame pushed in between wakes the loop once too
        // often, never once too few.
        self.shared.wake_pending.store(false, SeqCst);
        self.deliver(py)
    }

    /// The socket's own reader callback, arm `c` only.
    fn on_readable(&self, py: Python<'_>) -> PyResult<()> {
        {
            // The guardian may hold this for the length of one read; its frames come first.
            let mut rx = lock(&self.shared.rx);
            self.shared.read_here(&mut rx, true);
        }
        self.deliver(py)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let s = &self.shared.stats;
        let dict = PyDict::new(py);
        for (name, counter) in [
            ("loop_writes", &s.loop_writes),
            ("tokio_writes", &s.tokio_writes),
            ("loop_reads", &s.loop_reads),
            ("tokio_reads", &s.tokio_reads),
            ("writer_kicks", &s.writer_kicks),
            ("loop_wakes", &s.loop_wakes),
            ("flushes_scheduled", &s.flushes_scheduled),
            ("guardian_ticks", &s.guardian_ticks),
            ("guardian_reads", &s.guardian_reads),
        ] {
            dict.set_item(name, counter.load(Relaxed))?;
        }
        Ok(dict)
    }
}
