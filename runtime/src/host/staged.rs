//! A file of a folder that is replaced whole or not at all: written beside the old one first, where it may
//! fail, and then renamed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

/// A file that is written, and not yet there by its name. Dropped, it is gone.
#[must_use]
#[derive(Debug)]
pub struct Staged<'a> {
    folder: BorrowedFd<'a>,
    name: &'a str,
    temporary: &'a str,
}

impl<'a> Staged<'a> {
    /// Writes what is to be at `name`, for its owner's eyes only. Nobody else may use the temporary name
    /// meanwhile.
    ///
    /// # Errors
    /// When it can't be written; nothing of it is left then.
    pub fn write(
        folder: BorrowedFd<'a>,
        name: &'a str,
        temporary: &'a str,
        text: &[u8],
    ) -> io::Result<Self> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let staged = Self {
            folder,
            name,
            temporary,
        };
        let file = openat(folder, temporary, flags, Mode::RUSR | Mode::WUSR)?;
        File::from(file).write_all(text)?;
        Ok(staged)
    }

    /// Puts it in the old one's place.
    ///
    /// # Errors
    /// When it can't be renamed; the old one then stays.
    pub fn keep(self) -> io::Result<()> {
        renameat(self.folder, self.temporary, self.folder, self.name)?;
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        // Kept, it has this name no more.
        let _ = unlinkat(self.folder, self.temporary, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;

    #[test]
    fn only_what_is_kept_replaces_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let opened = File::open(folder.path()).expect("a descriptor");
        let write = |text| Staged::write(opened.as_fd(), "file", "new", text).expect("written");
        let found = || fs::read_to_string(folder.path().join("file")).expect("a file");
        write(b"one").keep().expect("kept");
        drop(write(b"two"));
        assert_eq!(found(), "one");
        write(b"three").keep().expect("kept");
        assert_eq!(found(), "three");
        assert_eq!(fs::read_dir(folder.path()).expect("a list").count(), 1);
    }
}
