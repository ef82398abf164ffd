//! The audit: who enforces each field that a config.json sets, and which fields nobody does.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

use super::fields::{Enforcer, FIELDS, Field};
use super::refuse::{Node, Refusal, is_unset};

/// What the audit says of one field of a config.json.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The field, as a JSON path with indices: `mounts[2].options[0]`.
    pub path: String,
    /// Who enforces it.
    pub verdict: Verdict,
}

/// Who enforces a field of a config.json.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Whom the table names; never [`Enforcer::Refused`].
    Enforced(Enforcer),
    /// The same, but in a way that users are to know of, which the text tells.
    Noted(Enforcer, String),
    /// The field or its value is refused.
    Refused(Refusal),
    /// The runtime-spec has no such field: it is ignored, as it asks.
    Unknown,
    /// The value is none that the field can have, for this reason.
    Invalid(String),
}

impl Verdict {
    /// One word for it: the enforcer's, or what becomes of the field.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Enforced(enforcer) | Self::Noted(enforcer, _) => enforcer.word(),
            Self::Refused(_) => "refused",
            Self::Unknown => "unknown",
            Self::Invalid(_) => "invalid",
        }
    }

    /// Whether a config.json with such a field is not taken.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Invalid(_))
    }
}

/// Walks a config.json along the table. Whatever its fields' types are, this never fails.
pub fn audit(config: &Value) -> Vec<Finding> {
    let mut walk = Walk {
        root: config,
        findings: Vec::new(),
    };
    if let Value::Object(fields) = config {
        for (key, value) in fields {
            walk.child(&TREE, key, value, join("", key));
        }
    }
    walk.findings
}

/// The table as a tree, by the parts of its paths.
#[derive(Default)]
struct Branch {
    field: Option<&'static Field>,
    below: BTreeMap<&'static str, Branch>,
}

static TREE: LazyLock<Branch> = LazyLock::new(|| {
    let mut root = Branch::default();
    for field in FIELDS {
        let mut branch = &mut root;
        for part in field.path.split('.') {
            let name = part.trim_end_matches("[]");
            branch = branch.below.entry(name).or_default();
            if part != name {
                branch = branch.below.entry("[]").or_default();
            }
        }
        branch.field = Some(field);
    }
    root
});

struct Walk<'a> {
    root: &'a Value,
    findings: Vec<Finding>,
}

impl<'a> Walk<'a> {
    fn child(&mut self, branch: &Branch, key: &'a str, value: &'a Value, path: String) {
        match branch.below.get(key).or_else(|| branch.below.get("*")) {
            Some(branch) => self.visit(branch, key, value, path),
            None => self.findings.push(Finding {
                verdict: verdict_of_another(branch, key, value),
                path,
            }),
        }
    }

    fn visit(&mut self, branch: &Branch, key: &'a str, value: &'a Value, path: String) {
        if let Some(field) = branch.field {
            self.judge(
                field,
                Node {
                    key,
                    value,
                    root: self.root,
                },
                &path,
            );
        }
        match value {
            Value::Object(fields) if !branch.below.is_empty() => {
                for (key, value) in fields {
                    self.child(branch, key, value, join(&path, key));
                }
            }
            Value::Array(elements) => {
                if let Some(branch) = branch.below.get("[]") {
                    for (index, element) in elements.iter().enumerate() {
                        self.visit(branch, "", element, format!("{path}[{index}]"));
                    }
                }
            }
            _ => {}
        }
    }

    fn judge(&mut self, field: &Field, node: Node<'_>, path: &str) {
        let refusal = match field.enforcer {
            Enforcer::Refused { .. } if is_unset(node.value) => return,
            Enforcer::Refused { reason, remedy } => Some(Refusal::new(reason, remedy)),
            _ => field.check.and_then(|check| check(node)),
        };
        let finding = match refusal {
            Some(refusal) => Finding {
                path: format!("{path}{}", refusal.at),
                verdict: Verdict::Refused(refusal),
            },
            None => Finding {
                path: path.to_owned(),
                verdict: Verdict::Enforced(field.enforcer),
            },
        };
        self.findings.push(finding);
    }
}

/// What becomes of a key that the table doesn't have. A name in other letters than the specification's is
/// the field to runc, as Go reads JSON, and would be nobody's here.
fn verdict_of_another(branch: &Branch, key: &str, value: &Value) -> Verdict {
    let mut names = branch.below.keys();
    match names.find(|name| name.eq_ignore_ascii_case(key)) {
        Some(name) if !is_unset(value) => {
            let reason = format!("the specification has it in other letters: {name}");
            Verdict::Refused(Refusal::new(reason, "write it so"))
        }
        _ => Verdict::Unknown,
    }
}

/// A key below a path; one that would be mistaken for two is quoted.
fn join(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if plain && path.is_empty() {
        key.to_owned()
    } else if plain {
        format!("{path}.{key}")
    } else {
        format!("{path}[{key:?}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(config: &Value) -> Vec<String> {
        audit(config)
            .into_iter()
            .filter(|finding| matches!(finding.verdict, Verdict::Refused(_)))
            .map(|finding| finding.path)
            .collect()
    }

    #[test]
    fn a_refused_field_is_named_with_its_index() {
        let config =
            json!({"linux": {"namespaces": [{"type": "pid"}, {"type": "cgroup", "path": "/p"}]}});
        assert_eq!(refused(&config), ["linux.namespaces[1].path"]);
    }

    #[test]
    fn a_refused_field_that_asks_for_nothing_is_not_refused() {
        let config = json!({"windows": {}, "linux": {"resources": {"blockIO": {"weight": 0}}}});
        assert!(refused(&config).is_empty());
    }

    #[test]
    fn every_refusal_is_found_not_the_first_alone() {
        let config =
            json!({"linux": {"intelRdt": {"closID": "x"}}, "windows": {"servicing": true}});
        assert_eq!(refused(&config), ["linux.intelRdt", "windows"]);
    }

    #[test]
    fn an_unknown_field_is_reported() {
        let findings = audit(&json!({"process": {"cwd": "/", "colour": "red"}}));
        let unknown = Finding {
            path: "process.colour".into(),
            verdict: Verdict::Unknown,
        };
        assert!(findings.contains(&unknown), "{findings:?}");
    }

    #[test]
    fn a_name_in_other_letters_is_refused() {
        let config =
            json!({"Root": {"path": "r"}, "process": {"NoNewPrivileges": true, "Cwd": ""}});
        assert_eq!(refused(&config), ["Root", "process.NoNewPrivileges"]);
    }

    #[test]
    fn a_key_with_dots_is_quoted() {
        let config =
            json!({"linux": {"resources": {"unified": {"rdma.max": "mlx4_0 hca_handle=2"}}}});
        assert_eq!(refused(&config), ["linux.resources.unified[\"rdma.max\"]"]);
    }

    #[test]
    fn no_key_gets_out_of_its_quotes() {
        let findings = audit(&json!({"\u{1b}[2J": 1}));
        assert_eq!(findings[0].path, "[\"\\u{1b}[2J\"]");
    }

    #[test]
    fn wrong_types_are_walked_over() {
        let config = json!({"linux": [1], "mounts": {"a": 1}, "process": "x", "hooks": [[]]});
        assert!(refused(&config).is_empty());
    }
}
