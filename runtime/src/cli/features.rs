//! `hull features`: what hull supports, for engines to read (runtime-spec, features.md).
//!
//! What can be told from the table of config.json's fields is: the lists here are what the kernel and the
//! specification have, and the table says which of it hull takes.

use std::process::ExitCode;

use hull_runtime::config::ANNOTATION_PREFIX;
use hull_runtime::spec::{self, supports, supports_value};
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use super::{Error, output};

/// `hull features`.
#[derive(Debug, clap::Args)]
pub struct Features {}

/// Prints them.
///
/// # Errors
/// When standard output is closed.
pub fn run() -> Result<ExitCode, Error> {
    output::json(&features())?;
    Ok(ExitCode::SUCCESS)
}

/// The kinds of hook, in the order of a container's life.
const HOOKS: &[&str] = &[
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// The kinds of namespaces.
const NAMESPACES: &[&str] = &[
    "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
];

/// Seccomp's actions.
const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

const OPERATORS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// The architectures that an x86-64 kernel runs system calls of.
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"];

const FILTER_FLAGS: &[&str] = &[
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// The memory policies of set_mempolicy(2).
const MEMORY_MODES: &[&str] = &[
    "MPOL_BIND",
    "MPOL_DEFAULT",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];

const MEMORY_FLAGS: &[&str] = &[
    "MPOL_F_NUMA_BALANCING",
    "MPOL_F_RELATIVE_NODES",
    "MPOL_F_STATIC_NODES",
];

/// The structure, as JSON.
pub fn features() -> Value {
    let hooks: Vec<_> = HOOKS
        .iter()
        .filter(|hook| supports(&format!("hooks.{hook}")))
        .collect();
    let mount_options: Vec<_> = spec::supported_mount_options().collect();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": spec::OCI_VERSION,
        "hooks": hooks,
        "mountOptions": mount_options,
        "linux": {
            "namespaces": supported("linux.namespaces[].type", NAMESPACES),
            "capabilities": capabilities().collect::<Vec<_>>(),
            // The guest's, but for systemd, which would be the host's.
            "cgroup": {
                "v1": false,
                "v2": true,
                "systemd": false,
                "systemdUser": false,
                "rdma": supports("linux.resources.rdma"),
            },
            "seccomp": {
                "enabled": supports("linux.seccomp.syscalls[].names"),
                "actions": supported("linux.seccomp.syscalls[].action", ACTIONS),
                "operators": supported("linux.seccomp.syscalls[].args[].op", OPERATORS),
                "archs": ARCHITECTURES,
                "knownFlags": FILTER_FLAGS,
                "supportedFlags": supported("linux.seccomp.flags[]", FILTER_FLAGS),
            },
            // A profile that confines, that is.
            "apparmor": {
                "enabled": supports_value("process.apparmorProfile", &json!("a-profile")),
            },
            "selinux": { "enabled": supports_value("process.selinuxLabel", &json!("a-label")) },
            "intelRdt": { "enabled": supports("linux.intelRdt") },
            "memoryPolicy": {
                "modes": supported("linux.memoryPolicy.mode", MEMORY_MODES),
                "flags": supported("linux.memoryPolicy.flags[]", MEMORY_FLAGS),
            },
            "mountExtensions": { "idmap": { "enabled": supports("mounts[].uidMappings") } },
            "netDevices": { "enabled": supports("linux.netDevices") },
        },
        "annotations": { "io.hull.version": env!("CARGO_PKG_VERSION") },
        // Those that change what hull does; one that ends with a dot stands for all that begin with it.
        "potentiallyUnsafeConfigAnnotations": [ANNOTATION_PREFIX],
    })
}

/// The capabilities of Linux (include/uapi/linux/capability.h), by number.
fn capabilities() -> impl Iterator<Item = String> {
    let all = CapabilitySet::all();
    all.iter_names().map(|(name, _)| format!("CAP_{name}"))
}

/// The names that a field takes; a path that ends with `[]` is a list of such names.
fn supported(path: &str, names: &[&'static str]) -> Vec<&'static str> {
    let takes = |name: &str| match path.strip_suffix("[]") {
        Some(list) => supports_value(list, &json!([name])),
        None => supports_value(path, &json!(name)),
    };
    names.iter().copied().filter(|name| takes(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named_by_number_to_the_last() {
        let names: Vec<_> = capabilities().collect();
        assert_eq!(names.len(), 41);
        assert_eq!((&*names[0], &*names[25]), ("CAP_CHOWN", "CAP_SYS_TIME"));
        assert_eq!(names[40], "CAP_CHECKPOINT_RESTORE");
    }

    #[test]
    fn what_the_table_refuses_is_no_feature() {
        let features = features();
        assert_eq!(features["linux"]["intelRdt"]["enabled"], false);
        assert_eq!(features["linux"]["apparmor"]["enabled"], false);
        let seccomp = &features["linux"]["seccomp"];
        assert_eq!(seccomp["enabled"], true);
        assert_eq!(seccomp["supportedFlags"], seccomp["knownFlags"]);
        let actions = seccomp["actions"].as_array().expect("a list");
        assert!(actions.contains(&json!("SCMP_ACT_KILL_PROCESS")));
        assert!(!actions.contains(&json!("SCMP_ACT_NOTIFY")));
        assert_eq!(features["hooks"], json!(HOOKS));
        assert_eq!(
            features["potentiallyUnsafeConfigAnnotations"],
            json!(["io.hull."])
        );
        let options = features["mountOptions"].as_array().expect("a list");
        assert!(options.contains(&json!("rro")) && !options.contains(&json!("mand")));
    }
}
