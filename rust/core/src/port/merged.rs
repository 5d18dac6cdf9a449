//! What the parent of worker processes answers: all of them are one scrape, and it is ready if one of them
//! is.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::ask::{Silence, ask};
use super::http::{Answer, Answering, Page, Site};
use crate::metrics::names::WORKER_PROCESS_UP;

/// See the module's text.
pub(super) struct Merged {
    /// Where each worker process answers, by its number.
    sockets: Vec<PathBuf>,
}

type Answered = Result<(bool, Bytes), Silence>;

impl Merged {
    pub(super) const fn new(sockets: Vec<PathBuf>) -> Self {
        Self { sockets }
    }

    /// Asks all at once; the answers stand in the order of the processes. One that is ready is enough to be
    /// ready, and the others are not waited for.
    async fn ask_all(&self, page: Page) -> Vec<Answered> {
        let mut asking = JoinSet::new();
        for (number, socket) in self.sockets.iter().cloned().enumerate() {
            asking.spawn(async move { (number, ask(&socket, page).await) });
        }
        let mut answers = vec![Err(Silence::Unheard); self.sockets.len()];
        while let Some(answered) = asking.join_next().await {
            if let Ok((number, answer)) = answered
                && let Some(place) = answers.get_mut(number)
            {
                let is_enough = page == Page::Ready && matches!(answer, Ok((true, _)));
                *place = answer;
                if is_enough {
                    break;
                }
            }
        }
        answers
    }
}

impl Site for Merged {
    fn answer(self: Arc<Self>, page: Page) -> Answering {
        Box::pin(async move {
            let answers = self.ask_all(page).await;
            match page {
                Page::Metrics => Answer::metrics(merge(&answers)),
                Page::Live => live(&answers),
                Page::Ready => ready(&answers),
            }
        })
    }
}

/// One text of all of them: each family once, each series with the number of its process.
fn merge(answers: &[Answered]) -> String {
    let mut families: BTreeMap<String, (String, String)> = BTreeMap::new();
    let up = |(number, answer): (usize, &Answered)| {
        format!("{}{{worker_process=\"{number}\"}} {}\n", WORKER_PROCESS_UP.name, u8::from(answer.is_ok()))
    };
    let head = format!("# HELP {0} {1}\n# TYPE {0} gauge\n", WORKER_PROCESS_UP.name, WORKER_PROCESS_UP.help);
    let body = answers.iter().enumerate().map(up).collect();
    families.insert(WORKER_PROCESS_UP.name.to_owned(), (head, body));
    for (number, answer) in answers.iter().enumerate() {
        let Some(text) = answer.as_ref().ok().and_then(|(_, body)| std::str::from_utf8(body).ok()) else {
            continue;
        };
        let mut family = String::new();
        let mut is_new = false;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                rest.split(' ').next().unwrap_or_default().clone_into(&mut family);
                is_new = !families.contains_key(&family);
            }
            let (head, body) = families.entry(family.clone()).or_default();
            if !line.starts_with('#') {
                label(body, line, number);
            } else if is_new {
                head.push_str(line);
                head.push('\n');
            }
        }
    }
    families.into_values().flat_map(|(head, body)| [head, body]).collect()
}

/// Adds a series with one more label. A name ends at the first brace or space, whatever its labels hold.
fn label(body: &mut String, line: &str, number: usize) {
    let end = line.find(['{', ' ']).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    // Writing into a string does not fail.
    let _ = match rest.strip_prefix('{') {
        Some(labels) => writeln!(body, "{name}{{worker_process=\"{number}\",{labels}"),
        None => writeln!(body, "{name}{{worker_process=\"{number}\"}}{rest}"),
    };
}

/// A process that is not there is started again, so it is no reason to end the parent; one that does not
/// answer is.
fn live(answers: &[Answered]) -> Answer {
    let dead = |(_, answer): &(usize, &Answered)| {
        matches!(answer, Ok((false, _)) | Err(Silence::Mute | Silence::Unheard))
    };
    let reasons: Vec<_> = answers.iter().enumerate().filter(dead).flat_map(reasons).collect();
    let body = json!({ "live": reasons.is_empty(), "reasons": reasons, "worker_processes": each(answers) });
    Answer::json(reasons.is_empty(), &body)
}

