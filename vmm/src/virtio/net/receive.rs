//! The receive direction: from the tap to the guest.
//!
//! The driver's buffers are popped before there is a frame, enough for the largest one, so that
//! each chain is parsed once. A frame is read straight into them, and the chains that it fills are
//! returned at once (virtio 1.3, 5.1.6.4). A frame that is larger than the buffers that the driver
//! has made available is kept here until there are more.

use std::collections::VecDeque;
use std::io;
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF, virtio_net_hdr_mrg_rxbuf,
};
use vm_memory::GuestMemoryMmap;

use super::buffers::{Access, Buffers, ChainError};
use super::tap::Tap;
use super::{BUDGET, HEADER_SIZE, MAX_FRAME, QUEUE_SIZE};
use crate::stop::StopFlag;
use crate::virtio::queue::DeviceQueue;

/// The most chains that are popped in one turn.
const CHAIN_BUDGET: usize = 512;

/// The most chains that are popped at the same time.
const MAX_POPPED: usize = QUEUE_SIZE as usize;

/// The state when a turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is no frame; the tap becomes readable when there is one.
    TapEmpty,
    /// The driver has made no buffers available, or too few, and will kick when there are more.
    NoBuffers,
    /// There may be more frames, which are left for another turn.
    MoreToServe,
}

/// A chain that was popped from the receive queue.
struct PoppedChain {
    head: u16,
    /// How many of the [`Buffers`] are the chain's.
    buffers: usize,
    /// Their size in bytes. 0 for a malformed chain, which is kept because chains are returned in
    /// order.
    size: usize,
}

/// The features of the driver that matter here.
#[derive(Clone, Copy, Debug)]
struct Negotiated {
    /// `VIRTIO_NET_F_MRG_RXBUF`: a frame may be spread over several chains.
    mergeable: bool,
    /// `VIRTIO_NET_F_GUEST_CSUM`: a header's flags may say something of the checksum.
    checksums: bool,
}

/// Moves frames from the tap to the guest.
pub(super) struct Receiver {
    negotiated: Negotiated,
    /// The buffers of the popped chains.
    buffers: Buffers,
    popped: VecDeque<PoppedChain>,
    /// The size of `buffers` in bytes.
    room: usize,
    /// Holds a frame that was larger than that.
    pending_frame: Vec<u8>,
    /// The size of this frame; 0 if there is none.
    pending_size: usize,
    /// The chains that one frame fills: their heads, and the bytes written to each. Kept here to
    /// avoid an allocation for each frame.
    filled: Vec<(u16, u32)>,
    /// Why a chain was malformed, until that has been logged.
    chain_error: Option<ChainError>,
}

impl Receiver {
    /// For a driver that has negotiated `features`.
    pub(super) fn new(memory: Arc<GuestMemoryMmap>, features: u64) -> Self {
        Self {
            negotiated: Negotiated {
                mergeable: features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0,
                checksums: features & (1 << VIRTIO_NET_F_GUEST_CSUM) != 0,
            },
            buffers: Buffers::new(memory),
            popped: VecDeque::with_capacity(MAX_POPPED),
            room: 0,
            pending_frame: vec![0; MAX_FRAME],
            pending_size: 0,
            filled: Vec::with_capacity(MAX_POPPED),
            chain_error: None,
        }
    }

    /// Why the last malformed chain was; returned once, for the log.
    pub(super) fn take_chain_error(&mut self) -> Option<ChainError> {
        self.chain_error.take()
    }

    /// How many chains were popped and not returned. If they are made available again, a pending
    /// frame is lost, as on a link that goes down.
    pub(super) fn popped_chains(&self) -> usize {
        self.popped.len()
    }

    /// Moves frames for one turn.
    ///
    /// # Errors
    /// The tap can't be read, other than because it is empty.
    pub(super) fn serve(
        &mut self,
        rx: &mut DeviceQueue,
        memory: &GuestMemoryMmap,
        tap: &Tap,
        stop: &StopFlag,
    ) -> io::Result<Progress> {
        rx.disable_kicks(memory);
        let mut chain_budget = CHAIN_BUDGET;
        for _ in 0..BUDGET {
            if stop.is_set() {
                return Ok(Progress::NoBuffers);
            }
            self.pop_chains(rx, memory, &mut chain_budget);
            if chain_budget == 0 {
                break;
            }
            if self.room == 0 || self.pending_size > self.room {
                if self.discard_unusable(rx, memory) || rx.enable_kicks(memory) {
                    rx.disable_kicks(memory);
                    continue;
                }
                return Ok(Progress::NoBuffers);
            }
            if self.pending_size > 0 {
                let size = std::mem::take(&mut self.pending_size);
                let frame = self.pending_frame.get(..size).unwrap_or_default();
                self.buffers.write(0, frame);
                self.deliver(size, rx, memory);
                continue;
            }
            match self.read_frame(tap) {
                Ok(size) if size < HEADER_SIZE => {} // no frame of a tap
                Ok(size) if size > self.room => self.set_aside(size),
                Ok(size) => self.deliver(size, rx, memory),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::TapEmpty);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::MoreToServe)
    }

