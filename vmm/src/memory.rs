//! Guest memory: private anonymous mappings, so that it can later be cloned copy-on-write, and
//! allocated on first access, so that a guest costs only what it touches.
#![allow(unsafe_code)] // madvise and prctl on our own mappings

use std::ffi::CStr;
use std::io;
use std::sync::Arc;

use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    GuestUsize, MmapRegion,
};

use crate::arch;
use crate::arch::layout::SECTION;
use crate::virtio::mem::Region;

/// The least memory a machine can have, in MiB: a kernel of 16 MiB loaded at 16 MiB just fits.
pub const MIN_MIB: u32 = 32;
/// The most, in MiB: 1 TiB, what every processor of today can address.
pub const MAX_MIB: u32 = 1 << 20;

/// The size of a huge page.
pub(crate) const HUGE_PAGE: u64 = 2 << 20;

/// The name of the mappings in /proc/PID/smaps, by which guest memory can be told from the VMM's
/// own.
const NAME: &CStr = c"hull-guest";

/// Why guest memory can't be allocated.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is out of range.
    #[error("{mib} MiB of guest memory: must be {MIN_MIB} to {MAX_MIB} MiB")]
    Size {
        /// The size asked for.
        mib: u32,
    },
    /// The host has no room for it.
    #[error(
        "cannot reserve {mib} MiB of guest memory: give the machine less, or see RLIMIT_AS and \
         vm.overcommit_memory of the host"
    )]
    Map {
        /// The size asked for.
        mib: u32,
        /// What mmap said.
        #[source]
        source: io::Error,
    },
}

