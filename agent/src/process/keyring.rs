//! The session keyring of a container (keyrings(7), session-keyring(7)).

use std::ffi::CStr;

use rustix::process::{Gid, Uid, getgid, getuid};

use super::capabilities;
use crate::error::Failure;
use crate::sys;

/// The permission that runc adds for the owner of a session keyring: to find it by its name, as `exec` does.
const SEARCHABLE: u32 = 0x08_0000;

/// Joins the session keyring of this name, or makes it. The container's root owns it, whoever the process's user
/// is: the caller becomes root meanwhile, as in a user namespace only the owner may change it.
///
/// To be called with all capabilities. Does nothing if the kernel has no keyrings.
///
/// # Errors
/// When the kernel refuses.
pub fn join(name: &str) -> Result<(), Failure> {
    let name = super::c_string("container id", name)?;
    let (uid, gid) = (getuid(), getgid());
    if uid.is_root() {
        return join_as_root(&name);
    }
    capabilities::change_ids_keeping_capabilities(Uid::ROOT, Gid::ROOT)?;
    join_as_root(&name)?;
    capabilities::change_ids_keeping_capabilities(uid, gid)
}

fn join_as_root(name: &CStr) -> Result<(), Failure> {
    let own = match sys::join_session_keyring(name) {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => return Ok(()),
        result => result.map_err(Failure::io("join a session keyring"))?,
    };
    sys::give_keyring_to_root(own, SEARCHABLE)
        .map_err(Failure::io("give the session keyring to root"))
}
