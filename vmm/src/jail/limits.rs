//! Resource limits and other attributes of the VMM process.
#![allow(unsafe_code)] // prctl(2) and mallopt(3) with options that no library wraps

use std::io;

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
}

/// The limits in force after [`apply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open files, from which virtio-fs takes its share (see [`crate::virtio::fs::fd_limit`]).
    pub nofile: u64,
}

/// Sets the limits, umask and dumpability of the VMM process.
///
/// - `NOFILE`: 2^20, or the hard limit if it is lower and can't be raised: virtio-fs holds a
///   descriptor for each inode that the guest knows. Once the number of these is known,
///   [`lower_nofile`] lowers the limit.
/// - `CORE`: 0. A core dump would put the guest's memory on the host's disk.
/// - `MEMLOCK`: 0. Nothing here locks memory, and guest memory must stay swappable.
/// - `FSIZE`, `AS` and the like: unchanged, the caller has raised them. The guest's kernel enforces
///   the container's `RLIMIT_FSIZE`, and the memory cgroup limits memory.
/// - umask 0: the guest determines its files' modes.
/// - `PR_SET_MDWE`: no memory can become executable in any thread, if the host's kernel supports it
///   (Linux 6.3).
/// - All threads allocate from one malloc arena. To shrink another one, glibc opens
///   `/proc/sys/vm/overcommit_memory` when much memory is freed for the first time, for which the
///   seccomp filters kill the process: a guest could provoke it. A single arena also takes less
///   memory.
/// - Not dumpable: no ptrace, and `/proc/<pid>` belongs to root, also after a change of user.
/// - `PR_SET_PDEATHSIG` is not set: the sandbox outlives the command that creates it.
///
/// # Errors
/// See [`Error`].
pub fn apply() -> Result<Limits, Error> {
    let nofile = raise_nofile()?;
    set(Resource::Core, "RLIMIT_CORE", 0)?;
    set(Resource::Memlock, "RLIMIT_MEMLOCK", 0)?;
    rustix::process::umask(rustix::fs::Mode::empty());
    forbid_dumps()?;
    refuse_executable_memory();
    use_one_malloc_arena();
    Ok(Limits { nofile })
}

/// Lowers the limit of open files to `files`: a compromised thread must not be able to open more
/// files than its guest may have, since all processes of the host share `fs.file-max`.
///
/// # Errors
/// See [`Error`].
pub fn lower_nofile(files: u64) -> Result<(), Error> {
    set(Resource::Nofile, "RLIMIT_NOFILE", files)
}

pub(super) fn forbid_dumps() -> Result<(), Error> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| Error::Dumpable(e.into()))
}

/// Defence in depth: the seccomp filters of all threads forbid it as well.
fn refuse_executable_memory() {
    let refuse = libc::c_ulong::from(libc::PR_MDWE_REFUSE_EXEC_GAIN);
    // SAFETY: the call takes numbers alone.
    let refused = unsafe { libc::prctl(libc::PR_SET_MDWE, refuse, 0_usize, 0_usize, 0_usize) };
    if refused != 0 {
        log::debug!("the host's kernel has no PR_SET_MDWE: the process runs without it");
    }
}

fn use_one_malloc_arena() {
    // SAFETY: the call takes numbers alone. It has no way to fail for this option.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
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
