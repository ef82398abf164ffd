//! The kernel image. Not implemented: it will be Linux's `Image`
//! (Documentation/arch/arm64/booting.rst, 4), whose header gives the offset from a multiple of 2
//! MiB at which it is loaded and the memory that it needs, and whose entry point is its first byte.

use vm_memory::GuestMemoryMmap;

use crate::arch::NotSupported;
use crate::image::Image;
use crate::kernel::KernelError;

/// A checked image. No value of it can exist yet.
#[derive(Debug)]
pub(crate) enum KernelImage {}

impl KernelImage {
    /// Reads the header of `image`.
    pub(crate) fn parse(_: Image<'_>) -> Result<Self, KernelError> {
        let what = "load a kernel";
        Err(NotSupported { what }.into())
    }

    /// The guest physical address of the entry point.
    pub(crate) fn entry(&self) -> u64 {
        match *self {}
    }

    /// The end of the memory that the kernel takes.
    pub(crate) fn end(&self) -> u64 {
        match *self {}
    }

    /// Puts it into guest memory that is still zero.
    pub(crate) fn load(&self, _: &GuestMemoryMmap) -> Result<(), KernelError> {
        match *self {}
    }
}
