//! The table: for every field of config.json, who enforces it.
//!
//! The paths and their order are those of runtime-spec 1.3 (`config.md`, `config-linux.md`). The table
//! drives the behaviour: [`audit`](super::audit) walks a config.json along it, so a field that is
//! refused here is refused, and a field that nobody has put here fails a test.

use Enforcer::{Both, Guest, Host};

use super::refuse::{self, Check};

/// Who enforces a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcer {
    /// The agent and the kernel in the guest.
    Guest,
    /// hull on the host: the VMM process, its file shares, the state on disk.
    Host,
    /// Host and guest, each its part.
    Both,
    /// Nobody: a config.json that sets it is refused.
    Refused {
        /// Why.
        reason: &'static str,
        /// What the user can do.
        remedy: &'static str,
    },
}

/// One row of the table.
#[derive(Debug)]
pub struct Field {
    /// Where the field is: `[]` stands for an element of an array, `*` for a key of a map.
    ///
    /// A row holds for all that is below it, unless there are rows for what is below it.
    pub path: &'static str,
    /// Who enforces it.
    pub enforcer: Enforcer,
    /// Values that are refused where the field as such is not.
    pub check: Option<Check>,
}

const fn row(path: &'static str, enforcer: Enforcer) -> Field {
    Field {
        path,
        enforcer,
        check: None,
    }
}

const fn refused(path: &'static str, reason: &'static str, remedy: &'static str) -> Field {
    Field {
        path,
        enforcer: Enforcer::Refused { reason, remedy },
        check: None,
    }
}

impl Field {
    const fn unless(self, check: Check) -> Self {
        Self {
            check: Some(check),
            ..self
        }
    }
}

const REMOVE: &str = "remove it";
const NOT_YET: &str = "hull does not support it yet";
const HOST_IO: &str =
    "it is about the host's block devices, and hull does not place the VM in a host cgroup yet";
const PLATFORM: &str = "it is for another platform than Linux containers";
const V1: &str = "cgroup v2 has no such limit, and guests have cgroup v2";

