//! What the environment says about devices and faults, read at the first call. All names begin with
//! `HEADRACE_FAKECUDA_`:
//!
//! | Name | Meaning | Default |
//! |---|---|---|
//! | `DEVICES` | number of devices | 1 |
//! | `INIT` | code that `cuInit` returns, such as 100, 34, 803, 999 | 0 |
//! | `DRIVER_VERSION` | what `cuDriverGetVersion` says | 13000 |
//! | `MEMORY_MB` | memory of each device; what goes beyond is out of memory | 4096 |
//! | `PINNED_MB` | all pinned memory there may be | 4096 |
//! | `POOLS` | 0: devices have no memory pools | 1 |
//! | `H2D_GBPS`, `D2H_GBPS` | speed of copies, in 10^9 bytes a second; 0: no time beyond the copy itself | 0 |
//! | `FAIL` | `symbol:nth:code`, comma-separated: that call of a function fails, counted from 1 | |
//! | `STICKY` | `nth:code`: the nth operation that streams run fails and leaves the device broken | |
//!
//! In `FAIL`, `nth+` means this call and every later one, and a symbol that ends in `*` stands for all that
//! begin so, counted together: `cuStreamCreate*:3:2`. A symbol that is missing altogether is not scripted here:
//! a test copies the shared object and changes the name in the copy.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::code::{Code, Status};

const PREFIX: &str = "HEADRACE_FAKECUDA_";
const MIB: u64 = 1 << 20;

/// Devices and faults of this process.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) devices: usize,
    pub(crate) init: Status,
    pub(crate) driver_version: i32,
    pub(crate) memory_bytes: u64,
    pub(crate) pinned_bytes: u64,
    pub(crate) pools: bool,
    pub(crate) to_device_gbps: f64,
    pub(crate) to_host_gbps: f64,
    failures: Vec<Failure>,
    sticky: Option<(u64, Code)>,
    operations: AtomicU64,
}

/// Some calls of a function, or of a family of functions, that fail.
#[derive(Debug)]
struct Failure {
    symbol: String,
    family: bool,
    nth: u64,
    later: bool,
    code: Code,
    calls: AtomicU64,
}

impl Script {
    /// Reads the environment. What cannot be understood is said on standard error and left out: a test that
    /// misspells its fault should not find the fault working.
    pub(crate) fn from_environment() -> Self {
        let text = |name: &str| std::env::var(format!("{PREFIX}{name}")).unwrap_or_default();
        let init = number(&text("INIT"), 0);
        Self {
            devices: number(&text("DEVICES"), 1),
            init: if init == 0 { Ok(()) } else { Err(Code::known(init).unwrap_or(Code(999))) },
            driver_version: number(&text("DRIVER_VERSION"), 13_000),
            memory_bytes: number(&text("MEMORY_MB"), 4096) * MIB,
            pinned_bytes: number(&text("PINNED_MB"), 4096) * MIB,
            pools: number(&text("POOLS"), 1) != 0,
            to_device_gbps: number(&text("H2D_GBPS"), 0.0),
            to_host_gbps: number(&text("D2H_GBPS"), 0.0),
            failures: text("FAIL")
                .split(',')
                .filter(|part| !part.is_empty())
                .filter_map(Failure::read)
                .collect(),
            sticky: sticky(&text("STICKY")),
            operations: AtomicU64::new(0),
        }
    }

    /// Counts a call, and says whether it is one that fails.
    pub(crate) fn called(&self, symbol: &str) -> Status {
        let mut outcome = Ok(());
        for failure in self.failures.iter().filter(|failure| failure.covers(symbol)) {
            outcome = outcome.and(failure.called());
        }
        outcome
    }

    /// Counts an operation that a stream is about to run, and says whether the device breaks at it.
    pub(crate) fn runs(&self) -> Status {
        let nth = self.operations.fetch_add(1, Ordering::Relaxed) + 1;
        match self.sticky {
            Some((at, code)) if at == nth => Err(code),
            _ => Ok(()),
        }
    }
}

impl Failure {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (symbol, nth, code) = (parts.next()?, parts.next()?, parts.next()?);
        let (nth, later) = nth.strip_suffix('+').map_or((nth, false), |nth| (nth, true));
        let (symbol, family) = symbol.strip_suffix('*').map_or((symbol, false), |symbol| (symbol, true));
        let read = (|| {
            let code = Code::known(code.parse().ok()?)?;
            Some(Self {
                symbol: symbol.to_owned(),
                family,
                nth: nth.parse().ok()?,
                later,
                code,
                calls: AtomicU64::new(0),
            })
        })();
        read.or_else(|| complain(text))
    }

    fn covers(&self, symbol: &str) -> bool {
        if self.family { symbol.starts_with(&self.symbol) } else { symbol == self.symbol }
    }

    fn called(&self) -> Status {
        let nth = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if nth == self.nth || (self.later && nth > self.nth) { Err(self.code) } else { Ok(()) }
    }
}

fn sticky(text: &str) -> Option<(u64, Code)> {
    if text.is_empty() {
        return None;
    }
    let read = || {
        let (nth, code) = text.split_once(':')?;
        Some((nth.parse().ok()?, Code::known(code.parse().ok()?)?))
    };
    read().or_else(|| complain(text))
}

fn number<T: std::str::FromStr + Copy>(text: &str, default: T) -> T {
    if text.is_empty() {
        return default;
    }
    text.parse().ok().or_else(|| complain(text)).unwrap_or(default)
}

#[allow(clippy::print_stderr, reason = "a script that is not understood has no other way to say so")]
fn complain<T>(text: &str) -> Option<T> {
    eprintln!("{PREFIX}*: {text:?} is not understood");
    None
}
