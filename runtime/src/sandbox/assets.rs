//! The guest's kernel and initramfs: inside this binary, or files that the user named.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use hull_vmm::Image;

use super::SandboxError;
use crate::types::Boot;

/// A blob on a page boundary of its own, so that guests can map its pages.
#[repr(C, align(4096))]
struct Aligned<T: ?Sized>(T);

static KERNEL: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/vmlinux")));
static INITRAMFS: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/initramfs.cpio")));

/// The words that every guest kernel is booted with, and why: the file itself.
const CMDLINE: &str = include_str!("../../../guest-kernel/cmdline");

/// Files to boot from instead of the built-in ones.
#[derive(Debug, Default)]
pub struct BootFiles {
    /// An uncompressed kernel, as ELF.
    pub kernel: Option<File>,
    /// A cpio archive.
    pub initramfs: Option<File>,
}

impl Boot {
    /// Opens what was named, and checks that what was not is built in.
    ///
    /// # Errors
    /// When a file can't be opened, or there is neither a file nor a built-in one.
    pub fn open(&self) -> Result<BootFiles, SandboxError> {
        Ok(BootFiles {
            kernel: open("kernel", self.kernel.as_ref(), kernel())?,
            initramfs: open("initramfs", self.initramfs.as_ref(), initramfs())?,
        })
    }
}

fn open(
    what: &'static str,
    path: Option<&PathBuf>,
    built_in: &[u8],
) -> Result<Option<File>, SandboxError> {
    match path {
        Some(path) => File::open(path)
            .map(Some)
            .map_err(|source| SandboxError::Asset {
                path: path.clone(),
                source,
            }),
        None if built_in.is_empty() => Err(SandboxError::NoAsset { what }),
        None => Ok(None),
    }
}

/// The built-in kernel; empty in a binary that was built without one.
pub fn kernel() -> &'static [u8] {
    &KERNEL.0
}

/// The built-in initramfs; empty in a binary that was built without one.
pub fn initramfs() -> &'static [u8] {
    &INITRAMFS.0
}

/// This program's file, from which the built-in guest is mapped.
#[derive(Debug)]
pub struct Program {
    file: File,
    /// /proc/self/maps (proc_pid_maps(5)).
    maps: String,
}

impl Program {
    /// Opens the file that this process executes.
    ///
    /// # Errors
    /// When /proc is missing.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            file: File::open("/proc/self/exe")?,
            maps: fs::read_to_string("/proc/self/maps")?,
        })
    }

    /// The image for a guest: the user's, if there is one, or what is built in, a static of this program.
    pub fn image_or<'a>(&'a self, users: Option<&'a [u8]>, built_in: &'static [u8]) -> Image<'a> {
        if let Some(users) = users {
            return users.into();
        }
        match self.maps.lines().find_map(|line| offset_of(built_in, line)) {
            Some(offset) => Image::in_file(built_in, self.file.as_fd(), offset),
            None => built_in.into(),
        }
    }
}

/// Where in its file `bytes` lies, if it lies in the mapping that this line describes:
/// `START-END PERMISSIONS OFFSET …`, numbers in hexadecimal.
fn offset_of(bytes: &[u8], line: &str) -> Option<u64> {
    let number = |text| u64::from_str_radix(text, 16).ok();
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (number(start)?, number(end)?);
    let offset = number(words.nth(1)?)?;
    let first = bytes.as_ptr() as u64;
    let last = first + bytes.len() as u64;
    (start <= first && last <= end).then(|| offset + (first - start))
}

/// The kernel's command line, without what depends on the machine.
pub fn cmdline() -> String {
    let words = CMDLINE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::split_whitespace);
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_is_found_in_the_programs_file() {
        use std::os::unix::fs::FileExt;
        static TEXT: &[u8] = b"some bytes that are in this program's file";
        let program = Program::open().expect("/proc");
        let offset = program.maps.lines().find_map(|line| offset_of(TEXT, line));
        let mut found = vec![0; TEXT.len()];
        let offset = offset.expect("mapped");
        program
            .file
            .read_exact_at(&mut found, offset)
            .expect("read");
        assert_eq!(found, TEXT);
    }

    #[test]
    fn the_command_line_has_no_comments() {
        assert!(cmdline().contains("panic="));
        assert!(!cmdline().contains('#'));
    }
}
