//! Opens and makes files within a container's root, which symbolic links can't lead out of (openat2(2),
//! `RESOLVE_IN_ROOT`).

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

/// What is done with symbolic links in a path.
#[derive(Clone, Copy, Debug)]
pub enum Symlinks {
    /// They are followed, within the root.
    Follow,
    /// They are refused with `ELOOP`. The path is resolved already, so somebody who shares the files has put
    /// one there since.
    Refuse,
}

/// Opens a file with O_PATH.
///
/// # Errors
/// When there is none.
pub fn open(root: BorrowedFd<'_>, path: &Path, symlinks: Symlinks) -> Result<OwnedFd, Errno> {
    open_with(root, path, symlinks, OFlags::empty())
}

/// Opens a directory with O_PATH. Missing directories of the path are made, with mode 0755.
///
/// # Errors
/// When a component of the path is not a directory.
pub fn open_or_make_directory(
    root: BorrowedFd<'_>,
    path: &Path,
    symlinks: Symlinks,
) -> Result<OwnedFd, Errno> {
    let mut opened = open_with(root, Path::new("/"), symlinks, OFlags::DIRECTORY)?;
    let mut prefix = PathBuf::new();
    for name in path.components() {
        prefix.push(name);
        opened = match open_with(root, &prefix, symlinks, OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {
                match mkdirat(&opened, name.as_os_str(), Mode::from_raw_mode(0o755)) {
                    // Somebody who shares the file system has made it meanwhile.
                    Err(Errno::EXIST) => {}
                    made => made?,
                }
                open_with(root, &prefix, symlinks, OFlags::DIRECTORY)?
            }
            opened => opened?,
        };
    }
    Ok(opened)
}

/// Opens a file with O_PATH. If it is missing, an empty one is made, with mode 0644.
///
/// # Errors
/// When a parent in the path is not a directory.
pub fn open_or_make_file(
    root: BorrowedFd<'_>,
    path: &Path,
    symlinks: Symlinks,
) -> Result<OwnedFd, Errno> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = open_or_make_directory(root, path.parent().unwrap_or(Path::new("/")), symlinks)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
        Err(Errno::EXIST) => {}
        made => drop(made?),
    }
    open(root, path, symlinks)
}

fn open_with(
    root: BorrowedFd<'_>,
    path: &Path,
    symlinks: Symlinks,
    more: OFlags,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | more;
    let resolve = match symlinks {
        Symlinks::Follow => ResolveFlags::IN_ROOT,
        Symlinks::Refuse => ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
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
        let root = tempfile::tempdir().expect("a directory");
        symlink("/../a", root.path().join("link")).expect("a link");
        let opened = fs::File::open(root.path()).expect("the root");
        fs::create_dir(root.path().join("a")).expect("a directory");
        open_or_make_file(opened.as_fd(), Path::new("/link/b/file"), Symlinks::Follow)
            .expect("made");
        assert!(root.path().join("a/b/file").is_file());
        let below = Path::new("/a/b/file/below");
        let below = open_or_make_directory(opened.as_fd(), below, Symlinks::Follow);
        assert_eq!(below.err(), Some(Errno::NOTDIR));
    }

    #[test]
    fn symlinks_are_refused_if_asked() {
        let root = tempfile::tempdir().expect("a directory");
        symlink("/etc", root.path().join("link")).expect("a link");
        let opened = fs::File::open(root.path()).expect("the root");
        for path in ["/link", "/link/below"] {
            let root = opened.as_fd();
            let refused = [
                open(root, Path::new(path), Symlinks::Refuse),
                open_or_make_directory(root, Path::new(path), Symlinks::Refuse),
            ];
            let refused = refused.map(Result::err);
            assert_eq!(refused, [Some(Errno::LOOP), Some(Errno::LOOP)], "{path}");
        }
    }
}
