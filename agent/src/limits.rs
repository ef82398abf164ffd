//! Changing a container's limits while it runs. At its creation libcontainer sets them, but for one that
//! its library forgets.

use std::path::Path;

use hull_cgroup::limits;
use oci_spec::runtime::{LinuxMemory, LinuxResources};

use crate::error::Error;

/// Changes the limits that `json`, a `linux.resources` object, names: all of them or none.
///
/// # Errors
/// When a value makes no sense, or the kernel refuses it; the limits are then as they were.
pub fn update(directory: &Path, json: &[u8]) -> Result<(), Error> {
    let resources: LinuxResources = serde_json::from_slice(json).map_err(|source| Error::Json {
        document: "linux.resources",
        source,
    })?;
    if let Some(memory) = resources.memory() {
        check_before_update(directory, memory)?;
    }
    let values = limits::values(directory, &resources)?;
    limits::apply(directory, &values)?;
    Ok(())
}

/// Sets a new container's limit of swap: libcgroups writes no 0, which means that it may have none.
///
/// # Errors
/// When the value makes no sense, or the kernel refuses it.
pub fn set_swap(directory: &Path, resources: &LinuxResources) -> Result<(), Error> {
    let mut values = limits::values(directory, resources)?;
    values.retain(|(file, _)| file == "memory.swap.max");
    limits::apply(directory, &values)?;
    Ok(())
}

/// With `checkBeforeUpdate`, a limit that the container exceeds already is refused: the kernel would
/// kill for it.
fn check_before_update(directory: &Path, memory: &LinuxMemory) -> Result<(), Error> {
    let limit = memory.limit().filter(|limit| *limit > 0);
    let (Some(limit), Some(true)) = (limit, memory.check_before_update()) else {
        return Ok(());
    };
    let usage = std::fs::read_to_string(directory.join("memory.current")).ok();
    let usage = usage.and_then(|text| text.trim_end().parse::<i64>().ok());
    match usage {
        Some(usage) if usage > limit => Err(Error::Invalid {
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
    fn a_container_that_may_not_swap_does_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("memory.swap.max");
        fs::write(&file, "5").expect("write");
        let resources = json!({"memory": {"limit": 4096, "swap": 4096}, "cpu": {"shares": 2}});
        let resources = serde_json::from_value(resources).expect("resources");

        set_swap(directory.path(), &resources).expect("set");

        assert_eq!(fs::read_to_string(file).expect("read"), "0");
    }

    #[test]
    fn a_limit_below_the_usage_is_refused_if_asked() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("memory.current"), "2000\n").expect("write");
        let json = json!({"memory": {"limit": 1000, "checkBeforeUpdate": true}}).to_string();
        let error = update(directory.path(), json.as_bytes()).expect_err("refused");
        assert!(error.to_string().contains("2000"), "{error}");
    }
}
