//! Loads a kernel or an initramfs into guest memory before the guest starts.
//!
//! An image that is part of a file is mapped from it (MAP_PRIVATE): all guests of a host share the
//! page cache's pages until one of them writes, and a page that no guest touches costs nothing.
//! Other images are copied. Either way the guest can't change the file.
#![allow(unsafe_code)] // mmap over a part of our own mapping

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestUsize};

use crate::memory::prefer_huge_pages;

/// Bytes to be loaded into guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    bytes: &'a [u8],
    /// The file that contains the same bytes, and the offset of the first.
    file: Option<(BorrowedFd<'a>, u64)>,
}

/// Why an image can't be loaded into guest memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("it lies outside of guest memory")]
    Outside(#[from] vm_memory::GuestMemoryError),
    #[error("cannot map its file")]
    Map(#[source] io::Error),
}

impl<'a> From<&'a [u8]> for Image<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, file: None }
    }
}

impl<'a> Image<'a> {
    /// An image whose bytes are also in `file`, from `offset` on. The file must not change as long
    /// as the machine exists.
    ///
    /// In particular it must not be truncated: if the guest accessed a page beyond its end, SIGBUS
    /// would kill the process. A program that is being executed can't be truncated.
    pub fn in_file(bytes: &'a [u8], file: BorrowedFd<'a>, offset: u64) -> Self {
        Self {
            bytes,
            file: Some((file, offset)),
        }
    }

    /// All of its bytes.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// A part of the image; `None` if the range isn't within it.
    #[cfg_attr(
        target_arch = "aarch64",
        expect(dead_code, reason = "no kernel is loaded yet")
    )]
    pub(crate) fn part(&self, range: Range<usize>) -> Option<Self> {
        let start = range.start as u64;
        Some(Self {
            bytes: self.bytes.get(range)?,
            file: self.file.map(|(file, offset)| (file, offset + start)),
        })
    }

    /// Loads the image at `address` of guest memory.
    pub(crate) fn place(
        &self,
        memory: &GuestMemoryMmap,
        address: GuestAddress,
    ) -> Result<(), PlaceError> {
        let pages = self.whole_pages(address);
        let Some((file, offset)) = self.file.filter(|_| !pages.is_empty()) else {
            prefer_huge_pages(memory, address, self.bytes.len() as GuestUsize);
            return Ok(memory.write_slice(self.bytes, address)?);
        };
        // The first and the last partial page are copied: mapping them would show the guest what
        // else is in the file.
        memory.write_slice(&self.bytes[..pages.start], address)?;
        let rest = GuestAddress(address.0 + pages.end as u64);
        memory.write_slice(&self.bytes[pages.end..], rest)?;
        let start = GuestAddress(address.0 + pages.start as u64);
        map(
            memory,
            start,
            pages.len(),
            file,
            offset + pages.start as u64,
        )
        .map_err(PlaceError::Map)
    }

    /// The part of the image that consists of whole pages both of guest memory and of the file;
    /// empty if the two aren't aligned to each other.
    fn whole_pages(&self, address: GuestAddress) -> Range<usize> {
        let page = rustix::param::page_size() as u64;
        let end = address.0 + self.bytes.len() as u64;
        let first = address.0.next_multiple_of(page);
        let last = end / page * page;
        match self.file {
            Some((_, offset)) if offset % page == address.0 % page && first < last => {
                (first - address.0) as usize..(last - address.0) as usize
            }
            _ => 0..0,
        }
    }
}

/// Maps `size` bytes of `file` over guest memory. Address, size and offset must be multiples of the
/// page size.
fn map(
    memory: &GuestMemoryMmap,
    start: GuestAddress,
    size: usize,
    file: BorrowedFd<'_>,
    offset: u64,
) -> io::Result<()> {
    let slice = memory.get_slice(start, size).map_err(io::Error::other)?;
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: the slice was checked to lie in a mapping of ours, which keeps its size and its owner;
    // nobody has a reference to its bytes, for guest memory is only ever copied from and to.
    let mapped = unsafe {
        libc::mmap(
            slice.ptr_guard_mut().as_ptr().cast(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    const PAGE: u64 = 4096;

    /// A file of three and a half pages; each byte is the number of its page.
    fn file() -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..14336_u32).map(|n| (n / 4096) as u8 + 1).collect();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).expect("write");
        (file, bytes)
    }

    fn read(memory: &GuestMemoryMmap, address: u64, length: usize) -> Vec<u8> {
        let mut found = vec![0; length];
        memory
            .read_slice(&mut found, GuestAddress(address))
            .expect("in memory");
        found
    }

    #[test]
    fn the_guest_sees_a_mapped_image_and_nothing_around_it() {
        let memory = crate::memory::allocate(32).expect("32 MiB");
        let (file, bytes) = file();
        let whole = Image::in_file(&bytes, file.as_fd(), 0);
        let image = whole.part(100..13000).expect("a part");
        let address = 16 * PAGE + 100;
        assert_eq!(image.whole_pages(GuestAddress(address)), 3996..12188);

        image.place(&memory, GuestAddress(address)).expect("placed");

        assert_eq!(read(&memory, address, 12900), bytes[100..13000]);
        assert_eq!(read(&memory, 16 * PAGE, 100), [0; 100]);
        assert_eq!(read(&memory, address + 12900, 100), [0; 100]);
    }

    #[test]
    fn what_the_guest_writes_stays_its_own() {
        let memory = crate::memory::allocate(32).expect("32 MiB");
        let (file, bytes) = file();
        let image = Image::in_file(&bytes, file.as_fd(), 0);
        image.place(&memory, GuestAddress(PAGE)).expect("placed");
        memory.write_obj(0_u64, GuestAddress(PAGE)).expect("write");

        let other = crate::memory::allocate(32).expect("32 MiB");
        image.place(&other, GuestAddress(PAGE)).expect("placed");
        assert_eq!(read(&other, PAGE, bytes.len()), bytes);
    }

    #[test]
    fn an_image_not_aligned_with_its_file_is_copied() {
        let memory = crate::memory::allocate(32).expect("32 MiB");
        let (file, bytes) = file();
        let image = Image::in_file(&bytes, file.as_fd(), 0);
        assert!(image.whole_pages(GuestAddress(PAGE + 1)).is_empty());
        image
            .place(&memory, GuestAddress(PAGE + 1))
            .expect("copied");
        assert_eq!(read(&memory, PAGE + 1, bytes.len()), bytes);
        let end = GuestAddress((32 << 20) - 8192);
        assert!(image.place(&memory, end).is_err(), "it doesn't fit");
    }
}
