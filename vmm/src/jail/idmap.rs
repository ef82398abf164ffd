//! Whose a share's files are, as its mount shows them: mount_setattr(2), `MOUNT_ATTR_IDMAP`.
//!
//! The kernel takes the mapping as a user namespace. One is made for that and for nothing else: nothing
//! ever runs in it, and it lives as long as the mount.
#![allow(unsafe_code)] // clone(2), as fork(2) makes no user namespace

use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

/// A change of owners.
#[derive(Clone, Debug)]
pub struct Owners {
    /// What the user calls it: messages begin with it.
    pub name: String,
    /// Of users.
    pub uids: Vec<IdMap>,
    /// Of groups.
    pub gids: Vec<IdMap>,
    /// For the mounts below as well.
    pub recursive: bool,
}

/// A range of ids.
#[derive(Clone, Copy, Debug)]
pub struct IdMap {
    /// The first, as the file system has it.
    pub on_disk: u32,
    /// What it is in the tree.
    pub in_tree: u32,
    /// How many there are.
    pub count: u32,
}

/// Makes a user namespace with these mappings. The process must have one thread.
///
/// # Errors
/// When the kernel has no user namespaces, or the ranges make no sense.
pub fn user_namespace(owners: &Owners) -> io::Result<OwnedFd> {
    // The child waits for the end of the pipe, which comes with the end of this process as well.
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC)?;
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with a null stack this is fork(), in a process with one thread. The
    // child calls what a signal handler may call, and ends.
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
        return Err(io::Error::last_os_error());
    };
    let made = map(pid, owners);
    drop(go);
    waitpid(Some(pid), WaitOptions::empty())?;
    made
}

fn map(pid: Pid, owners: &Owners) -> io::Result<OwnedFd> {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    fs::write(format!("{process}/uid_map"), lines(&owners.uids))?;
    fs::write(format!("{process}/gid_map"), lines(&owners.gids))?;
    Ok(File::open(format!("{process}/ns/user"))?.into())
}

/// As user_namespaces(7) has them.
fn lines(maps: &[IdMap]) -> String {
    maps.iter().fold(String::new(), |mut text, map| {
        let _ = writeln!(text, "{} {} {}", map.on_disk, map.in_tree, map.count);
        text
    })
}
