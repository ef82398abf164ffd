//! Limits of the VMM process, and the file descriptors that it keeps.
#![allow(unsafe_code)] // close_range(2), which no library wraps

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// The most open files: what Linux allows a process by default (`fs.nr_open`).
pub const NOFILE: u64 = 1 << 20;

/// Why the limits could not be set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// setrlimit(2) failed.
    #[error("cannot set the limit {0}")]
    Rlimit(&'static str, #[source] io::Error),
    /// `PR_SET_DUMPABLE` failed.
    #[error("cannot make the process undumpable")]
    Dumpable(#[source] io::Error),
    /// close_range(2) failed.
    #[error("cannot close the other file descriptors; the host's kernel must be 5.9 or newer")]
    CloseRange(#[source] io::Error),
}

/// The limits in force after [`apply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open files, from which virtio-fs takes its share (see [`crate::virtio::fs::fd_limit`]).
    pub nofile: u64,
}

/// Sets the limits, umask and dumpability of the VMM process.
///
/// - `NOFILE`: 2^20, or the hard limit where it is lower and can't be raised: virtio-fs holds one for
///   each inode that the guest knows.
/// - `CORE`: 0. A core dump would put the guest's memory on the host's disk.
/// - `MEMLOCK`: 0. Nothing here locks memory, and guest memory must stay swappable.
/// - `FSIZE`, `AS` and the like: untouched. Files are the guest's own business (its kernel enforces the
///   container's `RLIMIT_FSIZE`), and the memory cgroup is what bounds memory.
/// - umask 0: the guest decides on its files' modes.
/// - Not dumpable: no ptrace, and `/proc/<pid>` is root's, also after a change of uid.
/// - `PR_SET_PDEATHSIG` is not set: the sandbox outlives the command that creates it.
///
/// # Errors
/// See [`Error`].
pub fn apply() -> Result<Limits, Error> {
    let nofile = raise_nofile()?;
    set(Resource::Core, "RLIMIT_CORE", 0)?;
    set(Resource::Memlock, "RLIMIT_MEMLOCK", 0)?;
    rustix::process::umask(rustix::fs::Mode::empty());
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| Error::Dumpable(e.into()))?;
    Ok(Limits { nofile })
}

fn raise_nofile() -> Result<u64, Error> {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if set(Resource::Nofile, "RLIMIT_NOFILE", NOFILE).is_ok() {
        return Ok(NOFILE);
    }
    // fs.nr_open is lower, or CAP_SYS_RESOURCE is missing.
    set(Resource::Nofile, "RLIMIT_NOFILE", hard)?;
    Ok(hard)
}

fn set(resource: Resource, name: &'static str, limit: u64) -> Result<(), Error> {
    let limit = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    setrlimit(resource, limit).map_err(|e| Error::Rlimit(name, e.into()))
}

/// Closes every file descriptor but standard input, output and error and those of `keep`.
///
/// To be called before the process opens anything that is not in `keep`: what a library has open would
/// be closed behind its back.
///
/// # Errors
/// [`Error::CloseRange`].
pub fn close_other_fds(keep: &[BorrowedFd<'_>]) -> Result<(), Error> {
    let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.retain(|fd| *fd > 2);
    kept.sort_unstable();
    let mut next = 3;
    for fd in kept {
        close_range(next, fd - 1)?;
        next = fd + 1;
    }
    close_range(next, RawFd::MAX)
}

/// Closes `first` to `last`, both included; nothing where `last` comes before `first`.
fn close_range(first: RawFd, last: RawFd) -> Result<(), Error> {
    if last < first {
        return Ok(());
    }
    // SAFETY: it takes no pointers. The caller of `close_other_fds` has been told that nobody may own
    // these descriptors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    match result {
        0 => Ok(()),
        _ => Err(Error::CloseRange(io::Error::last_os_error())),
    }
}
