//! virtio-blk (virtio 1.3, chapter 5.2): a disk, which is a block device or a file of the host.
//!
//! There is one queue, and the system calls block: each device must be served by a thread of its
//! own, so that a slow disk delays nothing else. It is a write-back device: a write is in the
//! host's page cache when the request completes, and on the disk after a flush.
//!
//! [`Disk`] is the host's side, `request` the guest's. A disk that is plugged in while the guest
//! runs goes into a [`DiskSlot`].

mod disk;
mod request;
mod slot;
#[cfg(test)]
mod slot_tests;
#[cfg(test)]
mod tests;

pub use super::slot::{SlotAnswer, SlotError};
pub use disk::{Disk, DiskError, SECTOR, SERIAL_SIZE};
pub use slot::{DiskSlot, SlotHandle};

use std::mem::offset_of;
use std::os::fd::{AsRawFd, RawFd};

use event_manager::{EventOps, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES, virtio_blk_config,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::device::{
    ActivateError, Activation, DeviceState, RestoreError, SaveError, VirtioDevice,
};
use super::lifecycle::{Active, Lifecycle};
use super::queue::{DeviceQueue, Turn};
use crate::event_loop::Subscriber;

/// The size of the queue, which is also the most descriptors in one request.
const QUEUE_SIZE: u16 = 128;
const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];

/// Requests served in one turn of the event loop, at most 64 MiB, so that a reset isn't delayed for
/// long.
const BUDGET: usize = 16;

/// The size of the configuration space, without the fields of features that are not offered.
const CONFIG_SIZE: usize = offset_of!(virtio_blk_config, max_secure_erase_sectors);

/// The device.
pub struct Block {
    disk: Disk,
    config: [u8; CONFIG_SIZE],
    lifecycle: Lifecycle<[DeviceQueue; 1]>,
}

/// A virtio-blk device without a disk, for an empty slot: the part of it that has to exist before
/// the threads are confined.
#[derive(Debug)]
pub struct DisklessBlock {
    lifecycle: Lifecycle<[DeviceQueue; 1]>,
}

/// What identifies the disk of a saved device, in addition to its configuration. The caller has to
/// keep the disk's contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    serial: String,
}

impl Block {
    /// An inactive device.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new(disk: Disk) -> std::io::Result<Self> {
        Ok(DisklessBlock::new()?.insert_disk(disk))
    }

    /// Serves the available requests, as after a kick.
    fn serve(&mut self) {
        let Some(active) = self.lifecycle.active() else {
            return;
        };
        let Active {
            memory,
            queues: [queue],
            features,
            interrupt,
            stop,
        } = active;
        let turn = Turn {
            budget: BUDGET,
            stop,
            interrupt_each: Some(interrupt),
        };
        // The driver can't flush.
        let write_through = *features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        let (disk, memory) = (&self.disk, memory.memory());
        queue.serve(memory, turn, |chain| {
            let served = request::serve(disk, write_through, memory, chain);
            let written = served.unwrap_or_else(|error| {
                log::debug!("virtio-blk: {}: {error}", disk.serial());
                0
            });
            Some(written as u32) // at most 4 MiB, so it fits
        });
        self.lifecycle.end_turn();
    }
}

impl DisklessBlock {
    /// A device for any disk.
    ///
    /// # Errors
    /// As [`Block::new`].
    pub fn new() -> std::io::Result<Self> {
        let lifecycle = Lifecycle::new("virtio-blk: an empty slot".to_owned())?;
        Ok(Self { lifecycle })
    }

    /// How many queues the device has.
    pub fn queues(&self) -> usize {
        QUEUE_SIZES.len()
    }

    /// See [`VirtioDevice::activation_eventfd`].
    pub fn activation_eventfd(&self) -> RawFd {
        self.lifecycle.activation_eventfd()
    }

    /// The inactive device with its disk.
    pub fn insert_disk(self, disk: Disk) -> Block {
        Block {
            config: config(&disk),
            lifecycle: self
                .lifecycle
                .with_name(format!("virtio-blk: {}", disk.serial())),
            disk,
        }
    }
}

/// The configuration space: `struct virtio_blk_config` (virtio 1.3, 5.2.4).
fn config(disk: &Disk) -> [u8; CONFIG_SIZE] {
    let mut config = [0; CONFIG_SIZE];
    let mut put = |offset: usize, bytes: &[u8]| {
        config[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(
        offset_of!(virtio_blk_config, capacity),
        &disk.sectors().to_le_bytes(),
    );
    let block_sectors = disk.block_size() / SECTOR as u32;
    let words = [
        (
            offset_of!(virtio_blk_config, size_max),
            request::MAX_SEGMENT,
        ),
        (
            offset_of!(virtio_blk_config, seg_max),
            request::MAX_SEGMENTS,
        ),
        (offset_of!(virtio_blk_config, blk_size), disk.block_size()),
        (
            offset_of!(virtio_blk_config, max_discard_sectors),
            request::MAX_RANGE,
        ),
        (offset_of!(virtio_blk_config, max_discard_seg), 1),
        (
            offset_of!(virtio_blk_config, discard_sector_alignment),
            block_sectors,
        ),
        (
            offset_of!(virtio_blk_config, max_write_zeroes_sectors),
            request::MAX_RANGE,
        ),
        (offset_of!(virtio_blk_config, max_write_zeroes_seg), 1),
    ];
    for (offset, word) in words {
        put(offset, &word.to_le_bytes());
    }
    put(offset_of!(virtio_blk_config, write_zeroes_may_unmap), &[1]);
    config
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH;
        if self.disk.is_read_only() {
            always | 1 << VIRTIO_BLK_F_RO
        } else {
            always | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn activation_eventfd(&self) -> Option<RawFd> {
        Some(self.lifecycle.activation_eventfd())
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.lifecycle.activate(activation)
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.lifecycle.stop()
    }

    fn reset(&mut self) {
        self.lifecycle.stop();
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        let serial = self.disk.serial().to_owned();
        Ok(DeviceState::Block(BlockState { serial }))
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        if self.save().is_ok_and(|own| own == state) {
            return Ok(());
        }
        let what = "serial number";
        Err(RestoreError::Differs { what })
    }
}

impl Subscriber for Block {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.lifecycle.activation_eventfd(), self.disk.as_raw_fd()]
    }
}

impl MutEventSubscriber for Block {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.lifecycle.init(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        self.lifecycle.on_event(&events, ops);
        self.serve();
    }
}
