//! What a scrape of this process says, by series.

use std::collections::BTreeMap;

use headrace::metrics::{self, names};

/// All series with their values, as a scrape has them.
#[derive(Clone, Debug)]
pub struct Scrape(pub BTreeMap<String, f64>);

impl Scrape {
    pub fn now() -> Self {
        let text = metrics::render();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .map(|line| line.rsplit_once(' ').unwrap())
                .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
                .collect(),
        )
    }

    pub fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// By how much a series has risen since `before`.
    pub fn since(&self, before: &Self, series: &str) -> f64 {
        self.get(series) - before.get(series)
    }
}

/// A series of a family.
pub fn of(family: &names::Family, labels: &str) -> String {
    if labels.is_empty() { family.name.to_owned() } else { format!("{}{{{labels}}}", family.name) }
}

/// The count of a histogram.
pub fn count_of(family: &names::Family, labels: &str) -> String {
    let name = format!("{}_count", family.name);
    if labels.is_empty() { name } else { format!("{name}{{{labels}}}") }
}

/// Asserts by how much series have risen.
pub fn assert_rose(before: &Scrape, expected: &[(String, f64)]) {
    let now = Scrape::now();
    for (series, by) in expected {
        assert!(now.since(before, series) == *by, "{series} rose by {}, not {by}", now.since(before, series));
    }
}
