//! The values that are refused where the field as such is not: the checks that [`fields`](super::fields)
//! names.
//!
//! A value of a wrong type is none of their business: the typed reading of config.json says so.

use std::borrow::Cow;

use serde_json::Value;

/// Why a value is refused, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Where below the checked field the culprit is: `.options[2]`, or nothing.
    pub at: String,
    /// Why.
    pub reason: Cow<'static, str>,
    /// What the user can do.
    pub remedy: Cow<'static, str>,
}

impl Refusal {
    /// A refusal of the checked field itself.
    pub fn new(reason: impl Into<Cow<'static, str>>, remedy: impl Into<Cow<'static, str>>) -> Self {
        Self {
            at: String::new(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// The same refusal, of what lies there below the checked field.
    pub fn at(self, at: impl Into<String>) -> Self {
        Self {
            at: at.into(),
            ..self
        }
    }
}

/// A field in a config.json.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// The last part of its path: a key, or nothing for an element of an array.
    pub key: &'a str,
    /// Its value.
    pub value: &'a Value,
    /// The whole config.json.
    pub root: &'a Value,
}

/// Says whether a field's value is refused.
pub type Check = fn(Node<'_>) -> Option<Refusal>;

/// Whether a value asks for nothing: absent, empty, zero or false.
pub fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(fields) => fields.values().all(is_unset),
    }
}

/// The character devices that every guest has: name in `/dev`, major, minor
/// (Documentation/admin-guide/devices.txt of Linux).
pub const GUEST_DEVICES: &[(&str, u32, u32)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("console", 5, 1),
    ("ptmx", 5, 2),
    ("net/tun", 10, 200),
    ("fuse", 10, 229),
];

/// `linux.devices[]`: what a guest can have.
pub fn device(node: Node<'_>) -> Option<Refusal> {
    let number = |key: &str| {
        node.value[key]
            .as_i64()
            .and_then(|number| u32::try_from(number).ok())
    };
    let (major, minor) = (number("major"), number("minor"));
    match node.value["type"].as_str()? {
        "p" => None,
        "c" | "u"
            if GUEST_DEVICES
                .iter()
                .any(|d| (Some(d.1), Some(d.2)) == (major, minor)) =>
        {
            None
        }
        "c" | "u" => Some(Refusal::new(
            "a guest has no such character device",
            "remove it",
        )),
        "b" => Some(Refusal::new(
            "hull does not attach block devices of the host yet",
            "remove it",
        )),
        other => Some(
            Refusal::new(format!("{other:?} is not a type of device"), "use c or p").at(".type"),
        ),
    }
}

/// `process.apparmorProfile`: whatever confines.
pub fn apparmor(node: Node<'_>) -> Option<Refusal> {
    match node.value.as_str()? {
        "" | "unconfined" => None,
        _ => Some(Refusal::new(
            "the guest's kernel has no AppArmor",
            "remove it or say \"unconfined\" (engines: apparmor=unconfined)",
        )),
    }
}

/// `process.scheduler.flags`: two whose names the library that reads them has wrong.
pub fn scheduler_flags(node: Node<'_>) -> Option<Refusal> {
    let flags = node.value.as_array()?;
    let index = flags.iter().position(|flag| {
        flag.as_str()
            .is_some_and(|f| matches!(f, "SCHED_FLAG_RESET_ON_FORK" | "SCHED_FLAG_DL_OVERRUN"))
    })?;
    let refusal = Refusal::new("hull does not support this flag yet", "remove it");
    Some(refusal.at(format!("[{index}]")))
}

/// Seccomp actions: all but the one that asks a process on the host.
pub fn seccomp_action(node: Node<'_>) -> Option<Refusal> {
    (node.value.as_str()? == "SCMP_ACT_NOTIFY").then(|| {
        Refusal::new(
            "SCMP_ACT_NOTIFY: a seccomp listener cannot leave the guest",
            "use another action",
        )
    })
}

/// `linux.resources.unified.*`: the controllers that mean something inside the guest.
pub fn unified(node: Node<'_>) -> Option<Refusal> {
    let known = ["cgroup.", "cpu.", "hugetlb.", "memory.", "misc.", "pids."];
    if node.key.contains('/') {
        Some(Refusal::new(
            "it is not the name of a file",
            "name a cgroup file",
        ))
    } else if node.key.starts_with("cpuset.") {
        Some(Refusal::new(
            "the guest's CPUs are not the host's",
            "use linux.resources.cpu.cpus",
        ))
    } else if known.iter().any(|prefix| node.key.starts_with(prefix)) {
        None
    } else {
        Some(Refusal::new(
            "no such controller works on what a guest has",
            "remove it",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(check: Check, value: Value) -> Option<Refusal> {
        check(Node {
            key: "",
            value: &value,
            root: &Value::Null,
        })
    }

    #[test]
    fn what_asks_for_nothing_is_unset() {
        for value in [
            json!(null),
            json!(0),
            json!(""),
            json!([]),
            json!({"a": {"b": false}}),
        ] {
            assert!(is_unset(&value), "{value}");
        }
        assert!(!is_unset(&json!({"a": -1})));
    }

    #[test]
    fn a_guest_has_null_and_no_gpu() {
        assert_eq!(
            check(device, json!({"type": "c", "major": 1, "minor": 3})),
            None
        );
        assert!(check(device, json!({"type": "c", "major": 226, "minor": 0})).is_some());
        assert!(check(device, json!({"type": "b", "major": 8, "minor": 0})).is_some());
    }
}
