//! Files in a container's root: found, and made, within it, whatever symbolic links lie on the way.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

/// What becomes of symbolic links on the way.
#[derive(Clone, Copy, Debug)]
pub enum Links {
    /// They are followed, and lead nowhere but into the root.
    Followed,
    /// `ELOOP`: they have been followed already, and whoever shares the files has put one there since.
    Refused,
}

/// Opens what is there, with O_PATH.
///
/// # Errors
/// When there is nothing.
pub fn find(root: BorrowedFd<'_>, path: &Path, links: Links) -> Result<OwnedFd, Errno> {
    open(root, path, links, OFlags::empty())
}

/// Opens a folder with O_PATH, and makes what is missing on the way, with mode 0755.
///
/// # Errors
/// When something on the way is no folder.
pub fn folder(root: BorrowedFd<'_>, path: &Path, links: Links) -> Result<OwnedFd, Errno> {
    let mut opened = open(root, Path::new("/"), links, OFlags::DIRECTORY)?;
    let mut way = PathBuf::new();
    for name in path.components() {
        way.push(name);
        opened = match open(root, &way, links, OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {
                match mkdirat(&opened, name.as_os_str(), Mode::from_raw_mode(0o755)) {
                    // Somebody else, who shares the file system, was faster.
                    Err(Errno::EXIST) => {}
                    made => made?,
                }
                open(root, &way, links, OFlags::DIRECTORY)?
            }
            opened => opened?,
        };
    }
    Ok(opened)
}

/// Opens a file with O_PATH. If it isn't there, an empty one is made, with mode 0644.
///
/// # Errors
/// When something on the way is no folder.
pub fn file(root: BorrowedFd<'_>, path: &Path, links: Links) -> Result<OwnedFd, Errno> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = folder(root, path.parent().unwrap_or(Path::new("/")), links)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
        Err(Errno::EXIST) => {}
        made => drop(made?),
    }
    find(root, path, links)
}

fn open(root: BorrowedFd<'_>, path: &Path, links: Links, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | more;
    let resolve = match links {
        Links::Followed => ResolveFlags::IN_ROOT,
        Links::Refused => ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
    };
    openat2(root, path, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_missing_is_made_within_the_root() {
        let root = tempfile::tempdir().expect("a folder");
        symlink("/../a", root.path().join("link")).expect("a link");
        let opened = fs::File::open(root.path()).expect("the root");
        fs::create_dir(root.path().join("a")).expect("a folder");
        file(opened.as_fd(), Path::new("/link/b/file"), Links::Followed).expect("made");
        assert!(root.path().join("a/b/file").is_file());
        let below = Path::new("/a/b/file/below");
        let below = folder(opened.as_fd(), below, Links::Followed);
        assert_eq!(below.err(), Some(Errno::NOTDIR));
    }

    #[test]
    fn a_link_that_was_not_there_before_is_refused() {
        let root = tempfile::tempdir().expect("a folder");
        symlink("/etc", root.path().join("link")).expect("a link");
        let opened = fs::File::open(root.path()).expect("the root");
        for path in ["/link", "/link/below"] {
            let root = opened.as_fd();
            let refused = [
                find(root, Path::new(path), Links::Refused),
                folder(root, Path::new(path), Links::Refused),
            ];
            let refused = refused.map(Result::err);
            assert_eq!(refused, [Some(Errno::LOOP), Some(Errno::LOOP)], "{path}");
        }
    }
}
