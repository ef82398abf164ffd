//! Where mounts go, as runc sees it: within the container's root, through its symbolic links.
//!
//! It is asked before any mount is made, so the mounts that come first are known by their destinations.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat};
use rustix::io::Errno;

use super::is_bind;

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

/// A container's root, and what is to be mounted in it.
#[derive(Debug)]
pub struct Places {
    root: OwnedFd,
    /// In their order: each mount's destination, and what will be there.
    covered: Vec<(PathBuf, Cover)>,
}

/// What a mount will have at its destination.
#[derive(Debug)]
enum Cover {
    /// What is there already, at this path.
    Bind(PathBuf),
    /// An empty directory of this mode.
    Tmpfs(u32),
    /// What the kernel makes up.
    Other,
}

/// A directory that a mount covers.
#[derive(Debug)]
pub struct Covered {
    /// Opened with O_PATH; not if it is yet to be made, and so empty.
    pub directory: Option<OwnedFd>,
    /// Its mode.
    pub mode: Option<u32>,
}

impl Places {
    /// The places of a root.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn open(root: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            root: openat(CWD, root, flags, Mode::empty())?,
            covered: Vec::new(),
        })
    }

    /// A mount's destination without symbolic links.
    ///
    /// # Errors
    /// Says why nothing may be mounted there.
    pub fn destination(&self, mount: &Mount) -> Result<PathBuf, String> {
        let named = mount.destination();
        let kind = mount.typ().as_deref();
        let destination = self
            .resolve(named)
            .map_err(|e| format!("{}: {e}", named.display()))?;
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

    /// Takes note of a mount, in libcontainer's words.
    pub fn cover(&mut self, mount: &Mount) {
        let cover = match (is_bind(mount), mount.source(), mount.typ().as_deref()) {
            (true, Some(source), _) => Cover::Bind(source.clone()),
            (false, _, Some("tmpfs")) => Cover::Tmpfs(tmpfs_mode(mount)),
            _ => Cover::Other,
        };
        self.covered.push((mount.destination().clone(), cover));
    }

    /// The directory that a mount at `destination` would cover, if there is one.
    ///
    /// Of a file system that the guest has yet to make, there is only the root.
    pub fn covered(&self, destination: &Path) -> Option<Covered> {
        let mut below = self.covered.iter().rev();
        let over =
            below.find_map(|(path, cover)| Some((cover, destination.strip_prefix(path).ok()?)));
        let directory = match over {
            None => directory_in(&self.root, destination),
            Some((Cover::Bind(source), rest)) => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let source = openat(CWD, source, flags, Mode::empty()).ok()?;
                directory_in(&source, rest)
            }
            Some((Cover::Tmpfs(mode), rest)) if rest.as_os_str().is_empty() => {
                return Some(Covered {
                    directory: None,
                    mode: Some(*mode),
                });
            }
            Some((Cover::Tmpfs(_) | Cover::Other, _)) => None,
        }?;
        let mode = fstat(&directory).ok().map(|stat| stat.st_mode & 0o7777);
        Some(Covered {
            directory: Some(directory),
            mode,
        })
    }

    /// Follows the symbolic links of a path within the root, as far as there is something; the rest
    /// stays as it is.
    fn resolve(&self, path: &Path) -> Result<PathBuf, Errno> {
        let mut rest: VecDeque<OsString> = names(path).collect();
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == OsStr::new("..") {
                done.pop();
                continue;
            }
            done.push(name);
            let Ok(target) = readlinkat(&self.root, &done, Vec::new()) else {
                continue;
            };
            links += 1;
            if links > MOST_LINKS {
                return Err(Errno::LOOP);
            }
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
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
}

/// The names of a path, `..` among them.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// The mode of a tmpfs's root: the last one that its options name, or else the kernel's.
fn tmpfs_mode(mount: &Mount) -> u32 {
    let options = mount.options().iter().flatten().rev();
    let mut named = options.filter_map(|option| option.strip_prefix("mode="));
    let mode = named.find_map(|digits| u32::from_str_radix(digits, 8).ok());
    mode.unwrap_or(0o1777)
}

fn directory_in(root: &OwnedFd, path: &Path) -> Option<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn root() -> (TempDir, Places) {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("run/data")).expect("a directory");
        fs::create_dir(root.path().join("var")).expect("a directory");
        symlink("/run", root.path().join("var/run")).expect("a link");
        symlink("../../../run/./data", root.path().join("up")).expect("a link");
        symlink("loop", root.path().join("loop")).expect("a link");
        symlink("proc/sys", root.path().join("hidden")).expect("a link");
        let places = Places::open(root.path()).expect("a root");
        (root, places)
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
        let (_root, places) = root();
        let to = |path| places.destination(&mount(path)).expect("a place");
        assert_eq!(to("/var/run/new/x"), Path::new("/run/new/x"));
        assert_eq!(to("/up"), Path::new("/run/data"));
        assert_eq!(to("/../.."), Path::new("/"));
        assert!(places.destination(&mount("/loop/x")).is_err());
    }

    #[test]
    fn proc_is_not_covered() {
        let (_root, places) = root();
        for bad in ["/proc", "/proc/sys", "/hidden/kernel", "/var/../proc/1"] {
            assert!(places.destination(&mount(bad)).is_err(), "{bad}");
        }
        for good in ["/proc/uptime", "/process"] {
            assert!(places.destination(&mount(good)).is_ok(), "{good}");
        }
        let own = bind("/proc", Path::new("/proc"));
        assert!(places.destination(&own).is_ok());
    }

    #[test]
    fn what_a_mount_covers_is_found_below_the_mounts_before_it() {
        let (_root, mut places) = root();
        let source = tempfile::tempdir().expect("a directory");
        fs::create_dir(source.path().join("inner")).expect("a directory");
        assert!(places.covered(Path::new("/run/data")).is_some());
        places.cover(&bind("/var", source.path()));
        places.cover(&mount("/run"));
        assert!(places.covered(Path::new("/var/inner")).is_some());
        assert!(places.covered(Path::new("/var/run")).is_none());
        assert!(places.covered(Path::new("/run/data")).is_none());
    }

    #[test]
    fn a_tmpfs_covers_another_with_its_mode() {
        let (_root, mut places) = root();
        let mode_of = |places: &Places| places.covered(Path::new("/run")).and_then(|c| c.mode);
        places.cover(&mount("/run"));
        assert_eq!(mode_of(&places), Some(0o1777));
        let options =
            json!({"destination": "/run", "type": "tmpfs", "options": ["mode=750", "ro"]});
        places.cover(&serde_json::from_value(options).expect("valid"));
        assert_eq!(mode_of(&places), Some(0o750));
    }
}
