//! The session keyring of a container (keyrings(7), session-keyring(7)).

use std::ffi::CStr;

use rustix::process::{Gid, Uid, getgid, getuid};

use super::capabilities;
use crate::error::Failure;
use crate::sys;

/// What runc lets the owner of a session keyring do besides: find it by its name, as `exec` does.
const SEARCHABLE: u32 = 0x08_0000;

/// Joins the session keyring of this name, or makes it. It is the container's root's, whoever the
/// process's user is: the caller is root meanwhile, as in a user namespace only its owner may change it.
///
/// To be called with all capabilities. A kernel without keyrings has nothing to keep apart.
///
/// # Errors
/// When there is one and it can't be had.
pub fn join(name: &str) -> Result<(), Failure> {
    let name = super::c_string("container id", name)?;
    let (uid, gid) = (getuid(), getgid());
    if uid.is_root() {
        return join_as_root(&name);
    }
    capabilities::keep_as(Uid::ROOT, Gid::ROOT)?;
    join_as_root(&name)?;
    capabilities::keep_as(uid, gid)
}

fn join_as_root(name: &CStr) -> Result<(), Failure> {
    let own = match sys::join_session_keyring(name) {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => return Ok(()),
        result => result.map_err(Failure::io("join a session keyring"))?,
    };
    sys::give_keyring(own, SEARCHABLE).map_err(Failure::io("give the session keyring to root"))
}
