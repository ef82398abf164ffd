//! The mount points in a container's root, where the guest must not be able to change that root: the host makes what is
//! missing before the guest gets it, as runc does before it makes a root read-only.
//!
//! In a sandbox of its own, a container's root is made read-only once the agent has made these itself. There, nothing of
//! the container's has run by then; a sandbox that a further container joins may be in the wrong hands already.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

use crate::spec::{Bundle, is_bind};

/// Makes the mount points of a bundle's mounts, and its process's working directory. What can't be made is left for the
/// agent to complain of, which knows how to say that.
pub fn make(bundle: &Bundle) {
    for (path, is_directory) in wanted(bundle.spec(), bundle.path()) {
        if let Err(e) = make_one(bundle.rootfs_fd(), &path, is_directory) {
            log::debug!("make {} in the container's root: {e}", path.display());
        }
    }
}

/// The paths in the root, and whether each is a directory. What lies in another mount isn't the root's.
fn wanted(spec: &Spec, bundle: &Path) -> Vec<(PathBuf, bool)> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mounted = |path: &Path, before: &[Mount]| {
        (before.iter())
            .any(|mount| path != mount.destination() && path.starts_with(mount.destination()))
    };
    let points = mounts.iter().enumerate().filter_map(|(index, mount)| {
        let path = mount.destination();
        (!mounted(path, mounts.get(..index)?)).then(|| (path.clone(), is_directory(mount, bundle)))
    });
    let cwd = spec.process().as_ref().map(|process| process.cwd());
    let cwd = cwd.filter(|cwd| !mounted(cwd, mounts));
    points.chain(cwd.map(|cwd| (cwd.clone(), true))).collect()
}

fn is_directory(mount: &Mount, bundle: &Path) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    let is_bind = is_bind(mount.typ().as_deref(), options.iter().map(String::as_str));
    match mount.source() {
        Some(source) if is_bind => bundle.join(source).is_dir(),
        _ => true,
    }
}

/// Makes what is missing of a path, within the root. Somebody who shares the root may change it meanwhile; then it is
/// made elsewhere in it, or not at all.
fn make_one(root: BorrowedFd<'_>, path: &Path, is_directory: bool) -> Result<(), Errno> {
    let mut parent = open(root, Path::new("/"))?;
    let mut prefix = PathBuf::new();
    let mut names = path
        .components()
        .filter(|name| !matches!(name, Component::RootDir))
        .peekable();
    while let Some(name) = names.next() {
        prefix.push(name);
        let is_file = names.peek().is_none() && !is_directory;
        parent = match open(root, &prefix) {
            Err(Errno::NOENT) if is_file => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                return openat(&parent, name.as_os_str(), flags, Mode::from_raw_mode(0o644))
                    .map(drop);
            }
            Err(Errno::NOENT) => {
                mkdirat(&parent, name.as_os_str(), Mode::from_raw_mode(0o755))?;
                open(root, &prefix)?
            }
            opened => opened?,
        };
    }
    Ok(())
}

fn open(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(
        root.as_fd(),
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_wanted_is_in_the_root_itself() {
        let bundle = tempfile::tempdir().expect("a folder");
        fs::write(bundle.path().join("file"), "").expect("a file");
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {"cwd": "/work/here", "user": {"uid": 0, "gid": 0}, "args": ["a"]},
            "mounts": [
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
                {"destination": "/etc/conf", "source": "file", "options": ["bind"]},
                {"destination": "/data", "source": "/", "options": ["rbind"]},
            ]
        });
        let spec = serde_json::from_value(spec).expect("a config.json");
        let wanted = wanted(&spec, bundle.path());
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(path, dir)| (path.to_str().expect("text"), *dir))
            .collect();
        assert_eq!(
            wanted,
            [
                ("/dev", true),
                ("/etc/conf", false),
                ("/data", true),
                ("/work/here", true)
            ]
        );
    }

    #[test]
    fn what_is_missing_is_made_within_the_root() {
        let outside = tempfile::tempdir().expect("a folder");
        let root = outside.path().join("root");
        fs::create_dir_all(root.join("run")).expect("a folder");
        symlink("/run", root.join("link")).expect("a link");
        symlink("..", root.join("up")).expect("a link");
        let opened = fs::File::open(&root).expect("the root");
        let make = |path: &str, dir| make_one(opened.as_fd(), Path::new(path), dir);
        make("/link/a/file", false).expect("made");
        assert!(root.join("run/a/file").is_file());
        make("/up/up/b", true).expect("made");
        assert!(root.join("b").is_dir() && !outside.path().join("b").exists());
        make("/link/a/file", false).expect("it is there");
        assert_eq!(make("/link/a/file/c", true), Err(Errno::NOTDIR));
    }
}
