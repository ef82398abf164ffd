//! Whom a thread is to the host. Most of them touch no files by name, so they need not be root: as a user
//! that nobody else is, they own nothing and may signal nobody, should a check of the kernel's look at no
//! more than the user.
#![allow(unsafe_code)] // setres*id(2) for one thread, where the C library changes all

use std::{fs, io};

use rustix::thread::set_thread_groups;

use super::Error;

/// User and group of the process with pid 0, if there were one; the others follow. systemd's table of
/// users has nobody from 2^31 on.
const FIRST: u32 = 0xf000_0000;

/// Whether a thread may stay who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It does: the process is an ordinary user's, who has no ids to give away.
    Kept,
    /// It becomes this user and this group, where its role needs no other.
    Nobody(u32),
}

impl Identity {
    /// A user that no other process is, for all threads of this process.
    ///
    /// # Errors
    /// When /proc isn't mounted. It has to be asked before the jail's tree is entered, for it is the host's
    /// that knows the process by a number of its own: in a process id namespace each is the first.
    pub fn nobody() -> Result<Self, Error> {
        let pid = fs::read_link("/proc/self").map_err(Error::Identity)?;
        let pid = pid.to_str().and_then(|pid| pid.parse::<u32>().ok());
        let pid = pid.ok_or_else(|| Error::Identity(io::ErrorKind::InvalidData.into()))?;
        Ok(Self::Nobody(FIRST | pid))
    }
}

/// Makes the calling thread a user and a group of this number, in no further group. It keeps its
/// capabilities, if it has been told to keep them as any user.
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
