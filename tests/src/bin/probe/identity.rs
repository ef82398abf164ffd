//! What a process is: printed as JSON.

use std::collections::BTreeMap;
use std::{fs, io};

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

/// Prints this process's users, folders, environment, limits and privileges.
pub fn print() -> io::Result<()> {
    let status = status()?;
    let field = |name: &str| status.get(name).cloned().unwrap_or_default();
    let numbers = |name: &str| -> Vec<u32> {
        field(name)
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    };
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    let identity = json!({
        "pid": std::process::id(),
        "uid": numbers("Uid"),
        "gid": numbers("Gid"),
        "groups": numbers("Groups"),
        "umask": field("Umask"),
        "capabilities": {
            "inheritable": field("CapInh"),
            "permitted": field("CapPrm"),
            "effective": field("CapEff"),
            "bounding": field("CapBnd"),
            "ambient": field("CapAmb"),
        },
        "no_new_privs": field("NoNewPrivs"),
        "cwd": std::env::current_dir()?,
        "env": environment,
        "hostname": fs::read_to_string("/proc/sys/kernel/hostname")?.trim(),
        "rlimits": {
            "nofile": limit(Resource::Nofile),
            "core": limit(Resource::Core),
            "stack": limit(Resource::Stack),
        },
    });
    println!("{identity}");
    Ok(())
}

fn status() -> io::Result<BTreeMap<String, String>> {
    let text = fs::read_to_string("/proc/self/status")?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    Ok(lines
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

fn limit(resource: Resource) -> Value {
    let limit = getrlimit(resource);
    json!([limit.current, limit.maximum])
}
