//! The view: the mount namespace of the process's first thread, in which the host sees the files as
//! the container does.
//!
//! An engine takes the pid of the VMM process for the container's, enters its mount namespace, and
//! copies files into the container and out of it there. So the main thread, last of all, leaves the
//! tree for a mount namespace of its own. Its root is one of the shares, the others are mounted in it,
//! and there is nothing else: where the guest has file systems of its own, there is an empty one that
//! is read-only, so that what is meant for these fails instead of being written below them.
//!
//! The other threads stay in the tree. None but the virtio-fs thread can open files, and that one
//! can't leave the tree, so the view adds nothing to what a thread in the wrong hands can reach.
//!
//! The view's `/proc` is of this process's pid namespace. No link of it can be followed there, also
//! not by who has entered: they lead to what this process has open, and a path of the container's may
//! lead to them.
#![allow(unsafe_code)] // rustix's unshare

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, fstat, mkdirat,
    openat, openat2,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsmount, fsopen, move_mount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::{Deserialize, Serialize};

use super::attributes::{Depth, change, read_only};
use super::{Error, call, leave_old_root, new_tmpfs};

/// What those see who enter the mount namespace of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The share that is the root, by its path in the tree. It is in a folder.
    pub root: PathBuf,
    /// Whether it is read-only once its mount points are made.
    pub read_only: bool,
    /// Who owns missing mount points that are made.
    pub owner: (u32, u32),
    /// What is mounted in it, in this order.
    pub mounts: Vec<ViewMount>,
}

/// A mount of the view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewMount {
    /// Where; an absolute path in the root, whose links are followed within it.
    pub destination: PathBuf,
    /// What.
    pub content: Content,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A share, by its path in the tree.
    Share(PathBuf),
    /// The processes of this process's pid namespace.
    Processes,
    /// What is the guest's own: an empty directory.
    EmptyDirectory,
    /// What is the guest's own: an empty file.
    EmptyFile,
}

/// A proc file system of the process's pid namespace that is mounted nowhere yet.
#[derive(Debug)]
pub struct Processes(OwnedFd);

impl Processes {
    /// Mounts it; `None` where the host doesn't let it, as in a container with a masked /proc. To be
    /// called before the tree is entered.
    pub fn mount() -> Option<Self> {
        let mounted = || {
            let context = fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(&context)?;
            let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC
                | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW;
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        };
        let mounted: rustix::io::Result<_> = mounted();
        let mounted = mounted.inspect_err(|e| log::debug!("the view has no /proc: {e}"));
        mounted.ok().map(Self)
    }
}

impl View {
    /// Makes the view, in a mount namespace that the calling thread alone is in from then on. The
    /// others stay in the tree that the process has entered.
    ///
    /// A mount that can't be made is left out: the guest says what is wrong with it.
    ///
    /// # Errors
    /// See [`Error`]. The thread may be in the new namespace then, and the process must end.
    pub fn show(self, processes: Option<Processes>) -> Result<(), Error> {
        // SAFETY: this gives the thread a mount namespace, a root and a working directory of its own.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(call("unshare(CLONE_NEWNS)"))?;
        let tree = open(CWD, Path::new("/")).map_err(call("open"))?;
        let root = open(&tree, &self.root).map_err(call("open"))?;
        let sources: Vec<_> = (self.mounts.iter())
            .map(|mount| Source::of(&mount.content, &tree))
            .collect();
        let mut assembly = Assembly {
            root,
            owner: self.owner,
            empty: self.mount_empty(&tree)?,
            made: Vec::new(),
            processes: processes.map(|Processes(mount)| mount),
        };
        for (mount, source) in self.mounts.iter().zip(sources) {
            let added = source.and_then(|source| assembly.add(&mount.destination, source));
            if let Err(e) = added {
                let destination = mount.destination.display();
                log::debug!("the view has no {destination}: {e}");
            }
        }
        assembly
            .seal(self.read_only)
            .map_err(call("mount_setattr"))?;
        leave_old_root(&assembly.root)
    }

    /// Mounts the file system that the empty places are parts of, over the root's folder in the tree,
    /// and so where it goes with the tree. Before Linux 6.15 a mount that is mounted nowhere can't be
    /// cloned.
    fn mount_empty(&self, tree: &OwnedFd) -> Result<OwnedFd, Error> {
        let folder = self
            .root
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.ok_or_else(|| Error::Target(self.root.clone()))?;
        let at = open(tree, folder).map_err(call("open"))?;
        let empty = new_tmpfs()?;
        attach(empty.as_fd(), at.as_fd()).map_err(call("move_mount"))?;
        Ok(empty)
    }
}

/// What is to be mounted.
enum Source {
    /// A share, where it is mounted in the tree.
    Share(OwnedFd),
    Processes,
    Empty {
        is_directory: bool,
    },
}

