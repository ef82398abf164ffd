//! What is done with the source of a bind mount while it is in the guest's own mount namespace: in the
//! container's, the mounts there are only copies.

use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::change;
use super::options::{ATTRIBUTES, Below, Times};

/// Crosses a mount of the host's below a share. The guest's kernel makes a mount of it then, which gets
/// the attributes that the host's has: by itself the kernel gives it those of the mount above.
///
/// # Errors
/// When the kernel refuses the attributes. A mount that is gone by now is none, and one that covers a
/// single file is a file of the share, as FUSE has no mounts of that kind.
pub fn cross(mount: &Mount, below: &Below) -> Result<(), Errno> {
    let Some(source) = mount.source() else {
        return Ok(());
    };
    let path = source.join(&below.path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, &path, flags, Mode::empty()) {
        Ok(crossed) => change(crossed.as_fd(), below.set, ATTRIBUTES),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(e) => {
            log::debug!("{}: {e}", path.display());
            Ok(())
        }
    }
}

/// Covers a source with a mount of itself that keeps access times in this way. The mount namespace of a
/// user namespace has its copies locked to what their originals do (mount_namespaces(7)), so nobody can
/// say it later.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_times(source: &Path, times: Times) -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(CWD, source, flags)?;
    change(mount.as_fd(), times.set, times.clear)?;
    move_mount(
        &mount,
        "",
        CWD,
        source,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}
