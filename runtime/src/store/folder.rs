//! One folder below `--root`: its files are reached through its descriptor, whatever becomes of its name.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{StoreError, StoreKey};
use crate::host::{ProcessId, Staged};
use crate::types::{ContainerId, RESERVED};

/// The names of the files that a container's folder can hold, and those they have while they are written.
pub mod files {
    /// A container's record.
    pub const CONTAINER: &str = "state.json";
    pub const CONTAINER_NEW: &str = "state.json.new";
    /// A sandbox's.
    pub const SANDBOX: &str = "sandbox.json";
    pub const SANDBOX_NEW: &str = "sandbox.json.new";
    /// The config.json that a container was created from.
    pub const CONFIG: &str = "config.json";
    pub const CONFIG_NEW: &str = "config.json.new";
    /// What the guest's kernel and agent say.
    pub const CONSOLE: &str = "console.log";
    /// The interfaces that the follower has connected.
    pub const INTERFACES: &str = "interfaces";
    /// The control socket.
    pub const SOCKET: &str = "vsock.sock";

    pub const ALL: [&str; 9] = [
        CONTAINER_NEW,
        SANDBOX_NEW,
        CONFIG_NEW,
        SOCKET,
        INTERFACES,
        CONSOLE,
        CONFIG,
        CONTAINER,
        SANDBOX,
    ];
}

/// The largest record or config.json that is read, in bytes: annotations are the user's.
const FILE_LIMIT: u64 = 8 << 20;

/// A folder that is open.
#[derive(Debug)]
pub struct Folder {
    pub(super) id: ContainerId,
    pub(super) path: PathBuf,
    pub(super) root: OwnedFd,
    pub(super) dir: OwnedFd,
}

impl Folder {
    /// Opens the folder `name` of the store whose folder is `root`, as that of a container with this id.
    pub(super) fn open(
        root: &OwnedFd,
        path: &Path,
        id: &ContainerId,
        name: &str,
    ) -> Result<Self, Errno> {
        let root = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
        let dir = open_dir(&root, name)?;
        Ok(Self {
            id: id.clone(),
            path: path.join(id.as_str()),
            root,
            dir,
        })
    }

    /// The folder of an existing container in the store whose folder is `root`.
    ///
    /// # Errors
    /// When there is no such container.
    pub(super) fn find(root: &OwnedFd, path: &Path, id: &ContainerId) -> Result<Self, StoreError> {
        match Self::open(root, path, id, id.as_str()) {
            Ok(folder) => Ok(folder),
            Err(Errno::NOENT) => Err(StoreError::Missing(id.clone())),
            Err(e) => Err(failed("open", &path.join(id.as_str()), e)),
        }
    }

    /// The folder of another container of the same store.
    ///
    /// # Errors
    /// When there is no such container.
    pub(super) fn beside(&self, id: &ContainerId) -> Result<Self, StoreError> {
        let store = self.path.parent().unwrap_or(&self.path);
        Self::find(&self.root, store, id)
    }

    /// Whether this is still the folder of that name.
    pub(super) fn is_there(&self) -> bool {
        let named = rustix::fs::statat(&self.root, self.id.as_str(), AtFlags::SYMLINK_NOFOLLOW);
        let named = named.map(|stat| (stat.st_dev, stat.st_ino));
        let own = rustix::fs::fstat(&self.dir).map(|stat| (stat.st_dev, stat.st_ino));
        named.is_ok() && named == own
    }

    /// A descriptor whose lock, flock(2), is its own.
    pub(super) fn open_again(&self) -> io::Result<File> {
        Ok(open_dir(&self.dir, ".")?.into())
    }

    /// How a process can name the store that this is in.
    pub(super) fn store_key(&self) -> io::Result<StoreKey> {
        Ok(StoreKey::of(&self.root)?)
    }

