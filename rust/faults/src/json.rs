//! Plans as text, for programs that are not written in Rust. A plan is one JSON object:
//!
//! ```text
//! {}                                         nothing is changed
//! {"every": SCRIPTS}                         each connection the same
//! {"first": SCRIPTS}                         the first connection only
//! {"seed": 7, "menu": MENU}                  each connection its own
//!
//! SCRIPTS  {"to_server": SCRIPT, "to_client": SCRIPT}
//! SCRIPT   {"delay_ms": 1.5, "jitter_ms": 2, "seed": 3, "slice": 1, "corrupt": [[at, mask], ...],
//!           and one of "reset": at, "half_close": at, "black_hole": at}
//! MENU     {"delay_max_ms": 5, "jitter_max_ms": 5, "slice_max": 100, "cut_percent": 50,
//!           "cuts": ["reset", "half_close", "black_hole"], "cut_before": 5000, "corrupt_percent": 10}
//! ```
//! Whatever is left out is its type's default. Unknown names are refused, so that a misspelt fault cannot
//! pass for one that did nothing.

use std::time::Duration;

use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::plan::{Menu, Plan, Scripts};
use crate::proxy::Record;
use crate::script::{Corruption, Cut, Fault, Script};

/// Why a text is no plan.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// It is no JSON.
    #[error("a plan is one JSON object: {0}")]
    Json(#[from] serde_json::Error),
    /// An object has a name that means nothing there.
    #[error("{name:?} is no part of a {of}")]
    Unknown {
        /// The name.
        name: String,
        /// What it stands in.
        of: &'static str,
    },
    /// A value is not what its name asks for.
    #[error("{name} must be {expected}")]
    Value {
        /// The name.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

/// Reads a plan.
///
/// # Errors
/// The text is none; the message says which part.
pub fn plan(text: &str) -> Result<Plan, PlanError> {
    let plan = object(&serde_json::from_str(text)?, "plan", "plan", &["every", "first", "seed", "menu"])?;
    let named = (plan.get("every"), plan.get("first"), plan.get("menu"));
    Ok(match named {
        (None, None, None) if !plan.contains_key("seed") => Plan::default(),
        (Some(every), None, None) => Plan::Every(scripts(every, "every")?),
        (None, Some(first), None) => Plan::First(scripts(first, "first")?),
        (None, None, Some(from)) => Plan::Drawn { seed: number(&plan, "seed", 0)?, menu: menu(from)? },
        _ => {
            return Err(PlanError::Value { name: "plan", expected: "one of every, first, or seed and menu" });
        }
    })
}

/// Writes records as one line of JSON: a list of objects with the fields of [`Record`].
#[must_use]
pub fn records(records: &[Record]) -> String {
    let each = |record: &Record| {
        json!({
            "number": record.number,
            "to_server": record.to_server,
            "to_client": record.to_client,
            "fired": record.fired.map(fault_name),
            "open": record.open,
        })
    };
    Value::from_iter(records.iter().map(each)).to_string()
}

const FAULTS: [(&str, Fault); 3] =
    [("reset", Fault::Reset), ("half_close", Fault::HalfClose), ("black_hole", Fault::BlackHole)];

fn fault_name(fault: Fault) -> &'static str {
    match fault {
        Fault::Reset => "reset",
        Fault::HalfClose => "half_close",
        Fault::BlackHole => "black_hole",
    }
}

fn scripts(value: &Value, name: &'static str) -> Result<Scripts, PlanError> {
    let both = object(value, name, "pair of scripts", &["to_server", "to_client"])?;
    let of = |name| both.get(name).map_or_else(|| Ok(Script::default()), |value| script(value, name));
    Ok(Scripts { to_server: of("to_server")?, to_client: of("to_client")? })
}

fn script(value: &Value, name: &'static str) -> Result<Script, PlanError> {
    let known = ["delay_ms", "jitter_ms", "seed", "slice", "corrupt", "reset", "half_close", "black_hole"];
    let script = object(value, name, "script", &known)?;
    let mut cut = None;
    for (name, fault) in FAULTS.into_iter().filter(|(name, _)| script.contains_key(*name)) {
        let at = number(&script, name, 0)?;
        if cut.replace(Cut { at, fault }).is_some() {
            return Err(PlanError::Value { name, expected: "the only fault of its script" });
        }
    }
    Ok(Script {
        delay: milliseconds(&script, "delay_ms")?,
        jitter: milliseconds(&script, "jitter_ms")?,
        corrupt: script.get("corrupt").map_or_else(|| Ok(Vec::new()), corruptions)?,
        cut,
        seed: number(&script, "seed", 0)?,
        ..Script::slices(size(&script, "slice")?)
    })
}

fn menu(value: &Value) -> Result<Menu, PlanError> {
    let known = [
        "delay_max_ms",
        "jitter_max_ms",
        "slice_max",
        "cut_percent",
        "cuts",
        "cut_before",
        "corrupt_percent",
    ];
    let menu = object(value, "menu", "menu", &known)?;
    Ok(Menu {
        delay_max: milliseconds(&menu, "delay_max_ms")?,
        jitter_max: milliseconds(&menu, "jitter_max_ms")?,
        slice_max: size(&menu, "slice_max")?,
        cut_percent: percent(&menu, "cut_percent")?,
        cuts: menu.get("cuts").map_or_else(|| Ok(Vec::new()), faults)?,
        cut_before: number(&menu, "cut_before", 0)?,
        corrupt_percent: percent(&menu, "corrupt_percent")?,
    })
}

fn object(
    value: &Value,
    name: &'static str,
    of: &'static str,
    known: &[&str],
) -> Result<Map<String, Value>, PlanError> {
    let object = value.as_object().ok_or(PlanError::Value { name, expected: "an object" })?;
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(unknown) => Err(PlanError::Unknown { name: unknown.clone(), of }),
        None => Ok(object.clone()),
    }
}

