//! What a process answers of itself: its metrics, whether its loops turn, and whether it is ready.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::http::{Answer, Answering, Page, Site};
use crate::health::{EndpointReport, Report, Reports, unfit};
use crate::metrics::{blocked_loops, render};

/// A loop that has no turn for this long counts as frozen, unless somebody names another time.
const FROZEN_AFTER: Duration = Duration::from_secs(5);

/// See the module's text.
#[derive(Default)]
pub(super) struct Answers(Mutex<Members>);

#[derive(Default)]
struct Members {
    all: Vec<Arc<dyn Reports>>,
    frozen_after: Option<Duration>,
}

impl Answers {
    pub(super) fn watch(&self, member: Arc<dyn Reports>, frozen_after: Duration) {
        let mut members = self.0.lock();
        // Those that are closed have nothing to say any more.
        members.all.retain(|member| member.report().is_some());
        members.all.push(member);
        members.frozen_after =
            Some(members.frozen_after.map_or(frozen_after, |known| known.min(frozen_after)));
    }

    fn reports(&self) -> Vec<Report> {
        let all = self.0.lock().all.clone();
        all.iter().filter_map(|member| member.report()).collect()
    }

    /// Loops that are frozen, and a sentence for each.
    fn frozen(&self) -> Vec<String> {
        let bound = self.0.lock().frozen_after.unwrap_or(FROZEN_AFTER);
        let sentence = |(name, time): (String, Duration)| {
            format!("{name} has had no turn for {:.1} s: something blocks it", time.as_secs_f64())
        };
        blocked_loops(bound).into_iter().map(sentence).collect()
    }

    fn live(&self) -> Answer {
        let reasons = self.frozen();
        let live = reasons.is_empty();
        Answer::json(live, &json!({ "live": live, "reasons": reasons }))
    }

    fn ready(&self) -> Answer {
        let reports = self.reports();
        let of_kind = |kind: &'static str| reports.iter().filter(move |report| report.kind == kind);
        let mut reasons = self.frozen();
        reasons.extend(unfit().into_iter().map(|(what, why)| format!("{what}: {why}")));
        let (workers, routers) = (of_kind("worker").count(), of_kind("router").count());
        if workers > 0 && of_kind("worker").all(|worker| !worker.reasons.is_empty()) {
            reasons.extend(of_kind("worker").flat_map(prefixed));
        }
        reasons.extend(of_kind("router").flat_map(prefixed));
        if workers + routers == 0 {
            reasons.push("nothing is served here any more".to_owned());
        }
        let ready = reasons.is_empty();
        let each = |kind| -> Vec<Value> { of_kind(kind).map(member).collect() };
        let body = json!({
            "ready": ready,
            "reasons": reasons,
            "workers": each("worker"),
            "routers": each("router"),
        });
        Answer::json(ready, &body)
    }
}

/// A member's reasons, each with whose it is.
fn prefixed(report: &Report) -> impl Iterator<Item = String> {
    report.reasons.iter().map(move |reason| format!("{} {}: {reason}", report.kind, report.instance_id))
}

fn member(report: &Report) -> Value {
    let Report { kind, instance_id, address, reasons, endpoints } = report;
    let ready = reasons.is_empty();
    let mut value = json!({ "instance_id": instance_id, "ready": ready, "reasons": reasons });
    if *kind == "worker" {
        value["address"] = json!(address);
        value["endpoints"] = endpoints.iter().map(endpoint).collect();
    }
    value
}

fn endpoint(report: &EndpointReport) -> Value {
    let EndpointReport { name, answered_ago, failure } = report;
    json!({
        "name": name,
        "answers": failure.is_none(),
        "answered_seconds_ago": answered_ago.map(|ago| ago.as_secs_f64()),
        "reason": failure,
    })
}

impl Site for Answers {
    fn answer(self: Arc<Self>, page: Page) -> Answering {
        Box::pin(async move {
            match page {
                Page::Live => self.live(),
                Page::Ready => self.ready(),
                // With many series it takes milliseconds, and whoever looks after links must not wait for
                // that.
                Page::Metrics => {
                    Answer::metrics(tokio::task::spawn_blocking(render).await.unwrap_or_default())
                }
            }
        })
    }
}
