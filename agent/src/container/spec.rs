//! Splits config.json into what the container is made from, and what is needed to start its process, which is the
//! same as for a further process: [`crate::process`].

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::namespaces::clone_flag;
use crate::error::Error;
use crate::process::{Launch, StartContainerHooks};

/// A config.json that was split.
#[derive(Debug)]
pub struct SplitConfig {
    /// What the container is made from.
    pub spec: Spec,
    /// What its process is started from.
    pub launch: Launch,
    /// The namespaces that a further process enters, `CLONE_NEW*`.
    pub namespaces: u32,
}

/// Splits a config.json. `bundle` is the bundle's path on the host, for the hooks.
///
/// # Errors
/// When a field is missing, or asks for what the guest can't do.
pub fn split(json: &[u8], id: &str, bundle: &str) -> Result<SplitConfig, Error> {
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
    let hooks = StartContainerHooks::of(&spec, id, bundle);
    spec.set_process(None).set_hooks(None);

    Ok(SplitConfig {
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

/// Refuses a `process` object that asks for what the guest can't do, so that nothing is ignored silently.
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

    fn with(from: &str, to: &str) -> Result<SplitConfig, Error> {
        let json = CONFIG.replace(from, to);
        assert!(from.is_empty() || json != CONFIG, "{from} is in the config");
        split(json.as_bytes(), "c", "/b")
    }

    #[test]
    fn config_json_is_split() {
        let config = with("", "").expect("valid");
        assert!(config.spec.process().is_none() && config.launch.personality.is_some());
        let process = config.launch.process;
        assert_eq!(process.env().as_deref(), Some(&["A=1".to_owned()][..]));
        assert!(process.capabilities().is_some() && config.launch.new_network);
        let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNET).cast_unsigned();
        assert_eq!(config.namespaces, flags);
    }

    #[test]
    fn the_start_container_hooks_go_with_the_process() {
        let hooks = r#""hooks": {"startContainer": [{"path": "/h"}]}, "linux""#;
        let config = with(r#""linux""#, hooks).expect("valid");
        assert!(config.launch.hooks.is_some() && config.spec.hooks().is_none());
    }

    #[test]
    fn the_field_that_is_missing_or_impossible_is_named() {
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
