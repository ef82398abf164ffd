//! Two outcomes, compared; and the differences that are explained.

use std::collections::BTreeSet;
use std::fmt;

use hull_tests::Bundle;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::runtimes::Outcome;

/// Where in a report, by keys and indices.
pub type Place = Vec<String>;

/// One difference of two reports. What a report doesn't have is null.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Where.
    pub at: Place,
    /// hull's value.
    pub hull: Value,
    /// The control's.
    pub control: Value,
}

/// What the comparison says.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The same to both, but for what is explained.
    Same,
    /// Neither makes a container of it, or lets the probe end; each for its reason.
    Neither(String),
    /// hull takes no such bundle, and names the field.
    Refused(String),
    /// The control crashed, so there is nothing to hold hull against.
    ControlCrashed(String),
    /// It differs.
    Differs(Vec<Difference>),
}

impl Verdict {
    /// Whether there is one of these differences, whatever its values.
    pub fn has_one_of(&self, others: &[Difference]) -> bool {
        let Self::Differs(own) = self else {
            return false;
        };
        let places: BTreeSet<_> = others.iter().map(|other| &other.at).collect();
        own.iter().any(|difference| places.contains(&difference.at))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => write!(f, "the same"),
            Self::Neither(why) => write!(f, "neither takes it: {why}"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::ControlCrashed(why) => write!(f, "the control crashed: {why}"),
            Self::Differs(differences) => {
                write!(f, "it differs:")?;
                for Difference { at, hull, control } in differences {
                    write!(
                        f,
                        "\n    {}: hull {hull}, control {control}",
                        at.join(" > ")
                    )?;
                }
                Ok(())
            }
        }
    }
}

/// What may differ: `explained.json`.
#[derive(Debug, Deserialize)]
pub struct Explanations {
    /// Fields that the control does not know: they are kept from it.
    unknown_to_control: Vec<Unknown>,
    differences: Vec<Explanation>,
}

/// A field that the control does not know. hull's report must have its value.
#[derive(Debug, Deserialize)]
struct Unknown {
    /// The JSON pointer of the object that the field is in, and its key there.
    field: (String, String),
    /// Where in the report its value is.
    reported: Place,
    /// Why nobody expects the control to know it.
    #[allow(dead_code)] // for the reader of the file
    why: String,
}

/// A difference that may be.
#[derive(Debug, Deserialize)]
struct Explanation {
    /// Where: `*` is any one key, and whatever is below is meant too.
    at: Place,
    /// The only value that hull may have there: null, if there must be none.
    #[serde(default, deserialize_with = "given")]
    hull: Option<Value>,
    /// The only value that the control may have there.
    #[serde(default, deserialize_with = "given")]
    control: Option<Value>,
    /// Why it may be.
    #[allow(dead_code)] // for the reader of the file
    why: String,
}

/// Tells null from what is missing.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

impl Explanations {
    /// The list.
    pub fn read() -> Self {
        serde_json::from_str(include_str!("explained.json")).unwrap()
    }

    /// The same bundle for the control.
    pub fn without_the_unknown(&self, mut bundle: Bundle) -> Bundle {
        for Unknown {
            field: (parent, key),
            ..
        } in &self.unknown_to_control
        {
            if bundle.config().pointer(parent).is_some() {
                bundle = bundle.unset(parent, key);
            }
        }
        bundle
    }

    /// Puts into the control's report what it would have to say of the fields that it doesn't know.
    fn supply_the_unknown(&self, config: &Value, report: &mut Value) {
        for Unknown {
            field: (parent, key),
            reported,
            ..
        } in &self.unknown_to_control
        {
            if let Some(value) = config.pointer(parent).and_then(|parent| parent.get(key)) {
                let place = reported.iter().fold(&mut *report, |at, key| &mut at[key]);
                *place = value.clone();
            }
        }
    }

    fn explain(&self, difference: &Difference) -> bool {
        self.differences.iter().any(|one| {
            let is = |only: &Option<Value>, value| only.as_ref().is_none_or(|only| only == value);
            one.at.len() <= difference.at.len()
                && one
                    .at
                    .iter()
                    .zip(&difference.at)
                    .all(|(one, key)| one == "*" || one == key)
                && is(&one.hull, &difference.hull)
                && is(&one.control, &difference.control)
        })
    }
}