impl Source {
    fn of(content: &Content, tree: &OwnedFd) -> Result<Self, Errno> {
        Ok(match content {
            Content::Share(target) => Self::Share(open(tree, target)?),
            Content::Processes => Self::Processes,
            Content::EmptyDirectory => Self::Empty { is_directory: true },
            Content::EmptyFile => Self::Empty {
                is_directory: false,
            },
        })
    }

    fn is_directory(&self) -> Result<bool, Errno> {
        match self {
            Self::Share(share) => Ok(FileType::from_raw_mode(fstat(share)?.st_mode).is_dir()),
            Self::Processes => Ok(true),
            Self::Empty { is_directory } => Ok(*is_directory),
        }
    }
}

/// A view in the making.
struct Assembly {
    root: OwnedFd,
    owner: (u32, u32),
    /// A file system that has nothing but the places of what is the guest's own.
    empty: OwnedFd,
    /// The mounts of these.
    made: Vec<OwnedFd>,
    processes: Option<OwnedFd>,
}

impl Assembly {
    fn add(&mut self, destination: &Path, source: Source) -> Result<(), Errno> {
        let is_directory = source.is_directory()?;
        let is_empty = matches!(source, Source::Empty { is_directory: true });
        let at = self.mount_point(destination, is_directory, is_empty)?;
        let mount = match source {
            Source::Processes => self.processes.take(),
            Source::Share(share) => Some(share),
            Source::Empty { .. } => None,
        };
        match mount {
            Some(mount) => attach(mount.as_fd(), at.as_fd()),
            None => self.add_empty(at.as_fd(), is_directory),
        }
    }

    /// Mounts an empty directory or file. It can be written until the view is sealed: mount points
    /// may have to be made in it.
    fn add_empty(&mut self, at: BorrowedFd<'_>, is_directory: bool) -> Result<(), Errno> {
        let name = self.made.len().to_string();
        make(self.empty.as_fd(), &name, is_directory)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = rustix::mount::open_tree(&self.empty, name, flags)?;
        attach(mount.as_fd(), at)?;
        self.made.push(mount);
        Ok(())
    }

    /// The mount point for a destination. What is missing of it is made, as the guest does: there, it
    /// is looked for later.
    fn mount_point(
        &self,
        destination: &Path,
        is_directory: bool,
        is_empty: bool,
    ) -> Result<OwnedFd, Errno> {
        let mut found = open(&self.root, Path::new("."))?;
        let mut path = PathBuf::from(".");
        let names = destination.components();
        let mut names = names
            .filter(|name| !matches!(name, Component::RootDir))
            .peekable();
        if names.peek().is_none() {
            return Err(Errno::INVAL);
        }
        while let Some(name) = names.next() {
            path.push(name);
            found = match self.find(&path) {
                Err(Errno::NOENT) => {
                    let name = Path::new(name.as_os_str());
                    let is_last = names.peek().is_none();
                    make(found.as_fd(), name, is_directory || !is_last)?;
                    if is_last && is_empty {
                        // A tmpfs that covers nothing is everybody's; the guest gives it the mode
                        // of what it covers, and finds this.
                        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        let made = openat(&found, name, flags, Mode::empty())?;
                        fchmod(&made, Mode::from_raw_mode(0o1777))?;
                    }
                    let (uid, gid) = (Uid::from_raw(self.owner.0), Gid::from_raw(self.owner.1));
                    if self.owner != (0, 0) {
                        let flags = AtFlags::SYMLINK_NOFOLLOW;
                        chownat(&found, name, Some(uid), Some(gid), flags)?;
                    }
                    self.find(&path)?
                }
                found => found?,
            };
        }
        Ok(found)
    }

    /// What a path leads to in the view.
    fn find(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, path, flags, Mode::empty(), within)
    }

    /// Has nothing be executed from the view, and makes read-only what is to be.
    fn seal(&self, root_read_only: bool) -> Result<(), Errno> {
        let hardened = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC,
            attr_clr: 0,
            propagation: 0,
            userns_fd: 0,
        };
        change(self.root.as_fd(), Depth::All, hardened)?;
        for mount in &self.made {
            change(mount.as_fd(), Depth::One, read_only(true))?;
        }
        if root_read_only {
            change(self.root.as_fd(), Depth::One, read_only(true))?;
        }
        Ok(())
    }
}

/// Attaches a detached mount, or moves one.
fn attach(mount: BorrowedFd<'_>, at: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", at, c"", flags)
}

/// Makes a directory or an empty file; it is no error if something of that name is there.
fn make(parent: BorrowedFd<'_>, name: impl AsRef<Path>, is_directory: bool) -> Result<(), Errno> {
    let made = if is_directory {
        mkdirat(parent, name.as_ref(), Mode::from_raw_mode(0o755))
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(parent, name.as_ref(), flags, Mode::from_raw_mode(0o644)).map(drop)
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

fn open(directory: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, path, flags, Mode::empty())
}
