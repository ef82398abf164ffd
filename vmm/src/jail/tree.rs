//! The shared tree: a mount namespace in which the shares are all there is.
//!
//! [`enter`] leaves the process with a root directory that is a small read-only tmpfs, and in it one
//! mount a share: `c1/rootfs`, `c1/mounts/0` and so on. The host's own mounts are gone from the
//! namespace, so nothing else can be reached by path, whatever is in the shares; and as the mounts exist
//! in this namespace alone, nothing is seen of them on the host and nothing is left when the process
//! dies.
//!
//! A file system that the host's kernel is to mount for the guest (an overlay) is mounted here and nowhere
//! else, with the host's paths still at hand.
//!
//! What joins a living sandbox is added from outside: clone the share before (`open_tree`), enter the
//! process's mount namespace, clone its root the same way, make that clone writable with
//! `mount_setattr` to create the mount point (the tmpfs itself stays writable; what is read-only is its
//! mount here), and `move_mount` the share there. The tmpfs is kept as root for that.
//!
//! Two shares of the same file are two inodes in the guest: they don't share a page cache or locks.
//! Who wants two containers of a sandbox to share a volume shares it once.
#![allow(unsafe_code)] // mount_setattr(2), which no library wraps, and rustix's unshare

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{Pid, WaitOptions, fchdir, pivot_root, waitpid};
use rustix::thread::{
    ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe,
};

use super::proc_numbers;
use super::userns::{self, IdMap};

/// What the tree's own tmpfs may hold: it has directories and empty files, which take no blocks.
const TMPFS_SIZE: &CStr = c"64k";

/// Something of the host's that the guest gets.
#[derive(Debug)]
pub struct Share {
    /// What the user calls it: messages begin with it.
    pub name: String,
    /// What it is.
    pub source: Source,
    /// Where it lies in the tree: a relative path of plain names. No share lies in another one.
    pub target: PathBuf,
}

impl Share {
    /// Opens what is there already once more, by its name, in the mount namespace that this process has
    /// entered since: only mounts of its own namespace can be cloned. Another file of that name by now
    /// is refused.
    ///
    /// # Errors
    /// When it isn't there any more.
    pub fn reopen(&mut self) -> Result<(), Error> {
        match &mut self.source {
            Source::Mounted(mounted) => {
                let reopened = reopen(&mounted.path);
                mounted.path = reopened.map_err(|e| failed(&self.name, "opening it again", e))?;
                Ok(())
            }
            Source::FileSystem(_) => Ok(()),
        }
    }

    /// The descriptor that must stay open until the tree is made.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Mounted(mounted) => Some(mounted.path.as_fd()),
            Source::FileSystem(_) => None,
        }
    }
}

/// What is shared.
#[derive(Debug)]
pub enum Source {
    /// A directory or a file that is there.
    Mounted(Mounted),
    /// A file system that is mounted for the guest alone.
    FileSystem(FileSystem),
}

/// A directory or a file of the host.
#[derive(Debug)]
pub struct Mounted {
    /// Opened by the caller with `O_PATH` in the way that is safe for it: no path is resolved again.
    pub path: OwnedFd,
    /// Whether the mounts below a directory come with it; without, what they cover shows.
    pub recursive: bool,
    /// Whether mounts that the host makes below later come with it too. They come as the host mounts
    /// them.
    pub receives: bool,
    /// Whether the host refuses every change.
    pub read_only: ReadOnly,
    /// How access times are kept.
    pub times: AccessTimes,
    /// Whose the files are in the tree, where not their owners'.
    pub owners: Option<Owners>,
}

impl Mounted {
    /// A directory with all that is mounted below it, or a file, as it is.
    pub fn new(path: OwnedFd) -> Self {
        Self {
            path,
            recursive: true,
            receives: false,
            read_only: ReadOnly::Unchanged,
            times: AccessTimes::default(),
            owners: None,
        }
    }
}

/// How access times are kept, where not as the mounts that are shared do. The host's file system keeps
/// them, so its mount decides; reads that a guest answers from its own memory it never sees.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessTimes {
    /// In the mount itself.
    pub itself: Option<Times>,
    /// In the mount and all below it, after that.
    pub all: Option<Times>,
}

/// A change of how a mount keeps access times, in the attributes of mount_setattr(2).
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// To set: of `MOUNT_ATTR__ATIME`, and `MOUNT_ATTR_NODIRATIME`.
    pub set: u64,
    /// To clear before: all of `MOUNT_ATTR__ATIME` or nothing of it, and `MOUNT_ATTR_NODIRATIME`.
    pub clear: u64,
}

/// A change of owners: mount_setattr(2), `MOUNT_ATTR_IDMAP`. What is inside of the ranges is what the file
/// system has, what is outside is seen in the tree.
#[derive(Clone, Debug)]
pub struct Owners {
    /// What the user calls it: messages begin with it.
    pub name: String,
    /// Of users.
    pub uids: Vec<IdMap>,
    /// Of groups.
    pub gids: Vec<IdMap>,
    /// For the mounts below as well.
    pub recursive: bool,
}

