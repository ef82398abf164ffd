//! The table: for every field of config.json, who enforces it.
//!
//! The paths and their order are those of runtime-spec 1.3 (`config.md`, `config-linux.md`). The table
//! drives the behaviour: [`audit`](super::audit) walks a config.json along it, so a field that is
//! refused here is refused, and a field that nobody has put here fails a test.

use Enforcer::{Both, Guest, Host};
use serde_json::Value;

use super::apparmor;
use super::mounts;
use super::refuse::{self, Check, Node};

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

impl Enforcer {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Host => "host",
            Self::Both => "both",
            Self::Refused { .. } => "refused",
        }
    }
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
    /// What docs/config-json.md adds: in what a guest differs, which values are refused.
    pub note: &'static str,
}

const fn row(path: &'static str, enforcer: Enforcer) -> Field {
    Field {
        path,
        enforcer,
        check: None,
        note: "",
    }
}

const fn refused(path: &'static str, reason: &'static str, remedy: &'static str) -> Field {
    row(path, Enforcer::Refused { reason, remedy })
}

impl Field {
    /// Some values are refused; `note` says in words which.
    const fn unless(self, check: Check, note: &'static str) -> Self {
        Self {
            check: Some(check),
            note,
            ..self
        }
    }

    const fn noted(self, note: &'static str) -> Self {
        Self { note, ..self }
    }
}

const REMOVE: &str = "remove it";
const PLATFORM: &str = "it is for another platform than Linux containers";
const GUEST_CPUS: &str = "the guest's CPUs, as the process sees them, numbered from 0";
const NO_LISTENER: &str = "nobody listens without `SCMP_ACT_NOTIFY`, which is refused";
const NOTIFY: &str = "refused is `SCMP_ACT_NOTIFY`: a seccomp listener cannot leave the guest";
const V1: &str = "cgroup v2 has no such limit, and guests have cgroup v2";

