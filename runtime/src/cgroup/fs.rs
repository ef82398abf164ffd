//! Making and removing a cgroup by its directory.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;

use super::CgroupError;
use crate::host::wait_for_any;

/// Where cgroup2 is mounted.
pub const MOUNT: &str = "/sys/fs/cgroup";

/// CGROUP2_SUPER_MAGIC of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// How long the dead may take to leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the host's cgroups are version 2, and no others are beside them.
pub fn is_cgroup2() -> bool {
    rustix::fs::statfs(MOUNT).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(CGROUP2_MAGIC))
}

/// The cgroup of this process.
///
/// # Errors
/// When /proc doesn't say.
pub fn own_path() -> Result<PathBuf, CgroupError> {
    parse_own("/proc/self/cgroup")
}

/// The cgroup of a process.
///
/// # Errors
/// When it is gone.
pub fn path_of(pid: i32) -> Result<PathBuf, CgroupError> {
    parse_own(&format!("/proc/{pid}/cgroup"))
}

/// Of cgroup2, which has the id 0 (cgroups(7)): `0::/path`.
fn parse_own(file: &str) -> Result<PathBuf, CgroupError> {
    let failed = |source| failed("look up", Path::new(file), source);
    let text = fs::read_to_string(file).map_err(failed)?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    let path = path.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    Ok(PathBuf::from(path))
}

/// Makes the cgroup with this directory, and those above it, with all controllers on. One that is there
/// is taken.
///
/// # Errors
/// When it can't be made.
pub fn make(directory: &Path, path: &Path) -> Result<(), CgroupError> {
    make_below(Path::new(MOUNT), directory).map_err(|source| failed("make", path, source))
}

/// Whether this user may make the cgroup with this directory.
pub fn may_make(directory: &Path) -> bool {
    let there = directory.ancestors().skip(1).find(|above| above.is_dir());
    there.is_some_and(|above| rustix::fs::access(above, Access::WRITE_OK).is_ok())
}

/// Makes `directory`, level by level from `root`, which is above it.
fn make_below(root: &Path, directory: &Path) -> io::Result<()> {
    let levels = directory.strip_prefix(root).map_err(io::Error::other)?;
    let mut level = root.to_owned();
    for name in levels {
        enable_controllers(&level);
        level.push(name);
        match fs::create_dir(&level) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Gives the controllers that this cgroup has to those below it. Where it can't, a limit that needs one
/// says so when it is set.
fn enable_controllers(directory: &Path) {
    let words = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let available = words("cgroup.controllers");
    let enabled = words("cgroup.subtree_control");
    for name in available.split_ascii_whitespace() {
        if !enabled.split_ascii_whitespace().any(|word| word == name) {
            let written = fs::write(directory.join("cgroup.subtree_control"), format!("+{name}"));
            if let Err(e) = written {
                log::debug!("cgroup {}: no {name} below it: {e}", directory.display());
            }
        }
    }
}

/// How many processes are in a cgroup; one that isn't there has none.
///
/// # Errors
/// When it is frozen, as would be one that joined them.
pub fn count_processes(directory: &Path, path: &Path) -> Result<usize, CgroupError> {
    let read = |file: &str| match fs::read_to_string(directory.join(file)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(|source| failed("read", path, source)),
    };
    if read("cgroup.freeze")?.trim() == "1" {
        return Err(CgroupError::Frozen {
            path: path.to_owned(),
        });
    }
    Ok(read("cgroup.procs")?.lines().count())
}

/// Opens a cgroup's directory, for a process to be born in it.
///
/// # Errors
/// When it is gone.
pub fn open(directory: &Path) -> Result<File, CgroupError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, Mode::empty());
    opened
        .map(File::from)
        .map_err(|e| failed("open", directory, e.into()))
}