fn ready(answers: &[Answered]) -> Answer {
    let ready = answers.iter().any(|answer| matches!(answer, Ok((true, _))));
    let reasons: Vec<_> =
        if ready { Vec::new() } else { answers.iter().enumerate().flat_map(reasons).collect() };
    let body = json!({ "ready": ready, "reasons": reasons, "worker_processes": each(answers) });
    Answer::json(ready, &body)
}

fn reasons((number, answer): (usize, &Answered)) -> Vec<String> {
    let of_it = match answer {
        Err(silence) => vec![why(*silence).to_owned()],
        Ok((true, _)) => Vec::new(),
        Ok((false, body)) => {
            let body: Value = serde_json::from_slice(body).unwrap_or_default();
            let reasons = body["reasons"].as_array().into_iter().flatten();
            reasons.filter_map(Value::as_str).map(str::to_owned).collect()
        }
    };
    of_it.into_iter().map(|reason| format!("worker process {number}: {reason}")).collect()
}

const fn why(silence: Silence) -> &'static str {
    match silence {
        Silence::Absent => "it is not there: it starts, or has ended",
        Silence::Mute => "it does not answer",
        Silence::Unheard => "it was not waited for: another one is ready",
    }
}

fn each(answers: &[Answered]) -> Vec<Value> {
    let each = |(number, answer): (usize, &Answered)| match answer {
        Ok((_, body)) => {
            let says: Value = serde_json::from_slice(body).unwrap_or_default();
            json!({ "worker_process": number, "up": true, "says": says })
        }
        Err(Silence::Unheard) => {
            json!({ "worker_process": number, "up": null, "reasons": [why(Silence::Unheard)] })
        }
        Err(silence) => json!({ "worker_process": number, "up": false, "reasons": [why(*silence)] }),
    };
    answers.iter().enumerate().map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &'static str) -> Answered {
        Ok((true, Bytes::from_static(text.as_bytes())))
    }

    #[test]
    fn families_are_merged_and_series_told_apart() {
        let one = text(
            "# HELP a_total A.\n# TYPE a_total counter\na_total 1\n\
             # HELP b B {x}.\n# TYPE b gauge\nb{c=\"} {\"} 2\n",
        );
        let two = text("# HELP a_total A.\n# TYPE a_total counter\na_total 3\n");
        let merged = merge(&[one, two, Err(Silence::Absent)]);
        let expected = "# HELP a_total A.\n# TYPE a_total counter\n\
            a_total{worker_process=\"0\"} 1\na_total{worker_process=\"1\"} 3\n\
            # HELP b B {x}.\n# TYPE b gauge\nb{worker_process=\"0\",c=\"} {\"} 2\n";
        assert!(merged.starts_with(expected), "{merged}");
        for (number, up) in [(0, 1), (1, 1), (2, 0)] {
            assert!(
                merged.contains(&format!("_process_up{{worker_process=\"{number}\"}} {up}\n")),
                "{merged}"
            );
        }
        assert_eq!(merged.matches("# TYPE a_total").count(), 1);
    }

    #[test]
    fn one_that_is_ready_is_enough_and_one_that_is_absent_is_no_death() {
        let unwell: Answered = Ok((false, Bytes::from_static(br#"{"reasons":["it is draining"]}"#)));
        assert!(ready(&[unwell.clone(), text("{}")]).well);
        let none = ready(&[unwell.clone(), Err(Silence::Absent)]);
        assert!(!none.well && none.body.contains("worker process 0: it is draining"), "{}", none.body);
        assert!(live(&[text("{}"), Err(Silence::Absent)]).well);
        assert!(!live(&[text("{}"), Err(Silence::Mute)]).well);
        assert!(!live(&[text("{}"), unwell]).well);
    }
}
