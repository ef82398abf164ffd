//! Prepares the sources of bind mounts in the guest's own mount namespace: the container's has only copies of the
//! mounts.

use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::change_attributes;
use super::options::{ATTRIBUTES, AttributeChange, Options, Submount};

/// Opens the directory of a mount on the host below a share, at which the guest's kernel automounts it, and gives it
/// the attributes that it has on the host. By default it gets those of the mount above.
///
/// # Errors
/// When the kernel refuses the attributes. A submount that no longer exists is skipped, and so is one of a single
/// file: FUSE has no such submounts, so it is a file of the share.
pub fn trigger_submount(source: &Path, submount: &Submount) -> Result<(), Errno> {
    let path = source.join(&submount.path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, &path, flags, Mode::empty()) {
        Ok(mount) => {
            let (set, clear) = (submount.set, ATTRIBUTES);
            change_attributes(mount.as_fd(), AttributeChange { set, clear })
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(e) => {
            log::debug!("{}: {e}", path.display());
            Ok(())
        }
    }
}

/// Mounts a clone of a source on top of it, with changed attributes. In the mount namespace of a user namespace the
/// access time attributes of copied mounts are locked (mount_namespaces(7)), so they can't be changed later.
///
/// # Errors
/// When the kernel refuses.
pub fn cover_with_attributes(source: &Path, attributes: AttributeChange) -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(CWD, source, flags)?;
    change_attributes(mount.as_fd(), attributes)?;
    move_mount(
        &mount,
        "",
        CWD,
        source,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Gives a container's root, and the mounts below it, the attributes in these options, which are those of the
/// host's mounts.
///
/// # Errors
/// When the kernel refuses.
pub fn prepare_root(root: &Path, options: Vec<String>) -> Result<(), Errno> {
    let mut mount = Mount::default();
    mount.set_options(Some(options));
    let options = Options::read(&mount);
    for submount in &options.submounts {
        trigger_submount(root, submount)?;
    }
    match options.set {
        0 => Ok(()),
        set => {
            let clear = ATTRIBUTES;
            cover_with_attributes(root, AttributeChange { set, clear })
        }
    }
}
