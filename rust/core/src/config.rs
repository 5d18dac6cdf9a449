//! Settings of workers and routers: plain structs whose `Default` is the documented default, checked in one
//! place.

use std::time::Duration;

use headrace_wire::limits::{
    ENDPOINT_MAX, LINK_WINDOW_DEFAULT, LINK_WINDOW_MIN, MESSAGE_MAX, MESSAGE_MAX_DEFAULT,
    STREAM_WINDOW_DEFAULT, STREAM_WINDOW_MIN, STREAMS_PER_LINK_DEFAULT, TOKEN_MAX, WINDOW_MAX,
};

use crate::error::StartError;
use crate::link::Liveness;
use crate::metrics;
use crate::router::Policy;

/// Settings of a [`crate::Worker`].
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerConfig {
    /// Routers of another namespace are refused. Default `"default"`.
    pub namespace: String,
    /// Requests that run at once. Default 64.
    pub concurrency: usize,
    /// Requests that wait for a place; beyond it a request is rejected as overloaded. Default 64.
    pub queue: usize,
    /// How long [`crate::Worker::drain`] waits for requests in flight. Default 30 s.
    pub drain_timeout: Duration,
    /// Silence after which a peer is asked whether it is there. Default 5 s.
    pub ping_interval: Duration,
    /// Further silence after which it is given up. Default 5 s.
    pub ping_timeout: Duration,
    /// Silence of an engine that declares a health check, after which it is asked. Default 5 s.
    pub health_interval: Duration,
    /// Further silence after which the worker is not ready. Default 5 s.
    pub health_timeout: Duration,
    /// Largest request and item in bytes. Default 32 MiB.
    pub max_message_bytes: usize,
    /// Streams open at once on one link. Default 65,536.
    pub streams_per_link: u32,
    /// Credit of each request stream in bytes. Default 256 KiB.
    pub stream_window: u32,
    /// Labels of all that the metrics tell of the worker and its endpoints, by name: at most
    /// [`crate::metrics::LABELS_MAX`]. Default none.
    pub metrics_labels: Vec<(String, String)>,
    /// Token that routers must present. Default none.
    pub token: Option<String>,
    /// Allows addresses off loopback without encryption. Default false.
    pub insecure: bool,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            namespace: "default".to_owned(),
            concurrency: 64,
            queue: 64,
            drain_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(5),
            health_interval: Duration::from_secs(5),
            health_timeout: Duration::from_secs(5),
            max_message_bytes: MESSAGE_MAX_DEFAULT,
            streams_per_link: STREAMS_PER_LINK_DEFAULT,
            stream_window: STREAM_WINDOW_DEFAULT,
            metrics_labels: Vec::new(),
            token: None,
            insecure: false,
        }
    }
}

impl WorkerConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// The first one that is out of range, by name.
    pub fn check(&self) -> Result<(), StartError> {
        at_least_one("concurrency", self.concurrency as u64)?;
        at_least_one("streams_per_link", u64::from(self.streams_per_link))?;
        check_stream_window(self.stream_window)?;
        check_namespace(&self.namespace)?;
        at_least_1_ms("health_interval", self.health_interval)?;
        at_least_1_ms("health_timeout", self.health_timeout)?;
        metrics::labels::check(&self.metrics_labels)?;
        check_common(self.ping_interval, self.ping_timeout, self.max_message_bytes, self.token.as_deref())
    }

    pub(crate) const fn liveness(&self) -> Liveness {
        Liveness { ping_interval: self.ping_interval, ping_timeout: self.ping_timeout }
    }
}

/// Settings of a [`crate::Router`].
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// Workers of another namespace are refused. Default `"default"`.
    pub namespace: String,
    /// How an instance is picked. Default power of two choices.
    pub policy: Policy,
    /// Deadline of a call unless it brings its own. Default 600 s; `None` for none.
    pub timeout: Option<Duration>,
    /// How long a caller waits on an empty stream. Default 60 s; `None` for ever.
    pub item_timeout: Option<Duration>,
    /// How long a call waits for an instance. Default 5 s.
    pub instance_timeout: Duration,
    /// Further attempts for a call that provably did not run, or may run again. Default 2.
    pub retries: u32,
    /// Bytes of items that are kept to resume a stream; one that has brought more is not resumed. Default 1 MiB.
    pub max_resume_bytes: usize,
    /// Credit of each response stream in bytes. Default 256 KiB.
    pub stream_window: u32,
    /// Credit of each link in bytes. Default 4 MiB.
    pub link_window: u32,
    /// Silence after which a worker is asked whether it is there. Default 5 s.
    pub ping_interval: Duration,
    /// Further silence after which it is given up. Default 5 s.
    pub ping_timeout: Duration,
    /// How long a caller may leave a full window unread. Default 60 s; `None` for ever.
    pub slow_consumer_timeout: Option<Duration>,
    /// Largest request and item in bytes. Default 32 MiB.
    pub max_message_bytes: usize,
    /// Token to present. Default none.
    pub token: Option<String>,
    /// Allows addresses off loopback without encryption. Default false.
    pub insecure: bool,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            namespace: "default".to_owned(),
            policy: Policy::default(),
            timeout: Some(Duration::from_secs(600)),
            item_timeout: Some(Duration::from_secs(60)),
            instance_timeout: Duration::from_secs(5),
            retries: 2,
            max_resume_bytes: 1024 * 1024,
            stream_window: STREAM_WINDOW_DEFAULT,
            link_window: LINK_WINDOW_DEFAULT,
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(5),
            slow_consumer_timeout: Some(Duration::from_secs(60)),
            max_message_bytes: MESSAGE_MAX_DEFAULT,
            token: None,
            insecure: false,
        }
    }
}

