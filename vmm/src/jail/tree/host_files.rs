//! A tree of a few files of the host, for a process that isn't a VM's: what it is to open by path once
//! it is jailed. Unlike shares, they may be device nodes.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, fstat};
use rustix::mount::OpenTreeFlags;

use super::attributes::{Depth, change, read_only};
use super::share::Prepared;
use super::{Error, call, check_single_threaded, clone_mount, enter_new_root};

/// Neither set-id bits nor programs: a file is opened, and that is all.
const OPENED_ALONE: libc::mount_attr = libc::mount_attr {
    attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
    attr_clr: 0,
    propagation: libc::MS_PRIVATE,
    userns_fd: 0,
};

/// A file or a directory of the host.
#[derive(Debug)]
pub struct HostFile {
    /// The file, opened with `O_PATH` in this process's mount namespace.
    pub file: OwnedFd,
    /// Its path in the tree: relative, of plain names.
    pub target: &'static str,
    /// Whether what is below it can't be written. A device's node needs no writable mount to be
    /// written to, nor does a socket.
    pub read_only: bool,
}

/// Makes a tree of these files this process's root and working directory.
///
/// # Errors
/// See [`Error`]. The process must end then.
pub fn enter_with_host_files(files: Vec<HostFile>) -> Result<(), Error> {
    check_single_threaded()?;
    let prepared = files.into_iter().map(|host| {
        let HostFile {
            file,
            target,
            read_only: is_read_only,
        } = host;
        let kind = fstat(&file).map_err(call("fstat"))?.st_mode;
        let clone = clone_mount(&file, c"", OpenTreeFlags::AT_EMPTY_PATH);
        let clone = clone.map_err(call("open_tree"))?;
        change(clone.as_fd(), Depth::One, OPENED_ALONE).map_err(call("mount_setattr"))?;
        if is_read_only {
            change(clone.as_fd(), Depth::One, read_only(true)).map_err(call("mount_setattr"))?;
        }
        let is_directory = FileType::from_raw_mode(kind) == FileType::Directory;
        Ok(Prepared::of_mount(target, is_directory, clone))
    });
    enter_new_root(&prepared.collect::<Result<Vec<_>, Error>>()?)
}
