//! virtio-blk (virtio 1.3, chapter 5.2): a disk, which is a block device or a file of the host.
//!
//! One queue, and blocking calls to the host: a device is to be served by a thread of its own, so that
//! a slow disk holds up nobody but who uses it. What is written is in the host's page cache when a
//! request is answered, and on the disk when the guest has flushed; that is also what the guest
//! is told.
//!
//! [`Disk`] is the host's side, `request` the guest's.

mod disk;
mod request;
#[cfg(test)]
mod tests;

pub use disk::{Disk, DiskError, SECTOR, SERIAL_SIZE};

use std::mem::offset_of;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES, virtio_blk_config,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use super::memory::View;
use super::queue::{Done, serve};
use super::watch::Watch;
use crate::event_loop::Subscriber;
use crate::stop::StopFlag;

/// Descriptors in the queue: requests in flight, or with indirect descriptors, the longest of one.
const QUEUE_SIZE: u16 = 128;
const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];

/// Requests served in one turn of the loop: at most 64 MiB, then a reset gets its chance.
const BUDGET: usize = 16;

/// The configuration space, up to the fields of features that are not offered.
const CONFIG_SIZE: usize = offset_of!(virtio_blk_config, max_secure_erase_sectors);

/// The device.
pub struct Block {
    disk: Disk,
    config: [u8; CONFIG_SIZE],
    watch: Watch,
    active: Option<Active>,
}

/// What there is between activation and reset.
struct Active {
    memory: View,
    queue: Queue,
    kick: Arc<EventFd>,
    interrupt: Interrupt,
    stop: StopFlag,
    /// The driver knows nothing of flushing.
    write_through: bool,
}

impl Block {
    /// A device that no driver has found yet.
    ///
    /// # Errors
    /// No eventfd is to be had: the process has too many files open.
    pub fn new(disk: Disk) -> std::io::Result<Self> {
        Ok(Self {
            config: config(&disk),
            disk,
            watch: Watch::new("virtio-blk")?,
            active: None,
        })
    }

    /// Serves what the driver has asked for, as after a kick.
    fn serve(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        match active.serve(&self.disk) {
            Ok(Done::All) => {}
            Ok(Done::Some) => {
                // The rest in the loop's next turn.
                let _ = active.kick.write(1);
            }
            Err(error) => {
                let serial = self.disk.serial();
                log::warn!("virtio-blk: {serial} is out of order until a reset: {error}");
                self.active = None;
            }
        }
    }
}

/// What a driver reads of a disk: `struct virtio_blk_config` (virtio 1.3, 5.2.4).
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

impl Active {
    /// Serves up to [`BUDGET`] requests.
    fn serve(&mut self, disk: &Disk) -> Result<Done, virtio_queue::Error> {
        let memory = self.memory.memory();
        let write_through = self.write_through;
        serve(
            &mut self.queue,
            memory,
            &self.interrupt,
            &self.stop,
            BUDGET,
            |chain| {
                let served = request::serve(disk, write_through, memory, chain);
                let written = served.unwrap_or_else(|error| {
                    log::debug!("virtio-blk: {}: {error}", disk.serial());
                    0
                });
                written as u32 // at most 4 MiB, so it fits
            },
        )
    }
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

    fn doorbell(&self) -> Option<RawFd> {
        Some(self.watch.doorbell())
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let found = activation.queues.len();
        let [ActiveQueue { mut queue, kick }] = <[ActiveQueue; 1]>::try_from(activation.queues)
            .map_err(|_| ActivateError::QueueCount { expected: 1, found })?;
        let agreed = |bit: u32| activation.features & (1 << bit) != 0;
        queue.set_event_idx(agreed(VIRTIO_RING_F_EVENT_IDX));
        let write_through = !agreed(VIRTIO_BLK_F_FLUSH);
        self.active = Some(Active {
            memory: View::new(activation.memory).map_err(std::io::Error::other)?,
            queue,
            kick,
            interrupt: activation.interrupt,
            stop: activation.stop,
            write_through,
        });
        self.watch.driver_came()?;
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.watch.driver_went();
    }
}

impl Subscriber for Block {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.watch.doorbell(), self.disk.as_raw_fd()]
    }
}

impl MutEventSubscriber for Block {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.watch.init(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let kick = self.active.as_ref().map(|active| &active.kick);
        self.watch.on_event(&events, kick, ops);
        self.serve();
    }
}
