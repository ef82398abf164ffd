//! The user and group that a thread runs as. Most threads access no files by name, so they need not
//! be root. Each VM process uses an id that no other process has, so that such a thread owns no
//! files and may signal no other process, even where the kernel checks nothing but the user.
#![allow(unsafe_code)] // setres*id(2) for one thread, where the C library changes all

use std::{fs, io};

use rustix::thread::set_thread_groups;

use super::Error;

/// The base to which the pid is added. systemd's table of user ids assigns none from 2^31 on.
const FIRST: u32 = 0xf000_0000;

/// The user that a thread runs as once it is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The user stays: the process is an ordinary user's, who has no other ids to switch to.
    Unchanged,
    /// The thread switches to this user id and group id, unless its role needs root.
    UniqueUser(u32),
}

impl Identity {
    /// A user id that no other process has, for all threads of this process: derived from its pid
    /// in the host's /proc, which is unique even if the process is in a pid namespace, where it is
    /// always the first.
    ///
    /// # Errors
    /// When /proc isn't mounted: this must be called before the jail's tree is entered.
    pub fn unique_user() -> Result<Self, Error> {
        let pid = fs::read_link("/proc/self").map_err(Error::Identity)?;
        let pid = pid.to_str().and_then(|pid| pid.parse::<u32>().ok());
        let pid = pid.ok_or_else(|| Error::Identity(io::ErrorKind::InvalidData.into()))?;
        Ok(Self::UniqueUser(FIRST | pid))
    }
}

/// Switches the calling thread to the user and the group of this id, without supplementary groups.
/// It keeps its capabilities if [`keep_across_setuid`](super::capabilities::keep_across_setuid) has
/// been called before.
pub(super) fn become_user(id: u32) -> Result<(), Error> {
    set_thread_groups(&[]).map_err(|e| Error::Identity(e.into()))?;
    for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
        // SAFETY: the call takes numbers alone, and changes this thread alone.
        if unsafe { libc::syscall(call, id, id, id) } != 0 {
            return Err(Error::Identity(io::Error::last_os_error()));
        }
    }
    Ok(())
}
