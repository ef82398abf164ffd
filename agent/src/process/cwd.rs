//! `process.cwd`, entered with the process's user and groups, and all capabilities.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use oci_spec::runtime::Process;
use rustix::fs::Mode;
use rustix::process::{chdir, getcwd, umask};

use super::capabilities;
use crate::error::Failure;
use crate::sys;

/// What is done about a folder that isn't there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It is made, and is root's: for a container's first process, as with runc.
    Make,
    /// It can't be entered.
    Fail,
}

/// Enters it as root, and if that fails as the user, who may enter what root may not (NFS, FUSE).
///
/// # Errors
/// When it can't be entered, or is outside of the container.
pub fn enter(process: &Process, missing: Missing) -> Result<(), Failure> {
    let (path, user) = (process.cwd(), process.user());
    sys::set_file_system_ids(0, 0);
    if missing == Missing::Make {
        // Whatever fails here, entering it fails of.
        let _ = make(path);
    }
    let entered = chdir(path);
    sys::set_file_system_ids(user.uid(), user.gid());
    // Those about files went with root.
    capabilities::raise()?;
    match entered {
        Ok(()) => is_inside(),
        Err(_) => enter_again(path),
    }
}

/// Enters it once more, as the user: the way there may have other mounts by now.
///
/// # Errors
/// As [`enter`].
pub(super) fn enter_again(path: &Path) -> Result<(), Failure> {
    let what = || format!("chdir to cwd ({path:?}) set in config.json failed");
    chdir(path).map_err(|e| Failure::io(what())(e))?;
    is_inside()
}

fn make(path: &Path) -> std::io::Result<()> {
    let users = umask(Mode::empty());
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    umask(users);
    made
}

fn is_inside() -> Result<(), Failure> {
    let inside = getcwd(Vec::new()).is_ok_and(|cwd| cwd.as_bytes().starts_with(b"/"));
    let outside = || Failure::config("process.cwd: it is outside of the container");
    inside.then_some(()).ok_or_else(outside)
}
