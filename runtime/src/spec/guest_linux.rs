//! The guest's `linux` object: config.json's without what the host enforces.

use std::collections::HashMap;

use oci_spec::runtime::{Linux, LinuxMemory, LinuxResources};

/// The guest's `linux` object, which the agent needs even where config.json has none.
pub(super) fn guest_linux(linux: Option<Linux>) -> Linux {
    // Not the type's own default, which is a set of choices.
    let mut linux = linux.unwrap_or_else(bare_linux);
    linux
        .set_cgroups_path(None)
        .set_memory_policy(None)
        .set_mount_label(None)
        .set_net_devices(None)
        .set_seccomp(None);
    for namespace in linux.namespaces_mut().iter_mut().flatten() {
        namespace.set_path(None);
    }
    let resources = linux.resources().clone().map(guest_resources);
    linux.set_resources(resources);
    linux
}

fn bare_linux() -> Linux {
    let mut linux = Linux::default();
    linux
        .set_resources(None)
        .set_namespaces(None)
        .set_masked_paths(None)
        .set_readonly_paths(None);
    linux
}

/// Whether a file of `unified` is about what is the host's: CPUs and block devices.
pub(super) fn is_hosts_alone(file: &str) -> bool {
    file.starts_with("io.") || file.starts_with("cpuset.")
}

pub(super) fn guest_resources(mut resources: LinuxResources) -> LinuxResources {
    if let Some(mut cpu) = resources.cpu().clone() {
        cpu.set_cpus(None).set_mems(None);
        resources.set_cpu(Some(cpu));
    }
    resources.set_memory(resources.memory().map(guest_memory));
    let unified = resources.unified().iter().flatten();
    let guests: HashMap<_, _> = unified
        .filter(|(name, _)| !is_hosts_alone(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    resources
        .set_unified((!guests.is_empty()).then_some(guests))
        .set_block_io(None)
        .set_network(None)
        .set_rdma(None);
    resources
}

/// In config.json 0 means unset, but for swap: none. Any other swap without a limit can only be unlimited,
/// which it is anyway.
fn guest_memory(mut memory: LinuxMemory) -> LinuxMemory {
    let set = |value: Option<i64>| value.filter(|value| *value != 0);
    let limit = set(memory.limit());
    let reservation = set(memory.reservation());
    let swap = memory.swap().filter(|swap| *swap == 0 || limit.is_some());
    memory
        .set_limit(limit)
        .set_reservation(reservation)
        .set_swap(swap);
    memory
}
