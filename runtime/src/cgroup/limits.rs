//! Which of a container's limits the host sets on the VM, and how large it makes them.
//!
//! - Memory: a limit makes the host's `memory.max` what the whole VM may take: the guest's memory, which
//!   has the container's limit in it, an allowance for the VM's own process, and what the host's kernel
//!   keeps for the files that the guest knows. It doesn't follow a limit that sinks: a guest keeps what
//!   its kernel has once touched, and the host could only kill it. Within the guest the container's limit
//!   holds to the byte.
//! - CPU time and weight: as config.json has them, here among VMs, in the guest among its processes.
//! - CPUs and NUMA nodes, block devices: these are the host's, so their limits hold here alone.
//! - Processes: the container's are the guest's. Here the limit is for the threads of the VM's process.
//! - `unified`: memory, pids and the like are the guest's alone, as no allowance can be added to what
//!   hull doesn't understand; `cpuset.` and `io.` are the host's alone; `cpu.` is both's.

use std::collections::HashMap;
use std::path::Path;

use hull_cgroup::limits::settings as cgroup_settings;
use hull_vmm::jail::limits::NOFILE;
use hull_vmm::virtio::fs;
use oci_spec::runtime::{LinuxMemory, LinuxPids, LinuxResources};

use super::{CgroupError, Limits};

pub use hull_cgroup::limits::Setting;

/// The threads of a VM's process beside its vCPUs': its devices', with room.
const THREADS: i64 = 256;

/// The file for the most swap.
const SWAP: &str = "memory.swap.max";

/// The field of a limit that config.json has no field for.
const NOBODYS: &str = "";

/// What the host keeps for a file that the guest knows, in bytes: an inode, a name, an open file, and the
/// VMM's own account of it. It can't be reclaimed before the guest forgets the file, which it does when
/// its own memory is short: who walks a large tree must not be killed for it.
const FILE: u64 = 2 << 10;

/// The first field that only the host's cgroup can enforce.
pub fn needs_host(resources: &LinuxResources) -> Option<&'static str> {
    let cpu = resources.cpu().as_ref();
    let mems = cpu.and_then(|cpu| cpu.mems().as_deref());
    if mems.is_some_and(|mems| !mems.is_empty()) {
        return Some("linux.resources.cpu.mems");
    }
    let mut io = LinuxResources::default();
    io.set_block_io(resources.block_io().clone());
    if cgroup_settings(Path::new("/nonexistent"), &io).is_ok_and(|values| !values.is_empty()) {
        return Some("linux.resources.blockIO");
    }
    let mut unified = resources.unified().iter().flatten();
    let hosts = unified.any(|(name, _)| name.starts_with("io.") || name.starts_with("cpuset."));
    hosts.then_some("linux.resources.unified")
}

/// The files of the VM's cgroup, and what to write to them.
///
/// # Errors
/// When a limit makes no sense.
pub fn values(directory: &Path, limits: &Limits<'_>) -> Result<Vec<Setting>, CgroupError> {
    let mut values = Vec::new();
    let cpu = limits.resources.cpu().as_ref();
    let lists = [
        ("cpus", cpu.and_then(|cpu| cpu.cpus().as_deref())),
        ("mems", cpu.and_then(|cpu| cpu.mems().as_deref())),
    ];
    for (name, list) in lists {
        if let Some(list) = list.filter(|list| !list.is_empty()) {
            let field = format!("linux.resources.cpu.{name}");
            values.push(Setting::new(field, format!("cpuset.{name}"), list));
        }
    }
    let whole = of_the_vm(limits);
    values.extend(cgroup_settings(directory, &whole)?);
    if limits.sizing.growth_mib > 0 && limits.resources.memory().is_some() {
        bound_swap(&mut values, whole_vm(limits));
    }
    Ok(values)
}

/// Bounds the swap of a VM that can grow, where config.json doesn't: a guest that keeps the rules never needs more of it
/// than it has memory, one that doesn't could fill all that the host has.
fn bound_swap(values: &mut Vec<Setting>, whole: u64) {
    if !values
        .iter()
        .any(|value| value.file == SWAP && value.value != "max")
    {
        values.retain(|value| value.file != SWAP);
        values.push(Setting::new(NOBODYS, SWAP, whole));
    }
}

