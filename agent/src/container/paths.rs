//! `linux.maskedPaths` and `linux.readonlyPaths`, mounted over once all else has its place.
//!
//! libcontainer's own way is not used: what it makes read-only loses its devices, set-id bits and
//! programs as well, and it comes before the mounts and nodes that are made after libcontainer.
//!
//! What masks a file is the container's /dev/null, as with runc, and nothing else that has this name there:
//! runc's CVE-2025-31133 was a link. Each path is resolved once, within the root; the mount goes on what was
//! opened.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::Spec;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, major, minor, openat2};
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
        _ => copy(&null(root)?)?,
    };
    mount_on(&cover, &there)
}

/// The device number of /dev/null (Documentation/admin-guide/devices.txt of Linux).
const NULL: (u32, u32) = (1, 3);

/// The container's /dev/null; `EINVAL` if another file has its name.
fn null(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let null = open(root, "/dev/null")?.ok_or(Errno::NOENT)?;
    let stat = fstat(&null)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    match (major(stat.st_rdev), minor(stat.st_rdev)) {
        NULL if is_device => Ok(null),
        _ => Err(Errno::INVAL),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    #[test]
    fn nothing_but_the_null_device_masks() {
        let host = File::open("/").expect("the root");
        assert!(null(host.as_fd()).is_ok());
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("dev")).expect("a folder");
        fs::write(folder.path().join("dev/null"), "").expect("a file");
        let root = File::open(folder.path()).expect("the root");
        assert_eq!(null(root.as_fd()).err(), Some(Errno::INVAL));
    }
}
