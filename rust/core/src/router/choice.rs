//! Which instance a call goes to, and why there is none.

use std::sync::Arc;

use super::InstanceInfo;
use super::call::Call;
use super::info::InstanceState;
use super::instances::{ConnectFailure, Instance};
use super::policy::Loads;
use crate::error::CallErrorKind;
use crate::link::Link;

/// An instance that a call could go to.
pub(super) struct Candidate {
    pub(super) instance: Arc<Instance>,
    pub(super) link: Arc<Link>,
}

impl Loads for Vec<Candidate> {
    fn count(&self) -> usize {
        self.len()
    }

    fn cost(&self, index: usize) -> f64 {
        self.get(index).map_or(f64::MAX, |candidate| candidate.instance.cost())
    }

    fn in_flight(&self, index: usize) -> usize {
        self.get(index).map_or(usize::MAX, |candidate| candidate.instance.in_flight())
    }

    fn seed(&self, index: usize) -> u64 {
        self.get(index).map_or(0, |candidate| candidate.instance.seed())
    }

    fn info(&self, index: usize) -> InstanceInfo {
        self.get(index).map(|candidate| candidate.instance.info()).unwrap_or_default()
    }
}

/// A worker that a call does not go to again. Another one at the same address is another worker.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) instance: Arc<Instance>,
    pub(super) instance_id: Arc<str>,
}

impl Tried {
    pub(super) fn is(&self, instance: &Arc<Instance>) -> bool {
        Arc::ptr_eq(&self.instance, instance) && *self.instance_id == *instance.instance_id()
    }
}

impl Call {
    /// Where the next attempt goes; `None` when nobody can take it now.
    ///
    /// # Errors
    /// The policy picks none of them.
    pub(super) fn choose(&self) -> Result<Option<Candidate>, CallErrorKind> {
        if self.instance.is_empty() && self.router.picker.is_direct() {
            let detail = "the policy is direct and the call names no instance=".to_owned();
            return Err(CallErrorKind::Policy { detail });
        }
        let all = self.router.instances.all();
        if let [only] = &*all {
            let usable = self.may_try(only);
            let link = usable.then(|| only.link_for(&self.head.endpoint)).flatten();
            return Ok(link.map(|link| Candidate { instance: Arc::clone(only), link }));
        }
        if let Some(found) = self.choose_of_two(&all) {
            return Ok(Some(found));
        }
        let candidates = |link: &dyn Fn(&Instance) -> Option<Arc<Link>>| -> Vec<Candidate> {
            all.iter()
                .filter(|instance| self.may_try(instance))
                .filter_map(|instance| {
                    Some(Candidate { link: link(instance)?, instance: Arc::clone(instance) })
                })
                .collect()
        };
        let endpoint = &self.head.endpoint;
        let mut found = candidates(&|instance| instance.sound_link_for(endpoint, self.now_ms()));
        if found.is_empty() {
            // Better one that was ejected than none.
            found = candidates(&|instance| instance.link_for(endpoint));
        }
        let picked = self.router.picker.pick(&found, &self.affinity);
        let picked = picked.map_err(|detail| CallErrorKind::Policy { detail })?;
        Ok(picked.map(|index| found.swap_remove(index)))
    }

    /// Chooses as every attempt does, and sends nothing; whether there was an instance. For the benchmark alone.
    #[cfg(feature = "bench")]
    #[doc(hidden)]
    #[must_use]
    pub fn chooses(&self) -> bool {
        matches!(self.choose(), Ok(Some(_)))
    }

