//! A process's terminal, which is a pseudo-terminal of its container's devpts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

use crate::error::Failure;

/// Where the terminal of a container's first process is mounted.
const CONSOLE: &str = "/dev/console";

/// Allocates a pseudo-terminal of the container's devpts, and makes it the caller's controlling terminal and its
/// stdio. Returns the master. With `console`, for the container's first process, it is also mounted on
/// /dev/console.
///
/// # Errors
/// When the container has no devpts.
pub fn set_up(console: bool) -> Result<OwnedFd, Failure> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).map_err(Failure::io("open the container's /dev/ptmx"))?;
    grantpt(&master).map_err(Failure::io("grant the terminal"))?;
    unlockpt(&master).map_err(Failure::io("unlock the terminal"))?;
    // Opened by way of the master, so it doesn't matter what the container's /dev/pts is.
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY)
        .map_err(Failure::io("open the terminal"))?;
    if console {
        mount_on_console(slave.as_fd())
            .map_err(Failure::io(format!("mount the terminal at {CONSOLE}")))?;
    }
    rustix::process::ioctl_tiocsctty(&slave)
        .map_err(Failure::io("make the terminal the controlling one"))?;
    rustix::stdio::dup2_stdin(&slave).map_err(Failure::io("use the terminal as stdin"))?;
    rustix::stdio::dup2_stdout(&slave).map_err(Failure::io("use the terminal as stdout"))?;
    rustix::stdio::dup2_stderr(&slave).map_err(Failure::io("use the terminal as stderr"))?;
    Ok(master)
}

/// Mounts a terminal on the container's /dev/console, which must not be a symbolic link (runc's CVE-2025-52565).
fn mount_on_console(terminal: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(CWD, CONSOLE, flags, Mode::from_raw_mode(0o666)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = openat(CWD, CONSOLE, flags, Mode::empty())?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(terminal, "", flags)?;
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&copy, "", &place, "", both)
}
