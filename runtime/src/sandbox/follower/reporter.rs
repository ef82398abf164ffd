//! The process that has the host's kernel count an out-of-memory kill in the VM's cgroup ([`OomKill`]), where engines
//! look for it. The follower makes it before it reads anything that others write, and rings it up by a byte in a pipe,
//! which is all that it ever reads: so it may make processes and a cgroup, which the follower may not.
//!
//! It is in the follower's pid namespace, and ends with it.
#![allow(unsafe_code)] // fork(2), and signal(2), which could install any handler

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use hull_vmm::jail::tree::{self, HostFile};
use hull_vmm::jail::{self, Identity, Role, limits};
use nix::sys::signal::{SigHandler, Signal, signal};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{getpid, set_child_subreaper, setpriority_process};

use crate::cgroup::OomKill;
use crate::chain::chain;

/// The process's name, and that of those that it has killed: the host's kernel log shows it.
const NAME: &std::ffi::CStr = c"hull-oom";

/// What its root has: the directory in which cgroups are made. It is a mount of its own, so nothing is above it but
/// that root, which is empty otherwise.
const CGROUPS: &str = "cgroups";

/// By which the kernel would never select a process, and what it is to be then (proc_pid_oom_score_adj(5)).
const NEVER_SELECTED: &str = "-1000";
const HARDLY_SELECTED: &str = "-999";

/// The least time between two kills, whoever rings, and however often.
const PAUSE: Duration = Duration::from_secs(1);

/// Why it can't wait for news.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("out-of-memory kills aren't told to the host")]
    Host(#[from] io::Error),
    #[error("out-of-memory kills aren't told to the host")]
    Jail(#[from] jail::Error),
    #[error("out-of-memory kills aren't told to the host")]
    Limits(#[from] limits::Error),
    #[error("out-of-memory kills aren't told to the host")]
    Tree(#[from] tree::Error),
}

/// A reporter, as the follower has it. It ends when this is dropped.
#[derive(Debug)]
pub struct Reporter {
    bell: OwnedFd,
}

impl Reporter {
    /// Makes it, in the same cgroup and namespaces as the calling process, which must have one thread. What it has to
    /// say goes to the console log, as with this process. From when it is ready on, it has that niceness.
    ///
    /// # Errors
    /// When there can't be another process.
    pub fn make(kill: OomKill, console: &File, niceness: i32) -> io::Result<Self> {
        let (heard, bell) = pipe_with(PipeFlags::CLOEXEC)?;
        ioctl_fionbio(&bell, true)?;
        // Whenever the reporter ends, nothing is to be left of it. It waits for its own children.
        when_children_end(SigHandler::SigIgn)?;
        // SAFETY: there is one thread, so the child may do whatever this process may.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(bell);
                match confine(kill, &heard, console, niceness) {
                    Ok(kill) => report(&kill, heard.into()),
                    Err(e) => {
                        log::warn!("{}", chain(&e));
                        std::process::exit(1);
                    }
                }
                std::process::exit(0)
            }
            _ => Ok(Self { bell }),
        }
    }

    /// The descriptor that it is told by.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Has a kill be counted, soon.
    ///
    /// # Errors
    /// When it is gone.
    pub fn report(&self) -> io::Result<()> {
        match rustix::io::write(&self.bell, &[0]) {
            // It hasn't come to the last ones yet.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// What the kernel does for this process when a child of it ends.
fn when_children_end(handler: SigHandler) -> io::Result<()> {
    // SAFETY: it is ignored or has its default: no code of this process's runs for it.
    unsafe { signal(Signal::SIGCHLD, handler) }?;
    Ok(())
}

/// Gives up all that the reporter doesn't need. The network namespace stays: it can make no socket.
fn confine(
    kill: OomKill,
    heard: &OwnedFd,
    console: &File,
    niceness: i32,
) -> Result<OomKill, Error> {
    let _ = rustix::thread::set_name(NAME);
    when_children_end(SigHandler::SigDfl)?;
    be_selectable()?;
    set_child_subreaper(Some(getpid())).map_err(io::Error::from)?;
    limits::apply()?;
    let kill = enter_root(kill)?;
    let keep = [heard.as_fd(), console.as_fd(), kill.parent.as_fd()];
    jail::close_other_fds(&keep)?;
    let keep = keep.map(|fd| fd.as_raw_fd());
    // The last thing for which it needs the right.
    let _ = setpriority_process(None, niceness);
    // A cgroup's files are root's.
    jail::confine(Role::OomReporter, Identity::Unchanged, &keep)?;
    Ok(kill)
}

/// Leaves the host's files but for the directory in which cgroups are made. The descriptor that was opened on the host
/// is closed: by `..` it would lead to all of them.
fn enter_root(kill: OomKill) -> Result<OomKill, Error> {
    tree::enter_with_host_files(vec![HostFile {
        file: kill.parent,
        target: CGROUPS,
        read_only: false,
    }])?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let parent = openat(CWD, CGROUPS, flags, Mode::empty()).map_err(io::Error::from)?;
    Ok(OomKill { parent, ..kill })
}

/// Whoever is to be killed has this process's value. Engines may have been told to be never selected themselves.
fn be_selectable() -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    match fs::read_to_string(FILE)?.trim() == NEVER_SELECTED {
        true => fs::write(FILE, HARDLY_SELECTED),
        false => Ok(()),
    }
}

/// Has a kill be counted each time that the bell has rung, until nobody has the bell any more.
fn report(kill: &OomKill, mut heard: File) {
    let (mut rings, mut said) = ([0; 64], String::new());
    loop {
        match heard.read(&mut rings) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        }
        if let Err(e) = kill.count() {
            let why = chain(&e);
            if why != said {
                log::warn!("{why}");
                said = why;
            }
        }
        thread::sleep(PAUSE);
    }
}
