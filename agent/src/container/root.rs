//! A container's root: makes it a mount of its own, and enters it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, major, minor};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};
use rustix::stdio;

use super::in_root::{self, Symlinks};
use crate::error::Failure;

/// Bind-mounts a directory onto itself, recursively, in the caller's mount namespace, whose mounts no longer
/// propagate to others.
///
/// # Errors
/// When the kernel refuses.
pub fn mount(path: &Path) -> Result<(), Failure> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags).map_err(Failure::io("make the container's mounts slaves"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags)
        .and_then(|copy| {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&copy, "", CWD, path, flags)
        })
        .map_err(Failure::field("root.path"))
}

/// Makes an opened mount the caller's root. With a mount namespace of its own (`own_mounts`) the caller changes it
/// by pivot_root(2) and unmounts the old root, otherwise by chroot(2).
///
/// # Errors
/// When the kernel refuses.
pub fn enter(root: BorrowedFd<'_>, own_mounts: bool) -> Result<(), Failure> {
    let enter = || {
        fchdir(root)?;
        if !own_mounts {
            return chroot(".");
        }
        // This stacks the old root on top of the new one, so that "." can be unmounted next; see pivot_root(2).
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)
    };
    enter()
        .and_then(|()| chdir("/"))
        .map_err(Failure::io("enter the container's root"))
}

/// The device number of /dev/null (Documentation/admin-guide/devices.txt of Linux).
const DEV_NULL: (u32, u32) = (1, 3);

/// Opens the container's /dev/null with O_PATH.
///
/// # Errors
/// `EINVAL` when it is not the null device; when it is missing.
pub fn dev_null(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let null = in_root::open(root, Path::new("/dev/null"), Symlinks::Follow)?;
    match is_null(&null)? {
        true => Ok(null),
        false => Err(Errno::INVAL),
    }
}

/// Replaces the guest's /dev/null by the container's in the caller's stdio.
///
/// # Errors
/// When it can't be opened.
pub fn reopen_dev_null(root: BorrowedFd<'_>) -> Result<(), Failure> {
    let failed = |e| Failure::io("open the container's /dev/null")(e);
    let uses = |file: BorrowedFd<'_>| is_null(file).unwrap_or(false);
    let (stdin, stdout, stderr) = (
        uses(stdio::stdin()),
        uses(stdio::stdout()),
        uses(stdio::stderr()),
    );
    if !(stdin || stdout || stderr) {
        return Ok(());
    }
    let null = dev_null(root).and_then(reopen).map_err(failed)?;
    if stdin {
        stdio::dup2_stdin(&null).map_err(failed)?;
    }
    if stdout {
        stdio::dup2_stdout(&null).map_err(failed)?;
    }
    if stderr {
        stdio::dup2_stderr(&null).map_err(failed)?;
    }
    Ok(())
}

/// Reopens for reading and writing a file that was opened with O_PATH.
fn reopen(file: OwnedFd) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn is_null(file: impl AsFd) -> Result<bool, Errno> {
    let stat = fstat(file)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    Ok(is_device && (major(stat.st_rdev), minor(stat.st_rdev)) == DEV_NULL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn only_the_null_device_is_accepted_as_dev_null() {
        let host = File::open("/").expect("the root");
        assert!(dev_null(host.as_fd()).is_ok());
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("dev")).expect("a directory");
        fs::write(directory.path().join("dev/null"), "").expect("a file");
        let root = File::open(directory.path()).expect("the root");
        assert_eq!(dev_null(root.as_fd()).err(), Some(Errno::INVAL));
    }
}
