//! `linux.maskedPaths` and `linux.readonlyPaths`, mounted over once all else has its place.
//!
//! libcontainer's own way is not used: what it makes read-only loses its devices, set-id bits and
//! programs as well, and it comes before the mounts and nodes that are made after libcontainer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::Spec;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::error::Failure;
use crate::sys::{self, MountChange};

/// What the container sees less of than is there. Paths that aren't there are left out.
#[derive(Debug)]
pub struct Paths {
    masked: Vec<String>,
    read_only: Vec<String>,
}

impl Paths {
    /// Takes them out of libcontainer's part.
    pub fn take(spec: &mut Spec) -> Self {
        let mut paths = Self {
            masked: Vec::new(),
            read_only: Vec::new(),
        };
        if let Some(linux) = spec.linux_mut() {
            paths.masked = linux.masked_paths().clone().unwrap_or_default();
            paths.read_only = linux.readonly_paths().clone().unwrap_or_default();
            linux.set_masked_paths(None).set_readonly_paths(None);
        }
        paths
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
            mask(root, path).map_err(Failure::field(format!("linux.maskedPaths: {path}")))?;
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
fn mask(root: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    let Some(there) = open(root, path)? else {
        return Ok(());
    };
    let cover = match FileType::from_raw_mode(fstat(&there)?.st_mode) {
        FileType::Directory => empty_folder()?,
        _ => copy(&open(root, "/dev/null")?.ok_or(Errno::NOENT)?)?,
    };
    mount_on(&cover, &there)
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
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Err(Errno::NOENT) => Ok(None),
        opened => opened.map(Some),
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
