//! From numbers to families as `prometheus` has them: sources put in what they have, under a family of the
//! table.

use std::collections::{BTreeMap, BTreeSet};

use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use super::labels::{LabelSet, UNLABELLED};
use super::names::{Family, Kind};
use super::numbers::TimeHistogram;

/// Something that has numbers and tells them when it is asked: a pool, a set of batchers.
pub trait Source: Send + Sync {
    /// Puts in what it has at this moment. Called with every scrape, on whatever thread that runs; it must
    /// neither block nor call back into the metrics.
    fn collect(&self, samples: &mut Samples);
}

/// Values of all families at one moment. What has the same labels is added up: two batchers of one name are
/// one series.
#[derive(Debug)]
pub struct Samples {
    families: BTreeMap<&'static str, Collected>,
    /// What all that is put in carries, beside the labels of its family.
    labels: &'static LabelSet,
}

impl Default for Samples {
    fn default() -> Self {
        Self { families: BTreeMap::new(), labels: &UNLABELLED }
    }
}

#[derive(Debug)]
struct Collected {
    family: &'static Family,
    series: BTreeMap<Series, Value>,
}

/// The values of its family's labels, and what else labels it.
type Series = (Vec<String>, &'static LabelSet);

#[derive(Debug)]
enum Value {
    Number(f64),
    Histogram { buckets: Vec<(f64, u64)>, sum: f64 },
}

impl Samples {
    /// A counter's or gauge's value. `labels` are the values of the family's labels, in their order.
    pub fn value(&mut self, family: &'static Family, labels: &[&str], value: f64) {
        debug_assert!(family.kind != Kind::Histogram, "{} is a histogram", family.name);
        let sum = self.series(family, labels, || Value::Number(0.0));
        if let Value::Number(sum) = sum {
            *sum += value;
        }
    }

    /// A counter's or gauge's value that is a whole number.
    pub fn count(&mut self, family: &'static Family, labels: &[&str], count: u64) {
        self.value(family, labels, count as f64);
    }

    /// A histogram: each bound with how many values were at most that, the last one infinite, and the values'
    /// sum. All histograms of a family have the same bounds.
    pub fn histogram(
        &mut self,
        family: &'static Family,
        labels: &[&str],
        cumulative: impl IntoIterator<Item = (f64, u64)>,
        sum: f64,
    ) {
        debug_assert!(family.kind == Kind::Histogram, "{} is no histogram", family.name);
        let added: Vec<_> = cumulative.into_iter().collect();
        let none =
            || Value::Histogram { buckets: added.iter().map(|&(bound, _)| (bound, 0)).collect(), sum: 0.0 };
        if let Value::Histogram { buckets, sum: total } = self.series(family, labels, none) {
            for ((_, count), (_, more)) in buckets.iter_mut().zip(&added) {
                *count += more;
            }
            *total += sum;
        }
    }

    /// A histogram of times.
    pub fn times(&mut self, family: &'static Family, labels: &[&str], times: &TimeHistogram) {
        self.histogram(family, labels, times.cumulative(), times.sum_s());
    }

    /// All that is put in meanwhile carries these labels.
    pub(crate) fn labelled(&mut self, labels: &'static LabelSet, put: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.labels, labels);
        put(self);
        self.labels = outer;
    }

    fn series(
        &mut self,
        family: &'static Family,
        labels: &[&str],
        none: impl FnOnce() -> Value,
    ) -> &mut Value {
        debug_assert_eq!(family.labels.len(), labels.len(), "labels of {}", family.name);
        let collected =
            self.families.entry(family.name).or_insert_with(|| Collected { family, series: BTreeMap::new() });
        let values = labels.iter().map(|&label| label.to_owned()).collect();
        collected.series.entry((values, self.labels)).or_insert_with(none)
    }

    pub(super) fn into_families(self) -> Vec<MetricFamily> {
        self.families.into_values().map(Collected::into_family).collect()
    }
}

impl Collected {
    fn into_family(self) -> MetricFamily {
        let Self { family, series } = self;
        let mut made = MetricFamily::default();
        made.set_name(family.name.to_owned());
        made.set_help(family.help.to_owned());
        made.set_field_type(match family.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        // All series of a family have the same labels: those that one was not given are empty.
        let more: BTreeSet<_> = series.keys().flat_map(|(_, labels)| labels.names()).collect();
        let metric = |((values, labels), value): (Series, Value)| {
            let own = family.labels.iter().zip(values).map(|(&name, value)| pair(name, value));
            let more = more.iter().map(|&name| pair(name, labels.value(name).to_owned()));
            metric(family.kind, own.chain(more).collect(), value)
        };
        made.set_metric(series.into_iter().map(metric).collect());
        made
    }
}

fn pair(name: &str, value: String) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value);
    label
}

fn metric(kind: Kind, labels: Vec<LabelPair>, value: Value) -> Metric {
    let mut metric = Metric::from_label(labels);
    match value {
        Value::Number(number) if kind == Kind::Counter => {
            let mut counter = proto::Counter::default();
            counter.set_value(number);
            metric.set_counter(counter);
        }
        Value::Number(number) => {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(number);
            metric.set_gauge(gauge);
        }
        Value::Histogram { buckets, sum } => {
            let mut histogram = proto::Histogram::default();
            histogram.set_sample_count(buckets.last().map_or(0, |&(_, count)| count));
            histogram.set_sample_sum(sum);
            let bucket = |(bound, count)| {
                let mut bucket = proto::Bucket::default();
                bucket.set_upper_bound(bound);
                bucket.set_cumulative_count(count);
                bucket
            };
            // The last one is what the encoder adds by itself, in Prometheus' own words.
            let finite = buckets.into_iter().filter(|(bound, _): &(f64, u64)| bound.is_finite());
            histogram.set_bucket(finite.map(bucket).collect());
            metric.set_histogram(histogram);
        }
    }
    metric
}
