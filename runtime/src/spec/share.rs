//! A share, as it is planned and as it is told to the VMM process: what the guest sees of the host's
//! files.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// Something of the host's in the shared tree. Its descriptor is this process's own in a plan, and a
/// number of the VMM process's in what that is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Share<Fd = OwnedFd> {
    /// The field of config.json that asks for it, for messages.
    pub name: String,
    /// Its place in the tree.
    pub target: String,
    /// What it is.
    pub source: Source<Fd>,
}

/// What is shared.
#[derive(Debug, Serialize, Deserialize)]
pub enum Source<Fd> {
    /// A file or folder that is there.
    Mounted(Mounted<Fd>),
    /// A file system that the host mounts for the guest alone.
    FileSystem(FileSystem),
}

/// A file or folder of the host.
#[derive(Debug, Serialize, Deserialize)]
pub struct Mounted<Fd> {
    /// Opened with O_PATH.
    pub path: Fd,
    /// Whether the mounts below a folder come with it.
    pub recursive: bool,
    /// Whether the mounts that the host makes below it later come with it too.
    pub receives: bool,
    /// Where the host refuses writes.
    pub read_only: ReadOnly,
    /// How the host keeps access times.
    pub times: AccessTimes,
    /// Whose the files are for the guest, where not their owners'.
    pub owners: Option<Owners>,
}

/// Where the host refuses writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOnly {
    /// Where it does anyway.
    Unchanged,
    /// In the mount itself, or not there.
    Itself(bool),
    /// In the mount and all below it, or nowhere.
    All(bool),
}

/// How access times are kept, where not as the mounts of the source do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessTimes {
    /// In the mount itself.
    pub itself: Option<Times>,
    /// In the mount and all below it, after that.
    pub all: Option<Times>,
}

/// A change of how a mount keeps access times: attributes to set, and to clear before, `MOUNT_ATTR_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// To set.
    pub set: u64,
    /// To clear.
    pub clear: u64,
}

/// A change of owners.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Owners {
    /// The field of config.json that asks for it, for messages.
    pub name: String,
    /// Of users: the first id on disk, what the guest sees it as, and how many there are.
    pub uids: Vec<(u32, u32, u32)>,
    /// Of groups, the same.
    pub gids: Vec<(u32, u32, u32)>,
    /// For the mounts below as well.
    pub recursive: bool,
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
