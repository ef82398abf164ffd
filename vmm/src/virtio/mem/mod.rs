//! virtio-mem (virtio 1.3, chapter 5.15): memory that the guest gets, and gives back, while it runs.
//!
//! A region of guest physical addresses above the memory that the guest was booted with is divided into
//! blocks. The host says how much of it the guest is to have ([`Mem::request_size`]); the guest's driver
//! plugs and unplugs blocks until it has that, as far as it can. What it unplugs goes back to the host.
//!
//! The region is mapped in the VMM, and known to KVM and every device, from the start, so nobody's view of
//! guest memory ever changes; a page of it costs nothing before it is touched. Therefore nothing here keeps
//! a hostile guest from touching blocks that it hasn't plugged: they read as zeroes or as what it has
//! written there. The bound is on the host, whose cgroup of the VM must have a memory limit. The device
//! offers `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`, so that a driver that keeps the rules doesn't even read
//! them, which would allocate pages; a driver that doesn't know the feature harms itself alone.
//!
//! `blocks` is the device's state, `request` what the driver writes. The bindings crate has no
//! linux/virtio_mem.h, so its few numbers are here.

mod blocks;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_queue::{DescriptorChain, QueueState};
use virtiofsd::descriptor_utils::{Reader, Writer};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{
    ActivateError, Activation, DeviceState, RestoreError, SaveError, VirtioDevice,
};
use super::lifecycle::{Active, Lifecycle};
use super::live_config::LiveConfig;
use super::memory::LoggedMemory;
use super::queue::{DeviceQueue, Turn};
use crate::event_loop::Subscriber;
use crate::memory::give_back;
use blocks::{Blocks, Effect};
use request::{REQUEST_SIZE, RESPONSE_SIZE, Request};

/// The size of a block, in bytes, and what its address is a multiple of: a huge page, which is also the
/// least that Linux's driver plugs on x86-64.
pub const BLOCK_SIZE: u64 = 2 << 20;

/// The feature bit of `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`.
const UNPLUGGED_INACCESSIBLE: u32 = 1;

/// Linux has one request at a time.
const QUEUE_SIZES: [u16; 1] = [16];

/// Requests served in one turn of the event loop: each may give 128 GiB back to the host.
const BUDGET: usize = 4;

/// The most descriptors of a request; Linux uses two.
const MAX_DESCRIPTORS: usize = 8;

/// The size of `struct virtio_mem_config`.
const CONFIG_SIZE: usize = 56;

/// A range of guest physical addresses, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its first address.
    pub start: u64,
    /// Its size.
    pub size: u64,
}

/// Why a region can't be a device's.
#[derive(Debug, thiserror::Error)]
pub enum MemError {
    /// It isn't of whole blocks, or not guest memory.
    #[error(
        "{size} bytes from {start:#x} on are not whole blocks of {} MiB of guest memory",
        BLOCK_SIZE >> 20
    )]
    Region {
        /// Where it begins.
        start: u64,
        /// Its size.
        size: u64,
    },
    /// An eventfd can't be created.
    #[error("cannot create an eventfd")]
    Eventfd(#[from] io::Error),
}

/// What of a saved device isn't in its registers: which blocks are plugged, and how many are requested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemState {
    blocks: Blocks,
}

/// The device.
#[derive(Debug)]
pub struct Mem {
    memory: Arc<GuestMemoryMmap>,
    blocks: Blocks,
    /// What the configuration is at the beginning.
    first_config: [u8; CONFIG_SIZE],
    config: Arc<LiveConfig>,
    /// Readable when the plugged size has changed.
    plugged: Arc<EventFd>,
    lifecycle: Lifecycle<[DeviceQueue; 1]>,
}

impl Mem {
    /// An inactive device with a region of guest memory, none of which is plugged.
    ///
    /// # Errors
    /// The region isn't one, or the process has too many files open.
    pub fn new(memory: Arc<GuestMemoryMmap>, region: Region) -> Result<Self, MemError> {
        use vm_memory::{GuestAddress, GuestMemory};
        let Region { start, size } = region;
        let in_memory =
            usize::try_from(size).is_ok_and(|size| memory.check_range(GuestAddress(start), size));
        let whole = [start, size].iter().all(|n| n.is_multiple_of(BLOCK_SIZE));
        if size == 0 || !whole || !in_memory {
            return Err(MemError::Region { start, size });
        }
        let blocks = Blocks::new(region);
        let first_config = config(&blocks);
        Ok(Self {
            memory,
            blocks,
            first_config,
            config: Arc::new(LiveConfig::new(&first_config)),
            plugged: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
            lifecycle: Lifecycle::new("virtio-mem".to_owned())?,
        })
    }

    /// Has the guest know that it is to have `size` bytes of the region, rounded up to whole blocks, and at
    /// most all of it. It then plugs or unplugs blocks, if it can and likes to.
    pub fn request_size(&mut self, size: u64) {
        self.blocks.request_size(size);
        if self.config.set(&config(&self.blocks))
            && let Some(active) = self.lifecycle.active()
        {
            active.interrupt.config_changed();
        }
    }

