//! config.json, divided: what makes the container, and what is left for the last step, the same for a further
//! process: [`crate::process`].

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::namespaces::clone_flag;
use crate::error::Error;
use crate::process::{Launch, StartHooks};

/// A config.json, divided.
#[derive(Debug)]
pub struct Prepared {
    /// What makes the container.
    pub spec: Spec,
    /// The last step's part.
    pub launch: Launch,
    /// The namespaces that a further process enters, `CLONE_NEW*`.
    pub namespaces: u32,
}

/// Divides a config.json. `bundle` is where it lies on the host, for the hooks.
///
/// # Errors
/// When something is missing, or asked for that can't be had in the guest.
pub fn prepare(json: &[u8], id: &str, bundle: &str) -> Result<Prepared, Error> {
    let mut spec: Spec = serde_json::from_slice(json).map_err(|source| Error::Json {
        document: "config.json",
        source,
    })?;
    let Some(process) = spec.process().clone() else {
        return Err(missing("process"));
    };
    check_process(&process)?;
    if spec.root().is_none() {
        return Err(missing("root"));
    }
    let Some(linux) = spec.linux() else {
        return Err(missing("linux"));
    };
    if linux.seccomp().is_some() {
        return Err(unsupported("linux.seccomp", "it must come compiled"));
    }
    let personality = linux.personality().clone();
    let mut namespaces = 0;
    let mut new_network = false;
    for namespace in linux.namespaces().iter().flatten() {
        namespaces |= clone_flag(namespace.typ());
        new_network |= namespace.typ() == LinuxNamespaceType::Network && namespace.path().is_none();
    }
    let hooks = StartHooks::of(&spec, id, bundle);
    spec.set_process(None).set_hooks(None);

    Ok(Prepared {
        spec,
        launch: Launch {
            process,
            keyring: keyring(id),
            new_network,
            personality,
            seccomp: None,
            hooks,
        },
        namespaces,
    })
}

/// Checks a `process` object for what the guest can't do, so that nothing is dropped silently.
///
/// # Errors
/// Names the field.
pub fn check_process(process: &Process) -> Result<(), Error> {
    let given = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    if given(process.selinux_label()) {
        return Err(unsupported(
            "process.selinuxLabel",
            "the guest has no SELinux",
        ));
    }
    if given(process.apparmor_profile()) {
        return Err(unsupported(
            "process.apparmorProfile",
            "the guest has no AppArmor",
        ));
    }
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(missing("process.args"));
    }
    if !process.cwd().is_absolute() {
        return Err(unsupported("process.cwd", "it must be an absolute path"));
    }
    Ok(())
}

/// The name of a container's session keyring, as runc has it.
#[must_use]
pub fn keyring(id: &str) -> String {
    format!("_ses.{id}")
}

fn missing(field: &'static str) -> Error {
    Error::Config {
        field,
        problem: "it is required and isn't there".to_owned(),
    }
}

fn unsupported(field: &'static str, why: &str) -> Error {
    Error::Config {
        field,
        problem: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 5, "gid": 6}, "args": ["sh"], "cwd": "/", "env": ["A=1"],
                    "capabilities": {"bounding": ["CAP_KILL"]},
                    "scheduler": {"policy": "SCHED_BATCH"}},
        "root": {"path": "/run/hull/share/c/rootfs"},
        "linux": {"cgroupsPath": "/of/the/host",
                  "namespaces": [{"type": "pid"}, {"type": "network"}],
                  "personality": {"domain": "LINUX32"}}}"#;

    fn with(from: &str, to: &str) -> Result<Prepared, Error> {
        let json = CONFIG.replace(from, to);
        assert!(from.is_empty() || json != CONFIG, "{from} is in the config");
        prepare(json.as_bytes(), "c", "/b")
    }

    #[test]
    fn each_side_gets_its_part() {
        let prepared = with("", "").expect("valid");
        assert!(prepared.spec.process().is_none() && prepared.launch.personality.is_some());
        let ours = prepared.launch.process;
        assert_eq!(ours.env().as_deref(), Some(&["A=1".to_owned()][..]));
        assert!(ours.capabilities().is_some() && prepared.launch.new_network);
        let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNET).cast_unsigned();
        assert_eq!(prepared.namespaces, flags);
    }

    #[test]
    fn the_start_hooks_are_left_for_the_last_step() {
        let hooks = r#""hooks": {"startContainer": [{"path": "/h"}]}, "linux""#;
        let prepared = with(r#""linux""#, hooks).expect("valid");
        assert!(prepared.launch.hooks.is_some() && prepared.spec.hooks().is_none());
    }

    #[test]
    fn what_is_missing_or_impossible_is_named() {
        let field = |from, to| match with(from, to).expect_err("refused") {
            Error::Config { field, .. } => field,
            other => panic!("{other}"),
        };
        assert_eq!(field(r#""args": ["sh"]"#, r#""args": []"#), "process.args");
        assert_eq!(field(r#""cwd": "/""#, r#""cwd": "tmp""#), "process.cwd");
        let label = r#""args": ["sh"], "selinuxLabel": "x""#;
        assert_eq!(field(r#""args": ["sh"]"#, label), "process.selinuxLabel");
        let profile = r#""seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}, "personality""#;
        assert_eq!(field(r#""personality""#, profile), "linux.seccomp");
    }
}