    /// The better of two drawn at random, if both can be used: then nobody has to look at all the others.
    fn choose_of_two(&self, all: &[Arc<Instance>]) -> Option<Candidate> {
        if !self.tried.is_empty() || !self.instance.is_empty() || !self.affinity.is_empty() {
            return None;
        }
        let (first, second) = self.router.picker.draw(all.len())?;
        let find = |index: usize| {
            let instance = all.get(index)?;
            Some((instance, instance.sound_link_for(&self.head.endpoint, self.now_ms())?, instance.cost()))
        };
        let ((first, link, cost), (second, other, other_cost)) = (find(first)?, find(second)?);
        let (instance, link) = if other_cost < cost { (second, other) } else { (first, link) };
        Some(Candidate { instance: Arc::clone(instance), link })
    }

    /// Whether a call may go to this instance, and has not been there.
    pub(super) fn may_try(&self, instance: &Arc<Instance>) -> bool {
        self.may_use(instance) && self.tried.iter().all(|tried| !tried.is(instance))
    }

    pub(super) fn may_use(&self, instance: &Instance) -> bool {
        self.instance.is_empty() || instance.is_named(&self.instance)
    }

    /// Why waiting cannot help, if it cannot: every instance is known and none will ever do.
    pub(super) fn hopeless(&self) -> Option<CallErrorKind> {
        if !self.router.instances.is_complete() {
            return None;
        }
        let all = self.router.instances.all();
        let mut refused = None;
        for instance in all.iter().filter(|instance| self.may_use(instance)) {
            if instance.is_removed() {
                if self.instance.is_empty() {
                    continue;
                }
                // Whoever names an instance learns at once that it is no longer there.
                let reason = format!("instance {} is no longer listed", self.instance);
                return Some(CallErrorKind::NoInstances { waited: self.elapsed(), reason });
            }
            match instance.failure() {
                Some(ConnectFailure::Authentication(detail)) => {
                    refused = Some(CallErrorKind::Authentication { detail });
                }
                Some(ConnectFailure::Version(detail)) => {
                    refused = Some(CallErrorKind::VersionMismatch { detail });
                }
                Some(ConnectFailure::Unreachable(_)) | None => {
                    if !instance.lacks(&self.head.endpoint) {
                        return None;
                    }
                    refused = Some(self.no_endpoint());
                }
            }
        }
        refused
    }

    fn no_endpoint(&self) -> CallErrorKind {
        let all = self.router.instances.all();
        let mut available: Vec<String> = all.iter().flat_map(|instance| instance.endpoints()).collect();
        available.sort();
        available.dedup();
        CallErrorKind::NoSuchEndpoint { endpoint: self.head.endpoint.clone(), available }
    }

    pub(super) fn no_instance(&self) -> CallErrorKind {
        let waited = self.elapsed();
        let infos: Vec<_> = self.router.instances.all().iter().map(|instance| instance.info()).collect();
        if infos.is_empty() {
            let places: Vec<_> = self.router.places.iter().map(|place| place.place()).collect();
            let reason = format!("none is listed in {}", places.join(", "));
            return CallErrorKind::NoInstances { waited, reason };
        }
        if !self.instance.is_empty() && !infos.iter().any(|info| self.names(info)) {
            let known: Vec<_> = infos.iter().map(|info| info.instance_id.as_str()).collect();
            let reason = format!("instance {} is none of {}", self.instance, known.join(", "));
            return CallErrorKind::NoInstances { waited, reason };
        }
        let each = |info: &InstanceInfo| match &info.last_error {
            Some(error) => format!("{}: {error}", info.address),
            None if info.state == InstanceState::Down => format!("{}: no answer yet", info.address),
            None => format!("{} is {}", info.address, info.state.name()),
        };
        let reason = infos.iter().map(each).collect::<Vec<_>>().join("; ");
        // The first attempt may take longer than the call waits.
        let unreachable =
            |info: &InstanceInfo| info.last_error.is_some() || info.state == InstanceState::Down;
        if infos.iter().all(unreachable) {
            CallErrorKind::CannotConnect { reason }
        } else {
            CallErrorKind::NoInstances { waited, reason }
        }
    }

    fn names(&self, info: &InstanceInfo) -> bool {
        info.instance_id == self.instance || info.address == self.instance
    }
}
