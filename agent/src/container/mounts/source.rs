//! What is done with the source of a bind mount while it is in the guest's own mount namespace: in the
//! container's, the mounts there are only copies.

use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::change;
use super::options::Times;

/// Crosses a mount of the host's below a share. The guest's kernel makes a mount of it then, with the
/// attributes that the mount above has at that time: none yet, as these are the container's.
pub fn cross(mount: &Mount, below: &str) {
    let path = mount.source().iter().map(|source| source.join(below));
    for path in path {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Err(e) = openat(CWD, &path, flags, Mode::empty()) {
            log::debug!("{}: {e}", path.display());
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
