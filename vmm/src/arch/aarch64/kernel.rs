//! A kernel image: to be Linux's `Image` (Documentation/arch/arm64/booting.rst, 4), whose header says how far
//! from a multiple of 2 MiB it is loaded and how much memory it needs, and which is entered at its first byte.

use vm_memory::GuestMemoryMmap;

use crate::arch::NotSupported;
use crate::image::Image;
use crate::kernel::KernelError;

/// A checked image. There is none yet.
#[derive(Debug)]
pub(crate) enum KernelImage {}

impl KernelImage {
    /// Reads the header of `image`.
    pub(crate) fn parse(_: Image<'_>) -> Result<Self, KernelError> {
        let what = "load a kernel";
        Err(NotSupported { what }.into())
    }

    /// The physical address of its first instruction.
    pub(crate) fn entry(&self) -> u64 {
        match *self {}
    }

    /// The end of all the memory it needs.
    pub(crate) fn end(&self) -> u64 {
        match *self {}
    }

    /// Puts it into guest memory that is still zero.
    pub(crate) fn load(&self, _: &GuestMemoryMmap) -> Result<(), KernelError> {
        match *self {}
    }
}
