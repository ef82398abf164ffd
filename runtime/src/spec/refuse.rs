//! The values that are refused where the field as such is not: the checks that [`fields`](super::fields)
//! names.
//!
//! A value of a wrong type is none of their business: the typed reading of config.json says so.

use std::borrow::Cow;
use std::path::Path;

use serde_json::Value;

use super::privileged::lists_all_devices;
use crate::host::is_selinux_enabled;

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
    ("kmsg", 1, 11),
    ("tty", 5, 0),
    ("console", 5, 1),
    ("ptmx", 5, 2),
    ("hwrng", 10, 183),
    ("net/tun", 10, 200),
    ("fuse", 10, 229),
    ("loop-control", 10, 237),
];

/// `linux.devices[]`: what a guest can have. Whether the host has a block device is seen when it is
/// opened.
pub fn device(node: Node<'_>) -> Option<Refusal> {
    let number = |key: &str| {
        node.value[key]
            .as_i64()
            .and_then(|number| u32::try_from(number).ok())
    };
    let path = node.value["path"].as_str().unwrap_or_default();
    if let Some(refusal) = device_path(path) {
        return Some(refusal);
    }
    let numbers = number("major").zip(number("minor"));
    match node.value["type"].as_str()? {
        "p" => None,
        "b" if numbers.is_some() => None,
        "c" | "u" if numbers.is_some_and(is_guests_device) => None,
        // What a privileged container lacks of all the host's devices, others say.
        "b" | "c" | "u" => match numbers {
            Some(_) if lists_all_devices(&node.root["linux"]) => None,
            Some(numbers) => Some(character_device(path, numbers)),
            None => Some(Refusal::new(
                format!("{path}: a device has a major and a minor number"),
                "say which device of the host is meant",
            )),
        },
        other => Some(
            Refusal::new(
                format!("{path}: {other:?} is not a type of device"),
                "use b, c or p",
            )
            .at(".type"),
        ),
    }
}

/// Whether every guest has a character device of this number.
pub(super) fn is_guests_device(number: (u32, u32)) -> bool {
    (GUEST_DEVICES.iter()).any(|(_, major, minor)| (*major, *minor) == number)
}

fn device_path(path: &str) -> Option<Refusal> {
    let is_file = Path::new(path).is_absolute() && Path::new(path).file_name().is_some();
    (!is_file).then(|| {
        Refusal::new(
            format!("{path:?} is not the absolute path of a file"),
            "name one, like \"/dev/fuse\"",
        )
        .at(".path")
    })
}

/// `linux.resources.devices[].type`: a device, or all of them.
pub fn rule_type(node: Node<'_>) -> Option<Refusal> {
    let named = node.value.as_str()?;
    (!matches!(named, "" | "a" | "b" | "c")).then(|| {
        Refusal::new(
            format!("{named:?} is not what a rule can be about"),
            "use a, b or c",
        )
    })
}

/// Why a character device of the host can't be had in a guest (the major numbers are those of
/// Documentation/admin-guide/devices.txt of Linux).
fn character_device(path: &str, (major, minor): (u32, u32)) -> Refusal {
    let (why, remedy) = match (major, minor) {
        (10, 232) => (
            "a guest has no virtualisation of its own",
            "run what needs it on the host",
        ),
        (4 | 136..=143, _) => (
            "a terminal of the host can't be passed into a VM",
            "remove it; process.terminal gives the container one of its own",
        ),
        (195 | 226, _) => (
            "hull does not pass GPUs into a VM",
            "remove it, or use a runtime without a VM for this container",
        ),
        _ => (
            "a guest has no such character device",
            "remove it, or use a runtime without a VM for this container",
        ),
    };
    Refusal::new(format!("{path} ({major}:{minor}): {why}"), remedy)
}

