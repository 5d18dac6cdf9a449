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
pub(super) struct Answers(Mutex<Vec<Member>>);

struct Member {
    member: Arc<dyn Reports>,
    /// What it says of how long a loop may have no turn.
    frozen_after: Duration,
}

impl Answers {
    pub(super) fn watch(&self, member: Arc<dyn Reports>, frozen_after: Duration) {
        self.reports();
        self.0.lock().push(Member { member, frozen_after });
    }

    /// What the members say, and the shortest of their times. Those that are closed have nothing to say any
    /// more, and are let go of.
    fn reports(&self) -> (Vec<Report>, Duration) {
        let mut reports = Vec::new();
        // Dropped after the lock: they may be the last to hold what they tell of.
        let mut closed = Vec::new();
        let mut members = self.0.lock();
        for each in std::mem::take(&mut *members) {
            if let Some(report) = each.member.report() {
                reports.push(report);
                members.push(each);
            } else {
                closed.push(each);
            }
        }
        let bound = members.iter().map(|each| each.frozen_after).min().unwrap_or(FROZEN_AFTER);
        drop(members);
        (reports, bound)
    }

    /// Loops that have had no turn for longer than `bound`, and a sentence for each.
    fn frozen(bound: Duration) -> Vec<String> {
        let sentence = |(name, time): (String, Duration)| {
            format!("{name} has had no turn for {:.1} s: something blocks it", time.as_secs_f64())
        };
        blocked_loops(bound).into_iter().map(sentence).collect()
    }

    fn live(&self) -> Answer {
        let (_, bound) = self.reports();
        let reasons = Self::frozen(bound);
        let live = reasons.is_empty();
        Answer::json(live, &json!({ "live": live, "reasons": reasons }))
    }

    fn ready(&self) -> Answer {
        let (reports, bound) = self.reports();
        let of_kind = |kind: &'static str| reports.iter().filter(move |report| report.kind == kind);
        let mut reasons = Self::frozen(bound);
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
    let EndpointReport { name, answered_ago, is_checked, failure, inflight, queued } = report;
    json!({
        "name": name,
        "answers": is_checked.then_some(failure.is_none()),
        "answered_seconds_ago": answered_ago.map(|ago| ago.as_secs_f64()),
        "inflight_requests": inflight,
        "queued_requests": queued,
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Closable(AtomicBool);

    impl Reports for Closable {
        fn report(&self) -> Option<Report> {
            let report = Report {
                kind: "worker",
                instance_id: String::new(),
                address: String::new(),
                reasons: Vec::new(),
                endpoints: Vec::new(),
            };
            (!self.0.load(Ordering::Relaxed)).then_some(report)
        }
    }

    #[test]
    fn what_has_closed_is_let_go_of_with_its_bound() {
        let answers = Answers::default();
        let [strict, patient] = [(); 2].map(|()| Arc::new(Closable(AtomicBool::new(false))));
        let seconds = Duration::from_secs;
        let strictest: Arc<dyn Reports> = strict.clone();
        answers.watch(strictest, seconds(1));
        let other: Arc<dyn Reports> = patient.clone();
        answers.watch(other, seconds(9));
        assert_eq!(answers.reports().1, seconds(1));
        strict.0.store(true, Ordering::Relaxed);
        assert_eq!(answers.reports().1, seconds(9));
        assert_eq!((Arc::strong_count(&strict), Arc::strong_count(&patient)), (1, 2));
        patient.0.store(true, Ordering::Relaxed);
        assert_eq!(answers.reports().1, FROZEN_AFTER);
    }
}