impl RouterConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// The first one that is out of range, by name.
    pub fn check(&self) -> Result<(), StartError> {
        for (setting, timeout) in [
            ("timeout", self.timeout),
            ("item_timeout", self.item_timeout),
            ("slow_consumer_timeout", self.slow_consumer_timeout),
        ] {
            if timeout.is_some_and(|timeout| timeout.is_zero()) {
                return Err(refused(setting, "positive", &"0"));
            }
        }
        check_stream_window(self.stream_window)?;
        if !(LINK_WINDOW_MIN..=WINDOW_MAX).contains(&self.link_window) {
            return Err(refused("link_window", "256 KiB to 1 GiB", &self.link_window));
        }
        check_namespace(&self.namespace)?;
        check_common(self.ping_interval, self.ping_timeout, self.max_message_bytes, self.token.as_deref())
    }

    pub(crate) const fn liveness(&self) -> Liveness {
        Liveness { ping_interval: self.ping_interval, ping_timeout: self.ping_timeout }
    }
}

fn check_stream_window(bytes: u32) -> Result<(), StartError> {
    if !(STREAM_WINDOW_MIN..=WINDOW_MAX).contains(&bytes) {
        return Err(refused("stream_window", "4 KiB to 1 GiB", &bytes));
    }
    Ok(())
}

fn check_namespace(namespace: &str) -> Result<(), StartError> {
    if namespace.len() > ENDPOINT_MAX {
        return Err(refused("namespace", "at most 256 bytes", &namespace.len()));
    }
    Ok(())
}

fn check_common(
    ping_interval: Duration,
    ping_timeout: Duration,
    max_message_bytes: usize,
    token: Option<&str>,
) -> Result<(), StartError> {
    for (setting, duration) in [("ping_interval", ping_interval), ("ping_timeout", ping_timeout)] {
        at_least_1_ms(setting, duration)?;
    }
    at_least_one("max_message_bytes", max_message_bytes as u64)?;
    if max_message_bytes > MESSAGE_MAX {
        return Err(refused("max_message_bytes", "at most 1 GiB", &max_message_bytes));
    }
    match token {
        Some("") => Err(refused("token", "non-empty", &"\"\"")),
        Some(token) if token.len() > TOKEN_MAX => Err(refused("token", "at most 1024 bytes", &token.len())),
        _ => Ok(()),
    }
}

fn at_least_1_ms(setting: &'static str, given: Duration) -> Result<(), StartError> {
    if given < Duration::from_millis(1) {
        return Err(refused(setting, "at least 1 ms", &format_args!("{given:?}")));
    }
    Ok(())
}

pub(crate) fn at_least_one(setting: &'static str, given: u64) -> Result<(), StartError> {
    if given == 0 { Err(refused(setting, "at least 1", &given)) } else { Ok(()) }
}

pub(crate) fn refused(
    setting: &'static str,
    expected: &'static str,
    given: &dyn std::fmt::Display,
) -> StartError {
    StartError::Setting { setting, expected, given: given.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        WorkerConfig::default().check().unwrap();
        RouterConfig::default().check().unwrap();
    }

    #[test]
    fn a_setting_out_of_range_is_refused_by_name() {
        let named = |error: StartError| error.to_string();
        let worker = WorkerConfig { concurrency: 0, ..WorkerConfig::default() };
        assert!(named(worker.check().unwrap_err()).starts_with("concurrency"));
        let worker = WorkerConfig { health_interval: Duration::ZERO, ..WorkerConfig::default() };
        assert!(named(worker.check().unwrap_err()).starts_with("health_interval"));
        let worker = WorkerConfig { health_timeout: Duration::ZERO, ..WorkerConfig::default() };
        assert!(named(worker.check().unwrap_err()).starts_with("health_timeout"));
        let worker = WorkerConfig { stream_window: 1, ..WorkerConfig::default() };
        assert!(named(worker.check().unwrap_err()).starts_with("stream_window"));
        let router = RouterConfig { stream_window: 1, ..RouterConfig::default() };
        assert!(named(router.check().unwrap_err()).starts_with("stream_window"));
        let router = RouterConfig { timeout: Some(Duration::ZERO), ..RouterConfig::default() };
        assert!(named(router.check().unwrap_err()).starts_with("timeout"));
        let router = RouterConfig { namespace: "n".repeat(257), ..RouterConfig::default() };
        assert!(named(router.check().unwrap_err()).starts_with("namespace"));
        let router = RouterConfig { token: Some(String::new()), ..RouterConfig::default() };
        assert!(named(router.check().unwrap_err()).starts_with("token"));
    }
}
