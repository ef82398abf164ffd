//! A container's annotations `io.hull.KEY`: a configuration of its own, as far as the operator allows it.

use std::collections::HashMap;

use serde_json::Value;

use super::{Config, keys};

/// What hull's annotations begin with.
pub const PREFIX: &str = "io.hull.";

/// An annotation that is not taken.
#[derive(Debug, thiserror::Error)]
#[error("config.json: annotations[\"{PREFIX}{name}\"]: {why}")]
pub struct AnnotationError {
    /// What it says behind the prefix.
    name: String,
    why: Refused,
}

/// Why it isn't.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("hull has no such annotation (`hull config` lists the keys)")]
    Unknown,
    #[error(
        "this host does not allow it; its operator can, with `annotations` in the configuration"
    )]
    NotAllowed,
    #[error("{0}")]
    Value(String),
}

impl Config {
    /// The configuration for a container with these annotations.
    ///
    /// # Errors
    /// When one of hull's is unknown, not allowed, or its value is none of its key's.
    pub fn for_container(
        self,
        annotations: &HashMap<String, String>,
    ) -> Result<Self, AnnotationError> {
        let mut ours: Vec<_> = annotations
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?, value)))
            .collect();
        // So that of several refusals it is always the same that is told.
        ours.sort_unstable();
        let mut config = self;
        for (name, value) in ours {
            config = config.with(name, value).map_err(|why| AnnotationError {
                name: name.to_owned(),
                why,
            })?;
        }
        Ok(config)
    }

    fn with(self, name: &str, text: &str) -> Result<Self, Refused> {
        if !keys::is_settable(name) {
            return Err(Refused::Unknown);
        }
        if !self.annotations.iter().any(|allowed| allowed == name) {
            return Err(Refused::NotAllowed);
        }
        let wrong = |error: serde_json::Error| Refused::Value(error.to_string());
        let mut values = serde_json::to_value(&self).map_err(wrong)?;
        values[name] = match &values[name] {
            Value::Number(_) => text
                .parse::<u64>()
                .map(Value::from)
                .map_err(|_| Refused::Value(format!("{text:?} is not a number")))?,
            Value::Bool(_) => text
                .parse::<bool>()
                .map(Value::from)
                .map_err(|_| Refused::Value(format!("{text:?} is not true or false")))?,
            _ => Value::from(text),
        };
        serde_json::from_value(values).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(annotations: &[(&str, &str)]) -> Result<Config, String> {
        let config = Config {
            annotations: ["default_memory", "kernel_params", "core_scheduling"]
                .map(str::to_owned)
                .to_vec(),
            ..Config::default()
        };
        let annotations = annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        config
            .for_container(&annotations.collect())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn an_allowed_annotation_changes_its_key() {
        let config = with(&[
            ("io.hull.default_memory", "512"),
            ("io.hull.kernel_params", "quiet"),
            ("io.hull.core_scheduling", "true"),
            ("org.example.default_memory", "1"),
        ]);
        let config = config.expect("taken");
        assert_eq!(
            (config.default_memory, &*config.kernel_params),
            (512, "quiet")
        );
        assert!(config.core_scheduling);
    }

    #[test]
    fn a_refusal_names_the_annotation() {
        let cases = [
            (
                ("io.hull.kernel", "/k"),
                "annotations[\"io.hull.kernel\"]: this host does not allow it",
            ),
            (
                ("io.hull.colour", "red"),
                "annotations[\"io.hull.colour\"]: hull has no such",
            ),
            (("io.hull.annotations", "kernel"), "hull has no such"),
            (
                ("io.hull.default_memory", "much"),
                "\"much\" is not a number",
            ),
            (("io.hull.default_memory", "1"), "1 is not between 128 and"),
            (
                ("io.hull.core_scheduling", "1"),
                "\"1\" is not true or false",
            ),
        ];
        for (annotation, expected) in cases {
            let said = with(&[annotation]).expect_err("refused");
            assert!(said.contains(expected), "{said}");
        }
    }
}
