//! Why a VM can't have its cgroup.

use std::io;
use std::path::PathBuf;

use hull_cgroup::limits::LimitError;

use super::systemd::SystemdError;

/// What is wrong with a VM's cgroup on the host.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// config.json names none.
    #[error("config.json: linux.cgroupsPath: {0}")]
    Path(String),
    /// The host has the old cgroups, or the old ones beside the new.
    #[error(
        "config.json: {field}: the host's cgroups are not version 2 (/sys/fs/cgroup is not cgroup2); \
         boot it with systemd.unified_cgroup_hierarchy=1, or remove the field"
    )]
    NoCgroup2 {
        /// What needs it.
        field: &'static str,
    },
    /// An ordinary user has none.
    #[error(
        "config.json: {field}: only a cgroup of the host can enforce it, and this user may make none \
         here; have one delegated to the user, or remove the field"
    )]
    NotAllowed {
        /// What needs it.
        field: &'static str,
    },
    /// Somebody has made it meanwhile.
    #[error("cgroup {path} was taken by somebody else while it was made: try again")]
    Taken {
        /// The cgroup.
        path: PathBuf,
    },
    /// A process in it would stand still, in runc's words.
    #[error("container's cgroup unexpectedly frozen: {path}")]
    Frozen {
        /// The cgroup.
        path: PathBuf,
    },
    /// The kernel refused something.
    #[error("cannot {what} cgroup {path}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A limit that the host doesn't set.
    #[error("config.json: {field}: this host does not take it")]
    Limit {
        /// What it is in config.json.
        field: &'static str,
        /// What was to be written, and why it couldn't be.
        #[source]
        source: LimitError,
    },
    /// Processes that aren't the VM's stay in it.
    #[error("waited {seconds} s for the last process to leave cgroup {path}")]
    Busy {
        /// The cgroup.
        path: PathBuf,
        /// How long.
        seconds: u64,
    },
    /// systemd.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
}

impl From<LimitError> for CgroupError {
    fn from(source: LimitError) -> Self {
        let field = match &source {
            LimitError::Invalid { field, .. } => field,
            LimitError::Write { file, .. } => field_of(file),
        };
        Self::Limit { field, source }
    }
}

/// The field of config.json that a cgroup's file is written for.
fn field_of(file: &str) -> &'static str {
    match file {
        "memory.max" => "linux.resources.memory.limit",
        "memory.low" => "linux.resources.memory.reservation",
        "memory.swap.max" => "linux.resources.memory.swap",
        "cpu.weight" => "linux.resources.cpu.shares",
        "cpu.max" => "linux.resources.cpu.quota",
        "cpu.max.burst" => "linux.resources.cpu.burst",
        "cpu.idle" => "linux.resources.cpu.idle",
        "cpuset.cpus" => "linux.resources.cpu.cpus",
        "cpuset.mems" => "linux.resources.cpu.mems",
        "pids.max" => "linux.resources.pids.limit",
        "io.weight" | "io.bfq.weight" | "io.max" => "linux.resources.blockIO",
        _ => "linux.resources.unified",
    }
}
