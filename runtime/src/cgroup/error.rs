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
    /// Who isn't root of the host has none.
    #[error(
        "config.json: {field}: only a cgroup of the host can enforce it, and this user may make none \
         here; have one delegated to the user, or remove the field"
    )]
    NotAllowed {
        /// What needs it.
        field: &'static str,
    },
    /// It is frozen: a process in it would not run. In runc's words.
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
    #[error("config.json: {}: this host does not take it", .0.field())]
    Limit(#[from] LimitError),
    /// A process that was killed stays in it.
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
