//! User namespaces: they carry the id mapping of an idmapped mount, and give the VM process of an
//! ordinary user root privileges.
#![allow(unsafe_code)] // clone(2), as fork(2) makes no user namespace; rustix's unshare; setres*id(2)

use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Pid, WaitOptions, getegid, geteuid, set_dumpable_behavior, waitpid,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use serde::{Deserialize, Serialize};

use super::proc_pids;

/// A range of ids: a line of `uid_map` or `gid_map` (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// The first id inside of the namespace.
    pub inside: u32,
    /// The first id outside of the namespace.
    pub outside: u32,
    /// The length of the range.
    pub count: u32,
}

/// Why a user namespace can't be created or entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed, or a file in /proc can't be written.
    #[error("cannot {what}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// The program that maps an ordinary user's subordinate ids failed with a message.
    #[error("{program}: {said}")]
    Refused {
        /// The program.
        program: &'static str,
        /// Its message.
        said: String,
    },
    /// That program can't be run.
    #[error(
        "cannot run {program}, which maps ids that are not this user's own: install it (uidmap), or map \
         one id, to this user's"
    )]
    Program {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

pub(super) fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what, source }
}

/// Creates a user namespace with these mappings, without a process in it. An ordinary user may map
/// a single id, to their own; more takes the programs newuidmap and newgidmap, and entries in
/// /etc/subuid and /etc/subgid.
///
/// # Errors
/// When the kernel has no user namespaces, or the ranges are invalid, or this user may not map
/// them.
pub fn create(uids: &[IdMap], gids: &[IdMap]) -> Result<OwnedFd, Error> {
    // The child waits until the pipe is closed, which happens if this process ends as well.
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed("make a pipe")(e.into()))?;
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with a null stack this is fork(). The child, which has the calling thread alone,
    // calls what a signal handler may call, and ends.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: both descriptors are this process's own copies; the buffer outlives the call.
        unsafe {
            libc::close(go.as_raw_fd());
            let mut byte = [0_u8];
            libc::read(wait.as_raw_fd(), byte.as_mut_ptr().cast(), 1);
            libc::_exit(0);
        }
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid.filter(|pid| pid.as_raw_nonzero().get() > 0) else {
        return Err(failed("make a user namespace")(io::Error::last_os_error()));
    };
    let made = map(pid, uids, gids);
    drop(go);
    waitpid(Some(pid), WaitOptions::empty()).map_err(|e| failed("wait for a child")(e.into()))?;
    made
}

fn map(pid: Pid, uids: &[IdMap], gids: &[IdMap]) -> Result<OwnedFd, Error> {
    let number = proc_pids::pid_of_child(pid).map_err(failed("find a child in /proc"))?;
    let process = PathBuf::from(format!("/proc/{number}"));
    if !geteuid().is_root() && maps_only(gids, getegid().as_raw()) {
        // The kernel requires this: otherwise a process could drop a group that denies it access to
        // files.
        fs::write(process.join("setgroups"), "deny").map_err(failed("deny setgroups(2)"))?;
    }
    for (maps, file, program) in [
        (uids, "uid_map", "newuidmap"),
        (gids, "gid_map", "newgidmap"),
    ] {
        match fs::write(process.join(file), lines(maps)) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => run(program, number, maps)?,
            written => written.map_err(failed("map the ids of a user namespace"))?,
        }
    }
    let namespace = File::open(process.join("ns/user"));
    Ok(namespace.map_err(failed("open a user namespace"))?.into())
}

/// Whether this id is the only one that is mapped.
fn maps_only(maps: &[IdMap], id: u32) -> bool {
    matches!(maps, [map] if map.count == 1 && map.outside == id)
}

/// The contents of `uid_map` or `gid_map` (user_namespaces(7)).
fn lines(maps: &[IdMap]) -> String {
    maps.iter().fold(String::new(), |mut text, map| {
        let _ = writeln!(text, "{} {} {}", map.inside, map.outside, map.count);
        text
    })
}

/// Runs newuidmap or newgidmap, set-uid programs that know which ids a user may map.
fn run(program: &'static str, pid: u32, maps: &[IdMap]) -> Result<(), Error> {
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(
            maps.iter()
                .flat_map(|map| [map.inside, map.outside, map.count])
                .map(|n| n.to_string()),
        )
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Program { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Refused {
        program,
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Enters a user namespace as its root, and creates a mount namespace owned by it, with copies of
/// the current mounts. The process must have a single thread.
///
/// # Errors
/// When the kernel refuses. The process may then be in the namespace, and must end.
pub fn enter(namespace: BorrowedFd<'_>) -> Result<(), Error> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))
        .map_err(|e| failed("enter the user namespace")(e.into()))?;
    // SAFETY: the process has a single thread, so no other one keeps the old ids.
    let set = unsafe { libc::setresgid(0, 0, 0) | libc::setresuid(0, 0, 0) };
    if set != 0 {
        let source = io::Error::last_os_error();
        return Err(failed("be root in the user namespace")(source));
    }
    // The change of ids has made the process undumpable, so that only root could enter its
    // namespaces. But the `create` command of the same user has to, and could trace this process
    // before anyway.
    set_dumpable_behavior(DumpableBehavior::Dumpable)
        .map_err(|e| failed("stay open to its own user")(e.into()))?;
    // SAFETY: CLONE_NEWNS and the CLONE_FS that it implies touch no other thread: there is none.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(|e| failed("make a mount namespace in the user namespace")(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::test_child::{self, End};

    #[test]
    fn a_user_namespace_is_created_within_a_pid_namespace() {
        if !test_child::is_root() {
            return;
        }
        let ids = [IdMap {
            inside: 0,
            outside: 1000,
            count: 1,
        }];
        let end = test_child::run(|| {
            // SAFETY: the child has one thread; the namespace is its children's.
            unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.expect("a namespace");
            let inner = test_child::run(|| {
                create(&ids, &ids).expect("a user namespace");
            });
            assert_eq!(inner, End::Returned);
        });
        assert_eq!(end, End::Returned);
    }
}
