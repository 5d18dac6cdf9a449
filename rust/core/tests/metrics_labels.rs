//! Labels that owners give their workers. Each file of tests is a process, so what others serve is not here.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use headrace::error::StartError;
use headrace::metrics::{LabelError, names};
use headrace::{RouterConfig, Worker, WorkerConfig};
use support::scrape::{Scrape, assert_rose, count_of, of};
use support::{Running, collect, driver, guard, local, options, router_to, script, turn, worker};
use tokio::runtime::Handle;

fn labelled(labels: &[(&str, &str)]) -> WorkerConfig {
    let labels = labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    WorkerConfig { metrics_labels: labels.collect(), ..WorkerConfig::default() }
}

/// Calls the worker's engine so often.
async fn call(worker: &Worker, times: usize) {
    let router = router_to(&[worker.address()], RouterConfig::default());
    for _ in 0..times {
        let mut stream = guard("the call", router.call(options("2 8 clean"))).await.unwrap();
        let (sizes, error) = collect(&mut stream).await;
        assert!(sizes.len() == 2 && error.is_none(), "{error:?}");
    }
    router.close();
}

/// Which names of labels a family's series have, buckets aside.
fn label_names(scrape: &Scrape) -> BTreeMap<&str, Vec<Vec<&str>>> {
    let mut found: BTreeMap<&str, Vec<Vec<&str>>> = BTreeMap::new();
    for series in scrape.0.keys() {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let names = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0));
        let names = names.filter(|&name| name != "le").collect();
        found.entry(name).or_default().push(names);
    }
    found
}

#[tokio::test]
async fn all_that_a_worker_tells_carries_its_labels_and_two_that_differ_are_told_apart() {
    let turn = turn().await;
    let running = Running::default();
    let one = worker(&running, labelled(&[("zone", "b"), ("model", "a \"b\"\\\n")])).await;
    let same = worker(&running, labelled(&[("model", "a \"b\"\\\n"), ("zone", "b")])).await;
    let other = worker(&running, labelled(&[("model", "c")])).await;
    let plain = worker(&running, WorkerConfig::default()).await;
    let before = Scrape::now();
    for (worker, times) in [(&one, 1), (&same, 2), (&other, 4), (&plain, 8)] {
        call(worker, times).await;
    }
    let (of_one, of_other, of_plain) =
        ("model=\"a \\\"b\\\"\\\\\\n\",zone=\"b\"", "model=\"c\",zone=\"\"", "model=\"\",zone=\"\"");
    for (labels, times) in [(of_one, 3.0), (of_other, 4.0), (of_plain, 8.0)] {
        let endpoint = format!("endpoint=\"script\",{labels}");
        assert_rose(
            &before,
            &[
                (of(&names::WORKER_REQUESTS, &endpoint), times),
                (of(&names::WORKER_RESPONSE_ITEMS, &endpoint), 2.0 * times),
                (count_of(&names::WORKER_DURATION, &endpoint), times),
            ],
        );
        let errors = format!("endpoint=\"script\",error_type=\"generate\",{labels}");
        assert!(before.0.contains_key(&of(&names::WORKER_ERRORS, &errors)));
        let invalid = format!("endpoint=\"\",error_type=\"invalid_message\",{labels}");
        assert!(before.0.contains_key(&of(&names::WORKER_ERRORS, &invalid)));
    }
    let ready = |labels| Scrape::now().0.get(&of(&names::WORKER_READY, labels)).copied();
    assert_eq!([of_one, of_other, of_plain].map(ready), [Some(2.0), Some(1.0), Some(1.0)]);
    for (family, series) in label_names(&Scrape::now()) {
        assert!(series.iter().all(|names| *names == series[0]), "{family}: {series:?}");
    }
    // What belongs to no worker is labelled by nobody.
    assert!(Scrape::now().0.contains_key("headrace_router_requests_total"));
    for worker in [one, same, other, plain] {
        guard("draining", worker.drain(None)).await;
    }
    assert_eq!([of_one, of_other, of_plain].map(ready), [Some(0.0); 3]);
    drop(turn);
}

#[tokio::test]
async fn labels_that_cannot_be_are_refused_before_the_worker_listens() {
    let engines = vec![("script".to_owned(), script(&Running::default()))];
    let config = labelled(&[("endpoint", "mine")]);
    let bound = Worker::bind(&local(), engines, config, Handle::current(), driver()).await;
    let refused = bound.err().unwrap();
    assert!(matches!(&refused, StartError::MetricsLabels(LabelError::Taken(name)) if name == "endpoint"));
    assert_eq!(refused.to_string(), "metrics_labels: \"endpoint\" is a label that the metrics have already");
}