/// The table.
pub const FIELDS: &[Field] = &[
    row("ociVersion", Host),
    // process
    refused(
        "process.terminal",
        "hull has no terminals yet",
        "set it to false",
    ),
    row("process.consoleSize", Guest).unless(refuse::console_size),
    row("process.user.uid", Guest),
    row("process.user.gid", Guest),
    row("process.user.umask", Guest),
    row("process.user.additionalGids", Guest),
    refused("process.user.username", PLATFORM, "use process.user.uid"),
    row("process.args", Guest),
    refused("process.commandLine", PLATFORM, "use process.args"),
    row("process.env", Guest),
    row("process.cwd", Guest),
    row("process.capabilities.bounding", Guest),
    row("process.capabilities.effective", Guest),
    row("process.capabilities.inheritable", Guest),
    row("process.capabilities.permitted", Guest),
    row("process.capabilities.ambient", Guest),
    row("process.rlimits[].type", Guest),
    row("process.rlimits[].hard", Guest),
    row("process.rlimits[].soft", Guest),
    row("process.noNewPrivileges", Guest),
    // "unconfined" asks for nothing, and a guest has no AppArmor that would confine.
    row("process.apparmorProfile", Guest).unless(refuse::apparmor),
    row("process.oomScoreAdj", Guest),
    row("process.scheduler.policy", Guest),
    row("process.scheduler.nice", Guest),
    row("process.scheduler.priority", Guest),
    row("process.scheduler.flags", Guest).unless(refuse::scheduler_flags),
    row("process.scheduler.runtime", Guest),
    row("process.scheduler.deadline", Guest),
    row("process.scheduler.period", Guest),
    refused(
        "process.selinuxLabel",
        "the guest's kernel has no SELinux",
        "remove it (engines: label=disable)",
    ),
    row("process.ioPriority.class", Guest),
    row("process.ioPriority.priority", Guest),
    row("process.execCPUAffinity.initial", Guest),
    row("process.execCPUAffinity.final", Guest),
    // root
    row("root.path", Host),
    // In the guest only: mount points may have to be made in it first.
    row("root.readonly", Guest),
    row("hostname", Guest),
    row("domainname", Guest),
    // mounts: what binds a path of the host is shared by the host, the rest is made in the guest
    row("mounts[]", Both).unless(refuse::mount),
    row("mounts[].destination", Guest),
    row("mounts[].type", Guest),
    row("mounts[].source", Both),
    row("mounts[].options", Both),
    refused("mounts[].uidMappings", NOT_YET, REMOVE),
    refused("mounts[].gidMappings", NOT_YET, REMOVE),
    // hooks: on the host with the host's programs, in the guest with the container's
    row("hooks.prestart", Host),
    row("hooks.createRuntime", Host),
    row("hooks.createContainer", Host),
    row("hooks.startContainer", Guest),
    row("hooks.poststart", Host),
    row("hooks.poststop", Host),
    // Kept in the container's state.
    row("annotations", Host),
    // linux
    row("linux.uidMappings[].containerID", Guest),
    row("linux.uidMappings[].hostID", Guest),
    row("linux.uidMappings[].size", Guest),
    row("linux.gidMappings[].containerID", Guest),
    row("linux.gidMappings[].hostID", Guest),
    row("linux.gidMappings[].size", Guest),
    row("linux.sysctl", Guest),
    // linux.resources: also the VM's size (see `sizing`)
    row("linux.resources.devices[].allow", Guest),
    row("linux.resources.devices[].type", Guest),
    row("linux.resources.devices[].major", Guest),
    row("linux.resources.devices[].minor", Guest),
    row("linux.resources.devices[].access", Guest),
    row("linux.resources.memory.limit", Both),
    row("linux.resources.memory.reservation", Guest),
    row("linux.resources.memory.swap", Guest), // a guest has no swap space
    refused("linux.resources.memory.kernel", V1, REMOVE),
    refused("linux.resources.memory.kernelTCP", V1, REMOVE),
    refused("linux.resources.memory.swappiness", V1, REMOVE),
    refused("linux.resources.memory.disableOOMKiller", V1, REMOVE),
    row("linux.resources.memory.useHierarchy", Guest), // cgroup v2 always does
    row("linux.resources.memory.checkBeforeUpdate", Guest),
    // Among the guest's own processes; on the host once the VM is placed in cgroupsPath.
    row("linux.resources.cpu.shares", Guest),
    row("linux.resources.cpu.quota", Both),
    row("linux.resources.cpu.burst", Guest),
    row("linux.resources.cpu.period", Both),
    refused("linux.resources.cpu.realtimeRuntime", V1, REMOVE),
    refused("linux.resources.cpu.realtimePeriod", V1, REMOVE),
    row("linux.resources.cpu.cpus", Host),
    refused(
        "linux.resources.cpu.mems",
        "hull does not place the VM's memory on NUMA nodes yet",
        REMOVE,
    ),
    row("linux.resources.cpu.idle", Guest),
    row("linux.resources.pids.limit", Guest),
    refused("linux.resources.blockIO.weight", HOST_IO, REMOVE),
    refused("linux.resources.blockIO.leafWeight", V1, REMOVE),
    refused("linux.resources.blockIO.weightDevice", HOST_IO, REMOVE),
    refused(
        "linux.resources.blockIO.throttleReadBpsDevice",
        HOST_IO,
        REMOVE,
    ),
    refused(
        "linux.resources.blockIO.throttleWriteBpsDevice",
        HOST_IO,
        REMOVE,
    ),
    refused(
        "linux.resources.blockIO.throttleReadIOPSDevice",
        HOST_IO,
        REMOVE,
    ),
    refused(
        "linux.resources.blockIO.throttleWriteIOPSDevice",
        HOST_IO,
        REMOVE,
    ),
    row("linux.resources.hugepageLimits[].pageSize", Guest),
    row("linux.resources.hugepageLimits[].limit", Guest),
    refused("linux.resources.network.classID", V1, REMOVE),
    refused("linux.resources.network.priorities", V1, REMOVE),
    refused(
        "linux.resources.rdma",
        "a guest has no RDMA devices",
        REMOVE,
    ),
    row("linux.resources.unified.*", Guest).unless(refuse::unified),
    // Accepted and kept; the VM's process is not yet moved there.
    row("linux.cgroupsPath", Host),
    row("linux.namespaces[].type", Guest),
    refused(
        "linux.namespaces[].path",
        "a namespace of the host cannot be joined from inside a VM, and hull does not connect a \
         network namespace's interfaces yet",
        "remove the path (the container then gets a namespace of its own)",
    ),
    row("linux.devices[]", Guest).unless(refuse::device),
    row("linux.devices[].path", Guest),
    row("linux.devices[].type", Guest),
    row("linux.devices[].major", Guest),
    row("linux.devices[].minor", Guest),
    row("linux.devices[].fileMode", Guest),
    row("linux.devices[].uid", Guest),
    row("linux.devices[].gid", Guest),
    refused(
        "linux.netDevices",
        "hull does not move network devices into a VM yet",
        REMOVE,
    ),
    row("linux.seccomp.defaultAction", Guest).unless(refuse::seccomp_action),
    row("linux.seccomp.defaultErrnoRet", Guest),
    row("linux.seccomp.architectures", Guest),
    row("linux.seccomp.flags", Guest),
    refused(
        "linux.seccomp.listenerPath",
        "a seccomp listener cannot leave the guest",
        REMOVE,
    ),
    refused(
        "linux.seccomp.listenerMetadata",
        "a seccomp listener cannot leave the guest",
        REMOVE,
    ),
    row("linux.seccomp.syscalls[].names", Guest),
    row("linux.seccomp.syscalls[].action", Guest).unless(refuse::seccomp_action),
    row("linux.seccomp.syscalls[].errnoRet", Guest),
    row("linux.seccomp.syscalls[].args[].index", Guest),
    row("linux.seccomp.syscalls[].args[].value", Guest),
    row("linux.seccomp.syscalls[].args[].valueTwo", Guest),
    row("linux.seccomp.syscalls[].args[].op", Guest),
    row("linux.rootfsPropagation", Guest),
    row("linux.maskedPaths", Guest),
    row("linux.readonlyPaths", Guest),
    refused(
        "linux.mountLabel",
        "the guest's kernel has no SELinux",
        "remove it (engines: label=disable)",
    ),
    refused(
        "linux.intelRdt",
        "hull does not partition the host's caches yet",
        REMOVE,
    ),
    refused("linux.memoryPolicy", "a guest has one NUMA node", REMOVE),
    row("linux.personality.domain", Guest),
    refused(
        "linux.personality.flags",
        "the runtime-spec defines none",
        REMOVE,
    ),
    row("linux.timeOffsets.*.secs", Guest),
    row("linux.timeOffsets.*.nanosecs", Guest),
    // other platforms
    refused("solaris", PLATFORM, REMOVE),
    refused("windows", PLATFORM, REMOVE),
    refused(
        "vm",
        "hull brings its own kernel and monitor",
        "remove it, or see `hull --kernel`",
    ),
    refused("zos", PLATFORM, REMOVE),
    refused("freebsd", PLATFORM, REMOVE),
];