    /// Pops chains until the largest frame fits, or no more are available. Without mergeable
    /// buffers, pops a single one.
    fn pop_chains(&mut self, rx: &mut DeviceQueue, memory: &GuestMemoryMmap, budget: &mut usize) {
        while *budget > 0 && self.needs_chain(rx) {
            let Some(chain) = rx.pop(memory) else { return };
            *budget -= 1;
            let head = chain.head_index();
            let (buffers, size) = self
                .buffers
                .push(chain, Access::DeviceWritable)
                .unwrap_or_else(|error| {
                    self.chain_error = Some(error);
                    (0, 0)
                });
            self.room += size;
            self.popped.push_back(PoppedChain {
                head,
                buffers,
                size,
            });
        }
    }

    fn needs_chain(&self, rx: &DeviceQueue) -> bool {
        match self.negotiated.mergeable {
            true => self.room < MAX_FRAME && !self.is_full(rx),
            false => self.popped.is_empty(),
        }
    }

    /// Whether no more chains can be popped before some are returned.
    fn is_full(&self, rx: &DeviceQueue) -> bool {
        let most = MAX_POPPED.min(rx.size().into());
        self.popped.len() >= most || !self.buffers.has_room()
    }

    /// If there is no room at all, returns the popped chains, which are malformed. If a pending
    /// frame doesn't fit into as many buffers as there can ever be, drops it. Returns whether it
    /// has done either.
    fn discard_unusable(&mut self, rx: &mut DeviceQueue, memory: &GuestMemoryMmap) -> bool {
        if self.room == 0 {
            let any = !self.popped.is_empty();
            for chain in self.popped.drain(..) {
                rx.add_used(memory, chain.head, 0);
            }
            return any;
        }
        let never_fits = !self.negotiated.mergeable || self.is_full(rx);
        if never_fits {
            self.pending_size = 0;
        }
        never_fits
    }

    /// Reads a frame into the buffers, and what doesn't fit there into its place in
    /// `pending_frame`. Returns the frame's size, at most [`MAX_FRAME`] if it doesn't fit.
    fn read_frame(&mut self, tap: &Tap) -> io::Result<usize> {
        let rest = self.pending_frame.get_mut(self.room..).unwrap_or_default();
        match self.buffers.read_from(tap.as_fd(), rest)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()), // no frame is empty
            size => Ok(size),
        }
    }

    /// Makes a frame of this size the pending one, of which the start was read into the buffers.
    fn set_aside(&mut self, size: usize) {
        if let Some(start) = self.pending_frame.get_mut(..self.room) {
            self.buffers.read(start);
        }
        self.pending_size = size;
    }

    /// Returns the chains that a frame of this size, which fits, has filled.
    fn deliver(&mut self, size: usize, rx: &mut DeviceQueue, memory: &GuestMemoryMmap) {
        self.filled.clear();
        let (mut left, mut buffers) = (size, 0);
        for chain in &self.popped {
            let written = left.min(chain.size);
            self.filled.push((chain.head, written as u32)); // no frame has 4 GiB
            self.room -= chain.size;
            buffers += chain.buffers;
            left -= written;
            if left == 0 {
                break;
            }
        }
        let chains = self.filled.len();
        if !self.negotiated.checksums {
            let flags = offset_of!(virtio_net_hdr_mrg_rxbuf, hdr.flags);
            self.buffers.write(flags, &[0]);
        }
        // The tap doesn't set this field. Without mergeable buffers it is 1 (virtio 1.3,
        // 5.1.6.4.1).
        let num_buffers = offset_of!(virtio_net_hdr_mrg_rxbuf, num_buffers);
        let count = chains as u16; // at most MAX_POPPED
        self.buffers.write(num_buffers, &count.to_le_bytes());
        rx.add_used_batch(memory, &self.filled);
        self.buffers.consume(buffers);
        self.popped.drain(..chains);
    }
}