/// `process.selinuxLabel`, `linux.mountLabel`: the host's to enforce, if it can. runc refuses them too
/// where there is no SELinux.
pub fn selinux(node: Node<'_>) -> Option<Refusal> {
    let label = node.value.as_str()?;
    (!label.is_empty() && !is_selinux_enabled()).then(|| {
        Refusal::new(
            "this host has no SELinux (/sys/fs/selinux is not mounted)",
            "remove it (engines: label=disable)",
        )
    })
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

/// The kinds of namespaces that a container may have of others in its sandbox.
const SHAREABLE: [&str; 5] = ["network", "ipc", "uts", "pid", "user"];

/// `linux.namespaces[]`: by path a VM's process can join a network, and a container those of others in its VM, which
/// `create` finds out.
pub fn namespace(node: Node<'_>) -> Option<Refusal> {
    let joined = !is_unset(&node.value["path"]);
    let kind = node.value["type"].as_str().unwrap_or_default();
    (joined && !SHAREABLE.contains(&kind)).then(|| {
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

/// `linux.resources.unified.*`: the controllers that mean something inside the guest, or for the VM.
pub fn unified(node: Node<'_>) -> Option<Refusal> {
    let known = [
        "cgroup.", "cpu.", "cpuset.", "hugetlb.", "io.", "memory.", "misc.", "pids.",
    ];
    let thaws = node.value.as_str().is_some_and(|v| v.trim() == "0");
    if node.key.contains('/') {
        Some(Refusal::new(
            "it is not the name of a file",
            "name a cgroup file",
        ))
    } else if node.key == "cgroup.freeze" && !thaws {
        // At once, so that the container's process would never come to be.
        Some(Refusal::new(
            "it would stop the container while it is made",
            "remove it, and use `hull pause`",
        ))
    } else if node.key == "cgroup.kill" {
        Some(Refusal::new(
            "it would end the container while it is made",
            "remove it, and use `hull kill`",
        ))
    } else if known.iter().any(|prefix| node.key.starts_with(prefix)) {
        None
    } else {
        Some(Refusal::new(
            "no such controller works on what a VM has",
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
    fn no_cgroup_file_stops_a_container_that_is_being_made() {
        let refused = |key, value: &str| {
            let (value, root) = (&json!(value), &Value::Null);
            unified(Node { key, value, root }).is_some()
        };
        assert!(refused("cgroup.freeze", "1") && refused("cgroup.kill", "1"));
        assert!(!refused("cgroup.freeze", "0") && !refused("cgroup.max.depth", "2"));
    }

    #[test]
    fn a_guest_has_null_and_no_gpu() {
        let device = |kind, major: i64, minor: i64| {
            let value = json!({"path": "/dev/x", "type": kind, "major": major, "minor": minor});
            check(device, value).map(|refusal| refusal.reason.into_owned())
        };
        assert_eq!(device("c", 1, 3), None);
        assert_eq!(device("u", 10, 237), None);
        assert_eq!(device("p", 0, 0), None);
        assert_eq!(device("b", 8, 0), None);
        let gpu = device("c", 226, 128).expect("refused");
        assert!(gpu.contains("/dev/x (226:128): hull does not pass GPUs"));
        for (kind, major, minor) in [
            ("c", 10, 232),
            ("c", 4, 1),
            ("c", 1, 1),
            ("b", -1, 0),
            ("d", 1, 3),
        ] {
            assert!(
                device(kind, major, minor).is_some(),
                "{kind} {major}:{minor}"
            );
        }
    }

    #[test]
    fn a_device_is_an_absolute_path() {
        let at = |path: &str| {
            let value = json!({"path": path, "type": "c", "major": 1, "minor": 3});
            check(device, value).map(|refusal| refusal.at)
        };
        for path in ["", "dev/x", "/", "/dev/.."] {
            assert_eq!(at(path).as_deref(), Some(".path"), "{path}");
        }
        assert_eq!((at("/x"), at("/mnt/../x/")), (None, None));
    }

    #[test]
    fn a_rule_is_about_nodes() {
        assert_eq!(check(rule_type, json!("b")), None);
        assert!(check(rule_type, json!("p")).is_some());
    }
}
