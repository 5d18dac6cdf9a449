//! The instances of a router: what its places of discovery list, and for a few seconds what they no longer do.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::instances::Instance;
use crate::address::Address;
use crate::discovery::{Found, Listing};

/// An instance that is no longer listed is remembered for this long: calls that name it fail at once, and if it
/// is listed again meanwhile, nothing has happened.
pub(super) const TOMBSTONE_MS: u64 = 5_000;

/// What a new list means for the instances there were.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// To be connected to.
    pub(super) added: Vec<Arc<Instance>>,
    /// No longer listed: forgotten after [`TOMBSTONE_MS`] unless they return.
    pub(super) removed: Vec<Arc<Instance>>,
    /// Whether an instance that was removed is listed again.
    pub(super) returned: bool,
}

impl Changes {
    pub(super) const fn is_nothing(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && !self.returned
    }
}

/// All instances, one for each address.
#[derive(Debug)]
pub(super) struct InstanceSet {
    all: RwLock<Arc<[Arc<Instance>]>>,
    /// What each place lists.
    lists: Mutex<Vec<Found>>,
}

impl InstanceSet {
    /// An empty set, to be fed by so many places.
    pub(super) fn new(places: usize) -> Self {
        Self { all: RwLock::new(Arc::from([])), lists: Mutex::new(vec![None; places]) }
    }

    /// Whether every place has been looked at: before, who is missing may only not have been found yet.
    pub(super) fn is_complete(&self) -> bool {
        self.lists.lock().iter().all(Option::is_some)
    }

    /// All instances now, in the order in which they were first listed.
    pub(super) fn all(&self) -> Arc<[Arc<Instance>]> {
        Arc::clone(&self.all.read())
    }

    /// Takes what a place lists now.
    pub(super) fn update(&self, place: usize, list: Arc<[Listing]>, now_ms: u64) -> Changes {
        let mut lists = self.lists.lock();
        if let Some(known) = lists.get_mut(place) {
            *known = Some(list);
        }
        let listed = || lists.iter().flatten().flat_map(|list| list.iter());
        let is_listed = |address: &Address| listed().any(|listing| listing.address == *address);
        let mut changes = Changes::default();
        let mut all = self.all().to_vec();
        for instance in &all {
            match (is_listed(instance.address()), instance.is_removed()) {
                (true, true) => {
                    instance.set_removed(None);
                    changes.returned = true;
                }
                (false, false) => {
                    instance.set_removed(Some(now_ms));
                    changes.removed.push(Arc::clone(instance));
                }
                _ => {}
            }
        }
        for listing in listed() {
            if all.iter().all(|instance| *instance.address() != listing.address) {
                let instance = Arc::new(Instance::new(listing));
                all.push(Arc::clone(&instance));
                changes.added.push(instance);
            }
        }
        if !changes.added.is_empty() {
            *self.all.write() = all.into();
        }
        changes
    }

    /// Forgets an instance if it has not been listed for [`TOMBSTONE_MS`]. True when it is gone.
    pub(super) fn forget(&self, instance: &Arc<Instance>, now_ms: u64) -> bool {
        // Updates and this take turns.
        let _lists = self.lists.lock();
        if !instance.is_removed_for(TOMBSTONE_MS, now_ms) {
            return false;
        }
        let left: Arc<[_]> =
            self.all().iter().filter(|known| !Arc::ptr_eq(known, instance)).cloned().collect();
        *self.all.write() = left;
        instance.set_gone();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ports: &[u16]) -> Arc<[Listing]> {
        ports.iter().map(|port| Listing::at(format!("127.0.0.1:{port}").parse().unwrap())).collect()
    }

    fn ports(instances: &[Arc<Instance>]) -> Vec<String> {
        instances
            .iter()
            .map(|instance| instance.address().to_string().split(':').nth(1).unwrap().to_owned())
            .collect()
    }

    #[test]
    fn each_address_is_one_instance_however_often_it_is_listed() {
        let set = InstanceSet::new(2);
        assert_eq!(ports(&set.update(0, list(&[1, 2, 1]), 0).added), ["1", "2"]);
        assert!(!set.is_complete());
        assert_eq!(ports(&set.update(1, list(&[2, 3]), 0).added), ["3"]);
        assert_eq!(ports(&set.all()), ["1", "2", "3"]);
        assert!(set.is_complete());
        assert!(set.update(0, list(&[2, 1]), 0).is_nothing());
    }

    #[test]
    fn an_instance_goes_when_no_place_lists_it_any_more() {
        let set = InstanceSet::new(2);
        set.update(0, list(&[1, 2]), 0);
        set.update(1, list(&[2]), 0);
        assert!(set.update(0, list(&[1]), 0).is_nothing());
        let gone = set.update(1, list(&[]), 0).removed;
        assert_eq!(ports(&gone), ["2"]);
        assert!(gone[0].is_removed());
        assert_eq!(ports(&set.all()), ["1", "2"], "its tombstone stays for a while");
        assert!(!set.forget(&gone[0], TOMBSTONE_MS - 1));
        assert!(set.forget(&gone[0], TOMBSTONE_MS));
        assert_eq!(ports(&set.all()), ["1"]);
    }

    #[test]
    fn an_instance_that_returns_in_time_is_the_same() {
        let set = InstanceSet::new(1);
        let first = set.update(0, list(&[1]), 0).added.remove(0);
        set.update(0, list(&[]), 0);
        let changes = set.update(0, list(&[1]), 0);
        assert!(changes.returned && changes.added.is_empty() && changes.removed.is_empty());
        assert!(!set.forget(&first, TOMBSTONE_MS));
        assert!(Arc::ptr_eq(&set.all()[0], &first));
    }

    #[test]
    fn an_instance_that_goes_again_is_remembered_from_then_on() {
        let set = InstanceSet::new(1);
        let first = set.update(0, list(&[1]), 0).added.remove(0);
        set.update(0, list(&[]), 0);
        set.update(0, list(&[1]), 1);
        set.update(0, list(&[]), 2);
        assert!(!set.forget(&first, TOMBSTONE_MS + 1), "its first removal counts no more");
        assert!(set.forget(&first, TOMBSTONE_MS + 2));
    }

    #[test]
    fn an_instance_that_returns_too_late_is_a_new_one() {
        let set = InstanceSet::new(1);
        let first = set.update(0, list(&[1]), 0).added.remove(0);
        set.update(0, list(&[]), 0);
        assert!(set.forget(&first, TOMBSTONE_MS));
        let second = set.update(0, list(&[1]), 0).added.remove(0);
        assert!(!Arc::ptr_eq(&first, &second));
    }
}
