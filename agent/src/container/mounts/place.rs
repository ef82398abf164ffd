//! Where mounts go, as runc sees it: within the container's root, through its symbolic links.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2, readlinkat};
use rustix::io::Errno;

use super::{is_bind, is_folder};
use crate::container::inside::{self, Links};

/// More symbolic links than that in one path are a loop, as in path_resolution(7).
const MOST_LINKS: usize = 40;

/// What may be mounted in /proc: runc's list. Each is a file that something makes up for containers.
const IN_PROC: &[&str] = &[
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

/// What a mount is put on.
#[derive(Debug)]
pub struct Place {
    /// Opened with O_PATH.
    pub file: OwnedFd,
    /// Whether it hadn't to be made.
    pub was_there: bool,
}

impl Place {
    /// Opens a place in a root, which has no symbolic links, for a folder or another file. What is missing is
    /// made.
    ///
    /// # Errors
    /// When it can't be made, or is of the other kind.
    pub fn make(root: BorrowedFd<'_>, path: &Path, folder: bool) -> Result<Self, Errno> {
        let (file, was_there) = match inside::find(root, path, Links::Refused) {
            Err(Errno::NOENT) if folder => (inside::folder(root, path, Links::Refused)?, false),
            Err(Errno::NOENT) => (inside::file(root, path, Links::Refused)?, false),
            found => (found?, true),
        };
        match is_folder(&file)? {
            true if !folder => Err(Errno::ISDIR),
            false if folder => Err(Errno::NOTDIR),
            _ => Ok(Self { file, was_there }),
        }
    }
}

/// A mount's destination in a root, without symbolic links.
///
/// # Errors
/// Says why nothing may be mounted there.
pub fn destination(root: BorrowedFd<'_>, mount: &Mount) -> Result<PathBuf, String> {
    let named = mount.destination();
    let kind = mount.typ().as_deref();
    let destination = resolve(root, named).map_err(|e| format!("{}: {e}", named.display()))?;
    // What is masked in these two is masked by its name, so they must not be led elsewhere.
    if matches!(kind, Some("proc" | "sysfs")) && !is_bind(mount) {
        let led = destination != Path::new("/").join(names(named).collect::<PathBuf>());
        return match led {
            true => Err(format!("{named:?} must be mounted on ordinary directory")),
            false => Ok(destination),
        };
    }
    let guests_own = is_bind(mount) && mount.source().as_deref() == Some(Path::new("/proc"));
    if destination == Path::new("/proc") && !guests_own {
        return Err(format!(
            "{named:?} cannot be mounted because it is not of type proc"
        ));
    }
    if destination.starts_with("/proc/")
        && !guests_own
        && !IN_PROC.iter().any(|path| destination == Path::new(path))
    {
        return Err(format!(
            "{named:?} cannot be mounted because it is inside /proc"
        ));
    }
    Ok(destination)
}

/// Follows the symbolic links of a path within a root, as far as there is something; the rest stays as it
/// is. Whatever they become meanwhile, what is opened is within the root.
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
        let Some(target) = link(root, &done) else {
            continue;
        };
        links += 1;
        if links > MOST_LINKS {
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

/// What a symbolic link leads to; nothing if it is none.
fn link(root: BorrowedFd<'_>, path: &Path) -> Option<PathBuf> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
    let target = readlinkat(&link, "", Vec::new()).ok()?;
    Some(PathBuf::from(OsString::from_vec(target.into_bytes())))
}

/// The names of a path, `..` among them.
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
        let (_folder, root) = root();
        let to = |path| destination(root.as_fd(), &mount(path)).expect("a place");
        assert_eq!(to("/var/run/new/x"), Path::new("/run/new/x"));
        assert_eq!(to("/up"), Path::new("/run/data"));
        assert_eq!(to("/../.."), Path::new("/"));
        assert!(destination(root.as_fd(), &mount("/loop/x")).is_err());
    }

    #[test]
    fn proc_is_not_covered() {
        let (_folder, root) = root();
        let place = |mount: &Mount| destination(root.as_fd(), mount);
        for bad in ["/proc", "/proc/sys", "/hidden/kernel", "/var/../proc/1"] {
            assert!(place(&mount(bad)).is_err(), "{bad}");
        }
        for good in ["/proc/uptime", "/process"] {
            assert!(place(&mount(good)).is_ok(), "{good}");
        }
        assert!(place(&bind("/proc", Path::new("/proc"))).is_ok());
    }

    #[test]
    fn a_place_is_made_of_the_kind_that_is_wanted() {
        let (folder, root) = root();
        let make = |path: &str, folder| Place::make(root.as_fd(), Path::new(path), folder);
        let made = |place: Result<Place, Errno>| place.map(|place| place.was_there);
        assert_eq!(made(make("/new/file", false)), Ok(false));
        assert!(folder.path().join("new/file").is_file());
        assert_eq!(made(make("/new", true)), Ok(true));
        assert_eq!(made(make("/new/folder", true)), Ok(false));
        assert_eq!(made(make("/new", false)), Err(Errno::ISDIR));
        for place in ["/file", "/file/below"] {
            assert_eq!(made(make(place, true)), Err(Errno::NOTDIR), "{place}");
        }
    }
}
