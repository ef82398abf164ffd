//! What is shared, and how it becomes a mount of the tree: a clone of the host's mounts with attributes of
//! its own, or a file system that is mounted at its place.
#![allow(unsafe_code)] // rustix's unshare

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change,
    move_mount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::{Deserialize, Serialize};

use super::attributes::{Depth, RECEIVING, SEALED, change, keep_times, read_only};
use super::living::on_a_thread;
use super::{Error, clone_mount};
use crate::jail::userns::{self, IdMap};

/// Something of the host's that the guest gets. Its descriptor is this process's own, or, where it is told to a
/// process that inherits it, that one's number.
#[derive(Debug, Serialize, Deserialize)]
pub struct Share<Fd = OwnedFd> {
    /// What the user calls it: messages begin with it.
    pub name: String,
    /// What it is.
    pub source: Source<Fd>,
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
}

impl<Fd> Share<Fd> {
    /// The same share, with another descriptor.
    ///
    /// # Errors
    /// When `change` fails.
    pub fn with<'a, To, E>(
        &'a self,
        change: impl FnOnce(&'a Fd) -> Result<To, E>,
    ) -> Result<Share<To>, E> {
        let source = match &self.source {
            Source::FileSystem(file_system) => Source::FileSystem(file_system.clone()),
            Source::Mounted(mounted) => Source::Mounted(Mounted {
                path: change(&mounted.path)?,
                recursive: mounted.recursive,
                receives: mounted.receives,
                read_only: mounted.read_only,
                times: mounted.times,
                owners: mounted.owners.clone(),
            }),
        };
        Ok(Share {
            name: self.name.clone(),
            target: self.target.clone(),
            source,
        })
    }
}

/// What is shared.
#[derive(Debug, Serialize, Deserialize)]
pub enum Source<Fd = OwnedFd> {
    /// A directory or a file that is there.
    Mounted(Mounted<Fd>),
    /// A file system that is mounted for the guest alone.
    FileSystem(FileSystem),
}

/// A directory or a file of the host.
#[derive(Debug, Serialize, Deserialize)]
pub struct Mounted<Fd = OwnedFd> {
    /// Opened by the caller with `O_PATH` in the way that is safe for it: no path is resolved again.
    pub path: Fd,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessTimes {
    /// In the mount itself.
    pub itself: Option<Times>,
    /// In the mount and all below it, after that.
    pub all: Option<Times>,
}

/// A change of how a mount keeps access times, in the attributes of mount_setattr(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// To set: of `MOUNT_ATTR__ATIME`, and `MOUNT_ATTR_NODIRATIME`.
    pub set: u64,
    /// To clear before: all of `MOUNT_ATTR__ATIME` or nothing of it, and `MOUNT_ATTR_NODIRATIME`.
    pub clear: u64,
}

/// A change of owners: mount_setattr(2), `MOUNT_ATTR_IDMAP`. What is inside of the ranges is what the file
/// system has, what is outside is seen in the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOnly {
    /// Where it does anyway.
    Unchanged,
    /// In the mount itself, or not there.
    Itself(bool),
    /// In the mount and all below it, or nowhere.
    All(bool),
}

/// A file system to mount, in the words of mount(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Its type.
    pub kind: String,
    /// The device, or whatever the type takes for one.
    pub device: String,
    /// The flags, `MS_*`.
    pub flags: u32,
    /// Its own options, separated by commas.
    pub options: String,
}

/// A share on its way into the tree.
pub(super) struct Prepared {
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
    /// Clones what there is already, in the mount namespace that it belongs to.
    ///
    /// # Errors
    /// Names the share.
    pub fn new(share: Share) -> Result<Self, Error> {
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
    ///
    /// # Errors
    /// Names the share.
    pub fn make_mount_point(&self, root: &OwnedFd) -> Result<(), Error> {
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

    /// Mounts it there.
    ///
    /// # Errors
    /// Names the share.
    pub fn attach(&self, root: &OwnedFd) -> Result<(), Error> {
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
                new.mount(&target)
                    .map_err(|e| failed(&self.name, "mounting it on the host", e))
            }
        }
    }

    /// Mounts a file system before its place is at hand. The paths among its options are the calling thread's.
    ///
    /// # Errors
    /// Names the share.
    pub fn mount(&mut self) -> Result<(), Error> {
        if let What::FileSystem(new) = &self.what {
            let mounted = new.mount_detached();
            let mounted = mounted.map_err(|e| failed(&self.name, "mounting it on the host", e))?;
            self.what = What::Clone(mounted);
        }
        Ok(())
    }
}

impl FileSystem {
    fn mount(&self, target: &Path) -> rustix::io::Result<()> {
        let flags = MountFlags::from_bits_retain(self.flags);
        let flags = flags | MountFlags::NOSUID | MountFlags::NODEV;
        let options = CString::new(self.options.as_str()).map_err(|_| Errno::INVAL)?;
        let options = Some(options.as_c_str()).filter(|text| !text.is_empty());
        mount(&self.device, target, &self.kind, flags, options)
    }

    /// Mounts it in a mount namespace that ends with this call, and returns a clone of that mount. mount(2) takes all
    /// options in one text; the calls that make a mount without a place, fsconfig(2), want them apart.
    fn mount_detached(&self) -> rustix::io::Result<OwnedFd> {
        // No option's path leads through it.
        const PLACE: &CStr = c"/sys";
        on_a_thread(|| {
            // SAFETY: the mount namespace and the root that come with it are this thread's alone.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
            mount_change(
                c"/",
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            )?;
            self.mount(Path::new(OsStr::from_bytes(PLACE.to_bytes())))?;
            let clone = clone_mount(CWD, PLACE, OpenTreeFlags::empty())?;
            change(clone.as_fd(), Depth::One, SEALED)?;
            Ok(clone)
        })
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
