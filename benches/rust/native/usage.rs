//! What this process has used, as `benches/python/usage.py` says it, and the core it runs on.

use std::fs::read_to_string;

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::Outcome;

/// Keeps this process on one core. Threads inherit it.
pub(super) fn pin(cpu: usize) -> Outcome<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(format!("there is no core {cpu}").into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// CPU seconds of all threads so far.
pub(super) fn cpu_s() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// CPU seconds, and memory in KiB.
pub(super) fn read() -> Outcome<Value> {
    let status = read_to_string("/proc/self/status")?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok())
    };
    Ok(json!({
        "cpu_s": cpu_s(),
        "peak_rss_kib": kib("VmHWM:"),
        "anonymous_kib": kib("RssAnon:"),
    }))
}
