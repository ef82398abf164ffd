//! The tree of a process that runs already, changed from outside: the process itself has no right to mount.
//!
//! Shares that [`join`] are cloned in the caller's mount namespace. Then a thread enters the tree's and clones its
//! root; that clone is made writable, for the tmpfs itself is so and only its mount isn't, and mount points are made
//! through it. What [`leave`]s is unmounted lazily: the guest may have files of it open.
//!
//! Root's tree alone: what an ordinary user has cloned belongs to another user namespace than the tree.
#![allow(unsafe_code)] // rustix's unshare, and fork

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::thread;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags, unmount};
use rustix::process::{Pid, WaitOptions, fchdir, waitpid};
use rustix::thread::{
    ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe,
};

use super::attributes::{Depth, change, read_only};
use super::share::{Prepared, Share};
use super::{Error, call, check_targets, clone_mount};

/// Adds shares, all of which lie in `folder` of the tree that the process has entered. Something of that name which
/// an earlier call was cut off at is removed before.
///
/// # Errors
/// See [`Error`]. Some of the shares may be there then: [`leave`] removes them.
pub fn join(process: BorrowedFd<'_>, folder: &str, shares: Vec<Share>) -> Result<(), Error> {
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
    inside(process, || {
        let (root, writable) = roots()?;
        clear(&root, &writable, folder)?;
        for share in &shares {
            share.make_mount_point(&writable)?;
            share.attach(&root)?;
        }
        Ok(())
    })
}

/// Removes `folder` with all shares in it from the tree that the process has entered; that there is none is no error.
///
/// # Errors
/// When the process is gone, and its tree with it; or when a call fails.
pub fn leave(process: BorrowedFd<'_>, folder: &str) -> Result<(), Error> {
    inside(process, || {
        let (root, writable) = roots()?;
        clear(&root, &writable, folder)
    })
}

/// Makes a share read-only in the tree that another process has entered, in a user namespace of its own
/// or not: the mount itself, for good.
///
/// # Errors
/// When the process is gone, or a file is open for writing.
pub fn make_read_only(
    process: BorrowedFd<'_>,
    target: &Path,
    user_namespace: bool,
) -> Result<(), Error> {
    let mut namespaces = ThreadNameSpaceType::MOUNT;
    namespaces.set(ThreadNameSpaceType::USER, user_namespace);
    let path = CString::new(Path::new("/").join(target).into_os_string().into_vec())
        .map_err(|_| Error::Target(target.to_owned()))?;
    let work = || {
        move_into_thread_name_spaces(process, namespaces)?;
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

/// The tree's root as the process has it, and a clone of it in which mount points can be made.
fn roots() -> Result<(OwnedFd, OwnedFd), Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, c"/", flags, Mode::empty()).map_err(call("open"))?;
    let writable = clone_mount(CWD, c"/", OpenTreeFlags::empty()).map_err(call("open_tree"))?;
    change(writable.as_fd(), Depth::One, read_only(false)).map_err(call("mount_setattr"))?;
    Ok((root, writable))
}

/// Removes what there is of a folder. Through the clone it is the tmpfs's own directories, not what is mounted there.
fn clear(root: &OwnedFd, writable: &OwnedFd, folder: &str) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match openat(writable, folder, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(call("open"))?,
    };
    fchdir(root).map_err(call("fchdir"))?;
    empty(directory, Path::new(folder))?;
    unlinkat(writable, folder, AtFlags::REMOVEDIR).map_err(call("rmdir"))
}

/// Empties a directory of the tmpfs, whose path in the tree is given, once nothing is mounted in it.
fn empty(directory: OwnedFd, path: &Path) -> Result<(), Error> {
    let mut entries = Dir::read_from(&directory).map_err(call("readdir"))?;
    while let Some(entry) = entries.read() {
        let entry = entry.map_err(call("readdir"))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let below = path.join(name.to_string_lossy().as_ref());
        // The guest may still have files of it, and is to change them no more.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(mount) = openat(CWD, &below, flags, Mode::empty()) {
            // Fails where a file is open for writing, or nothing is mounted.
            let _ = change(mount.as_fd(), Depth::All, read_only(true));
        }
        // Nothing is mounted at a place of which an earlier call was cut off.
        while unmount(&below, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
        let flags = match entry.file_type() {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = openat(&directory, name, flags, Mode::empty());
                empty(inner.map_err(call("open"))?, &below)?;
                AtFlags::REMOVEDIR
            }
            _ => AtFlags::empty(),
        };
        unlinkat(&directory, name, flags).map_err(call("unlink"))?;
    }
    Ok(())
}

/// Does something in the tree that a process has entered, on a thread of its own: a mount namespace is a thread's.
fn inside<T: Send>(
    process: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    on_a_thread(|| {
        // SAFETY: this gives the thread a root and a working directory of its own, which nobody else uses.
        unsafe { unshare_unsafe(UnshareFlags::FS) }.map_err(call("unshare(CLONE_FS)"))?;
        move_into_thread_name_spaces(process, ThreadNameSpaceType::MOUNT).map_err(call("setns"))?;
        work()
    })
}

/// Does something on a thread of its own, which ends before this returns.
pub(super) fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let done = thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
