//! A process's user and groups.

use oci_spec::runtime::Process;
use rustix::fs::Mode;
use rustix::process::umask;
use rustix::thread::{Gid, Uid, set_thread_groups};

use super::capabilities;
use crate::error::Failure;

/// The umask of a process for which config.json has none, as with runc.
const DEFAULT_UMASK: u32 = 0o022;

/// Changes user, groups and umask, and keeps all capabilities, which are dropped later.
///
/// # Errors
/// Names the field that the kernel refuses.
pub fn become_user(process: &Process) -> Result<(), Failure> {
    let user = process.user();
    // umask(2) ignores all other bits.
    umask(Mode::from_raw_mode(
        user.umask().unwrap_or(DEFAULT_UMASK) & 0o777,
    ));
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    set_thread_groups(&groups).map_err(Failure::field("process.user.additionalGids"))?;
    capabilities::change_ids_keeping_capabilities(uid, gid)
}
