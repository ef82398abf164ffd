//! What is done with the source of a bind mount while it is in the guest's own mount namespace: in the
//! container's, the mounts there are only copies.

use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::change;
use super::options::{ATTRIBUTES, Below, Change, Options};

/// Crosses a mount of the host's below a share. The guest's kernel makes a mount of it then, which gets
/// the attributes that the host's has: by itself the kernel gives it those of the mount above.
///
/// # Errors
/// When the kernel refuses the attributes. A mount that is gone by now is none, and one that covers a
/// single file is a file of the share, as FUSE has no mounts of that kind.
pub fn cross(source: &Path, below: &Below) -> Result<(), Errno> {
    let path = source.join(&below.path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, &path, flags, Mode::empty()) {
        Ok(crossed) => {
            let (set, clear) = (below.set, ATTRIBUTES);
            change(crossed.as_fd(), Change { set, clear })
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(e) => {
            log::debug!("{}: {e}", path.display());
            Ok(())
        }
    }
}

/// Covers a source with a mount of itself that has other attributes: some are set, others cleared before.
/// The mount namespace of a user namespace has its copies locked to what their originals do about access
/// times (mount_namespaces(7)), so nobody can say it later.
///
/// # Errors
/// When the kernel refuses.
pub fn cover(source: &Path, attributes: Change) -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(CWD, source, flags)?;
    change(mount.as_fd(), attributes)?;
    move_mount(
        &mount,
        "",
        CWD,
        source,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Gives a container's root, and the mounts below it, the attributes that these options name: those that
/// the host's mounts have.
///
/// # Errors
/// When the kernel refuses.
pub fn prepare_root(root: &Path, options: Vec<String>) -> Result<(), Errno> {
    let mut mount = Mount::default();
    mount.set_options(Some(options));
    let options = Options::read(&mount);
    for below in &options.below {
        cross(root, below)?;
    }
    match options.set {
        0 => Ok(()),
        set => {
            let clear = ATTRIBUTES;
            cover(root, Change { set, clear })
        }
    }
}
