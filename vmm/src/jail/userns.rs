//! User namespaces: what a mount's change of owners is told to the kernel with, and what the process of
//! an ordinary user is root in.
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

use super::proc_numbers;

/// A range of ids, in the words of user_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// The first, within the namespace.
    pub inside: u32,
    /// What it is outside.
    pub outside: u32,
    /// How many there are.
    pub count: u32,
}

/// Why there is no user namespace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed, or a file of /proc can't be written.
    #[error("cannot {what}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The program that maps an ordinary user's subordinate ids refused, and has said why.
    #[error("{program}: {said}")]
    Refused {
        /// The program.
        program: &'static str,
        /// Its message.
        said: String,
    },
    /// That program isn't there.
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

/// Makes a user namespace with these mappings, in which nothing runs. An ordinary user may map one id,
/// to the own one; more takes the programs newuidmap and newgidmap, and an entry in /etc/subuid.
///
/// # Errors
/// When the kernel has no user namespaces, or the ranges make no sense, or are not this user's.
pub fn make(uids: &[IdMap], gids: &[IdMap]) -> Result<OwnedFd, Error> {
    // The child waits for the end of the pipe, which comes with the end of this process as well.
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
    let number = proc_numbers::of_child(pid).map_err(failed("find a child in /proc"))?;
    let process = PathBuf::from(format!("/proc/{number}"));
    if !geteuid().is_root() && is_one(gids, getegid().as_raw()) {
        // The kernel's condition: a group that takes rights away must not be left that way.
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

/// Whether all that is mapped is this one id.
fn is_one(maps: &[IdMap], id: u32) -> bool {
    matches!(maps, [map] if map.count == 1 && map.outside == id)
}

/// As user_namespaces(7) has them.
fn lines(maps: &[IdMap]) -> String {
    maps.iter().fold(String::new(), |mut text, map| {
        let _ = writeln!(text, "{} {} {}", map.inside, map.outside, map.count);
        text
    })
}

/// Has a set-uid program of the host's write a mapping: it knows which ids a user may map.
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

/// Makes this process root in a user namespace, and gives it a mount namespace there, which has the
/// mounts of the present one. The process must have one thread.
///
/// # Errors
/// When the kernel refuses. The process may then be in the namespace, and must end.
pub fn enter(namespace: BorrowedFd<'_>) -> Result<(), Error> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))
        .map_err(|e| failed("enter the user namespace")(e.into()))?;
    // SAFETY: the process has one thread, so its ids don't come apart.
    let set = unsafe { libc::setresgid(0, 0, 0) | libc::setresuid(0, 0, 0) };
    if set != 0 {
        let source = io::Error::last_os_error();
        return Err(failed("be root in the user namespace")(source));
    }
    // Its ids have changed, so only root could enter its namespaces from now on; but the same user's
    // `create` has to, which could do all to this process before.
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
    fn one_is_made_in_a_process_id_namespace_of_the_processs_own() {
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
                make(&ids, &ids).expect("a user namespace");
            });
            assert_eq!(inner, End::Returned);
        });
        assert_eq!(end, End::Returned);
    }
}
