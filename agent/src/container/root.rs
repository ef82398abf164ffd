//! A container's root: made a mount of its own, and entered.

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

use super::inside::{self, Links};
use crate::error::Failure;

/// Makes a folder a mount, with what is mounted below it, as the caller's mount namespace has it. Nothing
/// that is mounted in the namespace shows elsewhere.
///
/// # Errors
/// When the kernel refuses.
pub fn mount(path: &Path) -> Result<(), Failure> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags).map_err(Failure::io("keep the container's mounts apart"))?;
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

/// Makes an opened mount the caller's root, and leaves the old one: it is unmounted in the caller's mount
/// namespace, or if that is the guest's own, stays.
///
/// # Errors
/// When the kernel refuses.
pub fn enter(root: BorrowedFd<'_>, own_mounts: bool) -> Result<(), Failure> {
    let enter = || {
        fchdir(root)?;
        if !own_mounts {
            return chroot(".");
        }
        // The old root is put on top of the new one, pivot_root(2), which is still the working folder.
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)
    };
    enter()
        .and_then(|()| chdir("/"))
        .map_err(Failure::io("enter the container's root"))
}

/// The device number of /dev/null (Documentation/admin-guide/devices.txt of Linux).
const NULL: (u32, u32) = (1, 3);

/// The container's /dev/null; `EINVAL` if another file has its name.
///
/// # Errors
/// When it isn't there.
pub fn null(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let null = inside::find(root, Path::new("/dev/null"), Links::Followed)?;
    match is_null(&null)? {
        true => Ok(null),
        false => Err(Errno::INVAL),
    }
}

/// Makes the container's /dev/null the caller's stdio where that is the guest's.
///
/// # Errors
/// When it can't be opened.
pub fn own_null(root: BorrowedFd<'_>) -> Result<(), Failure> {
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
    let null = null(root).and_then(reopen).map_err(failed)?;
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

/// Opens for reading and writing what was opened with O_PATH.
fn reopen(file: OwnedFd) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn is_null(file: impl AsFd) -> Result<bool, Errno> {
    let stat = fstat(file)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    Ok(is_device && (major(stat.st_rdev), minor(stat.st_rdev)) == NULL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn nothing_but_the_null_device_is_null() {
        let host = File::open("/").expect("the root");
        assert!(null(host.as_fd()).is_ok());
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("dev")).expect("a folder");
        fs::write(folder.path().join("dev/null"), "").expect("a file");
        let root = File::open(folder.path()).expect("the root");
        assert_eq!(null(root.as_fd()).err(), Some(Errno::INVAL));
    }
}
