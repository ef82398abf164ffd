//! Guest memory as the type that virtiofsd's library takes.
//!
//! The library is written for vhost-user and takes `GuestMemoryMmap<BitmapMmapRegion>`, a memory
//! whose writes can be logged for migration; ours has no bitmap. [`MemoryView`] describes the same
//! mappings again as that type. It copies nothing and logs nothing.
#![allow(unsafe_code)] // one call that takes a raw pointer to an existing mapping

use std::sync::Arc;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionCollectionError, GuestRegionMmap,
};

/// The memory type of virtiofsd's readers and writers.
pub(super) type LoggedMemory = GuestMemoryMmap<BitmapMmapRegion>;

/// Why guest memory could not be described a second time.
#[derive(Debug, thiserror::Error)]
pub(super) enum ViewError {
    #[error("a region of guest memory is not a usable mapping")]
    Mapping(#[from] MmapRegionError),
    #[error("a region of guest memory ends beyond the address space")]
    Address,
    #[error("the regions of guest memory do not form a memory")]
    Layout(#[from] GuestRegionCollectionError),
}

/// Guest memory, also seen as [`LoggedMemory`].
#[derive(Debug)]
pub(super) struct MemoryView {
    memory: LoggedMemory,
    /// Owns the mappings that `memory` points into.
    owner: Arc<GuestMemoryMmap>,
}

impl MemoryView {
    /// Describes `owner`'s regions a second time.
    pub(super) fn new(owner: Arc<GuestMemoryMmap>) -> Result<Self, ViewError> {
        let regions = owner
            .iter()
            .map(|region| {
                let size = usize::try_from(region.len()).map_err(|_| ViewError::Address)?;
                let builder = MmapRegionBuilder::<BitmapMmapRegion>::new(size)
                    .with_mmap_prot(region.prot())
                    .with_mmap_flags(region.flags());
                // SAFETY: the pointer and the size are those of a mapping that `owner` holds, and
                // `owner` lives as long as the view does. A region built from a raw pointer does
                // not unmap it when dropped.
                let mapping = unsafe { builder.with_raw_mmap_pointer(region.as_ptr()) }.build()?;
                GuestRegionMmap::new(mapping, region.start_addr()).ok_or(ViewError::Address)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            memory: GuestMemoryMmap::from_regions(regions)?,
            owner,
        })
    }

    /// The memory as this crate's type.
    pub(super) fn guest(&self) -> &GuestMemoryMmap {
        &self.owner
    }

    /// The memory as the library's type.
    pub(super) fn memory(&self) -> &LoggedMemory {
        &self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn both_descriptions_are_of_the_same_bytes() {
        let ranges = [(GuestAddress(0), 0x4000), (GuestAddress(0x10_0000), 0x4000)];
        let owner = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).expect("guest memory"));
        let view = MemoryView::new(Arc::clone(&owner)).expect("a view");
        let address = GuestAddress(0x10_0123);
        view.memory().write_obj(0xfeed_u16, address).expect("write");
        assert_eq!(owner.read_obj::<u16>(address).expect("read"), 0xfeed);
        assert!(view.memory().write_obj(1_u8, GuestAddress(0x8000)).is_err());
    }
}
