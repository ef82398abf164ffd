//! A bundle as what tells it from the suite's ordinary one: a list of changes to its config.json. That
//! is what is drawn, reduced, shown and kept.

use std::fmt;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use hull_tests::Bundle;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A JSON pointer (with `-` for the end of an array), and what to put there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change(pub String, pub Value);

/// Changes, in their order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Case(pub Vec<Change>);

/// Read in every container, whatever its config.json says.
const ALWAYS: &[&str] = &[
    "/",
    "/dev/shm",
    "/etc/passwd",
    "/home",
    "/proc/kcore",
    "/proc/sysrq-trigger",
    "/sys",
    "/tmp",
    // cgroups
    "/sys/fs/cgroup/cgroup.controllers",
    "/sys/fs/cgroup/cgroup.type",
    "/sys/fs/cgroup/cpu.idle",
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/cpu.weight",
    "/sys/fs/cgroup/memory.high",
    "/sys/fs/cgroup/memory.low",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory.oom.group",
    "/sys/fs/cgroup/memory.swap.max",
    "/sys/fs/cgroup/pids.max",
];

impl Case {
    /// The whole bundle. Each has the same files: those that bind mounts name are in `shared`, beside
    /// its rootfs.
    pub fn bundle(&self) -> Bundle {
        let mut bundle = Bundle::new();
        fill(&bundle);
        for Change(pointer, value) in &self.0 {
            bundle = bundle.set(pointer, value.clone());
        }
        let paths = paths(bundle.config());
        let args: Vec<_> = ["report"]
            .into_iter()
            .chain(paths.iter().map(String::as_str))
            .collect();
        bundle.probe(&args)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Change(pointer, value) in &self.0 {
            writeln!(f, "    {pointer} = {value}")?;
        }
        Ok(())
    }
}

fn fill(bundle: &Bundle) {
    let shared = bundle.path().join("shared");
    let rootfs = bundle.rootfs();
    for folder in [&shared.join("folder/inner"), &rootfs.join("private")] {
        fs::create_dir_all(folder).expect("a folder can be made");
    }
    for file in [
        shared.join("file"),
        shared.join("folder/file"),
        rootfs.join("private/file"),
        rootfs.join("etc/replaced"),
    ] {
        fs::write(file, "text\n").expect("a file can be written");
    }
    let modes = [
        (rootfs.join("private"), 0o700),
        (rootfs.join("etc/replaced"), 0o640),
        (shared.join("file"), 0o755),
    ];
    for (path, mode) in modes {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is our file");
    }
    symlink("/home", rootfs.join("link")).expect("a link can be made");
}

/// The paths whose state is of interest: what config.json names, and what it always may have changed.
fn paths(config: &Value) -> Vec<String> {
    let strings = |pointer: &str| config.pointer(pointer).and_then(Value::as_array).cloned();
    let mut paths: Vec<String> = ALWAYS.iter().map(|&path| path.to_owned()).collect();
    for list in ["/linux/maskedPaths", "/linux/readonlyPaths"] {
        let named = strings(list).unwrap_or_default();
        paths.extend(
            named
                .iter()
                .filter_map(|path| Some(path.as_str()?.to_owned())),
        );
    }
    let mounts = strings("/mounts").unwrap_or_default();
    for place in mounts
        .iter()
        .filter_map(|mount| mount["destination"].as_str())
    {
        paths.push(place.to_owned());
        // what a bind mount of `shared/folder` has in it
        paths.extend(
            ["file", "inner"].map(|name| format!("{}/{name}", place.trim_end_matches('/'))),
        );
    }
    let sysctls = config.pointer("/linux/sysctl").and_then(Value::as_object);
    let names = sysctls.into_iter().flat_map(|sysctls| sysctls.keys());
    paths.extend(names.map(|name| format!("/proc/sys/{}", name.replace('.', "/"))));
    paths.extend(config["process"]["cwd"].as_str().map(str::to_owned));
    paths.sort();
    paths.dedup();
    paths
}
