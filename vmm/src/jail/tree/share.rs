//! Shares, and how each becomes a mount of the tree: a clone of the host's mounts with its own
//! attributes, or a newly mounted file system.
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

use super::attributes::{Depth, HARDENED, HARDENED_SLAVE, access_times, change, read_only};
use super::remote::on_a_thread;
use super::{Error, clone_mount};
use crate::jail::userns::{self, IdMap};

/// Something of the host that is shared with the guest. `Fd` is an open descriptor, or a
/// descriptor's number in the process that inherits it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Share<Fd = OwnedFd> {
    /// The name for error messages, which begin with it.
    pub name: String,
    /// What it is.
    pub source: Source<Fd>,
    /// Its path in the tree: relative, of plain names, and not within another share's.
    pub target: PathBuf,
}

impl Share {
    /// Opens the shared file again by its name, in the mount namespace that this process has
    /// entered since: a process can only clone mounts of its own namespace.
    ///
    /// # Errors
    /// When it doesn't exist any more, or another file has that name now.
    pub fn reopen(&mut self) -> Result<(), Error> {
        match &mut self.source {
            Source::Bind(mounted) => {
                let reopened = reopen(&mounted.path);
                mounted.path = reopened.map_err(|e| failed(&self.name, "opening it again", e))?;
                Ok(())
            }
            Source::FileSystem(_) => Ok(()),
        }
    }
}

impl<Fd> Share<Fd> {
    /// The same share with its descriptor converted by `change`.
    ///
    /// # Errors
    /// When `change` fails.
    pub fn with<'a, To, E>(
        &'a self,
        change: impl FnOnce(&'a Fd) -> Result<To, E>,
    ) -> Result<Share<To>, E> {
        let source = match &self.source {
            Source::FileSystem(file_system) => Source::FileSystem(file_system.clone()),
            Source::Bind(mounted) => Source::Bind(BindMount {
                path: change(&mounted.path)?,
                recursive: mounted.recursive,
                receives_propagation: mounted.receives_propagation,
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
    /// An existing directory or file, which is bind-mounted.
    Bind(BindMount<Fd>),
    /// A file system that is mounted for this guest only.
    FileSystem(FileSystem),
}

/// A bind mount of a directory or a file of the host.
#[derive(Debug, Serialize, Deserialize)]
pub struct BindMount<Fd = OwnedFd> {
    /// The directory or file, opened with `O_PATH` by the caller, who resolved the path safely.
    pub path: Fd,
    /// Whether the mounts below a directory are included (rbind); if not, the files that they cover
    /// are visible.
    pub recursive: bool,
    /// Whether later mounts of the host below it propagate to the tree (rslave). They appear with
    /// the host's attributes.
    pub receives_propagation: bool,
    /// Which of its mounts are read-only.
    pub read_only: ReadOnly,
    /// How its mounts update access times.
    pub times: AccessTimes,
    /// The id mapping of an idmapped mount.
    pub owners: Option<Owners>,
}

impl BindMount {
    /// A recursive bind mount with the attributes of the host's mounts.
    pub fn new(path: OwnedFd) -> Self {
        Self {
            path,
            recursive: true,
            receives_propagation: false,
            read_only: ReadOnly::Unchanged,
            times: AccessTimes::default(),
            owners: None,
        }
    }
}

/// How access times are updated, if not as by the host's mounts. The host's file system updates
/// them, so the attributes of its mount in the tree apply; reads that the guest serves from its own
/// page cache don't count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessTimes {
    /// For the mount itself.
    pub itself: Option<Times>,
    /// For the mount and all below it; applied after `itself`.
    pub all: Option<Times>,
}

/// How a mount updates access times, as attributes for mount_setattr(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// The attributes to set: a value of `MOUNT_ATTR__ATIME`, and `MOUNT_ATTR_NODIRATIME`.
    pub set: u64,
    /// The attributes to clear first: all of `MOUNT_ATTR__ATIME` or nothing of it, and
    /// `MOUNT_ATTR_NODIRATIME`.
    pub clear: u64,
}

/// The id mapping of an idmapped mount (mount_setattr(2), `MOUNT_ATTR_IDMAP`). The ids inside are
/// those in the file system, the ids outside are those that the tree shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owners {
    /// The name for error messages, which begin with it.
    pub name: String,
    /// The mapping of user ids.
    pub uids: Vec<IdMap>,
    /// The mapping of group ids.
    pub gids: Vec<IdMap>,
    /// Whether it applies to the mounts below as well.
    pub recursive: bool,
}

/// Which mounts of a share are read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOnly {
    /// Those that are read-only on the host.
    Unchanged,
    /// Makes the mount itself read-only (`true`) or writable.
    Itself(bool),
    /// Makes the mount and all below it read-only (`true`) or writable.
    All(bool),
}