/// Removes the cgroup with this directory once its last process has left, which the kernel tells by
/// `cgroup.events`. It is no error if it is gone already.
///
/// Others' processes may be in it: it is left to them then, for the last of them to remove. If
/// `own_ended` says that the VM's process is known to be gone, that is seen at once.
///
/// # Errors
/// When the dead don't leave.
pub fn remove(directory: &Path, path: &Path, own_ended: bool) -> Result<(), CgroupError> {
    let result = wait_until_left(directory, path, own_ended).and_then(|()| {
        hull_cgroup::remove_tree(directory).map_err(|source| failed("remove", path, source))
    });
    match result {
        Err(CgroupError::Io { source, .. }) if is_gone(&source) => Ok(()),
        Err(CgroupError::Io { source, .. }) if is_busy(&source) => {
            let path = path.display();
            log::warn!("cgroup {path} is left to the others' processes in it");
            Ok(())
        }
        other => other,
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::BUSY.raw_os_error())
}

/// # Errors
/// `EBUSY` when others stay in it.
fn wait_until_left(directory: &Path, path: &Path, own_ended: bool) -> Result<(), CgroupError> {
    let failed = |source: io::Error| failed("watch", path, source);
    let others = || hull_cgroup::processes(directory).map(|pids| !pids.is_empty());
    let mut events = File::open(directory.join("cgroup.events")).map_err(failed)?;
    let deadline = Instant::now() + LEAVE_TIMEOUT;
    loop {
        let mut text = String::new();
        events
            .rewind()
            .and_then(|()| events.read_to_string(&mut text))
            .map_err(failed)?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if (own_ended || left.is_zero()) && others().map_err(failed)? {
            return Err(failed(Errno::BUSY.into()));
        }
        if left.is_zero() {
            return Err(CgroupError::Busy {
                path: path.to_owned(),
                seconds: LEAVE_TIMEOUT.as_secs(),
            });
        }
        let mut events = [PollFd::new(&events, PollFlags::PRI)];
        wait_for_any(&mut events, Some(deadline)).map_err(failed)?;
    }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_gives_on_what_it_has() {
        let root = tempfile::tempdir().expect("a directory");
        let file = |name: &str| root.path().join(name);
        fs::write(file("cgroup.controllers"), "cpu io\n").expect("write");
        fs::write(file("cgroup.subtree_control"), "cpu\n").expect("write");
        let directory = root.path().join("a/b");

        make_below(root.path(), &directory).expect("made");

        assert!(directory.is_dir());
        let given = fs::read_to_string(file("cgroup.subtree_control")).expect("read");
        assert_eq!(given, "+io");
        make_below(root.path(), &directory).expect("there");
    }

    #[test]
    fn those_in_a_cgroup_are_counted_unless_they_stand_still() {
        let cgroup = tempfile::tempdir().expect("a directory");
        let directory = cgroup.path();
        let counted = || count_processes(directory, Path::new("/c"));
        assert_eq!(counted().expect("an empty one"), 0);
        fs::write(directory.join("cgroup.procs"), "1\n2\n").expect("write");
        assert_eq!(counted().expect("one in use"), 2);
        fs::write(directory.join("cgroup.freeze"), "1\n").expect("write");
        assert!(matches!(counted(), Err(CgroupError::Frozen { .. })));
    }

    #[test]
    fn one_that_is_gone_is_removed() {
        remove(Path::new("/nonexistent/cgroup"), Path::new("/c"), true).expect("nothing to do");
    }

    #[test]
    fn one_with_others_in_it_is_left_to_them() {
        let cgroup = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            fs::write(cgroup.path().join(name), text).expect("write");
        };
        file("cgroup.events", "populated 1\nfrozen 0\n");
        file("cgroup.procs", "7\n");
        let begun = Instant::now();
        remove(cgroup.path(), Path::new("/c"), true).expect("left");
        assert!(cgroup.path().is_dir() && begun.elapsed() < LEAVE_TIMEOUT);
    }
}
