//! `process.cwd`, entered with the process's user and groups, and all capabilities.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;

use oci_spec::runtime::Process;
use rustix::fs::Mode;
use rustix::process::{chdir, getcwd, umask};

use super::capabilities;
use crate::error::Failure;
use crate::sys;

/// Makes it, if it isn't there, the caller's: for a container's first process, as with runc, when it is still
/// root and nothing is read-only yet. Whatever fails here, entering it fails of.
pub fn make(process: &Process) {
    let users = umask(Mode::empty());
    let _ = DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(process.cwd());
    umask(users);
}

/// Enters it as root, and if that fails as the user, who may enter what root may not (NFS, FUSE).
///
/// # Errors
/// When it can't be entered, or is outside of the container.
pub fn enter(process: &Process) -> Result<(), Failure> {
    let (path, user) = (process.cwd(), process.user());
    sys::set_file_system_ids(0, 0);
    let entered = chdir(path);
    sys::set_file_system_ids(user.uid(), user.gid());
    // Those about files went with root.
    capabilities::raise()?;
    let what = || format!("chdir to cwd ({path:?}) set in config.json failed");
    entered
        .or_else(|_| chdir(path))
        .map_err(|e| Failure::io(what())(e))?;
    is_inside()
}

fn is_inside() -> Result<(), Failure> {
    let inside = getcwd(Vec::new()).is_ok_and(|cwd| cwd.as_bytes().starts_with(b"/"));
    let outside = || Failure::config("process.cwd: it is outside of the container");
    inside.then_some(()).ok_or_else(outside)
}