/// Reserves `mib` MiB of guest memory, in as many regions as the architecture's layout has.
///
/// # Errors
/// The size is out of range, or the host has no room.
pub fn allocate(mib: u32) -> Result<GuestMemoryMmap, MemoryError> {
    if !(MIN_MIB..=MAX_MIB).contains(&mib) {
        return Err(MemoryError::Size { mib });
    }
    let regions = arch::memory_regions(u64::from(mib) << 20)
        .map(|(start, size)| {
            let mapping = map_aligned(size).map_err(|source| MemoryError::Map { mib, source })?;
            prepare(&mapping);
            Ok(GuestRegionMmap::new(mapping, GuestAddress(start))
                .expect("the layout's regions end below 2^64"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(GuestMemoryMmap::from_regions(regions).expect("the layout's regions don't overlap"))
}

/// Adds a region of at most `mib` MiB behind `boot`, a machine's memory, for blocks of memory that are
/// plugged in while the guest runs ([`Mem`](crate::virtio::mem::Mem)). Returns all of it, and the region:
/// none where less than a section of Linux's is asked for, or the host has no room for it in the address space.
pub(crate) fn with_hotplug_region(
    boot: &GuestMemoryMmap,
    mib: u32,
) -> (GuestMemoryMmap, Option<Region>) {
    let room = u64::from(MAX_MIB) << 20;
    let size = (u64::from(mib) << 20).min(room) / SECTION * SECTION;
    let start = arch::hotplug_start(boot.last_addr().raw_value() + 1);
    let added = (size > 0).then(|| {
        let mapping = map_aligned(size as usize)
            .inspect_err(|error| log::warn!("the VM's memory can't grow: {error}"))
            .ok()?;
        prepare(&mapping);
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))?;
        boot.insert_region(Arc::new(region)).ok()
    });
    match added.flatten() {
        Some(memory) => (memory, Some(Region { start, size })),
        None => (boot.clone(), None),
    }
}

/// Gives what a range of guest memory holds back to the host: it reads as zeroes from then on.
///
/// # Errors
/// The range isn't one of guest memory, or madvise(2) fails.
pub(crate) fn give_back(memory: &GuestMemoryMmap, start: u64, size: u64) -> io::Result<()> {
    let slice = memory
        .get_slice(GuestAddress(start), size as usize)
        .map_err(io::Error::other)?;
    // SAFETY: the slice was checked to lie in a mapping of ours. It is private and anonymous, and whoever
    // reads guest memory expects any bytes there, zeroes too.
    let done = unsafe {
        libc::madvise(
            slice.ptr_guard_mut().as_ptr().cast(),
            size as usize,
            libc::MADV_DONTNEED,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Maps `size` bytes, at a multiple of the huge page size if possible: only then can huge pages be
/// used, both in the host's page tables and in the second-level ones of the guest.
fn map_aligned(size: usize) -> io::Result<MmapRegion<()>> {
    let map = || {
        MmapRegion::<()>::new(size).map_err(|error| match error {
            vm_memory::mmap::MmapRegionError::Mmap(source) => source,
            other => io::Error::other(other),
        })
    };
    let first = map()?;
    let start = first.as_ptr() as usize;
    let excess = start % HUGE_PAGE as usize;
    if excess == 0 {
        return Ok(first); // what Linux gives since 6.7, if the size is a multiple too
    }
    // Linux places a mapping at the end of the free address space: with the excess occupied there,
    // the next mapping is aligned. If another thread maps something in between, it isn't, and the
    // guest is a little slower.
    drop(first);
    let _placeholder = Placeholder::new(start + size - excess, excess);
    map()
}

/// An inaccessible mapping that occupies address space as long as it exists.
struct Placeholder(*mut libc::c_void, usize);

impl Placeholder {
    fn new(start: usize, size: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let start = std::ptr::without_provenance_mut(start);
        // SAFETY: MAP_FIXED_NOREPLACE never touches a mapping that exists.
        Self(
            unsafe { libc::mmap(start, size, libc::PROT_NONE, flags, -1, 0) },
            size,
        )
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        if self.0 != libc::MAP_FAILED {
            // SAFETY: it was mapped by `new`, and nobody was given its address.
            unsafe { libc::munmap(self.0, self.1) };
        }
    }
}

/// Names the mapping, and disables transparent huge pages for it: with the host's default ("always"
/// on Debian) the first byte that the guest touches in any 2 MiB would cost 2 MiB.
fn prepare(mapping: &MmapRegion<()>) {
    let (start, size) = (mapping.as_ptr().cast(), mapping.size());
    // Best effort, both: kernels may be built without either.
    // SAFETY: the range is a mapping of ours; a name and a hint don't change what it holds.
    unsafe {
        libc::prctl(
            libc::PR_SET_VMA,
            libc::PR_SET_VMA_ANON_NAME,
            start,
            size,
            NAME.as_ptr(),
        );
        libc::madvise(start, size, libc::MADV_NOHUGEPAGE);
    }
}

/// Enables huge pages where Linux will allocate its memmap, the array of page descriptors (`struct
/// page`), which it initialises completely at boot: 64 bytes for each page of memory, in a block of
/// 2 MiB for each section of 128 MiB (`sparse_init` with `SPARSEMEM_VMEMMAP`,
/// `init_unavailable_range`). With small pages, a large guest would spend most of its boot time in
/// page faults.
///
/// The blocks are contiguous, and as close to the end of memory as earlier allocations allow. They
/// don't cover the end of the first section, where Linux has allocated a usage map before. If Linux
/// ever places them elsewhere, a guest costs a little more memory and time.
pub(crate) fn prefer_huge_pages_for_memmap(memory: &GuestMemoryMmap) {
    let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    let size = total.div_ceil(SECTION) * HUGE_PAGE;
    let room = |region: &&GuestRegionMmap| region.len() > size + EARLY_ALLOCATIONS + HUGE_PAGE;
    if let Some(region) = memory.iter().filter(room).last() {
        let end = region.last_addr().raw_value() + 1;
        let mut end = (end - EARLY_ALLOCATIONS) / HUGE_PAGE * HUGE_PAGE;
        if (end - size..end).contains(&(SECTION - 1)) {
            end = SECTION - HUGE_PAGE;
        }
        prefer_huge_pages(memory, GuestAddress(end - size), size);
    }
}

/// The most that Linux allocates at the end of memory before its memmap: 0.6 MiB to 1 MiB in guests
/// of 128 MiB to 2 GiB.
const EARLY_ALLOCATIONS: u64 = 1 << 20;

/// Enables huge pages for a range that is going to be written completely, as the kernel's and the
/// initramfs's are: the guest then takes one nested page fault for 2 MiB instead of 512.
///
/// The range is extended to whole huge pages, within its region of guest memory.
pub(crate) fn prefer_huge_pages(memory: &GuestMemoryMmap, start: GuestAddress, size: GuestUsize) {
    let Some(region) = memory.find_region(start) else {
        return;
    };
    let begin = start.raw_value() / HUGE_PAGE * HUGE_PAGE;
    let begin = begin.max(region.start_addr().raw_value());
    let region_end = region.last_addr().raw_value() + 1;
    let end = start
        .raw_value()
        .saturating_add(size)
        .checked_next_multiple_of(HUGE_PAGE)
        .map_or(region_end, |end| end.min(region_end));
    let size = (end - begin) as usize;
    let Ok(slice) = memory.get_slice(GuestAddress(begin), size) else {
        return;
    };
    // SAFETY: the slice was checked to lie in a mapping of ours; a hint doesn't change what it holds.
    unsafe {
        libc::madvise(
            slice.ptr_guard_mut().as_ptr().cast(),
            size,
            libc::MADV_HUGEPAGE,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn sizes_out_of_range_are_refused_by_name() {
        for mib in [0, MIN_MIB - 1, MAX_MIB + 1, u32::MAX] {
            let error = allocate(mib).expect_err("out of range").to_string();
            assert!(error.starts_with(&format!("{mib} MiB")), "{error}");
        }
    }

    #[test]
    fn memory_lies_around_the_gap_and_costs_nothing_until_touched() {
        let memory = allocate(16 << 10).expect("16 GiB, not reserved");
        let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
        assert_eq!(total, 16 << 30);
        assert!(memory.address_in_range(GuestAddress((3 << 30) - 1)));
        assert!(!memory.address_in_range(GuestAddress(3 << 30)));
        assert!(!memory.address_in_range(GuestAddress((4 << 30) - 1)));
        assert!(memory.address_in_range(GuestAddress(4 << 30)));
        assert!(memory.address_in_range(GuestAddress((17 << 30) - 1)));
        memory
            .write_obj(7u64, GuestAddress((17 << 30) - 8))
            .expect("its last bytes");
    }

    #[test]
    fn memory_is_aligned_for_huge_pages() {
        let aligned = |memory: &GuestMemoryMmap| {
            memory
                .iter()
                .all(|region| (region.as_ptr() as u64).is_multiple_of(HUGE_PAGE))
        };
        // Other tests map memory at the same time: once is enough.
        let memory = (0..10)
            .map(|_| allocate(33).expect("33 MiB"))
            .find(aligned)
            .expect("aligned, once in ten times");
        prefer_huge_pages(&memory, GuestAddress(16 << 20), 17 << 20);
        prefer_huge_pages(&memory, GuestAddress(1 << 40), 1);
        prefer_huge_pages(&memory, GuestAddress(16 << 20), u64::MAX);
    }

    #[test]
    fn what_can_be_plugged_in_lies_above_the_gap_and_is_no_boot_memory() {
        let boot = allocate(200).expect("200 MiB");
        let (memory, region) = with_hotplug_region(&boot, 16 << 10);
        let region = region.expect("16 GiB, not reserved");
        assert_eq!((region.start, region.size), (4 << 30, 16 << 30));
        assert_eq!((boot.num_regions(), memory.num_regions()), (1, 2));
        let boot = allocate((4 << 10) + 100).expect("4196 MiB");
        let (_, region) = with_hotplug_region(&boot, 255);
        let start = (5 << 30) + (128 << 20);
        let size = 128 << 20;
        assert_eq!(region, Some(Region { start, size }));
        assert_eq!(with_hotplug_region(&boot, 127).1, None);
    }

    #[test]
    fn what_is_given_back_reads_as_zeroes() {
        let boot = allocate(32).expect("32 MiB");
        let (memory, region) = with_hotplug_region(&boot, 128);
        let start = region.expect("a region").start;
        let at = |offset| GuestAddress(start + offset);
        memory.write_obj(1_u8, at(0)).expect("in memory");
        memory.write_obj(2_u8, at(HUGE_PAGE)).expect("in memory");
        give_back(&memory, start, HUGE_PAGE).expect("taken");
        let read = |offset| memory.read_obj::<u8>(at(offset)).expect("in memory");
        assert_eq!([read(0), read(HUGE_PAGE)], [0, 2]);
        assert!(give_back(&memory, start + (127 << 20), HUGE_PAGE).is_err());
    }

    #[test]
    fn no_room_is_told_with_the_size() {
        let error = MemoryError::Map {
            mib: 512,
            source: io::Error::from_raw_os_error(libc::ENOMEM),
        };
        assert!(error.to_string().contains("512 MiB"));
    }

    #[test]
    fn page_descriptors_get_huge_pages() {
        let hinted = |mib| {
            let memory = allocate(mib).expect("memory");
            prefer_huge_pages_for_memmap(&memory);
            let region = memory.iter().last().expect("a region");
            let (start, end) = (
                region.as_ptr() as u64,
                region.as_ptr() as u64 + region.len(),
            );
            let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
            let mut here = 0..0;
            let mut found = Vec::new();
            for line in smaps.lines() {
                let range = line
                    .split(' ')
                    .next()
                    .and_then(|range| range.split_once('-'));
                let hex = |text| u64::from_str_radix(text, 16).ok();
                if let Some((from, to)) = range.and_then(|(a, b)| Some((hex(a)?, hex(b)?))) {
                    here = from..to;
                } else if line.starts_with("VmFlags:")
                    && line.contains(" hg")
                    && start <= here.start
                    && here.end <= end
                {
                    found.push((end - here.start, end - here.end));
                }
            }
            found
        };
        assert_eq!(hinted(64), [(4 << 20, 2 << 20)]);
        assert_eq!(hinted(256), [(6 << 20, 2 << 20)]);
        assert_eq!(hinted(251), [(5 << 20, 1 << 20)]);
        assert_eq!(hinted(130), [(8 << 20, 4 << 20)]);
        // 50 MiB of them don't fit into the 16 MiB above the gap: they lie below it.
        assert_eq!(hinted(3088), []);
    }
}
