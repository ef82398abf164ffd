//! The guest's kernel and initramfs: inside this binary, or files that the user named.

#![allow(unsafe_code)] // madvise(2) on this binary's own pages

use std::fs::File;
use std::path::PathBuf;

use super::SandboxError;

const PAGE: usize = 4096;

/// A blob on a page boundary of its own, so that its pages can be given back once they were copied.
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

/// How the user wants the guest booted.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// `--kernel`.
    pub kernel: Option<PathBuf>,
    /// `--initramfs`.
    pub initramfs: Option<PathBuf>,
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

/// Gives back the pages of the built-in files, once they were copied into a guest's memory.
pub fn release() {
    for blob in [kernel(), initramfs()] {
        let length = blob.len() / PAGE * PAGE;
        // SAFETY: the range is part of a read-only mapping of this binary: whoever reads it again
        // reads it from the file. It starts on a page boundary, for `Aligned` does.
        let result = unsafe {
            rustix::mm::madvise(
                blob.as_ptr().cast_mut().cast(),
                length,
                rustix::mm::Advice::LinuxDontNeed,
            )
        };
        if let Err(e) = result {
            log::debug!("the built-in guest stays in memory: {e}");
        }
    }
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
    fn the_command_line_has_no_comments() {
        assert!(cmdline().contains("panic="));
        assert!(!cmdline().contains('#'));
    }
}