    /// The size that was requested last, in bytes.
    pub fn requested_size(&self) -> u64 {
        self.blocks.requested_size()
    }

    /// How much of the region the guest has plugged, in bytes.
    pub fn plugged_size(&self) -> u64 {
        self.blocks.plugged_size()
    }

    /// The region.
    pub fn region(&self) -> Region {
        self.blocks.region()
    }

    /// Whether the guest has a driver for the device.
    pub fn has_driver(&self) -> bool {
        self.lifecycle.is_active()
    }

    /// An eventfd (non-blocking) that is readable when the plugged size has changed since it was read.
    pub fn plugged_eventfd(&self) -> Arc<EventFd> {
        Arc::clone(&self.plugged)
    }

    /// Serves the available requests, as after a kick.
    fn serve(&mut self) {
        let Some(Active {
            memory: view,
            queues: [queue],
            stop,
            ..
        }) = self.lifecycle.active()
        else {
            return;
        };
        let turn = Turn {
            budget: BUDGET,
            stop,
            interrupt_each: None,
        };
        let (memory, blocks, live) = (&self.memory, &mut self.blocks, &self.config);
        let mut failed = None;
        let before = blocks.plugged_size();
        queue.serve(view.memory(), turn, |chain| {
            let mut on_effect = |blocks: &Blocks, effect| {
                if let Effect::Unplugged(Region { start, size }) = effect {
                    failed = give_back(memory, start, size).err();
                }
                // Before the response: a driver that has it may look at the size.
                live.set(&config(blocks));
            };
            Some(serve_chain(blocks, view.memory(), chain, &mut on_effect).unwrap_or(0))
        });
        if blocks.plugged_size() != before {
            let _ = self.plugged.write(1); // a full eventfd is readable too
        }
        if let Some(error) = failed {
            self.lifecycle.warn(format_args!(
                "unplugged memory stays the VM's, as the host's kernel doesn't take it: {error}"
            ));
        }
        self.lifecycle.end_turn();
    }
}

/// Serves one request. Returns how many bytes were written; `None` if it isn't one, and was left alone.
fn serve_chain(
    blocks: &mut Blocks,
    memory: &LoggedMemory,
    chain: DescriptorChain<&LoggedMemory>,
    on_effect: &mut impl FnMut(&Blocks, Effect),
) -> Option<u32> {
    // The guest may make the chain longer after this check. It is read to its end then, at most 65535
    // descriptors.
    if chain.clone().nth(MAX_DESCRIPTORS).is_some() {
        return None;
    }
    let mut readable = Reader::new(memory, chain.clone()).ok()?;
    let mut writable = Writer::new(memory, chain).ok()?;
    if writable.available_bytes() < RESPONSE_SIZE {
        return None;
    }
    let request: [u8; REQUEST_SIZE] = readable.read_obj().ok()?;
    let (response, effect) = blocks.serve(Request::parse(&request));
    if effect != Effect::None {
        on_effect(blocks, effect);
    }
    io::Write::write_all(&mut writable, &response.to_bytes()).ok()?;
    Some(RESPONSE_SIZE as u32)
}

/// The configuration space: `struct virtio_mem_config` (virtio 1.3, 5.15.4). All of the region may be used,
/// so that the usable region's size doesn't change.
fn config(blocks: &Blocks) -> [u8; CONFIG_SIZE] {
    let Region { start, size } = blocks.region();
    let no_node = 0;
    let fields = [
        BLOCK_SIZE,
        no_node,
        start,
        size,
        size,
        blocks.plugged_size(),
        blocks.requested_size(),
    ];
    let mut config = [0; CONFIG_SIZE];
    for (bytes, field) in config.chunks_exact_mut(8).zip(fields) {
        bytes.copy_from_slice(&field.to_le_bytes());
    }
    config
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << UNPLUGGED_INACCESSIBLE
    }

    fn activation_eventfd(&self) -> Option<RawFd> {
        Some(self.lifecycle.activation_eventfd())
    }

    fn config(&self) -> &[u8] {
        &self.first_config
    }

    fn live_config(&self) -> Option<Arc<LiveConfig>> {
        Some(Arc::clone(&self.config))
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.lifecycle.activate(activation)
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.lifecycle.stop()
    }

    /// Blocks stay as they are (virtio 1.3, 5.15.6.1): a driver that begins anew has its memory still.
    fn reset(&mut self) {
        self.lifecycle.stop();
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        let blocks = self.blocks.clone();
        Ok(DeviceState::Mem(MemState { blocks }))
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Mem(MemState { blocks }) = state else {
            return Err(RestoreError::Differs { what: "type" });
        };
        if !blocks.is_possible_in(self.blocks.region()) {
            let what = "region, or with blocks that no driver plugs";
            return Err(RestoreError::Differs { what });
        }
        self.blocks = blocks;
        self.config.set(&config(&self.blocks));
        Ok(())
    }
}

impl Subscriber for Mem {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![
            self.lifecycle.activation_eventfd(),
            self.plugged.as_raw_fd(),
        ]
    }
}

impl MutEventSubscriber for Mem {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.lifecycle.init(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        self.lifecycle.on_event(&events, ops);
        self.serve();
    }
}
