//! Has the host's kernel count an out-of-memory kill in the `memory.events` of a cgroup in which it has killed nothing.
//!
//! That file is where engines learn of such kills, and nobody can write it. The kernel counts a kill in the cgroup of
//! the process that owns the memory of the killed one (`mm->owner`; `__oom_kill_process` of mm/oom_kill.c), kills all
//! processes that share this memory, and selects among the processes of the cgroup whose limit is reached. So two small
//! processes die: the *owner*, born in the cgroup in which the kill is to count, and the *victim*, which shares its
//! memory and is in a cgroup beside that one, made for this moment, that may have no memory at all. There it asks for
//! memory of the kernel's own, a pipe, which is charged to whoever asks.
//!
//! What the limit is reached in is that small cgroup alone, so nobody else can be selected. Where a kernel counts
//! differently, the two die in vain.
#![allow(unsafe_code)] // clone(2) of a process, and of one that shares its memory; setitimer(2)

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::{mem, ptr};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use serde::{Deserialize, Serialize};

/// How the names of such cgroups end, and of no container's: after the name of the cgroup that it is done for.
pub const SUFFIX: &str = ".hull-oom";

/// How long each of the two processes lives at most, in seconds.
const LIFETIME: libc::time_t = 10;

/// The victim's stack, in bytes.
const STACK: usize = 32 << 10;

/// The most that is written into a pipe, in pages. More than a pipe takes.
const MOST_PAGES: usize = 64;

/// Why no kill was counted.
#[derive(Debug, thiserror::Error)]
pub enum OomKillError {
    /// mkdir(2) beside the container's cgroup.
    #[error("an out-of-memory kill isn't told to the host: cgroup {0} can't be made")]
    Make(String, #[source] io::Error),
    /// One of that name is there, and in use.
    #[error(
        "an out-of-memory kill isn't told to the host: cgroup {0} is somebody else's; it is hull's name for a cgroup \
         that it makes for such a kill, so have what is in there moved or ended"
    )]
    InUse(String, #[source] io::Error),
    /// It can't be limited.
    #[error(
        "an out-of-memory kill isn't told to the host: cgroup {0} takes no memory.max; the cgroup above it must have \
         the memory controller in cgroup.subtree_control"
    )]
    Limit(String, #[source] io::Error),
    /// clone(2), or the way into the cgroup.
    #[error("an out-of-memory kill isn't told to the host: no process can be put into cgroup {0}")]
    Processes(String, #[source] io::Error),
    /// The two processes live, or have ended in another way.
    #[error(
        "an out-of-memory kill isn't told to the host: its kernel didn't kill a process without memory in cgroup {0}"
    )]
    NotKilled(String),
}

/// Where kills are to count: in a cgroup that the calling process is in.
#[derive(Debug, Serialize, Deserialize)]
pub struct OomKill<Fd = OwnedFd> {
    /// The directory above that cgroup's (`O_PATH` is enough).
    pub parent: Fd,
    /// The name of the cgroup that is made there for each kill.
    pub name: String,
}

/// The name of the cgroup that is made beside another, for its sake.
pub fn name_beside(cgroup: &Path) -> String {
    let own = cgroup.file_name().unwrap_or_default().to_string_lossy();
    format!("{own}{SUFFIX}")
}

impl OomKill {
    /// Has a kill be counted, which takes milliseconds. The calling process must have one thread, and no other
    /// children; those of its children become its own (`PR_SET_CHILD_SUBREAPER`).
    ///
    /// # Errors
    /// When the two processes, or their cgroup, can't be made, or the kernel kills nobody.
    pub fn count(&self) -> Result<(), OomKillError> {
        self.make()?;
        let counted = self.kill_within();
        // The dead have left it. If not, `delete` removes it.
        let _ = self.remove();
        counted
    }

    /// Makes the cgroup, so that nobody else is in it.
    fn make(&self) -> Result<(), OomKillError> {
        let make = || mkdirat(&self.parent, &self.name, Mode::from_raw_mode(0o755));
        let made = match make() {
            // One may be left from a reporter that was killed. With others in it or below it, it can't be removed.
            Err(Errno::EXIST) => {
                self.remove()
                    .map_err(|e| OomKillError::InUse(self.name.clone(), e.into()))?;
                make()
            }
            made => made,
        };
        made.map_err(|e| OomKillError::Make(self.name.clone(), e.into()))
    }

    fn remove(&self) -> rustix::io::Result<()> {
        unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR)
    }

    fn kill_within(&self) -> Result<(), OomKillError> {
        let limit = self.open("memory.max");
        (limit.and_then(|mut limit| limit.write_all(b"0")))
            .map_err(|e| OomKillError::Limit(self.name.clone(), e))?;
        let failed = |e| OomKillError::Processes(self.name.clone(), e);
        // Who opens it decides where a process may be moved (cgroup.procs of cgroups(7)), not who writes.
        let procs = self.open("cgroup.procs").map_err(failed)?;
        match die(procs.as_raw_fd()).map_err(failed)? {
            End::Killed => Ok(()),
            End::Exited(NOT_MOVED) => Err(failed(io::Error::other("cgroup.procs takes none"))),
            End::Exited(_) => Err(OomKillError::NotKilled(self.name.clone())),
        }
    }

    fn open(&self, file: &str) -> io::Result<File> {
        let path = format!("{}/{file}", self.name);
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(
            &self.parent,
            path,
            flags,
            Mode::empty(),
        )?))
    }
}

/// How the owner has ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Killed,
    Exited(i32),
}

