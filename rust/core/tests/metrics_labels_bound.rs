//! More sets of labels than a process tells apart. They are never forgotten, so this has a process of its own.

// Helpers are not inside a `#[test]`, so the lints take them for production code.
#![allow(clippy::unwrap_used)]

mod support;

use headrace::metrics::{LABEL_SETS_MAX, names};
use headrace::{RouterConfig, WorkerConfig};
use support::scrape::{Scrape, assert_rose, of};
use support::{Running, collect, guard, options, router_to, turn, worker};

#[tokio::test]
async fn sets_of_labels_beyond_the_bound_are_counted_together_without_labels() {
    let turn = turn().await;
    let running = Running::default();
    let of_tenant = |number: usize| {
        let metrics_labels = vec![("tenant".to_owned(), number.to_string())];
        WorkerConfig { metrics_labels, ..WorkerConfig::default() }
    };
    for number in 0..LABEL_SETS_MAX {
        worker(&running, of_tenant(number)).await.close();
    }
    let beyond = worker(&running, of_tenant(LABEL_SETS_MAX)).await;
    let before = Scrape::now();
    let router = router_to(&[beyond.address()], RouterConfig::default());
    let mut stream = guard("the call", router.call(options("1 8 clean"))).await.unwrap();
    assert_eq!(collect(&mut stream).await, (vec![8], None));
    assert_rose(&before, &[(of(&names::WORKER_REQUESTS, "endpoint=\"_overflow\",tenant=\"\""), 1.0)]);
    assert!(Scrape::now().get(&of(&names::WORKER_READY, "tenant=\"\"")) == 1.0);
    let ready = format!("{}{{", names::WORKER_READY.name);
    assert_eq!(before.0.keys().filter(|series| series.starts_with(&ready)).count(), LABEL_SETS_MAX + 1);
    router.close();
    guard("draining", beyond.drain(None)).await;
    drop(turn);
}
