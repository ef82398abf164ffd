//! `tmpcopyup`: copies the contents of a directory into the tmpfs that is mounted on it.
//!
//! No crate copies between directories by file descriptor, and copying by path isn't safe here, as the container
//! controls the paths.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, chownat, fchmod, fchown,
    futimens, mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

/// Copies what is in one directory to another, empty one, with owners, modes and times. The target directory's own
/// are left as the mount's options have set them.
///
/// # Errors
/// The first error that occurs.
pub fn copy_contents(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let readable = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = openat(from, ".", readable, Mode::empty())?;
    let to = openat(to, ".", readable, Mode::empty())?;
    copy_entries(&from, &to)
}

fn copy_entries(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            copy(from, to, name)?;
        }
    }
    Ok(())
}

fn copy(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => copy_directory(from, to, name, &stat),
        FileType::RegularFile => copy_file(from, to, name, &stat),
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new())?;
            symlinkat(target, to, name).and_then(|()| own_by_name(to, name, &stat))
        }
        kind => mknodat(to, name, kind, mode(&stat), stat.st_rdev)
            .and_then(|()| own_by_name(to, name, &stat)),
    }
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    mkdirat(to, name, Mode::RWXU)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = openat(from, name, flags, Mode::empty())?;
    let to = openat(to, name, flags, Mode::empty())?;
    copy_entries(&from, &to)?;
    copy_metadata(&to, stat)
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let to = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = openat(from, name, flags, Mode::empty())?;
    io::copy(
        &mut File::from(from),
        &mut File::from(to.try_clone().map_err(errno)?),
    )
    .map_err(errno)?;
    copy_metadata(&to, stat)
}

/// Sets the owner, mode and times of a copy. The owner comes first, as changing it clears the set-id bits.
fn copy_metadata(made: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    own(made, stat)?;
    fchmod(made, mode(stat))?;
    futimens(made, &times(stat))
}

fn own(made: impl AsFd, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = owner(stat);
    fchown(made, Some(uid), Some(gid))
}

fn own_by_name(directory: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = owner(stat);
    chownat(
        directory,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode)
}

fn times(stat: &Stat) -> Timestamps {
    // They come from the kernel: nanoseconds are below 10^9.
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds as _,
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).expect("a directory").into()
    }

    #[test]
    fn files_modes_and_times_are_copied() {
        let from = tempfile::tempdir().expect("a directory");
        let to = tempfile::tempdir().expect("a directory");
        let (f, t) = (from.path(), to.path());
        fs::create_dir_all(f.join("a/b")).expect("directories");
        fs::write(f.join("a/b/file"), "text").expect("a file");
        fs::set_permissions(f.join("a/b/file"), fs::Permissions::from_mode(0o4751)).expect("mode");
        fs::set_permissions(f.join("a"), fs::Permissions::from_mode(0o711)).expect("mode");
        symlink("b/file", f.join("a/link")).expect("a link");

        copy_contents(&open(f), &open(t)).expect("copied");

        assert_eq!(
            fs::read_to_string(t.join("a/link")).expect("a link"),
            "text"
        );
        let mode = |path| fs::metadata(t.join(path)).expect("it is there").mode() & 0o7777;
        assert_eq!((mode("a"), mode("a/b/file")), (0o711, 0o4751));
        let time = |root: &Path| {
            fs::metadata(root.join("a/b/file"))
                .expect("a file")
                .mtime_nsec()
        };
        assert_eq!(time(f), time(t));
    }
}
