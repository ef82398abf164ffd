//! Changes the tree of another, running process, which has no privilege to mount itself.
//!
//! [`add_shares`] clones the shares in the caller's mount namespace. Then a thread enters the
//! tree's mount namespace and clones its root; the clone is made writable, which the tmpfs itself
//! is (only its mount is read-only), and mount points are created through it. [`remove_shares`]
//! unmounts lazily: the guest may have files of a share open.
//!
//! The process's first thread is in the mount namespace of the view, the others are in the tree's
//! ([`tree_of`]). No thread can change that, whatever it executes.
//!
//! This works for root's trees only: the mounts that an ordinary user has cloned belong to another
//! user namespace than the tree.
#![allow(unsafe_code)] // rustix's unshare, and fork

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::thread;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, fstatfs, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags, unmount};
use rustix::process::{Pid, WaitOptions, fchdir, waitpid};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space,
    move_into_thread_name_spaces, unshare_unsafe,
};

use super::attributes::{Depth, change, read_only};
use super::share::{Prepared, Share};
use super::{Error, call, check_targets, clone_mount};
use crate::jail::proc_pids;

/// Adds shares, all of whose targets are within `folder`, to the tree that the process has entered.
/// What an interrupted earlier call has left in that folder is removed first.
///
/// # Errors
/// See [`Error`]. Some of the shares may have been added then: [`remove_shares`] removes them.
pub fn add_shares(process: BorrowedFd<'_>, folder: &str, shares: Vec<Share>) -> Result<(), Error> {
    check_folder(folder)?;
    check_targets(&shares)?;
    if let Some(stray) = shares
        .iter()
        .find(|share| !share.target.starts_with(folder))
    {
        return Err(Error::Target(stray.target.clone()));
    }
    let prepare = |share| {
        let mut share = Prepared::new(share)?;
        share.mount()?;
        Ok(share)
    };
    let shares = shares
        .into_iter()
        .map(prepare)
        .collect::<Result<Vec<_>, Error>>()?;
    let tree = tree_of(process)?.ok_or(Error::NoTree)?;
    in_tree(tree, || {
        let (root, writable) = open_roots()?;
        remove_folder(&root, &writable, folder)?;
        for share in &shares {
            share.make_mount_point(&writable)?;
            share.attach(&root)?;
        }
        Ok(())
    })
}

/// Removes `folder` with all shares in it from the tree that the process has entered; it isn't an
/// error if there is no such folder. Returns the shares in which a file is open for writing: until it
/// is closed, the guest can change what it has opened or looked up there.
///
/// # Errors
/// When the process has ended, and its tree with it, or when a system call fails.
pub fn remove_shares(process: BorrowedFd<'_>, folder: &str) -> Result<Vec<PathBuf>, Error> {
    check_folder(folder)?;
    // A tree that no thread is in any more is gone, and so are its shares.
    let Some(tree) = tree_of(process)? else {
        return Ok(Vec::new());
    };
    in_tree(tree, || {
        let (root, writable) = open_roots()?;
        remove_folder(&root, &writable, folder)
    })
}

/// Refuses what isn't the name of a folder right below the tree's root.
fn check_folder(folder: &str) -> Result<(), Error> {
    let mut components = Path::new(folder).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(name)), None) if name == folder => Ok(()),
        _ => Err(Error::Target(folder.into())),
    }
}

/// Makes the mount of a share read-only in the tree that another process has entered; the process
/// can't undo it. `user_namespace` says whether the process is in a user namespace of its own.
///
/// # Errors
/// When the process has ended, or a file of the share is open for writing.
pub fn make_read_only(
    process: BorrowedFd<'_>,
    target: &Path,
    user_namespace: bool,
) -> Result<(), Error> {
    let tree = tree_of(process)?.ok_or(Error::NoTree)?;
    let path = CString::new(Path::new("/").join(target).into_os_string().into_vec())
        .map_err(|_| Error::Target(target.to_owned()))?;
    let work = || {
        if user_namespace {
            move_into_thread_name_spaces(process, ThreadNameSpaceType::USER)?;
        }
        move_into_link_name_space(tree.as_fd(), Some(LinkNameSpaceType::Mount))?;
        let mount = openat(CWD, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        change(mount.as_fd(), Depth::One, read_only(true))
    };
    // A child, as a process with threads can't enter a user namespace.
    // SAFETY: the child makes system calls on memory that was made before, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = work().map_or_else(Errno::raw_os_error, |()| 0);
        // SAFETY: it ends the child, which is to run nothing of the parent's.
        unsafe { libc::_exit(status) }
    }
    let child = Pid::from_raw(child).filter(|_| child > 0);
    let child = child.ok_or_else(|| Error::Call("fork", io::Error::last_os_error()))?;
    let status = waitpid(Some(child), WaitOptions::empty()).map_err(call("waitpid"))?;
    match status.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(()),
        Some(errno) => {
            let source = io::Error::from_raw_os_error(errno);
            Err(Error::Call("a change of its mount", source))
        }
        None => Err(Error::Call("fork", io::ErrorKind::Interrupted.into())),
    }
}

