//! Which instance a call goes to, and why there is none.

use std::sync::Arc;

use super::InstanceInfo;
use super::call::Call;
use super::instances::{ConnectFailure, Instance};
use crate::error::CallErrorKind;
use crate::link::Link;

impl Call {
    pub(super) fn choose(&self) -> Option<(usize, Arc<Link>)> {
        let instances = &self.router.instances;
        if let [only] = instances.as_slice() {
            let usable = self.tried.is_empty() && self.may_use(only);
            return usable.then(|| only.link_for(&self.head.endpoint)).flatten().map(|link| (0, link));
        }
        if let Some(found) = self.choose_of_two() {
            return Some(found);
        }
        let candidates: Vec<(usize, Arc<Link>)> = instances
            .iter()
            .enumerate()
            .filter(|(index, instance)| !self.tried.contains(index) && self.may_use(instance))
            .filter_map(|(index, instance)| Some((index, instance.link_for(&self.head.endpoint)?)))
            .collect();
        let cost = |at: usize| {
            candidates
                .get(at)
                .and_then(|(index, _)| instances.get(*index))
                .map_or(f64::MAX, |found| found.cost())
        };
        let picked = self.router.picker.pick(candidates.len(), cost)?;
        candidates.into_iter().nth(picked)
    }

    /// The better of two drawn at random, if both can be used: then nobody has to look at all the others.
    fn choose_of_two(&self) -> Option<(usize, Arc<Link>)> {
        if !self.tried.is_empty() || !self.instance.is_empty() {
            return None;
        }
        let (first, second) = self.router.picker.draw(self.router.instances.len())?;
        let find = |index: usize| {
            let instance = self.router.instances.get(index)?;
            Some((instance.link_for(&self.head.endpoint)?, instance.cost()))
        };
        let ((link, cost), (other, other_cost)) = (find(first)?, find(second)?);
        Some(if other_cost < cost { (second, other) } else { (first, link) })
    }

    pub(super) fn may_use(&self, instance: &Instance) -> bool {
        self.instance.is_empty() || instance.is_named(&self.instance)
    }

    /// Why waiting cannot help, if it cannot: every instance is known and none will ever do.
    pub(super) fn hopeless(&self) -> Option<CallErrorKind> {
        let instances = || self.router.instances.iter().filter(|instance| self.may_use(instance));
        let mut refused = None;
        for instance in instances() {
            match instance.failure() {
                Some(ConnectFailure::Authentication(detail)) => {
                    refused = Some(CallErrorKind::Authentication { detail });
                }
                Some(ConnectFailure::Version(detail)) => {
                    refused = Some(CallErrorKind::VersionMismatch { detail });
                }
                Some(ConnectFailure::Unreachable(_)) | None => {
                    let without_endpoint =
                        instance.is_up() && instance.link_for(&self.head.endpoint).is_none();
                    if !without_endpoint {
                        return None;
                    }
                    refused = Some(self.no_endpoint());
                }
            }
        }
        refused
    }

    fn no_endpoint(&self) -> CallErrorKind {
        let mut available: Vec<String> =
            self.router.instances.iter().flat_map(|instance| instance.endpoints()).collect();
        available.sort();
        available.dedup();
        CallErrorKind::NoSuchEndpoint { endpoint: self.head.endpoint.clone(), available }
    }

    pub(super) fn no_instance(&self) -> CallErrorKind {
        let waited = self.elapsed();
        let infos: Vec<_> = self.router.instances.iter().map(|instance| instance.info()).collect();
        if infos.is_empty() {
            return CallErrorKind::NoInstances { waited, reason: "the router has no targets".to_owned() };
        }
        if !self.instance.is_empty() && !infos.iter().any(|info| self.names(info)) {
            let known: Vec<_> = infos.iter().map(|info| info.instance_id.as_str()).collect();
            let reason = format!("instance {} is none of {}", self.instance, known.join(", "));
            return CallErrorKind::NoInstances { waited, reason };
        }
        let each = |info: &InstanceInfo| match &info.last_error {
            Some(error) => format!("{}: {error}", info.address),
            None => format!("{} is {:?}", info.address, info.state),
        };
        let reason = infos.iter().map(each).collect::<Vec<_>>().join("; ");
        if infos.iter().all(|info| info.last_error.is_some()) {
            CallErrorKind::CannotConnect { reason }
        } else {
            CallErrorKind::NoInstances { waited, reason }
        }
    }

    fn names(&self, info: &InstanceInfo) -> bool {
        info.instance_id == self.instance || info.address == self.instance
    }
}