/// A file system to mount: the arguments of mount(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Its type.
    pub kind: String,
    /// The source: a device, or what the file system's type expects instead.
    pub device: String,
    /// The flags, `MS_*`.
    pub flags: u32,
    /// Its own options, separated by commas.
    pub options: String,
}

/// A share that is ready to be attached to the tree.
pub(super) struct Prepared {
    name: String,
    target: PathBuf,
    is_directory: bool,
    mount: PreparedMount,
}

enum PreparedMount {
    /// A detached mount, to be attached by move_mount(2).
    Detached(OwnedFd),
    /// A file system, to be mounted at its target.
    FileSystem(FileSystem),
}

impl Prepared {
    /// A detached mount that is there already.
    pub fn of_mount(target: &str, is_directory: bool, mount: OwnedFd) -> Self {
        Self {
            name: target.to_owned(),
            target: target.into(),
            is_directory,
            mount: PreparedMount::Detached(mount),
        }
    }

    /// Clones the mounts of a bind mount. To be called in the mount namespace that they belong to.
    ///
    /// # Errors
    /// Names the share.
    pub fn new(share: Share) -> Result<Self, Error> {
        let Share {
            name,
            source,
            target,
        } = share;
        let (mount, is_directory) = match source {
            Source::FileSystem(file_system) => (PreparedMount::FileSystem(file_system), true),
            Source::Bind(mounted) => {
                let stat = fstat(&mounted.path).map_err(|e| failed(&name, "fstat", e))?;
                let kind = FileType::from_raw_mode(stat.st_mode);
                let clone = PreparedMount::Detached(clone_share(&name, &mounted)?);
                (clone, kind == FileType::Directory)
            }
        };
        Ok(Self {
            name,
            target,
            is_directory,
            mount,
        })
    }

    /// Creates the mount point: a directory or an empty file.
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

    /// Attaches or mounts it at its mount point.
    ///
    /// # Errors
    /// Names the share.
    pub fn attach(&self, root: &OwnedFd) -> Result<(), Error> {
        match &self.mount {
            PreparedMount::Detached(clone) => {
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                move_mount(clone, c"", root, &self.target, flags)
                    .map_err(|e| failed(&self.name, "move_mount", e))
            }
            PreparedMount::FileSystem(new) => {
                // The root directory is still the host's, so that the paths among the options
                // resolve there.
                let root = format!("/proc/self/fd/{}", root.as_raw_fd());
                let target = Path::new(&root).join(&self.target);
                new.mount(&target)
                    .map_err(|e| failed(&self.name, "mounting it on the host", e))
            }
        }
    }

    /// Mounts a file system as a detached mount. The paths among its options are resolved in the
    /// calling thread's root.
    ///
    /// # Errors
    /// Names the share.
    pub fn mount(&mut self) -> Result<(), Error> {
        if let PreparedMount::FileSystem(new) = &self.mount {
            let mounted = new.mount_detached();
            let mounted = mounted.map_err(|e| failed(&self.name, "mounting it on the host", e))?;
            self.mount = PreparedMount::Detached(mounted);
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

    /// Mounts it in a temporary mount namespace, and returns a clone of that mount. fsmount(2)
    /// would create a detached mount directly, but fsconfig(2) takes the options one by one, and
    /// they are given here as a single string for mount(2).
    fn mount_detached(&self) -> rustix::io::Result<OwnedFd> {
        // Some directory that no path among the options leads through.
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
            change(clone.as_fd(), Depth::One, HARDENED)?;
            Ok(clone)
        })
    }
}

/// Clones a share's mounts and sets their attributes.
fn clone_share(name: &str, share: &BindMount) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, share.recursive);
    let clone = clone_mount(&share.path, c"", flags).map_err(|e| failed(name, "open_tree", e))?;
    let set = |depth, attributes| {
        change(clone.as_fd(), depth, attributes).map_err(|e| failed(name, "mount_setattr", e))
    };
    let base = if share.receives_propagation {
        HARDENED_SLAVE
    } else {
        HARDENED
    };
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
            change(clone.as_fd(), depth, access_times(times))
                .map_err(|e| failed(name, "changing how it keeps access times", e))?;
        }
    }
    if let Some(owners) = &share.owners {
        let failed = |source| Error::Owners {
            name: owners.name.clone(),
            source,
        };
        // The kernel takes the mapping in the form of a user namespace. No process runs in it, and
        // it exists as long as the mount.
        let namespace = userns::create(&owners.uids, &owners.gids).map_err(failed)?;
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
