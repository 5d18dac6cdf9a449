//! Metrics: what runs, how fast, how full and how well, for whoever operates the process.
//!
//! | file | what lives there |
//! |---|---|
//! | [`names`] | every family: name, unit, meaning, labels |
//! | [`numbers`] | counters and histograms that cost an add |
//! | [`labels`] | labels that users give their workers |
//! | [`samples`] | from numbers to families; what has numbers of its own, a [`Source`] |
//! | [`worker`], [`router`], [`link`], [`batch`] | what each of them counts |
//! | [`loops`] | whether event loops turn |
//! | this one | the process's registry, and its text |
//!
//! All numbers are the process's: two workers that serve one endpoint with the same labels are one series. Nothing is computed
//! before somebody scrapes. A crate or binding with numbers of its own (a CUDA pool) declares its families in
//! [`names`] and [`register`]s a source.

pub(crate) mod batch;
pub(crate) mod labels;
pub(crate) mod link;
mod loops;
pub mod names;
pub(crate) mod numbers;
pub(crate) mod router;
mod samples;
pub(crate) mod worker;

use std::sync::{LazyLock, Weak};

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Registry, TextEncoder};

pub use self::labels::{LABEL_BYTES_MAX, LABEL_NAMES_MAX, LABEL_SETS_MAX, LABELS_MAX, LabelError};
pub use self::loops::{EventLoop, LOOP_INTERVAL, Look, ask_loops, blocked_loops, watch_loop};
pub use self::numbers::{Counter, TimeHistogram};
pub use self::samples::{Samples, Source};

/// What the text is, for HTTP.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

static SOURCES: Mutex<Vec<Weak<dyn Source>>> = Mutex::new(Vec::new());

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let registry = Registry::new();
    if let Err(error) = registry.register(Box::new(Everything)) {
        // The table of names has a test; this cannot be.
        tracing::error!(%error, "the metrics cannot be registered");
    }
    registry
});

/// Has a source asked with every scrape, for as long as it lives.
pub fn register(source: Weak<dyn Source>) {
    let mut sources = SOURCES.lock();
    sources.retain(|source| source.strong_count() > 0);
    sources.push(source);
}

/// The families of this process with their values at this moment; those without any are left out.
#[must_use]
pub fn families() -> Vec<MetricFamily> {
    REGISTRY.gather()
}

/// The same as text, in Prometheus' format.
#[must_use]
pub fn render() -> String {
    TextEncoder::new().encode_to_string(&families()).unwrap_or_else(|error| {
        tracing::error!(%error, "the metrics cannot be written");
        String::new()
    })
}

/// All families, as the registry asks for them.
struct Everything;

impl Collector for Everything {
    fn desc(&self) -> Vec<&Desc> {
        static DESCS: LazyLock<Vec<Desc>> = LazyLock::new(|| {
            let desc = |family: &&names::Family| {
                let labels = family.labels.iter().map(|&label| label.to_owned()).collect();
                Desc::new(family.name.to_owned(), family.help.to_owned(), labels, Default::default()).ok()
            };
            names::ALL.iter().filter_map(desc).collect()
        });
        DESCS.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut samples = Samples::default();
        samples.count(&names::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
        for family in [&names::ROUTER_INFLIGHT, &names::ROUTER_WAITING] {
            samples.count(family, &[], 0);
        }
        // Workers first: they forget what was killed while it waited, and that is counted then.
        let sources: Vec<_> = SOURCES.lock().iter().filter_map(Weak::upgrade).collect();
        for source in sources {
            source.collect(&mut samples);
        }
        worker::collect(&mut samples);
        router::collect(&mut samples);
        link::collect(&mut samples);
        batch::collect(&mut samples);
        loops::collect(&mut samples);
        samples.into_families()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_registered() {
        assert_eq!(Everything.desc().len(), names::ALL.len());
        assert!(Registry::new().register(Box::new(Everything)).is_ok());
    }

    #[test]
    fn the_text_has_what_is_always_there() {
        let text = render();
        for family in [&names::BUILD_INFO, &names::ROUTER_QUEUE, &names::LINK_SENT_BYTES, &names::LOOP_LAG] {
            assert!(text.contains(&format!("# HELP {} {}\n", family.name, family.help)), "{text}");
        }
        assert!(text.contains("headrace_router_queue_seconds_bucket{le=\"+Inf\"} "), "{text}");
    }
}