/// Compares what hull and the control made of a bundle with this config.json.
pub fn compare(
    config: &Value,
    hull: Outcome,
    control: Outcome,
    explained: &Explanations,
) -> Verdict {
    let (mut hull, mut control) = match (hull, control) {
        (Outcome::Report(hull), Outcome::Report(control)) => (hull, control),
        (hull, control) if control.is_crash() => {
            return Verdict::ControlCrashed(both(&hull, &control));
        }
        (hull @ Outcome::None { .. }, control @ Outcome::None { .. }) => {
            return Verdict::Neither(both(&hull, &control));
        }
        (
            Outcome::None {
                code: Some(1),
                said,
            },
            _,
        ) if said
            .lines()
            .last()
            .is_some_and(|line| line.contains("config.json: ")) =>
        {
            return Verdict::Refused(said);
        }
        (hull, control) => {
            let difference = Difference {
                at: vec!["outcome".to_owned()],
                hull: summary(&hull),
                control: summary(&control),
            };
            return match explained.explain(&difference) {
                true => Verdict::Same,
                false => Verdict::Differs(vec![difference]),
            };
        }
    };
    explained.supply_the_unknown(config, &mut control);
    unify_shares(&mut hull, &mut control);
    let mut differences = Vec::new();
    collect(&mut Vec::new(), &hull, &control, &mut differences);
    differences.retain(|difference| !explained.explain(difference));
    match differences.is_empty() {
        true => Verdict::Same,
        false => Verdict::Differs(differences),
    }
}

fn both(hull: &Outcome, control: &Outcome) -> String {
    [hull, control]
        .map(|outcome| summary(outcome).to_string())
        .join("; ")
}

fn summary(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Report(_) => "a report".into(),
        Outcome::None { code, said } => format!("code {code:?}: {said}").into(),
    }
}

/// What comes of the host's file systems comes to hull's containers by virtio-fs, and to others' as it
/// is: there the type, the source and the file system's own options mean nothing.
fn unify_shares(hull: &mut Value, control: &mut Value) {
    let Some(mounts) = hull["mounts"].as_object_mut() else {
        return;
    };
    for (place, mount) in mounts {
        let other = control["mounts"].get_mut(place);
        if let (Some(other), true) = (other, mount["type"] == "virtiofs") {
            for key in ["type", "source", "superblock"] {
                other[key] = mount[key].clone();
            }
        }
    }
}

fn collect(at: &mut Place, hull: &Value, control: &Value, differences: &mut Vec<Difference>) {
    match (hull, control) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let keys: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
            for key in keys {
                at.push(key.clone());
                collect(at, &hull[key], &control[key], differences);
                at.pop();
            }
        }
        _ if hull == control => {}
        _ => differences.push(Difference {
            at: at.clone(),
            hull: hull.clone(),
            control: control.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_explanation_excuses_no_other_value_and_null_is_one() {
        let explained: Explanations = serde_json::from_value(json!({
            "unknown_to_control": [],
            "differences": [{ "at": ["a", "*"], "hull": null, "why": "" }],
        }))
        .unwrap();
        let excused = |at: [&str; 2], hull| {
            explained.explain(&Difference {
                at: at.map(str::to_owned).to_vec(),
                hull,
                control: json!(1),
            })
        };
        assert!(excused(["a", "b"], Value::Null));
        assert!(!excused(["a", "b"], json!(2)));
        assert!(!excused(["b", "b"], Value::Null));
    }
    #[test]
    fn a_crash_of_the_control_is_no_difference_and_an_error_of_it_is() {
        let explained: Explanations =
            serde_json::from_value(json!({ "unknown_to_control": [], "differences": [] })).unwrap();
        let judged = |said: &str| {
            let control = Outcome::None {
                code: Some(2),
                said: said.to_owned(),
            };
            compare(&json!({}), Outcome::Report(json!({})), control, &explained)
        };
        let panic = "panic: operation not permitted\n\ngoroutine 1 [running, locked to thread]:\nmain.main()";
        assert!(matches!(judged(panic), Verdict::ControlCrashed(_)));
        assert!(matches!(
            judged("unable to start container"),
            Verdict::Differs(_)
        ));
    }
}