/// Whether a field of the table is enforced whatever its value.
pub fn supports(path: &str) -> bool {
    let field = FIELDS.iter().find(|field| field.path == path);
    field.is_some_and(|field| {
        !matches!(field.enforcer, Enforcer::Refused { .. }) && field.check.is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of the specification itself, kept beside this file.
    fn specified() -> impl Iterator<Item = &'static str> {
        include_str!("fields-1.3.txt")
            .lines()
            .filter(|line| !line.starts_with('#'))
    }

    fn is_below(path: &str, parent: &str) -> bool {
        path.strip_prefix(parent)
            .is_some_and(|rest| rest.starts_with(['.', '[']))
    }

    fn has_rows_below(path: &str) -> bool {
        FIELDS.iter().any(|field| is_below(field.path, path))
    }

    #[test]
    fn every_field_of_the_specification_is_somebodys() {
        let unknown: Vec<_> = specified()
            .filter(|path| {
                let own = FIELDS.iter().any(|field| field.path == *path);
                let above = FIELDS
                    .iter()
                    .any(|f| is_below(path, f.path) && !has_rows_below(f.path));
                !own && !above && !has_rows_below(path)
            })
            .collect();
        assert!(unknown.is_empty(), "in nobody's table: {unknown:?}");
    }

    #[test]
    fn the_table_names_no_field_that_is_not_specified() {
        let invented: Vec<_> = FIELDS
            .iter()
            .map(|field| field.path)
            .filter(|path| {
                let known = path.trim_end_matches(".*").trim_end_matches("[]");
                !specified().any(|specified| specified == known)
            })
            .collect();
        assert!(
            invented.is_empty(),
            "not in the specification: {invented:?}"
        );
    }

    #[test]
    fn no_field_is_twice_in_the_table() {
        let mut paths: Vec<_> = FIELDS.iter().map(|field| field.path).collect();
        paths.sort_unstable();
        let length = paths.len();
        paths.dedup();
        assert_eq!(paths.len(), length);
    }
}