/// Those of the values that can be written: what config.json doesn't ask for may be missing in the host's kernel.
pub fn there<'a>(directory: &Path, values: &'a [Setting]) -> impl Iterator<Item = &'a Setting> {
    (values.iter())
        .filter(move |value| value.field != NOBODYS || directory.join(&value.file).exists())
}

/// Whether a limit holds before the container is made.
pub fn is_from_the_start(file: &str) -> bool {
    !file.starts_with("cpu.max")
}

/// The container's limits, made the VM's.
fn of_the_vm(limits: &Limits<'_>) -> LinuxResources {
    let mut resources = limits.resources.clone();
    resources.set_hugepage_limits(None);
    resources.set_memory(resources.memory().as_ref().map(|memory| {
        let whole = i64::try_from(whole_vm(limits)).unwrap_or(i64::MAX);
        memory_of_the_vm(memory, whole, limits.sizing.growth_mib > 0)
    }));
    resources.set_pids(resources.pids().as_ref().map(|pids| {
        let threads = THREADS + i64::from(limits.sizing.vcpus.get());
        let mut own = LinuxPids::default();
        own.set_limit(if pids.limit() > 0 { threads } else { -1 });
        own
    }));
    let unified = resources.unified().iter().flatten();
    let hosts: HashMap<_, _> = unified
        .filter(|(name, _)| is_hosts(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    resources.set_unified((!hosts.is_empty()).then_some(hosts));
    resources
}

/// The most memory that a VM may take of the host, in bytes.
fn whole_vm(limits: &Limits<'_>) -> u64 {
    let booted = u64::from(limits.sizing.memory_mib) << 20;
    let plugged = u64::from(limits.plugged_mib) << 20;
    let allowance = u64::from(limits.config.vm_memory_allowance) << 20;
    booted + plugged + allowance + FILE * fs::fd_limit(booted, NOFILE)
}

/// `whole` bytes for the VM where the container has a limit, or the VM could grow beyond that. Swap is what config.json
/// has beyond the container's limit.
fn memory_of_the_vm(memory: &LinuxMemory, whole: i64, can_grow: bool) -> LinuxMemory {
    let mut own = *memory;
    let limit = memory.limit().filter(|limit| *limit > 0);
    if let Some(limit) = limit {
        own.set_limit(Some(whole));
        let beyond = |swap: i64| whole.saturating_add(swap.saturating_sub(limit));
        own.set_swap(
            memory
                .swap()
                .map(|swap| if swap > 0 { beyond(swap) } else { swap }),
        );
    } else if can_grow {
        own.set_limit(Some(whole));
    } else if memory.limit().is_none_or(|limit| limit == 0) {
        // Without a limit, swap can only be none or unlimited, which it is.
        own.set_swap(memory.swap().filter(|swap| *swap == 0));
    }
    own
}

/// Whether a file of `unified` is (also) of the VM's cgroup.
fn is_hosts(name: &str) -> bool {
    ["cpu.", "cpuset.", "io."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::types::Sizing;
    use serde_json::{Value as Json, json};

    fn written(resources: Json) -> Vec<(String, String)> {
        let resources = serde_json::from_value(resources).expect("resources");
        let limits = Limits {
            resources: &resources,
            sizing: Sizing::SMALLEST,
            plugged_mib: 0,
            config: &Config::default(),
        };
        let values = values(Path::new("/nonexistent"), &limits).expect("valid");
        let mut values: Vec<_> = values.into_iter().map(|v| (v.file, v.value)).collect();
        values.sort();
        values
    }

    fn is(found: &[(String, String)], expected: &[(&str, &str)]) {
        let found: Vec<_> = found.iter().map(|(f, v)| (&**f, &**v)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn memory_is_the_vms_and_its_allowance() {
        let max = ((128 + 64 + 256) << 20).to_string();
        let limit = 64 << 20;
        let limited = json!({"memory": {"limit": limit, "swap": limit + 5}});
        is(
            &written(limited),
            &[("memory.max", &max), ("memory.swap.max", "5")],
        );
        let unlimited = json!({"memory": {"limit": -1, "swap": -1}});
        is(
            &written(unlimited),
            &[("memory.max", "max"), ("memory.swap.max", "max")],
        );
        is(&written(json!({"memory": {"limit": 0, "swap": 5}})), &[]);
        let none = written(json!({"memory": {"swap": 0}}));
        is(&none, &[("memory.swap.max", "0")]);
    }

    #[test]
    fn a_vm_that_can_grow_always_has_a_limit() {
        let resources = |memory| serde_json::from_value(json!({ "memory": memory }));
        let of = |memory: Json, plugged_mib| {
            let resources = resources(memory).expect("resources");
            let limits = Limits {
                resources: &resources,
                sizing: Sizing {
                    growth_mib: 1024,
                    ..Sizing::SMALLEST
                },
                plugged_mib,
                config: &Config::default(),
            };
            let values = values(Path::new("/nonexistent"), &limits).expect("valid");
            let mut values: Vec<_> = values.into_iter().map(|v| (v.file, v.value)).collect();
            values.sort();
            values
        };
        let whole = |plugged: u64| ((128 + 64 + 256 + plugged) << 20).to_string();
        let small = &whole(0);
        let limit = 64 << 20;
        is(
            &of(json!({"limit": limit}), 0),
            &[("memory.max", small), (SWAP, small)],
        );
        is(
            &of(json!({"limit": limit, "swap": limit}), 0),
            &[("memory.max", small), (SWAP, "0")],
        );
        let large = &whole(512);
        for unlimited in [json!({"limit": -1}), json!({"limit": -1, "swap": -1})] {
            is(&of(unlimited, 512), &[("memory.max", large), (SWAP, large)]);
        }
        let values = [Setting::new(NOBODYS, SWAP, 1), Setting::new("a.b", "c", 2)];
        let there = there(Path::new("/nonexistent"), &values).count();
        assert_eq!(there, 1, "the host's kernel may have no limit of swap");
    }

    #[test]
    fn the_containers_pids_are_not_the_vms_threads() {
        is(
            &written(json!({"pids": {"limit": 5}})),
            &[("pids.max", "257")],
        );
        is(
            &written(json!({"pids": {"limit": -1}})),
            &[("pids.max", "max")],
        );
    }

    #[test]
    fn a_boot_has_all_cpu_time() {
        let cpu = json!({"cpu": {"quota": 1000, "period": 10_000, "shares": 1024, "cpus": "0", "mems": "0"}});
        let expected = [
            ("cpu.max", "1000 10000"),
            ("cpu.weight", "100"),
            ("cpuset.cpus", "0"),
            ("cpuset.mems", "0"),
        ];
        let found = written(cpu);
        is(&found, &expected);
        let at_once = found.iter().filter(|(file, _)| is_from_the_start(file));
        assert_eq!(at_once.count(), 3);
    }

    #[test]
    fn of_unified_the_host_has_what_is_its_own() {
        let unified = json!({"unified": {
            "memory.high": "1", "pids.max": "2", "cpu.weight": "3", "io.weight": "4",
        }, "hugepageLimits": [{"pageSize": "2MB", "limit": 0}]});
        is(
            &written(unified),
            &[("cpu.weight", "3"), ("io.weight", "4")],
        );
    }

    #[test]
    fn what_only_the_host_can_do_is_told() {
        let needs =
            |resources: Json| needs_host(&serde_json::from_value(resources).expect("resources"));
        assert_eq!(
            needs(json!({"blockIO": {"weight": 10}})),
            Some("linux.resources.blockIO")
        );
        assert_eq!(
            needs(json!({"cpu": {"mems": "0"}})),
            Some("linux.resources.cpu.mems")
        );
        assert_eq!(
            needs(json!({"unified": {"io.max": "8:0 rbps=1"}})),
            Some("linux.resources.unified")
        );
        assert_eq!(
            needs(json!({"cpu": {"cpus": "0", "mems": ""}, "memory": {"limit": 1}})),
            None
        );
    }
}
