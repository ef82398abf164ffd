//! The buffers of descriptor chains as an array of `iovec`, so that readv(2) and writev(2) move a
//! frame between the tap and guest memory without a copy in between, and without an allocation.
//!
//! The addresses are looked up when a chain is pushed: what the guest writes to its descriptors
//! later has no effect.
#![allow(unsafe_code)] // readv and writev on memory that the guest accesses too

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryMmap, VolatileSlice};

/// The most descriptors of a chain: the size of the queue (virtio 1.3, 2.7.5.3.1).
pub(super) const MAX_DESCRIPTORS: usize = super::QUEUE_SIZE as usize;

/// The most buffers at the same time: what one readv(2) takes (`UIO_MAXIOV` of linux/uio.h),
/// without one that is not in guest memory.
const MAX_BUFFERS: usize = libc::UIO_MAXIOV as usize - 1;

/// Why a chain can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChainError {
    #[error("a chain has more than {MAX_DESCRIPTORS} descriptors")]
    TooLong,
    #[error(
        "a chain has a device-writable buffer for a frame to be sent, or a device-readable one for a received frame"
    )]
    Access,
    #[error("a buffer is outside of guest memory")]
    OutsideMemory,
    #[error("a chain loops, or refers to a descriptor outside of the table")]
    Malformed,
}

/// How the device accesses the buffers of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    DeviceReadable,
    DeviceWritable,
}

/// Buffers in guest memory, in the order in which they are filled or read.
pub(super) struct Buffers {
    /// Keeps the memory mapped that the buffers are in.
    memory: Arc<GuestMemoryMmap>,
    iovecs: Vec<libc::iovec>,
    /// How many of the first ones were consumed already.
    consumed: usize,
}

// SAFETY: the iovecs are addresses in guest memory, which stays mapped as long as `memory` is held. They
// are dereferenced by the kernel and through volatile accesses only, whichever thread owns them.
unsafe impl Send for Buffers {}

impl Buffers {
    /// No buffers yet, of this memory.
    pub(super) fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        Self {
            memory,
            // Room for as many consumed ones, so that the others are rarely moved to the front, and
            // for the buffer that is not in guest memory.
            iovecs: Vec::with_capacity(2 * MAX_BUFFERS + 1),
            consumed: 0,
        }
    }

    /// Whether a chain fits, however many descriptors it has.
    pub(super) fn has_room(&self) -> bool {
        self.unconsumed().len() + MAX_DESCRIPTORS <= MAX_BUFFERS
    }

    /// Appends the buffers of a chain. Returns their number and their size in bytes. If the chain
    /// can't be used, appends none.
    pub(super) fn push(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        access: Access,
    ) -> Result<(usize, usize), ChainError> {
        if self.iovecs.len() + MAX_DESCRIPTORS >= self.iovecs.capacity() {
            self.iovecs.drain(..self.consumed);
            self.consumed = 0;
        }
        let before = self.iovecs.len();
        match self.try_push(chain, access) {
            Ok(bytes) => Ok((self.iovecs.len() - before, bytes)),
            Err(error) => {
                self.iovecs.truncate(before);
                Err(error)
            }
        }
    }

    fn try_push(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        access: Access,
    ) -> Result<usize, ChainError> {
        let (mut bytes, mut is_complete) = (0, false);
        for (number, descriptor) in chain.enumerate() {
            if number == MAX_DESCRIPTORS {
                return Err(ChainError::TooLong);
            }
            if descriptor.is_write_only() != (access == Access::DeviceWritable) {
                return Err(ChainError::Access);
            }
            is_complete = !descriptor.has_next();
            let size = descriptor.len() as usize;
            if size == 0 {
                continue;
            }
            // A buffer can't span two regions: no two regions of guest memory adjoin.
            let slice = self.memory.get_slice(descriptor.addr(), size);
            let slice = slice.map_err(|_| ChainError::OutsideMemory)?;
            self.iovecs.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: size,
            });
            bytes += size;
        }
        match is_complete {
            true => Ok(bytes),
            // The library ends its iteration at a malformed descriptor.
            false => Err(ChainError::Malformed),
        }
    }

    fn unconsumed(&self) -> &[libc::iovec] {
        self.iovecs.get(self.consumed..).unwrap_or_default()
    }

    /// Removes the first `count` buffers, or all if there are fewer.
    pub(super) fn consume(&mut self, count: usize) {
        self.consumed = self.iovecs.len().min(self.consumed.saturating_add(count));
        if self.consumed == self.iovecs.len() {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.iovecs.clear();
        self.consumed = 0;
    }

    /// Reads a frame into the buffers, and what doesn't fit there into `rest`. Returns how many
    /// bytes were read. If the frame is larger than all of it, the end is lost.
    pub(super) fn read_from(&mut self, tap: BorrowedFd<'_>, rest: &mut [u8]) -> io::Result<usize> {
        self.iovecs.push(libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        });
        let iovecs = self.unconsumed();
        // SAFETY: all but the last are in guest memory, which is mapped, since `memory` is held. The
        // guest may access them at the same time, but there is no reference to them here. The last
        // one is `rest`, which is borrowed exclusively.
        let read = unsafe { libc::readv(tap.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) };
        let result = transferred(read);
        self.iovecs.pop();
        result
    }

    /// Writes the buffers as one frame.
    pub(super) fn write_to(&self, tap: BorrowedFd<'_>) -> io::Result<usize> {
        let iovecs = self.unconsumed();
        // SAFETY: the buffers are in guest memory, which is mapped, since `memory` is held.
        let written =
            unsafe { libc::writev(tap.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) };
        transferred(written)
    }

    /// Writes bytes to the buffers, starting at an offset, as far as there is room.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        let mut left = bytes;
        self.for_each_part(offset, bytes.len(), |address, size| {
            let (part, rest) = left.split_at(size.min(left.len()));
            // SAFETY: the part is in guest memory, which is mapped, since `memory` is held.
            unsafe { VolatileSlice::new(address, size) }.copy_from(part);
            left = rest;
        });
    }

    /// Reads bytes from the start of the buffers, as far as there are any.
    pub(super) fn read(&self, bytes: &mut [u8]) {
        let size = bytes.len();
        let mut left = bytes;
        self.for_each_part(0, size, |address, size| {
            let part_size = size.min(left.len());
            let (part, rest) = std::mem::take(&mut left).split_at_mut(part_size);
            // SAFETY: as in `write`.
            unsafe { VolatileSlice::new(address, size) }.copy_to(part);
            left = rest;
        });
    }

    /// Calls `part` with the address and the size of each contiguous part of `size` bytes of the
    /// buffers that start at `offset`.
    fn for_each_part(&self, offset: usize, size: usize, mut part: impl FnMut(*mut u8, usize)) {
        let (mut skipped, mut left) = (offset, size);
        for iovec in self.unconsumed() {
            if left == 0 {
                return;
            }
            let Some(room) = iovec.iov_len.checked_sub(skipped).filter(|room| *room > 0) else {
                skipped -= iovec.iov_len;
                continue;
            };
            let size = room.min(left);
            part(iovec.iov_base.cast::<u8>().wrapping_add(skipped), size);
            (skipped, left) = (0, left - size);
        }
    }
}

fn transferred(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
