//! What a router tells of itself: to the metrics, and to whoever asks whether it is of use.

use std::sync::Arc;

use super::{Router, Shared};
use crate::health::{Report, Reports};
use crate::metrics::{Samples, Source, names};

impl Router {
    /// What tells how the router is, for as long as it is open.
    #[must_use]
    pub fn reports(&self) -> Arc<dyn Reports> {
        Arc::clone(self.shared()) as Arc<dyn Reports>
    }
}

impl Reports for Shared {
    fn report(&self) -> Option<Report> {
        if self.is_closed() {
            return None;
        }
        let all = self.instances.all();
        let mut reasons = Vec::new();
        if !all.iter().any(|instance| instance.is_up()) {
            let infos = all.iter().map(|instance| instance.info());
            let each: Vec<_> =
                infos.map(|info| format!("{} is {}", info.address, info.state.name())).collect();
            let known = if each.is_empty() { "none is listed".to_owned() } else { each.join(", ") };
            reasons.push(format!("no worker takes requests: {known}"));
        }
        let instance_id = self.local.instance_id.clone();
        Some(Report { kind: "router", instance_id, reasons, ..Report::default() })
    }
}

impl Source for Shared {
    fn collect(&self, samples: &mut Samples) {
        let all = self.instances.all();
        for instance in all.iter() {
            samples.count(&names::ROUTER_INFLIGHT, &[], instance.in_flight() as u64);
            samples.count(&names::ROUTER_INSTANCES, &[instance.info().state.name()], 1);
            if let Some(link) = instance.link() {
                samples.count(&names::LINK_OPEN, &["router"], 1);
                samples.count(&names::LINK_STREAMS, &["router"], link.streams() as u64);
            }
        }
        samples.count(&names::ROUTER_WAITING, &[], self.waiters.lock().len() as u64);
    }
}