/// The table.
pub const FIELDS: &[Field] = &[
    row("ociVersion", Host),
    // process
    // One in the guest, joined to one of the host.
    row("process.terminal", Both),
    row("process.consoleSize", Guest),
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
    row("process.apparmorProfile", Guest).unless(
        apparmor::check,
        "guests have no AppArmor: engines' default profiles are taken as held by what stands in their place \
         ([security.md](security.md)), if `apparmor_defaults` of the configuration lets them be; others are refused, \
         but for `unconfined`",
    ),
    row("process.oomScoreAdj", Both).noted("the VM's process has it on the host"),
    row("process.scheduler.policy", Guest),
    row("process.scheduler.nice", Guest),
    row("process.scheduler.priority", Guest),
    row("process.scheduler.flags", Guest).unless(
        refuse::scheduler_flags,
        "refused are `SCHED_FLAG_UTIL_CLAMP_MIN` and `_MAX`: there is no field for their values",
    ),
    row("process.scheduler.runtime", Guest),
    row("process.scheduler.deadline", Guest),
    row("process.scheduler.period", Guest),
    row("process.selinuxLabel", Host).unless(
        refuse::selinux,
        "the VM process gets it, so its type must be one that may run VMs (engines: \
         `label=type:container_kvm_t`); refused where the host has no SELinux",
    ),
    row("process.ioPriority.class", Guest),
    row("process.ioPriority.priority", Guest),
    row("process.execCPUAffinity.initial", Guest).noted(GUEST_CPUS),
    row("process.execCPUAffinity.final", Guest).noted(GUEST_CPUS),
    // root
    row("root.path", Host),
    row("root.readonly", Both).noted("once the mount points are made in the root"),
    row("hostname", Guest),
    row("domainname", Guest),
    // mounts
    row("mounts[]", Both).unless(
        mounts::check,
        "the host shares what binds a path of the host, and mounts what needs a path of the host; the \
         guest makes the rest, and mounts what lies on a disk. Some options are refused (below)",
    ),
    row("mounts[].destination", Guest),
    row("mounts[].type", Both)
        .noted("of those on a disk erofs, ext2, ext3 and ext4; others are refused"),
    row("mounts[].source", Both).noted(
        "an empty tmpfs that an engine has mounted for /dev/shm is one of the guest's, of the same size, mode and owner; \
         a UNIX socket of the host is refused unless hull.toml allows it",
    ),
    row("mounts[].options", Both).noted(
        "without one that sets a flag, a bind mount has its source's; in a user namespace it keeps what \
         these forbid",
    ),
    row("mounts[].uidMappings", Host).noted("where the host's file system can"),
    row("mounts[].gidMappings", Host).noted("where the host's file system can"),
    // hooks
    row("hooks.prestart", Host),
    row("hooks.createRuntime", Host),
    row("hooks.createContainer", Host).noted(
        "on the host, as its programs are there, in a mount namespace of its own",
    ),
    row("hooks.startContainer", Guest).noted("in the container, with its programs"),
    row("hooks.poststart", Host),
    row("hooks.poststop", Host),
    row("annotations", Host).noted("kept in the container's state"),
    // linux
    row("linux.uidMappings[].containerID", Guest),
    row("linux.uidMappings[].hostID", Guest),
    row("linux.uidMappings[].size", Guest),
    row("linux.gidMappings[].containerID", Guest),
    row("linux.gidMappings[].hostID", Guest),
    row("linux.gidMappings[].size", Guest),
    row("linux.sysctl", Guest),
    // linux.resources: also the VM's size (see `sizing`), and the VM's limits on the host (see `cgroup`)
    row("linux.resources.devices[].allow", Guest),
    row("linux.resources.devices[].type", Guest).unless(
        refuse::rule_type,
        "a, b or c; any other is refused, as by runc",
    ),
    row("linux.resources.devices[].major", Guest),
    row("linux.resources.devices[].minor", Guest),
    row("linux.resources.devices[].access", Both).noted(
        "r, w and m; other letters mean nothing, as with runc. The host opens a block device for writing \
         only if the rules let it be written",
    ),
    row("linux.resources.memory.limit", Both)
        .noted("also the VM's size; on the host, what the whole VM may take"),
    row("linux.resources.memory.reservation", Both),
    row("linux.resources.memory.swap", Both)
        .noted("a guest has no swap space to limit, the host may have; 0 is none"),
    refused("linux.resources.memory.kernel", V1, REMOVE),
    refused("linux.resources.memory.kernelTCP", V1, REMOVE),
    refused("linux.resources.memory.swappiness", V1, REMOVE),
    refused("linux.resources.memory.disableOOMKiller", V1, REMOVE),
    row("linux.resources.memory.useHierarchy", Guest).noted("cgroup v2 always does"),
    row("linux.resources.memory.checkBeforeUpdate", Guest),
    row("linux.resources.cpu.shares", Both)
        .noted("among the guest's processes, and of the VM on the host"),
    row("linux.resources.cpu.quota", Both).noted("also the VM's number of CPUs"),
    row("linux.resources.cpu.burst", Both),
    row("linux.resources.cpu.period", Both),
    refused("linux.resources.cpu.realtimeRuntime", V1, REMOVE),
    refused("linux.resources.cpu.realtimePeriod", V1, REMOVE),
    row("linux.resources.cpu.cpus", Host)
        .noted("the host's CPUs, on which the VM's process then runs; also the VM's number of CPUs"),
    row("linux.resources.cpu.mems", Host).noted("the host's NUMA nodes, on which the VM's memory is"),
    row("linux.resources.cpu.idle", Both),
    row("linux.resources.pids.limit", Guest),
    row("linux.resources.blockIO.weight", Host),
    refused("linux.resources.blockIO.leafWeight", V1, REMOVE),
    row("linux.resources.blockIO.weightDevice", Host),
    row("linux.resources.blockIO.throttleReadBpsDevice", Host),
    row("linux.resources.blockIO.throttleWriteBpsDevice", Host),
    row("linux.resources.blockIO.throttleReadIOPSDevice", Host),
    row("linux.resources.blockIO.throttleWriteIOPSDevice", Host),
    row("linux.resources.hugepageLimits[].pageSize", Guest),
    row("linux.resources.hugepageLimits[].limit", Guest),
    refused("linux.resources.network.classID", V1, REMOVE),
    refused("linux.resources.network.priorities", V1, REMOVE),
    refused(
        "linux.resources.rdma",
        "a guest has no RDMA devices",
        REMOVE,
    ),
    row("linux.resources.unified.*", Both).unless(
        refuse::unified,
        "`cpuset.*` and `io.*` are the host's, `cpu.*` both's, all others the guest's; refused are \
         controllers that neither has anything for, and what would freeze or kill the container",
    ),
    row("linux.cgroupsPath", Host).noted("where the VM's process runs"),
    row("linux.namespaces[]", Guest).unless(
        refuse::namespace,
        "new ones are made in the guest; a path names those of a container in whose VM this one is to be (network, ipc, \
         uts, pid, user), or a network; any other is refused",
    ),
    row("linux.namespaces[].type", Guest).noted(
        "a kind that is not listed is the guest's own, which stands in for the runtime's: nothing of \
         the host's is shared, and nothing else runs in the guest but its agent. Where an engine leaves one out to \
         share the host's, `host_namespaces` of the configuration says what becomes of it: by default it is refused for \
         the network, and told of pid, ipc and uts",
    ),
    row("linux.namespaces[].path", Both).noted(
        "below /proc/PID, PID being the process of a container of hull's: the container is made in that one's VM, and \
         enters its namespace there. Otherwise the VM's process joins the network namespace, whose interfaces are \
         connected to the VM; the host's own is refused, and that of another runtime's container; `lo` is the guest's",
    ),
    // Block devices are the host's, attached as disks; the rest is the guest's own.
    row("linux.devices[]", Both).unless(
        refuse::device,
        "block devices of the host, FIFOs, and the character devices that every guest has; any other \
         character device is refused. A block device that the host lacks is a node with nothing behind it, \
         and hull says so. Where an engine lists all devices of the host, for a privileged container, that has those \
         that a guest has, and none of the host's block devices (`privileged_devices` of the configuration)",
    ),
    row("linux.devices[].path", Guest),
    row("linux.devices[].type", Guest),
    row("linux.devices[].major", Both),
    row("linux.devices[].minor", Both),
    row("linux.devices[].fileMode", Guest),
    row("linux.devices[].uid", Guest),
    row("linux.devices[].gid", Guest),
    row("linux.netDevices.*", Host)
        .noted("moved into the network namespace of the VM's process, and connected to the VM"),
    row("linux.netDevices.*.name", Host),
    row("linux.seccomp.defaultAction", Guest).unless(refuse::seccomp_action, NOTIFY),
    row("linux.seccomp.defaultErrnoRet", Guest),
    row("linux.seccomp.architectures", Guest).noted(
        "the guest's kernel runs programs of x86-64 and x86; calls of x32 get ENOSYS where it is listed",
    ),
    row("linux.seccomp.flags", Guest).noted(
        "`SECCOMP_FILTER_FLAG_TSYNC` changes nothing where there is one thread, and \
         `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` nothing where there is no listener",
    ),
    row("linux.seccomp.listenerPath", Guest).noted(NO_LISTENER),
    row("linux.seccomp.listenerMetadata", Guest).noted(NO_LISTENER),
    row("linux.seccomp.syscalls[].names", Guest),
    row("linux.seccomp.syscalls[].action", Guest).unless(refuse::seccomp_action, NOTIFY),
    row("linux.seccomp.syscalls[].errnoRet", Guest),
    row("linux.seccomp.syscalls[].args[].index", Guest),
    row("linux.seccomp.syscalls[].args[].value", Guest),
    row("linux.seccomp.syscalls[].args[].valueTwo", Guest),
    row("linux.seccomp.syscalls[].args[].op", Guest),
    row("linux.rootfsPropagation", Guest),
    row("linux.maskedPaths", Guest),
    row("linux.readonlyPaths", Guest),
    row("linux.mountLabel", Host).unless(
        refuse::selinux,
        "nothing to do: what is mounted for the container alone is mounted in the guest, where nothing has a \
         label; refused where the host has no SELinux",
    ),
    refused(
        "linux.intelRdt",
        "hull does not partition the host's caches yet",
        REMOVE,
    ),
    row("linux.memoryPolicy.mode", Host)
        .noted("of the VM's memory on the host's nodes; inside, a guest has one node"),
    row("linux.memoryPolicy.nodes", Host).noted("the host's nodes"),
    row("linux.memoryPolicy.flags", Host),
    row("linux.personality.domain", Guest),
    refused(
        "linux.personality.flags",
        "the runtime-spec defines none",
        REMOVE,
    ),
    row("linux.timeOffsets.*.secs", Guest)
        .noted("not below 0: the guest's clocks begin at 0, when the container is made"),
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

/// Whether a field of the table is enforced, whatever its value but for those that a check refuses.
pub fn supports(path: &str) -> bool {
    find(path).is_some_and(|field| !matches!(field.enforcer, Enforcer::Refused { .. }))
}

/// Whether a field of the table is enforced when it has this value.
pub fn supports_value(path: &str, value: &Value) -> bool {
    let node = Node {
        key: "",
        value,
        root: &Value::Null,
    };
    let refused = |field: &Field| field.check.and_then(|check| check(node)).is_some();
    supports(path) && !find(path).is_some_and(refused)
}

fn find(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
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
