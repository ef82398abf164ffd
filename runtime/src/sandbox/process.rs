//! A process that executes hull's own program for a container, as who started it sees it: a VM process, or a
//! stand-in.
//!
//! std's `Command` can't start a process in a cgroup: it could only be moved there, for which the kernel
//! waits until all CPUs have taken notice, some milliseconds.
#![allow(unsafe_code)] // clone3, execve

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

/// What a process that could not execute its program exits with, as in shells.
pub const NO_PROGRAM: i32 = 127;

/// With what priority a process begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With its maker's.
    Usual,
    /// With the niceness that leaves the processor to all others (sched(7)), from before its program is loaded: nobody
    /// waits for it.
    Unhurried,
}

/// The niceness of [`Start::Unhurried`].
const LOWEST_PRIORITY: i32 = 19;

/// CLONE_INTO_CGROUP of linux/sched.h; libc's has lost its bits.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A child of this process.
#[derive(Debug)]
pub struct ChildProcess {
    pid: Pid,
    /// Once it has been waited for.
    status: Option<ExitStatus>,
}

impl ChildProcess {
    /// Executes this program once more, with an empty environment and these arguments (the first is its
    /// name), in the cgroup whose directory is given, or in this process's, and in new namespaces of these
    /// kinds (CLONE_NEW*). It inherits these descriptors, under their numbers: they are closed on exec in this
    /// process, so that a child which another thread starts meanwhile doesn't get them, and the child itself
    /// changes that. It has this priority from the beginning. Its standard streams are these, none of which may be one of
    /// this process's own, or else the same as this process's. No signal is ignored in it and its personality
    /// (personality(2)) is Linux's own, whatever this process was started with.
    ///
    /// # Errors
    /// When it can't be started. That it could not be executed is seen by its end.
    pub fn spawn(
        arguments: &[CString],
        inherited: &[BorrowedFd<'_>],
        stdio: Option<&[OwnedFd; 3]>,
        cgroup: Option<BorrowedFd<'_>>,
        namespaces: u64,
        start: Start,
    ) -> io::Result<Self> {
        let mut argv: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
        argv.push(ptr::null());
        let environment = [ptr::null()];
        // The kernel's `struct sigaction` with SIG_DFL, no flags and an empty mask. The C library's own call
        // leaves out the two signals that are its own.
        let by_default = [0_u64; 4];
        let (flag, cgroup) = match cgroup {
            Some(cgroup) => (CLONE_INTO_CGROUP, u64::try_from(cgroup.as_raw_fd())),
            None => (0, Ok(0)),
        };
        // SAFETY: the structure is of integers, for which zeroes are values.
        let mut clone: libc::clone_args = unsafe { std::mem::zeroed() };
        clone.flags = flag | namespaces;
        clone.cgroup = cgroup.map_err(io::Error::other)?;
        clone.exit_signal = libc::SIGCHLD.unsigned_abs().into();
        // SAFETY: without CLONE_VM this is a fork. The child, which has the calling thread alone, makes
        // system calls on memory that was made before: it takes no lock and allocates nothing, whatever other
        // threads were about. It doesn't return from the last two.
        let pid = unsafe {
            let pid = libc::syscall(libc::SYS_clone3, &raw mut clone, size_of_val(&clone));
            if pid == 0 {
                for signal in 1..=libc::SIGRTMAX() {
                    let nothing = ptr::null::<u64>();
                    let mask_size = size_of::<u64>();
                    libc::syscall(
                        libc::SYS_rt_sigaction,
                        signal,
                        by_default.as_ptr(),
                        nothing,
                        mask_size,
                    );
                }
                for fd in inherited {
                    libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0);
                }
                for (number, fd) in (0..).zip(stdio.into_iter().flatten()) {
                    libc::dup2(fd.as_raw_fd(), number);
                }
                if start == Start::Unhurried {
                    libc::syscall(
                        libc::SYS_setpriority,
                        libc::PRIO_PROCESS,
                        0,
                        LOWEST_PRIORITY,
                    );
                }
                // Its layout is random, also where the caller's isn't (setarch -R).
                libc::syscall(libc::SYS_personality, 0);
                libc::execve(
                    c"/proc/self/exe".as_ptr(),
                    argv.as_ptr(),
                    environment.as_ptr(),
                );
                libc::_exit(NO_PROGRAM);
            }
            pid
        };
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // It is -1, or a pid.
        let pid = pid.filter(|pid| pid.as_raw_nonzero().get() > 0);
        let pid = pid.ok_or_else(io::Error::last_os_error)?;
        Ok(Self { pid, status: None })
    }

    /// Its pid, which nobody else gets before it has been waited for.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// A file descriptor for it.
    ///
    /// # Errors
    /// When it has been waited for.
    pub fn open(&self) -> io::Result<OwnedFd> {
        Ok(pidfd_open(self.pid, PidfdFlags::empty())?)
    }

    /// Kills it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&self) -> io::Result<()> {
        match self.status {
            Some(_) => Ok(()),
            None => Ok(kill_process(self.pid, Signal::KILL)?),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When somebody else has waited for it.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.wait_with(WaitOptions::empty())? {
                return Ok(status);
            }
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When somebody else has waited for it.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.wait_with(WaitOptions::NOHANG)
    }

    fn wait_with(&mut self, options: WaitOptions) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let ended = match waitpid(Some(self.pid), options) {
                Err(rustix::io::Errno::INTR) => None,
                other => other?,
            };
            self.status = ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()));
        }
        Ok(self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_started_killed_and_waited_for() {
        // The test's own binary, which has no such test.
        let arguments = [c"hull".to_owned(), c"none".to_owned()];
        let mut ended =
            ChildProcess::spawn(&arguments, &[], None, None, 0, Start::Usual).expect("spawn");
        assert!(ended.wait().expect("wait").success());
        assert_eq!(
            ended.try_wait().expect("wait"),
            Some(ExitStatus::from_raw(0))
        );
        ended.kill().expect("nothing to do");
    }
}
