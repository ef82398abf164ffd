//! `linux.maskedPaths` and `linux.readonlyPaths`, which are mounted over after all other mounts are made.
//!
//! A file is masked by the container's /dev/null, as with runc, after a check that it is the null device (runc's
//! CVE-2025-31133: it was a symbolic link). Each path is resolved once, within the root, and the mount is put on
//! the file that was opened.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{Linux, Spec};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::in_root::{self, Symlinks};
use super::root;
use crate::error::Failure;
use crate::sys::{self, MountChange};

/// The masked and the read-only paths of a container. Those that don't exist are skipped.
#[derive(Debug)]
pub struct RestrictedPaths {
    masked: Vec<String>,
    read_only: Vec<String>,
}

impl RestrictedPaths {
    /// The paths of a config.json.
    pub fn of(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        let list = |list: Option<&Option<Vec<String>>>| list.cloned().flatten().unwrap_or_default();
        Self {
            masked: list(linux.map(Linux::masked_paths)),
            read_only: list(linux.map(Linux::readonly_paths)),
        }
    }

    /// Mounts over them in a container's root, over read-only ones first. The caller is in the container's mount
    /// namespace, as root.
    ///
    /// # Errors
    /// Names the field and the path.
    pub fn apply(&self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        for path in &self.read_only {
            make_read_only(root, path)
                .map_err(Failure::field(format!("linux.readonlyPaths: {path}")))?;
        }
        for path in &self.masked {
            mask(root, path, &format!("linux.maskedPaths: {path}"))?;
        }
        Ok(())
    }
}

fn make_read_only(root: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    let Some(target) = open(root, path)? else {
        return Ok(());
    };
    let copy = clone_mount(&target)?;
    let change = MountChange {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountChange::default()
    };
    sys::mount_setattr(copy.as_fd(), change)?;
    move_mount_onto(&copy, &target)
}

/// Makes a file read as empty, and a directory appear empty.
fn mask(root: BorrowedFd<'_>, path: &str, field: &str) -> Result<(), Failure> {
    let failed = || Failure::field(field);
    let Some(target) = open(root, path).map_err(failed())? else {
        return Ok(());
    };
    let kind = FileType::from_raw_mode(fstat(&target).map_err(failed())?.st_mode);
    let cover = match kind {
        FileType::Directory => empty_directory().map_err(failed())?,
        _ => root::dev_null(root)
            .and_then(|null| clone_mount(&null))
            .map_err(Failure::field(format!(
                "{field}: the container's /dev/null"
            )))?,
    };
    move_mount_onto(&cover, &target).map_err(failed())
}

fn empty_directory() -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "tmpfs")?;
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_create(&context)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    fsmount(&context, flags, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// Opens a file of the container; `None` if there is none.
fn open(root: BorrowedFd<'_>, path: &str) -> Result<Option<OwnedFd>, Errno> {
    match in_root::open(root, Path::new(path), Symlinks::Follow) {
        Err(Errno::NOENT) => Ok(None),
        found => found.map(Some),
    }
}

/// Clones the mounts at and below a file.
fn clone_mount(file: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(file, "", flags)
}

fn move_mount_onto(mount: &OwnedFd, place: &OwnedFd) -> Result<(), Errno> {
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", both)
}
