//! A kernel image: an uncompressed, statically linked ELF file (Linux's `vmlinux`), put segment by
//! segment at the physical addresses it was linked for.
//!
//! The image comes from the caller, not from the guest; it is checked all the same, since it may be
//! any file.

use std::ops::Range;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use super::layout;
use crate::image::Image;
use crate::kernel::{KernelError, place};

/// `EM_X86_64` of an ELF header.
const ELF_MACHINE: u16 = 62;

/// Where a kernel may be loaded.
const RANGE: Range<u64> = layout::KERNEL_MIN..layout::KERNEL_MAX;

/// A loadable segment of the image, and the guest physical address that it is loaded at.
#[derive(Debug)]
struct Segment<'a> {
    address: u64,
    image: Image<'a>,
}

/// A checked image.
#[derive(Debug)]
pub(crate) struct KernelImage<'a> {
    segments: Vec<Segment<'a>>,
    entry: u64,
    /// The range of memory that the segments take, including what has to be zero (bss).
    range: Range<u64>,
}

impl<'a> KernelImage<'a> {
    /// Reads the headers of `image`.
    pub(crate) fn parse(image: Image<'a>) -> Result<Self, KernelError> {
        let bytes = image.bytes();
        if !bytes.starts_with(b"\x7fELF") {
            return Err(KernelError::NotAKernel {
                what: "an ELF file",
            });
        }
        let header: Elf64_Ehdr = read(bytes, 0, "ELF header")?;
        check_header(&header)?;
        let mut kernel = Self {
            segments: Vec::new(),
            entry: header.e_entry,
            range: 0..0,
        };
        for index in 0..u64::from(header.e_phnum) {
            let offset = index * size_of::<Elf64_Phdr>() as u64;
            let offset = header.e_phoff.saturating_add(offset);
            let segment: Elf64_Phdr = read(bytes, offset, "program header")?;
            if segment.p_type == PT_LOAD && segment.p_memsz > 0 {
                kernel.add(&image, &segment)?;
            }
        }
        if !kernel.range.contains(&kernel.entry) {
            return Err(KernelError::Entry {
                entry: kernel.entry,
            });
        }
        Ok(kernel)
    }

    fn add(&mut self, image: &Image<'a>, segment: &Elf64_Phdr) -> Result<(), KernelError> {
        let start = segment.p_paddr;
        let end = start.saturating_add(segment.p_memsz.max(segment.p_filesz));
        if start < RANGE.start || end > RANGE.end {
            return Err(KernelError::Address {
                start,
                end,
                allowed: RANGE,
            });
        }
        self.range = if self.range.is_empty() {
            start..end
        } else {
            self.range.start.min(start)..self.range.end.max(end)
        };
        self.segments.push(Segment {
            address: start,
            image: range(segment.p_offset, segment.p_filesz)
                .and_then(|range| image.part(range))
                .ok_or(KernelError::CutShort { what: "segment" })?,
        });
        Ok(())
    }

    /// The guest physical address of the entry point.
    pub(crate) fn entry(&self) -> u64 {
        self.entry
    }

    /// The end of the memory that the segments take.
    pub(crate) fn end(&self) -> u64 {
        self.range.end
    }

    /// Puts the segments into guest memory that is still zero.
    pub(crate) fn load(&self, memory: &GuestMemoryMmap) -> Result<(), KernelError> {
        for segment in &self.segments {
            let address = GuestAddress(segment.address);
            place(&segment.image, memory, address, self.range.end)?;
        }
        Ok(())
    }
}

fn check_header(header: &Elf64_Ehdr) -> Result<(), KernelError> {
    let not = |what| Err(KernelError::NotAKernel { what });
    if header.e_ident[4..6] != [2, 1] {
        return not("a 64-bit little-endian ELF file");
    }
    if header.e_machine != ELF_MACHINE {
        return not("built for this processor");
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return not("an executable ELF file");
    }
    Ok(())
}

/// `size` bytes at `offset` of the file as a range of indices.
fn range(offset: u64, size: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(usize::try_from(size).ok()?)?)
}

/// A structure at `offset` of the image, which need not be aligned.
fn read<T: ByteValued + Default>(
    image: &[u8],
    offset: u64,
    what: &'static str,
) -> Result<T, KernelError> {
    let mut value = T::default();
    let bytes = range(offset, size_of::<T>() as u64)
        .and_then(|range| image.get(range))
        .ok_or(KernelError::CutShort { what })?;
    value.as_mut_slice().copy_from_slice(bytes);
    Ok(value)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::Bytes;

    /// A kernel with one segment, whose code starts at its first byte.
    pub(crate) fn image(address: u64, code: &[u8], memory: u64) -> Vec<u8> {
        let mut header = Elf64_Ehdr {
            e_machine: ELF_MACHINE,
            e_entry: address,
            e_phoff: 64,
            e_phentsize: 56,
            e_phnum: 1,
            ..Default::default()
        };
        header.e_ident[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        let segment = Elf64_Phdr {
            p_type: PT_LOAD,
            p_offset: 120,
            p_paddr: address,
            p_filesz: code.len() as u64,
            p_memsz: memory,
            ..Default::default()
        };
        [header.as_slice(), segment.as_slice(), code].concat()
    }

    fn parse(image: &[u8]) -> Result<KernelImage<'_>, KernelError> {
        KernelImage::parse(image.into())
    }

    #[test]
    fn segments_land_at_their_addresses() {
        let memory = crate::memory::allocate(32).expect("32 MiB");
        let image = image(0x20_0000, b"code", 0x1000);
        let kernel = parse(&image).expect("a kernel");
        assert_eq!(kernel.range, 0x20_0000..0x20_1000);
        kernel.load(&memory).expect("it fits");
        let mut found = [0; 5];
        memory
            .read_slice(&mut found, GuestAddress(0x20_0000))
            .expect("in memory");
        assert_eq!(&found, b"code\0");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let good = image(0x20_0000, b"code", 4);
        let text = |image: &[u8]| parse(image).expect_err("broken").to_string();
        assert!(text(b"").contains("not an ELF file"));
        assert!(text(&good[..10]).contains("ELF header lies beyond"));
        assert!(text(&[0; 64]).contains("not an ELF file"));
        assert!(text(&good[..100]).contains("program header lies beyond"));
        assert!(text(&good[..good.len() - 1]).contains("segment lies beyond"));
        assert!(text(&image(0x1000, b"code", 4)).contains("0x1000..0x1004"));
        assert!(text(&image(u64::MAX, b"code", u64::MAX)).contains("must lie in"));
        let mut other = good.clone();
        other[18] = 183;
        assert!(text(&other).contains("this processor"));
        let mut elsewhere = good.clone();
        elsewhere[24] = 1;
        assert!(parse(&elsewhere).is_ok());
        elsewhere[26] = 0x30;
        assert!(text(&elsewhere).contains("entry point"));
    }

    #[test]
    fn a_kernel_beyond_memory_is_refused() {
        let memory = crate::memory::allocate(32).expect("32 MiB");
        let image = image((32 << 20) - 2, b"code", 4);
        let error = parse(&image).expect("checked").load(&memory);
        assert!(matches!(error, Err(KernelError::NoRoom { .. })));
    }

    proptest! {
        #[test]
        fn no_image_makes_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for (byte, good) in bytes.iter_mut().zip(image(0x20_0000, b"", 4)) {
                if *byte % 8 != 0 {
                    *byte = good;
                }
            }
            let _ = parse(&bytes);
        }
    }
}
