//! What a worker tells of itself: to the metrics, and to whoever asks whether it is of use.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Shared, Worker, WorkerStats};
use crate::clock::now_ns;
use crate::health::{EndpointReport, Report, Reports};
use crate::metrics::{Samples, Source, names};

impl Worker {
    /// What tells how the worker is, for as long as it is open.
    #[must_use]
    pub fn reports(&self) -> Arc<dyn Reports> {
        Arc::new(Reporting { shared: Arc::clone(&self.shared), address: self.address.to_string() })
    }
}

/// A worker that is asked how it is.
struct Reporting {
    shared: Arc<Shared>,
    address: String,
}

impl Reports for Reporting {
    fn report(&self) -> Option<Report> {
        let shared = &self.shared;
        if shared.closing.load(Ordering::Acquire) {
            return None;
        }
        let mut reasons = Vec::new();
        if shared.is_draining() {
            reasons.push("it is draining".to_owned());
        }
        // What its owner says.
        reasons.extend(shared.declared.lock().clone());
        if shared.admission.is_full() {
            let (running, queued) = shared.admission.load();
            reasons.push(format!("its queue is full: {running} requests running and {queued} queued"));
        }
        let mut endpoints: Vec<_> = shared.engines.values().map(super::Served::report).collect();
        endpoints.sort_by(|one, other| one.name.cmp(&other.name));
        reasons.extend(endpoints.iter().filter_map(|endpoint| endpoint.failure.clone()));
        Some(Report {
            kind: "worker",
            instance_id: shared.instance_id.clone(),
            address: self.address.clone(),
            reasons,
            endpoints,
        })
    }
}

impl super::Served {
    fn report(&self) -> EndpointReport {
        let ago = |answered_ns| Duration::from_nanos(now_ns().saturating_sub(answered_ns));
        EndpointReport {
            name: self.endpoint.to_string(),
            answered_ago: self.metrics.answered_ns().map(ago),
            is_checked: self.vitals.is_some(),
            failure: self.vitals.as_ref().and_then(|vitals| vitals.failure()),
            inflight: self.metrics.inflight(),
            queued: self.metrics.queued(),
        }
    }
}

impl Source for Shared {
    fn collect(&self, samples: &mut Samples) {
        if self.closing.load(Ordering::Acquire) {
            return;
        }
        let WorkerStats { links, streams, .. } = self.stats();
        samples.count(&names::LINK_OPEN, &["worker"], links as u64);
        samples.count(&names::LINK_STREAMS, &["worker"], streams as u64);
        samples.labelled(self.metrics.labels(), |samples| {
            samples.count(&names::WORKER_READY, &[], u64::from(self.status().ready));
            samples.count(&names::WORKER_CONCURRENCY, &[], self.config.concurrency as u64);
            samples.count(&names::WORKER_QUEUE_LIMIT, &[], self.config.queue as u64);
        });
    }
}
