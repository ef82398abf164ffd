//! `linux.maskedPaths` and `linux.readonlyPaths`, mounted over once all else has its place.
//!
//! libcontainer's own way is not used: what it makes read-only loses its devices, set-id bits and
//! programs as well, and it comes before the mounts and nodes that are made after libcontainer.
//!
//! What masks a file is the guest's own /dev/null, and never what has that name in the container: runc's
//! CVE-2025-31133 was a link there. Each path is resolved once, within the root; the mount goes on what was
//! opened.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, major, minor, openat2};
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
    null: Option<Null>,
}

impl Paths {
    /// Takes them out of libcontainer's part. The caller is in the guest's own mount namespace.
    ///
    /// # Errors
    /// When the guest's /dev/null isn't one.
    pub fn take(spec: &mut Spec) -> Result<Self, Failure> {
        let mut paths = Self {
            masked: Vec::new(),
            read_only: Vec::new(),
            null: None,
        };
        if let Some(linux) = spec.linux_mut() {
            paths.masked = linux.masked_paths().clone().unwrap_or_default();
            paths.read_only = linux.readonly_paths().clone().unwrap_or_default();
            linux.set_masked_paths(None).set_readonly_paths(None);
        }
        if !paths.masked.is_empty() {
            let null = Null::of(DEV_NULL);
            paths.null = Some(null.map_err(Failure::io(format!("take {DEV_NULL} for masks")))?);
        }
        Ok(paths)
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
        for (path, null) in self.masked.iter().zip(self.null.iter().cycle()) {
            mask(root, path, null).map_err(Failure::field(format!("linux.maskedPaths: {path}")))?;
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

/// A device that reads as empty, once for each file that is masked.
#[derive(Debug)]
struct Null {
    mount: OwnedFd,
    /// Whether the mount has found its place. Only then can it be copied.
    placed: Cell<bool>,
}

/// The guest's own.
const DEV_NULL: &str = "/dev/null";

/// Its device number (Documentation/admin-guide/devices.txt of Linux).
const NULL: (u32, u32) = (1, 3);

impl Null {
    /// Copies the mount of such a device; `EINVAL` if it is another file.
    fn of(path: &str) -> Result<Self, Errno> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(CWD, path, flags)?;
        let stat = fstat(&mount)?;
        let number = (major(stat.st_rdev), minor(stat.st_rdev));
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        if !is_device || number != NULL {
            return Err(Errno::INVAL);
        }
        Ok(Self {
            mount,
            placed: Cell::new(false),
        })
    }

    fn cover(&self, there: &OwnedFd) -> Result<(), Errno> {
        if self.placed.get() {
            return mount_on(&copy(&self.mount)?, there);
        }
        mount_on(&self.mount, there)?;
        self.placed.set(true);
        Ok(())
    }
}

/// A file reads as empty, and a folder is.
fn mask(root: BorrowedFd<'_>, path: &str, null: &Null) -> Result<(), Errno> {
    let Some(there) = open(root, path)? else {
        return Ok(());
    };
    match FileType::from_raw_mode(fstat(&there)?.st_mode) {
        FileType::Directory => mount_on(&empty_folder()?, &there),
        _ => null.cover(&there),
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

    #[test]
    fn only_the_null_device_masks() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        assert!(Null::of("/dev/null").is_ok());
        for other in ["/dev/zero", "/proc/self/exe"] {
            assert!(Null::of(other).is_err(), "{other}");
        }
    }
}