/// Opens the tree's root, and a writable clone of its mount in which mount points can be created.
///
/// Anything but a tmpfs isn't a tree of ours, and is left alone.
fn open_roots() -> Result<(OwnedFd, OwnedFd), Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, c"/", flags, Mode::empty()).map_err(call("open"))?;
    if fstatfs(&root).map_err(call("fstatfs"))?.f_type != libc::TMPFS_MAGIC {
        return Err(Error::NoTree);
    }
    let writable = clone_mount(CWD, c"/", OpenTreeFlags::empty()).map_err(call("open_tree"))?;
    change(writable.as_fd(), Depth::One, read_only(false)).map_err(call("mount_setattr"))?;
    Ok((root, writable))
}

/// Unmounts and removes what there is in a folder. Through the clone, its entries are the tmpfs's
/// own directories and not what is mounted on them.
fn remove_folder(root: &OwnedFd, writable: &OwnedFd, folder: &str) -> Result<Vec<PathBuf>, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match openat(writable, folder, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other.map_err(call("open"))?,
    };
    fchdir(root).map_err(call("fchdir"))?;
    let mut written = Vec::new();
    empty_directory(directory, Path::new(folder), &mut written)?;
    unlinkat(writable, folder, AtFlags::REMOVEDIR).map_err(call("rmdir"))?;
    Ok(written)
}

/// Removes the entries of a directory of the tmpfs, after unmounting what is mounted on them.
/// `path` is its path in the tree. Adds to `written` those in which a file is open for writing.
fn empty_directory(
    directory: OwnedFd,
    path: &Path,
    written: &mut Vec<PathBuf>,
) -> Result<(), Error> {
    let mut entries = Dir::read_from(&directory).map_err(call("readdir"))?;
    while let Some(entry) = entries.read() {
        let entry = entry.map_err(call("readdir"))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let below = path.join(name.to_string_lossy().as_ref());
        // The guest may still have files of the share open, and must not change them any more.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(mount) = openat(CWD, &below, flags, Mode::empty())
            // It also fails where nothing is mounted.
            && change(mount.as_fd(), Depth::All, read_only(true)) == Err(Errno::BUSY)
        {
            written.push(below.clone());
        }
        // Nothing is mounted there if an earlier call was interrupted.
        while unmount(&below, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
        let flags = match entry.file_type() {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = openat(&directory, name, flags, Mode::empty());
                empty_directory(inner.map_err(call("open"))?, &below, written)?;
                AtFlags::REMOVEDIR
            }
            _ => AtFlags::empty(),
        };
        unlinkat(&directory, name, flags).map_err(call("unlink"))?;
    }
    Ok(())
}

/// The mount namespace of the tree that a process has entered: the one that its first thread isn't in.
/// `None` if all the other threads have ended.
fn tree_of(process: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Error> {
    let failed = |e| Error::Call("finding the tree's threads in /proc", e);
    let pid = proc_pids::pid_of(process).map_err(failed)?;
    let namespace = |thread: &str| {
        let path = format!("/proc/{pid}/task/{thread}/ns/mnt");
        openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    };
    let inode = |namespace: &OwnedFd| fstat(namespace).map(|stat| stat.st_ino);
    // It has none once it has ended.
    let first = namespace(&pid.to_string())
        .and_then(|view| inode(&view))
        .ok();
    let mut tree = None;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).map_err(failed)? {
        let name = thread.map_err(failed)?.file_name();
        // Threads end meanwhile.
        let namespace = name.to_str().and_then(|name| namespace(name).ok());
        tree = namespace.filter(|namespace| inode(namespace).ok() != first);
        if tree.is_some() {
            break;
        }
    }
    // The number was this process's all the time if it still is.
    match proc_pids::pid_of(process).map_err(failed)? == pid {
        true => Ok(tree),
        false => Err(failed(io::Error::from_raw_os_error(libc::ESRCH))),
    }
}

/// Runs `work` in a mount namespace, on a new thread, since setns(2) changes that of a single thread.
fn in_tree<T: Send>(
    namespace: OwnedFd,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    on_a_thread(|| {
        // SAFETY: this gives the thread a root and a working directory of its own, which nobody else uses.
        unsafe { unshare_unsafe(UnshareFlags::FS) }.map_err(call("unshare(CLONE_FS)"))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
            .map_err(call("setns"))?;
        work()
    })
}

/// Runs `work` on a new thread, and waits for it.
pub(super) fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let done = thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
