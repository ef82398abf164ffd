//! `linux.maskedPaths` and `linux.readonlyPaths`, mounted over once all else has its place.
//!
//! What masks a file is the container's /dev/null, as with runc, and nothing else that has this name there:
//! runc's CVE-2025-31133 was a link. Each path is resolved once, within the root; the mount goes on what was
//! opened.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{Linux, Spec};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::inside::{self, Links};
use super::root;
use crate::error::Failure;
use crate::sys::{self, MountChange};

/// What the container sees less of than is there. Paths that aren't there are left out.
#[derive(Debug)]
pub struct Paths {
    masked: Vec<String>,
    read_only: Vec<String>,
}

impl Paths {
    /// Those of a config.json.
    pub fn of(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        let list = |list: Option<&Option<Vec<String>>>| list.cloned().flatten().unwrap_or_default();
        Self {
            masked: list(linux.map(Linux::masked_paths)),
            read_only: list(linux.map(Linux::readonly_paths)),
        }
    }

    /// Mounts over them in a container's root, read-only ones first. The caller is in its mount
    /// namespace, as the root there.
    ///
    /// # Errors
    /// Names the field and the path.
    pub fn apply(&self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        for path in &self.read_only {
            forbid_writing(root, path)
                .map_err(Failure::field(format!("linux.readonlyPaths: {path}")))?;
        }
        for path in &self.masked {
            mask(root, path, &format!("linux.maskedPaths: {path}"))?;
        }
        Ok(())
    }
}

fn forbid_writing(root: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    let Some(there) = open(root, path)? else {
        return Ok(());
    };
    let copy = copy(&there)?;
    let change = MountChange {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountChange::default()
    };
    sys::mount_setattr(copy.as_fd(), change)?;
    mount_on(&copy, &there)
}

/// A file reads as empty, and a folder is.
fn mask(root: BorrowedFd<'_>, path: &str, field: &str) -> Result<(), Failure> {
    let failed = || Failure::field(field);
    let Some(there) = open(root, path).map_err(failed())? else {
        return Ok(());
    };
    let kind = FileType::from_raw_mode(fstat(&there).map_err(failed())?.st_mode);
    let cover = match kind {
        FileType::Directory => empty_folder().map_err(failed())?,
        _ => root::null(root)
            .and_then(|null| copy(&null))
            .map_err(Failure::field(format!(
                "{field}: the container's /dev/null"
            )))?,
    };
    mount_on(&cover, &there).map_err(failed())
}

fn empty_folder() -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "tmpfs")?;
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_create(&context)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    fsmount(&context, flags, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// A file of the container's, unless it isn't there.
fn open(root: BorrowedFd<'_>, path: &str) -> Result<Option<OwnedFd>, Errno> {
    match inside::find(root, Path::new(path), Links::Followed) {
        Err(Errno::NOENT) => Ok(None),
        found => found.map(Some),
    }
}

/// The mounts at and below a file, once more.
fn copy(file: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(file, "", flags)
}

fn mount_on(mount: &OwnedFd, place: &OwnedFd) -> Result<(), Errno> {
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", both)
}