/// What the victim exits with: it isn't in the cgroup.
const NOT_MOVED: i32 = 2;

/// It has got memory.
const NOT_KILLED: i32 = 3;

/// Makes the two processes, and waits for the end of both. `procs` is the `cgroup.procs` that the victim enters.
fn die(procs: RawFd) -> io::Result<End> {
    let mut stack = vec![0_u8; STACK];
    // SAFETY: without CLONE_VM this is a fork of the only thread. The child makes system calls on memory that was made
    // before, and doesn't return.
    let pid = unsafe {
        let nothing = ptr::null::<u8>();
        let pid = libc::syscall(
            libc::SYS_clone,
            libc::SIGCHLD,
            nothing,
            nothing,
            nothing,
            nothing,
        );
        if pid == 0 {
            own(procs, &mut stack);
        }
        pid
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let owner = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let mut end = End::Exited(NOT_KILLED);
    // The victim, too, which is a child of this process once the owner is gone.
    loop {
        match waitpid(None, WaitOptions::empty()) {
            Ok(Some((pid, status))) if Some(pid) == owner => {
                end = match (status.terminating_signal(), status.exit_status()) {
                    (Some(libc::SIGKILL), _) => End::Killed,
                    (_, code) => End::Exited(code.unwrap_or(NOT_KILLED)),
                };
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return Ok(end),
        }
    }
}

/// The owner: makes the victim, waits, and exits as that does, if it isn't killed along with it.
///
/// # Safety
/// The calling process must be one that has just been made, with one thread.
unsafe fn own(procs: RawFd, stack: &mut [u8]) -> ! {
    live_no_longer();
    let argument = ptr::without_provenance_mut(procs.unsigned_abs() as usize);
    // SAFETY: the stack is this process's, aligned, and nobody else's until the child has ended. The two share what the
    // C library keeps for a thread; this one uses none of it but `errno` until the other has ended.
    unsafe {
        let top = stack.as_mut_ptr_range().end;
        let top = top.sub(top.addr() % 16);
        let flags = libc::CLONE_VM | libc::SIGCHLD;
        let victim = libc::clone(be_killed, top.cast(), flags, argument);
        let mut status = 0;
        if victim < 0 || libc::waitpid(victim, &raw mut status, 0) < 0 {
            libc::_exit(NOT_MOVED);
        }
        libc::_exit(if libc::WIFEXITED(status) {
            libc::WEXITSTATUS(status)
        } else {
            NOT_KILLED
        })
    }
}

/// The victim: enters the cgroup that may have no memory, and asks the kernel for some.
extern "C" fn be_killed(procs: *mut libc::c_void) -> libc::c_int {
    live_no_longer();
    let procs = procs.addr() as RawFd;
    let page = [0_u8; 4096];
    let mut pipe = [-1; 2];
    // SAFETY: all that the calls read and write is on this process's own stack.
    unsafe {
        if libc::write(procs, c"0".as_ptr().cast(), 1) != 1 {
            return NOT_MOVED;
        }
        if libc::pipe2(pipe.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) == 0 {
            let mut pages = 0..MOST_PAGES;
            while pages.next().is_some()
                && libc::write(pipe[1], page.as_ptr().cast(), page.len()) > 0
            {}
        }
    }
    NOT_KILLED
}

/// Has the calling process end by SIGALRM when it has lived for long enough: no signal is handled or blocked in it.
fn live_no_longer() {
    // SAFETY: the structure is of integers, for which zeroes are values; the call reads it.
    unsafe {
        let mut timer: libc::itimerval = mem::zeroed();
        timer.it_value.tv_sec = LIFETIME;
        libc::syscall(
            libc::SYS_setitimer,
            libc::ITIMER_REAL,
            &raw const timer,
            ptr::null::<u8>(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_tests(parent: &Path) -> OomKill {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        OomKill {
            parent: rustix::fs::open(parent, flags, Mode::empty()).expect("a directory"),
            name: name_beside(Path::new("/pod/box")),
        }
    }

    #[test]
    fn its_cgroup_says_whose_it_is() {
        assert_eq!(
            name_beside(Path::new("/machine.slice/libpod-1.scope")),
            "libpod-1.scope.hull-oom"
        );
    }

    #[test]
    fn where_memory_cannot_be_limited_nobody_dies_and_nothing_is_left() {
        let parent = tempfile::tempdir().expect("a directory");
        let counted = in_tests(parent.path()).count();
        assert!(
            matches!(counted, Err(OomKillError::Limit(..))),
            "{counted:?}"
        );
        assert_eq!(parent.path().read_dir().expect("a list").count(), 0);
    }

    #[test]
    fn one_that_was_left_is_made_anew() {
        let parent = tempfile::tempdir().expect("a directory");
        let kill = in_tests(parent.path());
        std::fs::create_dir(parent.path().join(&kill.name)).expect("one");
        kill.make().expect("another one");
        kill.remove().expect("it is there");
    }

    #[test]
    fn one_that_is_in_use_is_left_as_it_is() {
        let parent = tempfile::tempdir().expect("a directory");
        let kill = in_tests(parent.path());
        let limit = parent.path().join(&kill.name).join("memory.max");
        std::fs::create_dir(parent.path().join(&kill.name)).expect("somebody's");
        std::fs::write(&limit, "max").expect("its limit");
        let counted = kill.count();
        assert!(
            matches!(counted, Err(OomKillError::InUse(..))),
            "{counted:?}"
        );
        assert_eq!(std::fs::read_to_string(&limit).expect("its limit"), "max");
    }
}
