//! The shared tree: a mount namespace that contains nothing but the shares.
//!
//! After [`enter`], the root directory of the process is a small read-only tmpfs with one mount for
//! each share: `c1/rootfs`, `c1/mounts/0` and so on. The host's own mounts are gone from the
//! namespace, so nothing else can be reached by path, whatever is in the shares. As the mounts
//! exist in this namespace only, the host doesn't see them, and they vanish with the process.
//!
//! A file system that the host's kernel has to mount for the guest (an overlay) is mounted in this
//! namespace only, while the host's paths can still be resolved.
//!
//! Shares of a container that joins a running sandbox are added from outside (`remote`), since the
//! process itself has no privilege to mount. The tmpfs stays the root for that purpose.
//!
//! What the host sees by the process's pid is not the tree, but a [`View`] of it.
//!
//! Two shares of the same file are two inodes in the guest: they don't have a common page cache or
//! locks. To share a volume between two containers of a sandbox, share it once.
#![allow(unsafe_code)] // rustix's unshare

mod attributes;
mod host_files;
mod remote;
mod share;
mod view;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{fchdir, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::proc_pids;
use super::userns;
use attributes::{Depth, HARDENED, change, read_only};
pub use host_files::{HostFile, enter_with_host_files};
pub use remote::{add_shares, make_read_only, remove_shares};
use share::Prepared;
pub use share::{AccessTimes, BindMount, FileSystem, Owners, ReadOnly, Share, Source, Times};
pub use view::{Content, Processes, View, ViewMount};

/// The size of the tree's tmpfs: it contains only directories and empty files, which take no
/// blocks.
const TMPFS_SIZE: &CStr = c"64k";

/// What of the host the process still has access to.
#[derive(Debug)]
pub struct Tree {
    /// For the virtio-fs thread, which finds its own descriptors there.
    pub task_dir: TaskDir,
}

/// A mount of this process's `/proc/self/task`, attached on top of the tree's root, where no path
/// leads to it.
#[derive(Debug)]
pub struct TaskDir(OwnedFd);

impl TaskDir {
    /// Opens the calling thread's `/proc/thread-self/fd` as a mount of its own, so that nothing
    /// above it can be reached; virtio-fs opens inodes through it. `/proc/self/fd` would be the
    /// main thread's, and each thread has its own descriptors.
    ///
    /// The thread must not share its working directory with others (`CLONE_FS`); it is the tree's
    /// root afterwards.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn open_thread_fds(self) -> Result<File, Error> {
        let own = proc_pids::tid_of_this_thread(self.0.as_fd());
        let own = own.map_err(|e| Error::Call("finding the thread in /proc", e))?;
        let own = format!("{own}/fd");
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let own = open_tree(&self.0, own, flags).map_err(call("open_tree"))?;
        change(own.as_fd(), Depth::One, HARDENED).map_err(call("mount_setattr"))?;
        fchdir(&self.0).map_err(call("fchdir"))?;
        unmount(c".", UnmountFlags::DETACH).map_err(call("umount2(MNT_DETACH)"))?;
        rustix::process::chdir(c"/").map_err(call("chdir"))?;
        Ok(own.into())
    }
}

