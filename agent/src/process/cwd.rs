//! `process.cwd`, entered with the process's user and groups, and all capabilities.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;

use oci_spec::runtime::Process;
use rustix::fs::Mode;
use rustix::process::{chdir, getcwd, umask};

use super::capabilities;
use crate::error::Failure;
use crate::sys;

/// Creates the directory if it is missing, owned by the caller. As with runc, a container's first process does so
/// while it is root and nothing is read-only yet. Errors are left to [`enter`].
pub fn create(process: &Process) {
    let old_umask = umask(Mode::empty());
    let _ = DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(process.cwd());
    umask(old_umask);
}

/// Enters the directory as root, and if that fails as the user, who may have access where root has none (NFS,
/// FUSE).
///
/// # Errors
/// When it can't be entered, or is outside of the container.
pub fn enter(process: &Process) -> Result<(), Failure> {
    let (path, user) = (process.cwd(), process.user());
    sys::set_fsuid_and_fsgid(0, 0);
    let entered = chdir(path);
    sys::set_fsuid_and_fsgid(user.uid(), user.gid());
    // setfsuid(2) has cleared the effective capabilities about files.
    capabilities::make_permitted_effective()?;
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
