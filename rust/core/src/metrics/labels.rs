//! Labels that a worker's owner gives it: which model, which zone. All that the worker counts carries them, and
//! nothing on the way of a request knows of them: requests count into numbers that were found by endpoint *and*
//! labels when the worker was bound.
//!
//! Within a family every series has the labels of all workers of the process; one that a worker was not given
//! is empty there, which to Prometheus is the same as not being there.

use std::collections::BTreeSet;

use parking_lot::RwLock;
use thiserror::Error;

use super::names;

/// Most labels of one worker.
pub const LABELS_MAX: usize = 8;

/// Most different names of labels in one process: each is a part of every series of every worker.
pub const LABEL_NAMES_MAX: usize = 16;

/// Most different sets of labels in one process; each holds numbers for as long as that lives.
pub const LABEL_SETS_MAX: usize = 64;

/// Bytes of a label's name or value: what a dashboard can still show.
pub const LABEL_BYTES_MAX: usize = 128;

/// What a scrape adds by itself, or a histogram.
const RESERVED: [&str; 4] = ["job", "instance", "le", "quantile"];

/// Why a worker cannot be labelled so.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LabelError {
    /// There are too many.
    #[error("there may be {LABELS_MAX} labels, not {0}")]
    TooMany(usize),
    /// Prometheus does not take such a name.
    #[error(
        "{0:?} is no name of a label: 1 to {LABEL_BYTES_MAX} letters, digits and underscores, no digit first, \
         and not two underscores first"
    )]
    Name(String),
    /// The name has a meaning already.
    #[error("{0:?} is a label that the metrics have already")]
    Taken(String),
    /// It was given twice.
    #[error("{0:?} is given twice")]
    Twice(String),
    /// Its value cannot be one.
    #[error("the value of {name:?} must have 1 to {LABEL_BYTES_MAX} bytes, not {bytes}")]
    Value {
        /// The label's name.
        name: String,
        /// How long the value is.
        bytes: usize,
    },
}

/// Whether a worker can carry these labels.
pub(crate) fn check(labels: &[(String, String)]) -> Result<(), LabelError> {
    if labels.len() > LABELS_MAX {
        return Err(LabelError::TooMany(labels.len()));
    }
    for (index, (name, value)) in labels.iter().enumerate() {
        if !is_name(name) {
            return Err(LabelError::Name(name.clone()));
        }
        if is_taken(name) {
            return Err(LabelError::Taken(name.clone()));
        }
        if labels.iter().take(index).any(|(other, _)| other == name) {
            return Err(LabelError::Twice(name.clone()));
        }
        if value.is_empty() || value.len() > LABEL_BYTES_MAX {
            return Err(LabelError::Value { name: name.clone(), bytes: value.len() });
        }
    }
    Ok(())
}

/// As Prometheus has them; two leading underscores are its own.
fn is_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    name.len() <= LABEL_BYTES_MAX
        && name.bytes().next().is_some_and(is_letter)
        && name.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit())
        && !name.starts_with("__")
}

fn is_taken(name: &str) -> bool {
    RESERVED.contains(&name) || names::ALL.iter().any(|family| family.labels.contains(&name))
}

/// A worker's labels, sorted by name; two workers with the same ones share it.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LabelSet(Vec<(String, String)>);