/// Why the tree could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A share's target is not a relative path of plain names.
    #[error("share {0}: the target must be a relative path without . or ..")]
    Target(PathBuf),
    /// What another process has for its root is not a shared tree.
    #[error("the root of the other process is not a shared tree")]
    NoTree,
    /// Two shares have the same target, or that of one is within the other's.
    #[error("share {0}: the target lies in or above that of another share")]
    Nested(PathBuf),
    /// The process has other threads, which would stay in the old mount namespace.
    #[error("the shared tree must be entered before other threads are started")]
    Threads,
    /// The kernel lacks a system call of the mount API.
    #[error("the host's kernel lacks {0}; it must be 5.12 or newer")]
    Kernel(&'static str),
    /// A system call on a share failed.
    #[error("{name}: {call} failed")]
    Share {
        /// What the user calls the share.
        name: String,
        /// The system call, or what it was for.
        call: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// The share can't become an idmapped mount.
    #[error("{name}: the host cannot map the owners of these files")]
    Owners {
        /// What the user calls the mapping.
        name: String,
        /// The reason: the file system or the kernel may not support it.
        #[source]
        source: userns::Error,
    },
    /// pivot_root(2) doesn't work from an initramfs.
    #[error(
        "pivot_root failed: the host runs from its initramfs; it must switch to a real root first"
    )]
    Initramfs(#[source] io::Error),
    /// Another system call failed.
    #[error("{0} failed while the shared tree was made")]
    Call(&'static str, #[source] io::Error),
}

/// Creates the tree of `shares`, and makes it this process's root and working directory.
///
/// # Errors
/// See [`Error`]. After an error the process may be in a mount namespace of its own, still with the
/// host's mounts; it must end.
pub fn enter(shares: Vec<Share>) -> Result<Tree, Error> {
    check_targets(&shares)?;
    check_single_threaded()?;

    // Mounts can only be cloned in the namespace that they belong to, so this is done before the
    // new one is created.
    let task_dir =
        clone_mount(CWD, c"/proc/self/task", OpenTreeFlags::empty()).map_err(call("open_tree"))?;
    change(task_dir.as_fd(), Depth::One, HARDENED).map_err(call("mount_setattr"))?;
    let shares = shares
        .into_iter()
        .map(Prepared::new)
        .collect::<Result<Vec<_>, _>>()?;
    enter_new_root(&shares)?;
    mount_over_root(&task_dir)?;
    Ok(Tree {
        task_dir: TaskDir(task_dir),
    })
}

/// Makes a tree of what is prepared this process's root, in a new mount namespace.
fn enter_new_root(shares: &[Prepared]) -> Result<(), Error> {
    // SAFETY: CLONE_NEWNS and the CLONE_FS that it implies touch no other thread: there is none.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(call("unshare(CLONE_NEWNS)"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", private).map_err(call("mount(MS_PRIVATE)"))?;

    let root = new_tmpfs()?;
    mount_over_root(&root)?;
    // All mount points first, so that none is created within a share.
    for share in shares {
        share.make_mount_point(&root)?;
    }
    for share in shares {
        share.attach(&root)?;
    }
    change(root.as_fd(), Depth::One, read_only(true)).map_err(call("mount_setattr"))?;
    leave_old_root(&root)
}

fn check_targets(shares: &[Share]) -> Result<(), Error> {
    let mut targets: Vec<&Path> = shares.iter().map(|share| share.target.as_path()).collect();
    for target in &targets {
        let mut components = target.components();
        let is_plain = components.all(|c| matches!(c, Component::Normal(_)));
        if !is_plain || target.as_os_str().is_empty() {
            return Err(Error::Target(target.to_path_buf()));
        }
    }
    // Sorted by component, a path is followed at once by what lies in it.
    targets.sort();
    match targets.windows(2).find(|pair| pair[1].starts_with(pair[0])) {
        Some(pair) => Err(Error::Nested(pair[1].to_path_buf())),
        None => Ok(()),
    }
}

fn check_single_threaded() -> Result<(), Error> {
    let tasks =
        std::fs::read_dir("/proc/self/task").map_err(|e| Error::Call("readdir /proc", e))?;
    if tasks.count() > 1 {
        return Err(Error::Threads);
    }
    Ok(())
}

/// Creates a small detached tmpfs for the mount points.
fn new_tmpfs() -> Result<OwnedFd, Error> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(call("fsopen"))?;
    for (key, value) in [
        (c"source", c"hull"),
        (c"size", TMPFS_SIZE),
        (c"mode", c"0755"),
    ] {
        fsconfig_set_string(&context, key, value).map_err(call("fsconfig"))?;
    }
    fsconfig_create(&context).map_err(call("fsconfig"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(call("fsmount"))
}

/// Attaches a detached mount on top of the root directory.
fn mount_over_root(clone: &OwnedFd) -> Result<(), Error> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(clone, c"", CWD, c"/", flags).map_err(call("move_mount"))
}

/// Makes `root` the root of the mount namespace, and unmounts the old root.
fn leave_old_root(root: &OwnedFd) -> Result<(), Error> {
    fchdir(root).map_err(call("fchdir"))?;
    // The old root ends up on top of the new one, and is the first thing found at ".".
    pivot_root(c".", c".").map_err(|error| match error {
        Errno::INVAL => Error::Initramfs(error.into()),
        error => Error::Call("pivot_root", error.into()),
    })?;
    unmount(c".", UnmountFlags::DETACH).map_err(call("umount2(MNT_DETACH)"))?;
    rustix::process::chdir(c"/").map_err(call("chdir"))
}

fn clone_mount(
    directory: impl AsFd,
    path: &CStr,
    flags: OpenTreeFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(directory, path, flags)
}

fn call(name: &'static str) -> impl Fn(Errno) -> Error {
    move |error| match error {
        Errno::NOSYS => Error::Kernel(name),
        error => Error::Call(name, error.into()),
    }
}
