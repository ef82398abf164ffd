//! The values that are refused where the field as such is not: the checks that [`fields`](super::fields)
//! names.
//!
//! A value of a wrong type is none of their business: the typed reading of config.json says so.

use std::borrow::Cow;

use serde_json::Value;

use super::mount_options;

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

    fn at(self, at: impl Into<String>) -> Self {
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

/// The mounts that a guest's kernel makes out of nothing that is the host's.
const GUEST_FILE_SYSTEMS: &[&str] = &[
    "bpf",
    "cgroup",
    "cgroup2",
    "debugfs",
    "devpts",
    "devtmpfs",
    "hugetlbfs",
    "mqueue",
    "proc",
    "ramfs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

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

/// Whether a mount, as it stands in config.json, is a bind mount.
pub fn is_bind<'a>(mount_type: Option<&str>, mut options: impl Iterator<Item = &'a str>) -> bool {
    options.any(|option| matches!(option, "bind" | "rbind")) || mount_type == Some("bind")
}

/// `mounts[]`: its type and its options, which are to be judged together.
pub fn mount(node: Node<'_>) -> Option<Refusal> {
    let kind = node.value["type"].as_str();
    let options = node.value["options"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let bind = is_bind(kind, options.iter().filter_map(Value::as_str));
    for (index, option) in options.iter().enumerate() {
        let refusal = option
            .as_str()
            .and_then(|option| mount_options::refusal(option, bind));
        if let Some(refusal) = refusal {
            return Some(refusal.at(format!(".options[{index}]")));
        }
    }
    match kind {
        Some(kind) if !bind && !GUEST_FILE_SYSTEMS.contains(&kind) => Some(
            Refusal::new(
                format!(
                    "{kind:?}: a guest can only mount what needs no device or path of the host"
                ),
                "mount it on the host and bind it",
            )
            .at(".type"),
        ),
        None if !bind && node.value.is_object() => Some(Refusal::new(
            "it has neither a type nor the option \"bind\"",
            "give it one",
        )),
        _ => None,
    }
}

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

/// `process.consoleSize`: only a terminal has one (config.md, "Process").
pub fn console_size(node: Node<'_>) -> Option<Refusal> {
    let terminal = node.root["process"]["terminal"] == Value::Bool(true);
    (terminal && !is_unset(node.value))
        .then(|| Refusal::new("hull does not set a terminal's first size yet", "remove it"))
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

/// `process.scheduler.flags`: two that come without the number they are about.
pub fn scheduler_flags(node: Node<'_>) -> Option<Refusal> {
    let clamp = |flag: &Value| {
        flag.as_str()
            .is_some_and(|flag| flag.starts_with("SCHED_FLAG_UTIL_CLAMP_"))
    };
    let index = node.value.as_array()?.iter().position(clamp)?;
    let refusal = Refusal::new(
        "config.json has no field for the utilization to clamp to",
        "remove it",
    );
    Some(refusal.at(format!("[{index}]")))
}

/// `linux.namespaces[]`: by path a VM's process can join a network alone.
pub fn namespace(node: Node<'_>) -> Option<Refusal> {
    let joined = !is_unset(&node.value["path"]);
    (joined && node.value["type"] != "network").then(|| {
        Refusal::new(
            "a namespace of the host cannot be joined from inside a VM",
            "remove the path (for one of the container's own) or the namespace (for the guest's)",
        )
        .at(".path")
    })
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
    fn a_mount_that_needs_the_host_is_refused_by_its_type() {
        let refusal = check(mount, json!({"type": "nfs", "destination": "/n"})).expect("refused");
        assert_eq!(refusal.at, ".type");
        assert_eq!(
            check(
                mount,
                json!({"type": "tmpfs", "options": ["size=1m", "ro"]})
            ),
            None
        );
    }

    #[test]
    fn a_binds_type_means_nothing() {
        assert_eq!(
            check(mount, json!({"type": "nfs", "options": ["rbind", "ro"]})),
            None
        );
    }

    #[test]
    fn a_refused_option_is_named_by_its_index() {
        let refusal = check(mount, json!({"type": "bind", "options": ["ro", "rshared"]}));
        assert_eq!(refusal.expect("refused").at, ".options[1]");
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