fn number(object: &Map<String, Value>, name: &'static str, default: u64) -> Result<u64, PlanError> {
    let expected = "a whole number, not negative";
    object.get(name).map_or(Ok(default), |value| value.as_u64().ok_or(PlanError::Value { name, expected }))
}

fn size(object: &Map<String, Value>, name: &'static str) -> Result<usize, PlanError> {
    Ok(usize::try_from(number(object, name, 0)?).unwrap_or(usize::MAX))
}

fn percent(object: &Map<String, Value>, name: &'static str) -> Result<u8, PlanError> {
    let given = number(object, name, 0)?;
    let expected = "0 to 100";
    u8::try_from(given).ok().filter(|&given| given <= 100).ok_or(PlanError::Value { name, expected })
}

fn milliseconds(object: &Map<String, Value>, name: &'static str) -> Result<Duration, PlanError> {
    let expected = "milliseconds, not negative";
    let Some(value) = object.get(name) else { return Ok(Duration::ZERO) };
    let seconds = value.as_f64().map(|ms| ms / 1e3);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or(PlanError::Value { name, expected })
}

fn corruptions(value: &Value) -> Result<Vec<Corruption>, PlanError> {
    let wrong = PlanError::Value { name: "corrupt", expected: "a list of pairs: position and mask" };
    let one = |pair: &Value| {
        let [at, mask] = pair.as_array()?.as_slice() else { return None };
        Some(Corruption { at: at.as_u64()?, mask: mask.as_u64()?.try_into().ok()? })
    };
    value.as_array().and_then(|pairs| pairs.iter().map(one).collect()).ok_or(wrong)
}

fn faults(value: &Value) -> Result<Vec<Fault>, PlanError> {
    let wrong = PlanError::Value { name: "cuts", expected: "a list of reset, half_close and black_hole" };
    let one = |name: &Value| {
        let name = name.as_str()?;
        FAULTS.iter().find(|(known, _)| *known == name).map(|(_, fault)| *fault)
    };
    value.as_array().and_then(|names| names.iter().map(one).collect()).ok_or(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Direction;

    #[test]
    fn every_part_of_a_plan_is_read() {
        assert_eq!(plan("{}").unwrap(), Plan::default());
        let text = r#"{"first": {"to_server": {"delay_ms": 1.5, "jitter_ms": 2, "seed": 3, "slice": 1,
            "corrupt": [[4, 255]], "half_close": 9}}}"#;
        let script = Script {
            delay: Duration::from_micros(1500),
            jitter: Duration::from_millis(2),
            seed: 3,
            corrupt: vec![Corruption { at: 4, mask: 255 }],
            cut: Some(Cut { at: 9, fault: Fault::HalfClose }),
            ..Script::slices(1)
        };
        assert_eq!(plan(text).unwrap(), Plan::First(Scripts::of(Direction::ToServer, script)));
        for (name, fault) in FAULTS {
            let text = format!(r#"{{"every": {{"to_client": {{"{name}": 7}}}}}}"#);
            let scripts = Scripts::of(Direction::ToClient, Script::cut(fault, 7));
            assert_eq!(plan(&text).unwrap(), Plan::Every(scripts));
            assert_eq!(fault_name(fault), name);
        }
        let text = r#"{"seed": 7, "menu": {"delay_max_ms": 1, "jitter_max_ms": 2, "slice_max": 3,
            "cut_percent": 4, "cuts": ["reset", "black_hole"], "cut_before": 5, "corrupt_percent": 6}}"#;
        let menu = Menu {
            delay_max: Duration::from_millis(1),
            jitter_max: Duration::from_millis(2),
            slice_max: 3,
            cut_percent: 4,
            cuts: vec![Fault::Reset, Fault::BlackHole],
            cut_before: 5,
            corrupt_percent: 6,
        };
        assert_eq!(plan(text).unwrap(), Plan::Drawn { seed: 7, menu });
    }

    #[test]
    fn what_is_no_plan_is_refused_by_name() {
        for (text, named) in [
            ("", "JSON"),
            ("[]", "plan must be an object"),
            (r#"{"evry": {}}"#, "\"evry\""),
            (r#"{"every": {}, "first": {}}"#, "one of every"),
            (r#"{"seed": 1}"#, "one of every"),
            (r#"{"every": {"to_moon": {}}}"#, "\"to_moon\""),
            (r#"{"every": {"to_server": {"rset": 1}}}"#, "\"rset\""),
            (r#"{"every": {"to_server": {"reset": -1}}}"#, "reset"),
            (r#"{"every": {"to_server": {"reset": 1, "black_hole": 2}}}"#, "only fault"),
            (r#"{"every": {"to_server": {"delay_ms": -1}}}"#, "delay_ms"),
            (r#"{"every": {"to_server": {"corrupt": [[1, 256]]}}}"#, "corrupt"),
            (r#"{"menu": {"cut_percent": 101}}"#, "cut_percent"),
            (r#"{"menu": {"cuts": ["explode"]}}"#, "cuts"),
        ] {
            let refused = plan(text).unwrap_err().to_string();
            assert!(refused.contains(named), "{text}: {refused}");
        }
    }

    #[test]
    fn records_are_one_line() {
        let record = Record { number: 1, to_server: 2, to_client: 3, fired: Some(Fault::Reset), open: false };
        let expected = r#"[{"fired":"reset","number":1,"open":false,"to_client":3,"to_server":2}]"#;
        assert_eq!(records(&[record]), expected);
        assert_eq!(records(&[]), "[]");
    }
}
