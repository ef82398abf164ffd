//! Files in a container's root: found, and made, within it, whatever links lie on the way.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

/// Opens what is there, with O_PATH.
///
/// # Errors
/// When there is nothing.
pub fn find(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    open(root, path, OFlags::empty())
}

/// Opens a folder with O_PATH, and makes what is missing on the way, with mode 0755.
///
/// # Errors
/// When something on the way is no folder.
pub fn folder(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let mut opened = open(root, Path::new("/"), OFlags::DIRECTORY)?;
    let mut way = PathBuf::new();
    for name in path.components() {
        way.push(name);
        opened = match open(root, &way, OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {
                match mkdirat(&opened, name.as_os_str(), Mode::from_raw_mode(0o755)) {
                    // Somebody else, who shares the file system, was faster.
                    Err(Errno::EXIST) => {}
                    made => made?,
                }
                open(root, &way, OFlags::DIRECTORY)?
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
pub fn file(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = folder(root, path.parent().unwrap_or(Path::new("/")))?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
        Err(Errno::EXIST) => {}
        made => drop(made?),
    }
    find(root, path)
}

fn open(root: BorrowedFd<'_>, path: &Path, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | more;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
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
        file(opened.as_fd(), Path::new("/link/b/file")).expect("made");
        assert!(root.path().join("a/b/file").is_file());
        let below = folder(opened.as_fd(), Path::new("/a/b/file/below"));
        assert_eq!(below.err(), Some(Errno::NOTDIR));
    }
}