impl LabelSet {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// The value of a label; empty for one that it does not have.
    pub(super) fn value(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// What has no labels.
pub(crate) static UNLABELLED: LabelSet = LabelSet(Vec::new());

/// The sets of all workers that there have been.
static KNOWN: RwLock<Known> = RwLock::new(Known(Vec::new()));

#[derive(Debug)]
struct Known(Vec<&'static LabelSet>);

impl Known {
    /// The set of these labels, remembered; `None` if there are too many sets or names.
    fn get(&mut self, mut labels: Vec<(String, String)>) -> Option<&'static LabelSet> {
        labels.sort();
        if let Some(&found) = self.0.iter().find(|known| known.0 == labels) {
            return Some(found);
        }
        let new = LabelSet(labels);
        let names: BTreeSet<_> = self.0.iter().flat_map(|known| known.names()).chain(new.names()).collect();
        let fits = names.len() <= LABEL_NAMES_MAX && self.0.len() < LABEL_SETS_MAX;
        if new.0.is_empty() || !fits {
            // What is beyond the bounds is told without labels, which are no use of the bounds.
            if !self.0.contains(&&UNLABELLED) {
                self.0.push(&UNLABELLED);
            }
            return new.0.is_empty().then_some(&UNLABELLED);
        }
        // Leaked on purpose: counters outlive what they count, and there is a bound on how many there are.
        let new: &'static LabelSet = Box::leak(Box::new(new));
        self.0.push(new);
        Some(new)
    }
}

/// The set of these labels, which were checked, for as long as the process lives. `None` once the process has
/// seen too many different ones.
pub(crate) fn label_set(labels: &[(String, String)]) -> Option<&'static LabelSet> {
    KNOWN.write().get(labels.to_vec())
}

/// Every set that a worker of this process has had; that without labels if there was no worker at all.
pub(super) fn label_sets() -> Vec<&'static LabelSet> {
    let known = KNOWN.read();
    if known.0.is_empty() { vec![&UNLABELLED] } else { known.0.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn names_are_those_that_prometheus_takes_and_that_are_free() {
        for good in ["a", "_a", "Model_2", "a__b", &"n".repeat(LABEL_BYTES_MAX)] {
            assert_eq!(check(&[pair(good, "v")]), Ok(()), "{good}");
        }
        for bad in ["", "2nd", "__own", "with-dash", "with space", "ä", "a\n", &"n".repeat(129)] {
            assert_eq!(check(&[pair(bad, "v")]), Err(LabelError::Name(bad.to_owned())));
        }
        let ours = names::ALL.iter().flat_map(|family| family.labels).copied();
        for taken in ours.chain(RESERVED) {
            assert_eq!(check(&[pair(taken, "v")]), Err(LabelError::Taken(taken.to_owned())));
        }
    }

    #[test]
    fn values_and_their_number_are_bounded() {
        assert_eq!(check(&[pair("a", &"v".repeat(LABEL_BYTES_MAX))]), Ok(()));
        for bytes in [0, LABEL_BYTES_MAX + 1] {
            let error = LabelError::Value { name: "a".to_owned(), bytes };
            assert_eq!(check(&[pair("a", &"v".repeat(bytes))]), Err(error));
        }
        assert_eq!(check(&[pair("a", "1"), pair("a", "2")]), Err(LabelError::Twice("a".to_owned())));
        let many: Vec<_> = (0..=LABELS_MAX).map(|number| pair(&format!("n{number}"), "v")).collect();
        assert_eq!(check(&many[1..]), Ok(()));
        assert_eq!(check(&many), Err(LabelError::TooMany(LABELS_MAX + 1)));
    }

    #[test]
    fn a_set_is_one_whatever_the_order_and_there_are_so_many() {
        let mut known = Known(Vec::new());
        let set = known.get(vec![pair("b", "2"), pair("a", "1")]).unwrap();
        assert!(std::ptr::eq(set, known.get(vec![pair("a", "1"), pair("b", "2")]).unwrap()));
        assert_eq!((set.value("a"), set.value("b"), set.value("c")), ("1", "2", ""));
        for number in 1..LABEL_SETS_MAX {
            assert!(known.get(vec![pair("a", &format!("value {number}"))]).is_some());
        }
        assert!(known.get(vec![pair("a", "one more")]).is_none());
        assert!(known.get(Vec::new()).is_some() && known.get(vec![pair("b", "2"), pair("a", "1")]).is_some());
    }

    #[test]
    fn names_of_all_sets_together_are_bounded() {
        let mut known = Known(Vec::new());
        for number in 0..LABEL_NAMES_MAX {
            assert!(known.get(vec![pair(&format!("n{number}"), "v")]).is_some());
        }
        assert!(known.get(vec![pair("one_more", "v")]).is_none());
        assert!(known.get(vec![pair("n0", "other"), pair("n1", "other")]).is_some());
    }
}