/// Where the host refuses every change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOnly {
    /// Where it does anyway.
    Unchanged,
    /// In the mount itself, or not there.
    Itself(bool),
    /// In the mount and all below it, or nowhere.
    All(bool),
}

/// A file system to mount, in the words of mount(2).
#[derive(Debug)]
pub struct FileSystem {
    /// Its type.
    pub kind: CString,
    /// The device, or whatever the type takes for one.
    pub device: CString,
    /// The flags, `MS_*`.
    pub flags: MountFlags,
    /// Its own options, separated by commas.
    pub options: CString,
}

/// What of the host is still at hand in the tree.
#[derive(Debug)]
pub struct Tree {
    /// For the virtio-fs thread, to find itself in.
    pub threads: Threads,
}

/// This process's `/proc/self/task`, mounted over the tree's root, where no path leads to it.
#[derive(Debug)]
pub struct Threads(OwnedFd);

impl Threads {
    /// The calling thread's `/proc/thread-self/fd`, and nothing above it: virtio-fs opens its inodes
    /// through it. `/proc/self/fd` would be the main thread's, as each thread has descriptors of its own.
    ///
    /// The thread must have a working directory of its own; it is the tree's root afterwards.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn own_descriptors(self) -> Result<File, Error> {
        let own = proc_numbers::of_this_thread(self.0.as_fd());
        let own = own.map_err(|e| Error::Call("finding the thread in /proc", e))?;
        let own = format!("{own}/fd");
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let own = open_tree(&self.0, own, flags).map_err(call("open_tree"))?;
        change(own.as_fd(), Depth::One, SEALED).map_err(call("mount_setattr"))?;
        fchdir(&self.0).map_err(call("fchdir"))?;
        unmount(c".", UnmountFlags::DETACH).map_err(call("umount2(MNT_DETACH)"))?;
        rustix::process::chdir(c"/").map_err(call("chdir"))?;
        Ok(own.into())
    }
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
    /// The owners of a share's files can't be changed.
    #[error("{name}: the host cannot map the owners of these files")]
    Owners {
        /// What the user calls the change.
        name: String,
        /// Why: the file system or the kernel may lack it.
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

/// Makes a tree of `shares` and makes it this process's root and working directory.
///
/// # Errors
/// See [`Error`]. After an error the process may be in a mount namespace of its own, still with the
/// host's mounts; it must end.
pub fn enter(shares: Vec<Share>) -> Result<Tree, Error> {
    check_targets(&shares)?;
    check_single_threaded()?;

    // Mounts can be cloned in the namespace that they belong to, so before the new one.
    let threads =
        clone_mount(CWD, c"/proc/self/task", OpenTreeFlags::empty()).map_err(call("open_tree"))?;
    change(threads.as_fd(), Depth::One, SEALED).map_err(call("mount_setattr"))?;
    let shares = shares
        .into_iter()
        .map(Prepared::new)
        .collect::<Result<Vec<_>, _>>()?;

    // SAFETY: CLONE_NEWNS and the CLONE_FS that it implies touch no other thread: there is none.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(call("unshare(CLONE_NEWNS)"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", private).map_err(call("mount(MS_PRIVATE)"))?;

    let root = new_tmpfs()?;
    mount_over_root(&root)?;
    // All mount points first: none is ever made in a share.
    for share in &shares {
        share.make_mount_point(&root)?;
    }
    for share in &shares {
        share.attach(&root)?;
    }
    change(root.as_fd(), Depth::One, read_only(true)).map_err(call("mount_setattr"))?;
    leave_old_root(&root)?;
    mount_over_root(&threads)?;
    Ok(Tree {
        threads: Threads(threads),
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

/// What holds for every mount of the tree: no set-id bit and no device node has an effect in it, and it
/// is cut off from the mounts that it is a copy of.
const SEALED: libc::mount_attr = libc::mount_attr {
    attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
    attr_clr: 0,
    propagation: libc::MS_PRIVATE,
    userns_fd: 0,
};

/// The same, but what is mounted at the place that it is a copy of is mounted here too.
const RECEIVING: libc::mount_attr = libc::mount_attr {
    propagation: libc::MS_SLAVE,
    ..SEALED
};

const fn read_only(read_only: bool) -> libc::mount_attr {
    let bit = libc::MOUNT_ATTR_RDONLY;
    let (attr_set, attr_clr) = if read_only { (bit, 0) } else { (0, bit) };
    libc::mount_attr {
        attr_set,
        attr_clr,
        propagation: 0,
        userns_fd: 0,
    }
}

const fn keep_times(times: Times) -> libc::mount_attr {
    libc::mount_attr {
        attr_set: times.set,
        attr_clr: times.clear,
        propagation: 0,
        userns_fd: 0,
    }
}

/// A share on its way into the tree.
struct Prepared {
    name: String,
    target: PathBuf,
    is_directory: bool,
    what: What,
}

enum What {
    /// A clone, attached nowhere yet.
    Clone(OwnedFd),
    /// To be mounted at its place.
    FileSystem(FileSystem),
}

impl Prepared {
    fn new(share: Share) -> Result<Self, Error> {
        let Share {
            name,
            source,
            target,
        } = share;
        let (what, is_directory) = match source {
            Source::FileSystem(file_system) => (What::FileSystem(file_system), true),
            Source::Mounted(mounted) => {
                let stat = fstat(&mounted.path).map_err(|e| failed(&name, "fstat", e))?;
                let kind = FileType::from_raw_mode(stat.st_mode);
                let clone = What::Clone(clone_share(&name, &mounted)?);
                (clone, kind == FileType::Directory)
            }
        };
        Ok(Self {
            name,
            target,
            is_directory,
            what,
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
            made.map_err(|e| failed(&self.name, "making the mount point", e))?;
        }
        Ok(())
    }

    fn attach(&self, root: &OwnedFd) -> Result<(), Error> {
        match &self.what {
            What::Clone(clone) => {
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                move_mount(clone, c"", root, &self.target, flags)
                    .map_err(|e| failed(&self.name, "move_mount", e))
            }
            What::FileSystem(new) => {
                // The process's root is the host's still, and so are the paths among the options.
                let root = format!("/proc/self/fd/{}", root.as_raw_fd());
                let target = Path::new(&root).join(&self.target);
                let flags = new.flags | MountFlags::NOSUID | MountFlags::NODEV;
                let options = Some(new.options.as_c_str()).filter(|options| !options.is_empty());
                mount(&new.device, target, &new.kind, flags, options)
                    .map_err(|e| failed(&self.name, "mounting it on the host", e))
            }
        }
    }
}

/// Clones a share's mounts and sets their attributes.
fn clone_share(name: &str, share: &Mounted) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, share.recursive);
    let clone = clone_mount(&share.path, c"", flags).map_err(|e| failed(name, "open_tree", e))?;
    let set = |depth, attributes| {
        change(clone.as_fd(), depth, attributes).map_err(|e| failed(name, "mount_setattr", e))
    };
    let base = if share.receives { RECEIVING } else { SEALED };
    set(Depth::All, base)?;
    match share.read_only {
        ReadOnly::Unchanged => {}
        ReadOnly::Itself(yes) => set(Depth::One, read_only(yes))?,
        ReadOnly::All(yes) => set(Depth::All, read_only(yes))?,
    }
    for (depth, times) in [
        (Depth::One, share.times.itself),
        (Depth::All, share.times.all),
    ] {
        if let Some(times) = times {
            change(clone.as_fd(), depth, keep_times(times))
                .map_err(|e| failed(name, "changing how it keeps access times", e))?;
        }
    }
    if let Some(owners) = &share.owners {
        let failed = |source| Error::Owners {
            name: owners.name.clone(),
            source,
        };
        // The kernel takes the mapping as a user namespace. Nothing ever runs in it, and it lives as
        // long as the mount.
        let namespace = userns::make(&owners.uids, &owners.gids).map_err(failed)?;
        let depth = if owners.recursive {
            Depth::All
        } else {
            Depth::One
        };
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: namespace.as_raw_fd().unsigned_abs().into(),
        };
        let mapped = change(clone.as_fd(), depth, attributes);
        mapped.map_err(|e| failed(userns::failed("map a mount's owners")(e.into())))?;
    }
    Ok(clone)
}

fn reopen(path: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let name = readlinkat(
        CWD,
        format!("/proc/self/fd/{}", path.as_raw_fd()),
        Vec::new(),
    )?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let again = openat2(CWD, &name, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let (before, now) = (fstat(path)?, fstat(&again)?);
    if (before.st_dev, before.st_ino) == (now.st_dev, now.st_ino) {
        Ok(again)
    } else {
        Err(Errno::STALE)
    }
}

fn failed(name: &str, call: &'static str, error: Errno) -> Error {
    match error {
        Errno::NOSYS => Error::Kernel(call),
        error => Error::Share {
            name: name.to_owned(),
            call,
            source: error.into(),
        },
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

/// Attaches a clone on top of the root directory.
fn mount_over_root(clone: &OwnedFd) -> Result<(), Error> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(clone, c"", CWD, c"/", flags).map_err(call("move_mount"))
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

/// Changes a mount's attributes.
fn change(
    mount: BorrowedFd<'_>,
    depth: Depth,
    attributes: libc::mount_attr,
) -> rustix::io::Result<()> {
    let depth = match depth {
        Depth::One => 0,
        Depth::All => libc::AT_RECURSIVE,
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
