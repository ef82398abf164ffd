//! Loading a kernel, together with an initramfs, into guest memory. The image's format depends on
//! the architecture: see `arch`.

use std::ops::Range;

use vm_memory::{Address, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use crate::arch::NotSupported;
use crate::image::{Image, PlaceError};

/// Why a kernel or an initramfs can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It isn't an uncompressed 64-bit ELF file for this processor.
    #[error("the kernel is not {what}: give an uncompressed vmlinux for this processor")]
    NotAKernel {
        /// What it was expected to be.
        what: &'static str,
    },
    /// The file ends before what its headers describe.
    #[error("the kernel's {what} lies beyond the end of the file: it is cut short or broken")]
    CutShort {
        /// Header or segment.
        what: &'static str,
    },
    /// A segment's address is outside of the range for kernels.
    #[error("the kernel wants to be loaded to {start:#x}..{end:#x}, which must lie in {:#x}..{:#x}", .allowed.start, .allowed.end)]
    Address {
        /// The segment's first address.
        start: u64,
        /// The end of the segment.
        end: u64,
        /// Where a kernel may be loaded.
        allowed: Range<u64>,
    },
    /// The entry point lies in no segment.
    #[error("the kernel's entry point {entry:#x} lies in none of its segments")]
    Entry {
        /// The entry point.
        entry: u64,
    },
    /// The guest has too little memory.
    #[error("kernel and initramfs end at {} MiB, the guest has only {} MiB up to its first gap: give it more memory", .end.div_ceil(1 << 20), .memory >> 20)]
    NoRoom {
        /// Where the kernel and the initramfs end, in bytes.
        end: u64,
        /// The end of memory before its first gap, in bytes.
        memory: u64,
    },
    /// Its file can't be mapped.
    #[error("cannot map the kernel or the initramfs into guest memory")]
    Map(#[source] std::io::Error),
    /// hull can't load kernels of this architecture yet.
    #[error(transparent)]
    NotSupported(#[from] NotSupported),
}

/// Loads an image into guest memory. `end`, for the error, is where the last image of the guest
/// would end.
pub(crate) fn place(
    image: &Image<'_>,
    memory: &GuestMemoryMmap,
    address: GuestAddress,
    end: u64,
) -> Result<(), KernelError> {
    image.place(memory, address).map_err(|error| match error {
        PlaceError::Map(source) => KernelError::Map(source),
        PlaceError::Outside(_) => KernelError::NoRoom {
            end,
            memory: low_memory(memory),
        },
    })
}

/// The end of memory before the first gap: where a kernel and an initramfs must end.
pub(crate) fn low_memory(memory: &GuestMemoryMmap) -> u64 {
    let first = memory.iter().next();
    first.map_or(0, |region| region.last_addr().raw_value() + 1)
}