    /// A path to a file in it that fits into `sun_path`, however long `--root` is. It works in this process only,
    /// while this value lives.
    pub(super) fn short_path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.dir.as_fd().as_raw_fd()).into()
    }

    /// The whole of a file, but no more than its limit.
    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.read_last(name, u64::MAX)
    }

    /// The last bytes of a file, as many as that.
    pub(super) fn read_last(&self, name: &str, bytes: u64) -> io::Result<Vec<u8>> {
        // Whatever somebody has put there is not waited for, and not read without end.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.dir, name, flags, Mode::empty())?);
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let before = about.len().saturating_sub(bytes);
        if before > 0 {
            file.seek(SeekFrom::Start(before))?;
        }
        let mut text = Vec::new();
        file.take(bytes.min(FILE_LIMIT)).read_to_end(&mut text)?;
        Ok(text)
    }

    /// Reads the record of this folder's container or sandbox.
    ///
    /// # Errors
    /// When the container is gone, or the file damaged, or another's: `id` tells whose it is.
    pub(super) fn read_record<T: DeserializeOwned>(
        &self,
        name: &str,
        id: impl FnOnce(&T) -> &ContainerId,
    ) -> Result<T, StoreError> {
        let read = || -> io::Result<T> {
            let record: T = serde_json::from_slice(&self.read(name)?)?;
            match id(&record) {
                id if *id == self.id => Ok(record),
                id => Err(io::Error::other(format!("it is the record of {id}"))),
            }
        };
        read().map_err(|e| self.unreadable(name, e))
    }

    /// What a record that can't be read means.
    fn unreadable(&self, name: &str, source: io::Error) -> StoreError {
        // These are about who reads.
        const READERS: [Errno; 5] = [
            Errno::ACCESS,
            Errno::PERM,
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
        ];
        match Errno::from_io_error(&source) {
            Some(Errno::NOENT) if !self.is_there() => StoreError::Missing(self.id.clone()),
            Some(errno) if READERS.contains(&errno) => self.failed("read", name, source),
            _ => StoreError::Damaged {
                id: self.id.clone(),
                path: self.path.join(name),
                source,
            },
        }
    }

    /// Replaces a record: a reader sees the old one or the new one.
    ///
    /// # Errors
    /// When it can't be written; the old one then stays.
    pub(super) fn write_record(
        &self,
        name: &'static str,
        temporary: &'static str,
        record: &impl Serialize,
    ) -> Result<(), StoreError> {
        let staged = self.stage(name, temporary, record)?;
        staged.keep().map_err(|e| self.failed("write", name, e))
    }

    /// Writes down what is to be a file's contents once all else is done: what may fail comes first.
    ///
    /// # Errors
    /// When it can't be written.
    pub(super) fn stage(
        &self,
        name: &'static str,
        temporary: &'static str,
        record: &impl Serialize,
    ) -> Result<Staged<'_>, StoreError> {
        serde_json::to_vec(record)
            .map_err(io::Error::from)
            .and_then(|text| Staged::write(self.dir.as_fd(), name, temporary, &text))
            .map_err(|e| self.failed("write", name, e))
    }

    /// An operation on a file of it has failed.
    pub(super) fn failed(
        &self,
        what: &'static str,
        name: &str,
        source: impl Into<io::Error>,
    ) -> StoreError {
        failed(what, &self.path.join(name), source)
    }
}

/// The name of a container's folder while it isn't whole, with the process that is at work: a file's name also
/// for the longest id.
pub(super) fn hidden(prefix: &str, id: &ContainerId) -> String {
    const OF_THE_ID: usize = 200;
    let pid = std::process::id().cast_signed();
    let start_time = ProcessId::of(pid).map_or(0, |process| process.start_time);
    format!("{prefix}{:.OF_THE_ID$}-{pid}.{start_time}", id.as_str())
}

/// Whether the process that is at work in a hidden folder still lives.
pub(super) fn is_at_work(hidden: &str) -> bool {
    let process = || {
        let (pid, start_time) = hidden.rsplit_once('-')?.1.split_once('.')?;
        let (pid, start_time) = (pid.parse().ok()?, start_time.parse().ok()?);
        Some(ProcessId { pid, start_time })
    };
    process().is_some_and(|process| process.is_alive())
}

/// Whether a folder's name is that of one that isn't whole.
pub(super) fn is_hidden(name: &str) -> bool {
    name.starts_with(RESERVED.creating) || name.starts_with(RESERVED.deleting)
}

/// Removes what is hull's of a folder, then what is somebody else's.
pub(super) fn remove(root: &OwnedFd, name: &str, path: &Path) {
    if let Ok(dir) = open_dir(root, name) {
        for file in files::ALL {
            let _ = rustix::fs::unlinkat(&dir, file, AtFlags::empty());
        }
    }
    let removed = match rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY) => fs::remove_dir_all(path),
        other => other.map_err(io::Error::from),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            log::warn!("cannot remove {}: {e}", path.display());
        }
        _ => {}
    }
}

pub(super) fn open_dir<P: rustix::path::Arg>(at: impl AsFd, path: P) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

pub(super) fn failed(what: &'static str, path: &Path, source: impl Into<io::Error>) -> StoreError {
    StoreError::Io {
        what,
        path: path.to_owned(),
        source: source.into(),
    }
}
