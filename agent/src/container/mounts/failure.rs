//! Which mount it is that libcontainer can't make, and why.
//!
//! Its errors say neither. Its log has the mount, as `Debug` prints it, but of a system call only that it
//! failed. So the mount is known by that print; and what the kernel may not like, the place, the type
//! of a new file system and its options, the kernel is asked once more, by the process that was refused.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use super::file_system::{self, Refused};
use super::is_bind;
use super::options::Options;
use crate::container::devices::DEV;
use crate::error::Failure;

/// A mount that is left to libcontainer.
#[derive(Debug)]
pub struct Theirs {
    /// Its place in config.json's `mounts`.
    index: usize,
    /// As libcontainer gets it.
    mount: Mount,
    /// The container's root.
    root: PathBuf,
}

impl Theirs {
    /// The mount at this place in `mounts`.
    pub fn new(index: usize, mount: &Mount, root: &Path) -> Self {
        Self {
            index,
            mount: mount.clone(),
            root: root.to_owned(),
        }
    }

    /// What the user is to be told if `logged` is of this mount's failure.
    pub fn failure(&self, logged: &str) -> Option<Failure> {
        let (_, cause) = logged.split_once(&self.printed())?;
        let why = match self.place().and_then(|()| self.try_again()) {
            Err(refused) => refused.to_string(),
            Ok(()) => cause.trim_start_matches(": ").to_owned(),
        };
        let destination = self.mount.destination().display();
        let what = match self.mount.typ().as_deref() {
            Some(kind) if !is_bind(&self.mount) => format!("cannot mount {kind}"),
            _ => "cannot bind it there".to_owned(),
        };
        let index = self.index;
        Some(Failure::config(format!(
            "mounts[{index}]: {destination}: {what}: {why}"
        )))
    }

    /// As libcontainer's log has it.
    fn printed(&self) -> String {
        match self.mount.destination() {
            dev if dev == Path::new(DEV) => format!("mount {}", dev.display()),
            _ => format!("{:?}", self.mount),
        }
    }

    /// Looks whether it can be where it is to be: what isn't there yet, libcontainer makes.
    fn place(&self) -> Result<(), Refused> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let open = |folder: BorrowedFd<'_>, path: &Path| {
            openat2(folder, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
        };
        let is_folder =
            |file: OwnedFd| fstat(file).map(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
        let found = openat(CWD, &self.root, flags, Mode::empty())
            .and_then(|root| open(root.as_fd(), self.mount.destination()))
            .and_then(is_folder);
        let folder = match found {
            Err(Errno::NOENT) => return Ok(()),
            found => found.map_err(Refused::Whole)?,
        };
        let source = self.mount.source().as_ref();
        let wanted = match source.filter(|_| is_bind(&self.mount)) {
            Some(source) => openat(CWD, source, flags, Mode::empty()).and_then(is_folder),
            None => Ok(true),
        };
        match wanted.map_err(Refused::Whole)? {
            true if !folder => Err(Refused::Whole(Errno::NOTDIR)),
            false if folder => Err(Refused::Whole(Errno::ISDIR)),
            _ => Ok(()),
        }
    }

    /// Makes the file system without mounting it.
    fn try_again(&self) -> Result<(), Refused> {
        if is_bind(&self.mount) {
            return Ok(());
        }
        let kind = self.mount.typ().as_deref().unwrap_or_default();
        let options = Options::read(&self.mount).file_system();
        file_system::make(kind, self.mount.source().as_deref(), options).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(mount: serde_json::Value, logged: impl Fn(&Mount) -> String) -> Option<String> {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("file"), "").expect("write");
        let mount: Mount = serde_json::from_value(mount).expect("a mount");
        let failure = Theirs::new(3, &mount, root.path()).failure(&logged(&mount));
        failure.map(|failure| failure.message)
    }

    #[test]
    fn a_mount_is_known_by_the_librarys_print_of_it() {
        let bind =
            json!({"destination": "/a", "type": "bind", "source": "/x", "options": ["bind"]});
        let logged = |mount: &Mount| format!("failed to mount {mount:?}: not a directory");
        let expected = "config.json: mounts[3]: /a: cannot bind it there: not a directory";
        assert_eq!(told(bind.clone(), logged).as_deref(), Some(expected));
        let others =
            |_: &Mount| "failed to mount Mount { destination: \"/b\" }: syscall".to_owned();
        assert_eq!(told(bind, others), None);
    }

    #[test]
    fn a_place_that_is_none_is_told() {
        let told_of = |destination: &str| {
            let bind = json!({"destination": destination, "source": "/proc", "options": ["bind"]});
            told(bind, |mount| format!("failed to mount {mount:?}: syscall"))
        };
        let expected = |place| {
            format!("config.json: mounts[3]: {place}: cannot bind it there: not a directory")
        };
        for place in ["/file", "/file/below"] {
            assert_eq!(told_of(place), Some(expected(place)));
        }
        assert!(told_of("/new").is_some_and(|said| said.ends_with(": syscall")));
    }

    #[test]
    fn a_file_system_that_there_is_not_is_told() {
        let mount = json!({"destination": "/dev", "type": "nonsense", "source": "x"});
        let logged = |_: &Mount| "failed to mount /dev: syscall".to_owned();
        let said = told(mount, logged).expect("it is that mount");
        // Only root may ask.
        if rustix::process::geteuid().is_root() {
            let expected = "config.json: mounts[3]: /dev: cannot mount nonsense: the guest's kernel has no such file system";
            assert_eq!(said, expected);
        }
    }
}
