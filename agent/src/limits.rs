//! A container's cgroup limits: set before its first process is made, and changed while it runs.

use std::path::Path;

use hull_cgroup::limits;
use oci_spec::runtime::{LinuxMemory, LinuxResources};

use crate::error::Error;

/// Changes the limits that `json`, a `linux.resources` object, names: all of them or none.
///
/// # Errors
/// When a value is invalid, or the kernel refuses it; the limits are then as they were.
pub fn update(directory: &Path, json: &[u8]) -> Result<(), Error> {
    let resources: LinuxResources = serde_json::from_slice(json).map_err(|source| Error::Json {
        document: "linux.resources",
        source,
    })?;
    if let Some(memory) = resources.memory() {
        check_before_update(directory, memory)?;
    }
    let settings = limits::settings(directory, &resources)?;
    limits::apply(directory, &settings)?;
    Ok(())
}

/// Sets the limits of a container that has no process yet, except the device rules, which take a BPF program.
///
/// # Errors
/// When a value is invalid, or the kernel refuses it.
pub fn set(directory: &Path, resources: &LinuxResources) -> Result<(), Error> {
    let settings = limits::settings(directory, resources)?;
    limits::apply(directory, &settings)?;
    Ok(())
}

/// With `checkBeforeUpdate`, refuses a limit that the container exceeds already: the OOM killer would enforce
/// it.
fn check_before_update(directory: &Path, memory: &LinuxMemory) -> Result<(), Error> {
    let limit = memory.limit().filter(|limit| *limit > 0);
    let (Some(limit), Some(true)) = (limit, memory.check_before_update()) else {
        return Ok(());
    };
    let usage = std::fs::read_to_string(directory.join("memory.current")).ok();
    let usage = usage.and_then(|text| text.trim_end().parse::<i64>().ok());
    match usage {
        Some(usage) if usage > limit => Err(Error::Config {
            field: "linux.resources.memory.limit",
            problem: format!("{limit} is less than the current usage, {usage}"),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn all_limits_are_set() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str| directory.path().join(name);
        for name in ["memory.max", "memory.swap.max", "pids.max"] {
            fs::write(file(name), "5").expect("write");
        }
        let resources = json!({
            "memory": {"limit": 4096, "swap": 4096}, "pids": {"limit": 1},
            "devices": [{"allow": false, "access": "rwm"}],
        });
        let resources = serde_json::from_value(resources).expect("resources");

        set(directory.path(), &resources).expect("set");

        // A swap of 0 is a limit, too.
        assert_eq!(
            fs::read_to_string(file("memory.swap.max")).expect("read"),
            "0"
        );
        let processes = fs::read_to_string(file("pids.max")).expect("read");
        assert_eq!(processes, "1");
    }

    #[test]
    fn a_limit_that_the_kernel_refuses_is_named_by_its_field() {
        let directory = tempfile::tempdir().expect("a directory");
        let json = json!({"unified": {"no.such": "1"}}).to_string();
        let error = update(directory.path(), json.as_bytes()).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "config.json: linux.resources.unified[\"no.such\"]: cannot set no.such to \"1\": no such \
             file or directory"
        );
    }

    #[test]
    fn check_before_update_refuses_a_limit_below_the_usage() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("memory.current"), "2000\n").expect("write");
        let json = json!({"memory": {"limit": 1000, "checkBeforeUpdate": true}}).to_string();
        let error = update(directory.path(), json.as_bytes()).expect_err("refused");
        assert!(error.to_string().contains("2000"), "{error}");
    }
}
