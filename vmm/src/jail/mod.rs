//! The jail: how the VMM process drops its privileges before it runs the guest.
//!
//! In this order, in the process that will be the VMM:
//! 1. [`close_other_fds`] and [`limits::apply`], early;
//! 2. for an ordinary user [`userns::enter`], and [`tree::enter`], while there is a single thread:
//!    from then on only the shared tree can be reached by path;
//! 3. [`confine`] in each thread, last: no new privileges, a private descriptor table, Landlock for
//!    the virtio-fs thread and the out-of-memory reporter, capabilities, and the seccomp filter of the thread's [`Role`].
//!
//! `docs/security.md` describes what each layer protects against, and what not.
//!
//! All of this needs root, or root of a user namespace.

mod capabilities;
pub mod core_scheduling;
pub mod descriptors;
mod identity;
mod landlock;
pub mod limits;
mod proc_pids;
mod seccomp;
pub mod tree;
pub mod userns;

#[cfg(test)]
mod descriptor_tests;
#[cfg(test)]
pub(crate) mod test_child;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tree_tests;
#[cfg(test)]
mod view_tests;

pub use descriptors::{PrivateFdTable, close_other_fds};
pub use identity::Identity;

use std::io;
use std::os::fd::RawFd;

/// What a thread does, which determines its privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The main event loop: vsock, console, rng, control socket. Its sockets and files are open
    /// already.
    Main,
    /// A virtual CPU: runs the guest, and emulates the devices' registers when the guest accesses
    /// them.
    Vcpu,
    /// The virtio-fs device.
    Filesystem,
    /// The virtio-fs device, which connects to UNIX sockets in the tree as well.
    FilesystemAndSockets,
    /// A virtio-blk device, whose disk is open already.
    Block,
    /// A slot for a disk: waits until a disk is plugged in while the guest runs, and then serves it
    /// as a virtio-blk device.
    DiskSlot,
    /// virtio-net devices, whose taps are open already.
    Net,
    /// Slots for NICs: wait until NICs are plugged in while the guest runs, and then serve them as
    /// virtio-net devices.
    NetSlot,
    /// Not of the VMM: the only thread of a process that stands for a container on the host. It reads
    /// what the guest's agent answers, and passes on signals and the size of a terminal.
    StandIn,
    /// Not of the VMM: the only thread of a process that has a VM's network follow what changes in
    /// its network namespace on the host, and tells the host of what happens in the guest.
    NetworkFollower,
    /// Not of the VMM: the same where no network is followed. Its connection is open already.
    Follower,
    /// Not of the VMM: the only thread of a process that has the host's kernel count an
    /// out-of-memory kill, and of those that it makes for that.
    OomReporter,
}

impl Role {
    /// Whether it is a virtio-fs device's.
    fn serves_files(self) -> bool {
        matches!(self, Self::Filesystem | Self::FilesystemAndSockets)
    }

    /// Whether Landlock keeps it to what is below its root: who makes files there, and has a right for it.
    fn is_kept_below_its_root(self) -> bool {
        self.serves_files() || self == Self::OomReporter
    }
}

#[cfg(test)]
impl Role {
    pub(crate) const ALL: [Self; 12] = [
        Self::Main,
        Self::Vcpu,
        Self::Filesystem,
        Self::FilesystemAndSockets,
        Self::Block,
        Self::DiskSlot,
        Self::Net,
        Self::NetSlot,
        Self::StandIn,
        Self::NetworkFollower,
        Self::Follower,
        Self::OomReporter,
    ];
}

/// Why a thread or the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `PR_SET_NO_NEW_PRIVS`.
    #[error("cannot set no_new_privs")]
    NoNewPrivs(#[source] io::Error),
    /// unshare(2) with `CLONE_FILES`.
    #[error("cannot give a thread file descriptors of its own")]
    UnshareFiles(#[source] io::Error),
    /// close_range(2) failed.
    #[error("cannot close the other file descriptors; the host's kernel must be 5.9 or newer")]
    CloseRange(#[source] io::Error),
    /// The host has Landlock, but refuses the ruleset.
    #[error("cannot restrict a thread to what is below its root by Landlock")]
    Landlock(#[source] ::landlock::RulesetError),
    /// Landlock's rule names the root directory, which could not be opened.
    #[error("cannot open the root directory for Landlock")]
    LandlockRoot(#[source] ::landlock::PathFdError),
    /// The user or the group could not be changed.
    #[error("cannot become a user that no other process is")]
    Identity(#[source] io::Error),
    /// The process could not be made undumpable, and could still be traced.
    #[error(transparent)]
    Limits(#[from] limits::Error),
    /// One of the capability sets could not be changed.
    #[error("cannot give up {set} capabilities")]
    Capabilities {
        /// The set by its name in capabilities(7).
        set: &'static str,
        /// The reason.
        #[source]
        source: caps::errors::CapsError,
    },
    /// `PR_SET_SECUREBITS`.
    #[error("cannot keep capabilities across a change of user")]
    SecureBits(#[source] io::Error),
    /// virtiofsd's library could not read the thread's capabilities.
    #[error("cannot prepare virtio-fs for its capabilities")]
    CapabilityCache(#[source] io::Error),
    /// The seccomp filter could not be compiled: a mistake in the tables.
    #[error("cannot compile the system call filter of {0:?}")]
    Compile(Role, #[source] seccompiler::BackendError),
    /// The kernel refused the filter: it lacks CONFIG_SECCOMP_FILTER.
    #[error("cannot install the system call filter; the host's kernel needs CONFIG_SECCOMP_FILTER")]
    Install(#[source] seccompiler::Error),
}

/// Confines the calling thread to what its role needs, irrevocably. It becomes the user of
/// `identity`, except for the virtio-fs thread, which stays root. Of the open descriptors it keeps
/// those of `descriptors`, under the same numbers, in a private table, which is returned.
///
/// # Errors
/// See [`Error`]. The thread may then have lost some of its privileges, so the process must end.
pub fn confine(
    role: Role,
    identity: Identity,
    descriptors: &[RawFd],
) -> Result<PrivateFdTable, Error> {
    rustix::thread::set_no_new_privs(true).map_err(|e| Error::NoNewPrivs(e.into()))?;
    let table = descriptors::keep_only(descriptors)?;
    if role.is_kept_below_its_root() {
        landlock::restrict_to_root()?;
    }
    // Takes CAP_SETPCAP, so it comes before the next step.
    capabilities::keep_across_setuid()?;
    if let (true, Identity::UniqueUser(id)) = (!role.serves_files(), identity) {
        identity::become_user(id)?;
        // The change of user has reset the dumpable flag.
        limits::forbid_dumps()?;
    }
    capabilities::keep_only(capabilities::of_role(role))?;
    if role.serves_files() {
        // virtiofsd's library changes the effective set around some writes. Before the first time
        // it reads the thread's sets by system calls that the filter forbids, so it is made to do
        // so here.
        virtiofsd::passthrough::credentials::drop_effective_cap("FSETID")
            .map_err(Error::CapabilityCache)?;
    }
    seccomp::install(role)?;
    Ok(table)
}
