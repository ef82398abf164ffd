//! Resolves the destinations of mounts as runc does, within the container's root, and makes the mount points.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2, readlinkat};
use rustix::io::Errno;

use super::{is_bind, is_directory};
use crate::container::in_root::{self, Symlinks};

/// How many symbolic links a path may have, as in path_resolution(7).
const MAX_SYMLINKS: usize = 40;

/// The files of /proc that may be mounted on, by runc's list: lxcfs and the like provide them per container.
const ALLOWED_IN_PROC: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// The file that a mount is put on.
#[derive(Debug)]
pub struct MountPoint {
    /// Opened with O_PATH.
    pub file: OwnedFd,
    /// Whether it existed before.
    pub existed: bool,
}

impl MountPoint {
    /// Opens a path in a root, which has no symbolic links, as the mount point of a directory or of another file.
    /// What is missing is made.
    ///
    /// # Errors
    /// When it can't be made, or when only one of the two is a directory.
    pub fn make(root: BorrowedFd<'_>, path: &Path, directory: bool) -> Result<Self, Errno> {
        let (file, existed) = match in_root::open(root, path, Symlinks::Refuse) {
            Err(Errno::NOENT) if directory => (
                in_root::open_or_make_directory(root, path, Symlinks::Refuse)?,
                false,
            ),
            Err(Errno::NOENT) => (
                in_root::open_or_make_file(root, path, Symlinks::Refuse)?,
                false,
            ),
            found => (found?, true),
        };
        match is_directory(&file)? {
            true if !directory => Err(Errno::ISDIR),
            false if directory => Err(Errno::NOTDIR),
            _ => Ok(Self { file, existed }),
        }
    }
}

/// Resolves a mount's destination in a root.
///
/// # Errors
/// Says why it may not be mounted there.
pub fn resolve_destination(root: BorrowedFd<'_>, mount: &Mount) -> Result<PathBuf, String> {
    let named = mount.destination();
    let kind = mount.typ().as_deref();
    let destination = resolve(root, named).map_err(|e| format!("{}: {e}", named.display()))?;
    // Paths in these two are masked by name, so symbolic links must not redirect them.
    if matches!(kind, Some("proc" | "sysfs")) && !is_bind(mount) {
        let redirected = destination != Path::new("/").join(names(named).collect::<PathBuf>());
        return match redirected {
            true => Err(format!("{named:?} must be mounted on ordinary directory")),
            false => Ok(destination),
        };
    }
    let binds_guest_proc = is_bind(mount) && mount.source().as_deref() == Some(Path::new("/proc"));
    if destination == Path::new("/proc") && !binds_guest_proc {
        return Err(format!(
            "{named:?} cannot be mounted because it is not of type proc"
        ));
    }
    if destination.starts_with("/proc/")
        && !binds_guest_proc
        && !ALLOWED_IN_PROC
            .iter()
            .any(|path| destination == Path::new(path))
    {
        return Err(format!(
            "{named:?} cannot be mounted because it is inside /proc"
        ));
    }
    Ok(destination)
}

/// Follows the symbolic links of a path within a root; components that don't exist are kept as they are. If a link
/// is changed afterwards, what is opened is still within the root.
fn resolve(root: BorrowedFd<'_>, path: &Path) -> Result<PathBuf, Errno> {
    let mut rest: VecDeque<OsString> = names(path).collect();
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == OsStr::new("..") {
            done.pop();
            continue;
        }
        done.push(name);
        let Some(target) = symlink_target(root, &done) else {
            continue;
        };
        links += 1;
        if links > MAX_SYMLINKS {
            return Err(Errno::LOOP);
        }
        if target.is_absolute() {
            done.clear();
        } else {
            done.pop();
        }
        for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
            rest.push_front(name);
        }
    }
    Ok(Path::new("/").join(done))
}

/// The target of a symbolic link; `None` if the path is none.
fn symlink_target(root: BorrowedFd<'_>, path: &Path) -> Option<PathBuf> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
    let target = readlinkat(&link, "", Vec::new()).ok()?;
    Some(PathBuf::from(OsString::from_vec(target.into_bytes())))
}

/// The components of a path, including `..`.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn root() -> (TempDir, File) {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("run/data")).expect("a directory");
        fs::create_dir(root.path().join("var")).expect("a directory");
        fs::write(root.path().join("file"), "").expect("a file");
        symlink("/run", root.path().join("var/run")).expect("a link");
        symlink("../../../run/./data", root.path().join("up")).expect("a link");
        symlink("loop", root.path().join("loop")).expect("a link");
        symlink("proc/sys", root.path().join("hidden")).expect("a link");
        let opened = File::open(root.path()).expect("a root");
        (root, opened)
    }

    fn mount(destination: &str) -> Mount {
        serde_json::from_value(json!({"destination": destination, "type": "tmpfs"})).expect("valid")
    }

    fn bind(destination: &str, source: &Path) -> Mount {
        let bind = json!({"destination": destination, "source": source, "options": ["bind"]});
        serde_json::from_value(bind).expect("valid")
    }

    #[test]
    fn links_are_followed_within_the_root() {
        let (_directory, root) = root();
        let to = |path| resolve_destination(root.as_fd(), &mount(path)).expect("a place");
        assert_eq!(to("/var/run/new/x"), Path::new("/run/new/x"));
        assert_eq!(to("/up"), Path::new("/run/data"));
        assert_eq!(to("/../.."), Path::new("/"));
        assert!(resolve_destination(root.as_fd(), &mount("/loop/x")).is_err());
    }

    #[test]
    fn proc_is_not_mounted_on() {
        let (_directory, root) = root();
        let place = |mount: &Mount| resolve_destination(root.as_fd(), mount);
        for bad in ["/proc", "/proc/sys", "/hidden/kernel", "/var/../proc/1"] {
            assert!(place(&mount(bad)).is_err(), "{bad}");
        }
        for good in ["/proc/uptime", "/process"] {
            assert!(place(&mount(good)).is_ok(), "{good}");
        }
        assert!(place(&bind("/proc", Path::new("/proc"))).is_ok());
    }

    #[test]
    fn a_mount_point_is_made_as_a_directory_or_a_file() {
        let (directory, root) = root();
        let make =
            |path: &str, directory| MountPoint::make(root.as_fd(), Path::new(path), directory);
        let made = |place: Result<MountPoint, Errno>| place.map(|place| place.existed);
        assert_eq!(made(make("/new/file", false)), Ok(false));
        assert!(directory.path().join("new/file").is_file());
        assert_eq!(made(make("/new", true)), Ok(true));
        assert_eq!(made(make("/new/directory", true)), Ok(false));
        assert_eq!(made(make("/new", false)), Err(Errno::ISDIR));
        for place in ["/file", "/file/below"] {
            assert_eq!(made(make(place, true)), Err(Errno::NOTDIR), "{place}");
        }
    }
}
