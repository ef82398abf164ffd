//! The shared tree: a mount namespace in which the shares are all there is.
//!
//! [`enter`] leaves the process with a root directory that is a small read-only tmpfs, and in it one
//! mount a share: `c1/rootfs`, `c1/mounts/0` and so on. The host's own mounts are gone from the
//! namespace, so nothing else can be reached by path, whatever is in the shares; and as the mounts exist
//! in this namespace alone, nothing is seen of them on the host and nothing is left when the process
//! dies.
//!
//! What joins a living sandbox is added from outside: clone the share before (`open_tree`), enter the
//! process's mount namespace, clone its root the same way, make that clone writable with
//! `mount_setattr` to create the mount point (the tmpfs itself stays writable; what is read-only is its
//! mount here), and `move_mount` the share there. The tmpfs is kept as root for that.
//!
//! Two shares of the same file are two inodes in the guest: they don't share a page cache or locks.
//! Who wants two containers of a sandbox to share a volume shares it once.
#![allow(unsafe_code)] // mount_setattr(2), which no library wraps, and rustix's unshare

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{fchdir, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// What the tree's own tmpfs may hold: it has directories and empty files, which take no blocks.
const TMPFS_SIZE: &CStr = c"64k";

/// A directory or a file of the host that the guest gets.
#[derive(Debug)]
pub struct Share {
    /// The directory or file, opened by the caller with `O_PATH` in the way that is safe for it: no
    /// path is resolved again.
    pub source: OwnedFd,
    /// Where it lies in the tree: a relative path of plain names. No share lies in another one.
    pub target: PathBuf,
    /// Whether the host refuses every change to it.
    pub read_only: bool,
    /// Whether the mounts below a directory come with it; without, what they cover shows.
    pub recursive: bool,
}

/// What of the host is still at hand in the tree.
#[derive(Debug)]
pub struct Tree {
    /// This process's `/proc/self/fd`, and nothing above it: virtio-fs opens its inodes through it.
    pub proc_self_fd: File,
}

/// Why the tree could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A share's place is not a relative path of plain names.
    #[error("share {0}: the target must be a relative path without . or ..")]
    Target(PathBuf),
    /// Two shares have the same place, or one lies in the other.
    #[error("share {0}: the target lies in or above that of another share")]
    Nested(PathBuf),
    /// Other threads would stay in the old mount namespace.
    #[error("the shared tree must be entered before other threads are started")]
    Threads,
    /// The kernel lacks a system call of the mount API.
    #[error("the host's kernel lacks {0}; it must be 5.12 or newer")]
    Kernel(&'static str),
    /// A system call on a share failed.
    #[error("share {target}: {call} failed")]
    Share {
        /// The share's place in the tree.
        target: PathBuf,
        /// The system call.
        call: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
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

/// Makes a tree of `shares` and makes it this process's root and working directory.
///
/// # Errors
/// See [`Error`]. After an error the process may be in a mount namespace of its own, still with the
/// host's mounts; it must end.
pub fn enter(shares: Vec<Share>) -> Result<Tree, Error> {
    check_targets(&shares)?;
    check_single_threaded()?;

    // Mounts can be cloned in the namespace that they belong to, so before the new one.
    let proc_self_fd =
        clone_mount(CWD, c"/proc/self/fd", OpenTreeFlags::empty()).map_err(call("open_tree"))?;
    set_attributes(proc_self_fd.as_fd(), SHARED_ATTRIBUTES, Depth::One)
        .map_err(call("mount_setattr"))?;
    let shares = shares
        .into_iter()
        .map(Detached::new)
        .collect::<Result<Vec<_>, _>>()?;

    // SAFETY: CLONE_NEWNS and the CLONE_FS that it implies touch no other thread: there is none.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(call("unshare(CLONE_NEWNS)"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", private).map_err(call("mount(MS_PRIVATE)"))?;

    let root = new_tmpfs()?;
    move_mount(
        &root,
        c"",
        CWD,
        c"/",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(call("move_mount"))?;
    // All mount points first: none is ever made in a share.
    for share in &shares {
        share.make_mount_point(&root)?;
    }
    for share in &shares {
        share.attach(&root)?;
    }
    set_attributes(root.as_fd(), libc::MOUNT_ATTR_RDONLY, Depth::One)
        .map_err(call("mount_setattr"))?;
    leave_old_root(&root)?;
    Ok(Tree {
        proc_self_fd: proc_self_fd.into(),
    })
}

/// What holds for every mount of the tree: no set-id bit and no device node has an effect in it.
const SHARED_ATTRIBUTES: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// A share's clone, attached nowhere yet.
struct Detached {
    mount: OwnedFd,
    target: PathBuf,
    is_directory: bool,
}

impl Detached {
    /// Clones a share's mounts and sets their attributes.
    fn new(share: Share) -> Result<Self, Error> {
        let Share {
            source,
            target,
            read_only,
            recursive,
        } = share;
        let failed = |call| {
            let target = target.clone();
            move |error: Errno| match error {
                Errno::NOSYS => Error::Kernel(call),
                error => Error::Share {
                    target,
                    call,
                    source: error.into(),
                },
            }
        };
        let stat = fstat(&source).map_err(failed("fstat"))?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let mut flags = OpenTreeFlags::AT_EMPTY_PATH;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        let mount = clone_mount(&source, c"", flags).map_err(failed("open_tree"))?;
        let read_only = if read_only {
            libc::MOUNT_ATTR_RDONLY
        } else {
            0
        };
        set_attributes(mount.as_fd(), SHARED_ATTRIBUTES | read_only, Depth::All)
            .map_err(failed("mount_setattr"))?;
        Ok(Self {
            mount,
            target,
            is_directory,
        })
    }

    /// Makes the directory or the empty file that the share will cover.
    fn make_mount_point(&self, root: &OwnedFd) -> Result<(), Error> {
        let mut path = PathBuf::new();
        let mut names = self.target.components().peekable();
        while let Some(name) = names.next() {
            path.push(name);
            let made = if names.peek().is_some() || self.is_directory {
                match mkdirat(root, &path, Mode::from(0o755)) {
                    Err(Errno::EXIST) => Ok(()),
                    made => made,
                }
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                openat(root, &path, flags, Mode::from(0o644)).map(drop)
            };
            made.map_err(|e| self.failed("making the mount point", e))?;
        }
        Ok(())
    }

    fn attach(&self, root: &OwnedFd) -> Result<(), Error> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&self.mount, c"", root, &self.target, flags)
            .map_err(|e| self.failed("move_mount", e))
    }

    fn failed(&self, call: &'static str, error: Errno) -> Error {
        Error::Share {
            target: self.target.clone(),
            call,
            source: error.into(),
        }
    }
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

/// A small tmpfs for the mount points, attached nowhere yet.
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

/// Makes `root` the root of the namespace, and unmounts what was.
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

/// How far an attribute reaches.
enum Depth {
    /// The mount itself.
    One,
    /// The mount and all below it.
    All,
}

/// Adds attributes to a mount, and cuts it off from the mounts that it is a copy of.
fn set_attributes(mount: BorrowedFd<'_>, attributes: u64, depth: Depth) -> rustix::io::Result<()> {
    let depth = match depth {
        Depth::One => 0,
        Depth::All => libc::AT_RECURSIVE,
    };
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the descriptor is borrowed, the path is an empty string, and the pointer and the size
    // are those of `attributes`, which the kernel only reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | depth,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

fn call(name: &'static str) -> impl Fn(Errno) -> Error {
    move |error| match error {
        Errno::NOSYS => Error::Kernel(name),
        error => Error::Call(name, error.into()),
    }
}
