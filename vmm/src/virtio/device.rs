//! What a virtio device is to its transport, and what the transport gives it once the driver is ready.
//!
//! A device lives behind an `Arc<Mutex<…>>` with two users. The transport calls it from a vCPU thread
//! (feature bits, configuration, activation, reset), or to save and restore it; an event loop calls it when
//! a queue is kicked, as an [`event_manager::MutEventSubscriber`]. What devices have in common of both, from
//! activation to stop, is `life.rs`.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::block::BlockState;
use super::vsock::VsockState;
use crate::stop::StopFlag;

/// Bit 0 of the MMIO `InterruptStatus` register: a used buffer notification (virtio 1.3, 4.2.2).
pub const INTERRUPT_USED_BUFFER: u32 = 1 << 0;
/// Bit 1 of it: the configuration or the device's status has changed.
pub const INTERRUPT_CONFIG_CHANGE: u32 = 1 << 1;

/// Why a device could not start serving its queues.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A queue is not ready, or its rings don't lie in guest memory.
    #[error("the driver did not set up every queue, or not in its memory")]
    Queues,
    /// The driver set up other queues than the device has.
    #[error("the driver set up {found} queues, the device has {expected}")]
    QueueCount {
        /// Queues the device has.
        expected: usize,
        /// Queues the driver set up.
        found: usize,
    },
    /// There is no device, in a slot that is empty.
    #[error("there is no device")]
    Absent,
    /// The machine has been stopped; a vCPU was just on its way here.
    #[error("the machine has been stopped")]
    Stopped,
    /// A system call of the device's own failed.
    #[error("cannot start the device")]
    Io(#[from] std::io::Error),
}

/// What a device has to be put back beside its registers, its queues and guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// No device, in a slot that is empty.
    Absent,
    /// virtio-rng: nothing.
    Rng,
    /// virtio-fs: nothing, for it is only saved before the guest mounts the share.
    Fs,
    /// virtio-blk.
    Block(BlockState),
    /// virtio-vsock.
    Vsock(VsockState),
}

/// Why a device's state can't be taken. The device goes on as if it had not been asked.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// virtio-fs: what the guest has looked up and opened lives in the library, and in files of the host.
    #[error("the guest has mounted the shared tree, whose open files and inodes can't be saved")]
    ShareMounted,
}

/// Why a device can't have a saved state. It is not to be used then.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state was taken of a device that is not like this one.
    #[error("the saved state is of a device with another {what}")]
    Differs {
        /// What is not the same.
        what: &'static str,
    },
    /// No driver brings registers into this state.
    #[error("the saved registers are in a state that no driver brings them into")]
    Registers,
}

/// A device's way to interrupt the guest: an irqfd, and the status bits that the driver reads first.
#[derive(Clone, Debug)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    irqfd: Arc<EventFd>,
}

impl Interrupt {
    /// Joins the transport's interrupt status register to an eventfd registered with KVM as an irqfd.
    pub fn new(status: Arc<AtomicU32>, irqfd: Arc<EventFd>) -> Self {
        Self { status, irqfd }
    }

    /// Tells the driver that buffers were used.
    ///
    /// An eventfd that can't take another count has interrupts pending already, so a failed write
    /// loses nothing.
    pub fn used_buffer(&self) {
        self.raise(INTERRUPT_USED_BUFFER);
    }

    /// Tells the driver that the device's status has changed: it needs a reset.
    pub(crate) fn config_changed(&self) {
        self.raise(INTERRUPT_CONFIG_CHANGE);
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        let _ = self.irqfd.write(1);
    }
}

/// A queue that the driver has set up, checked by the transport, with the eventfd that it kicks.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The queue: ready, and its rings lie in guest memory.
    pub queue: Queue,
    /// Readable when the driver has made buffers available (non-blocking).
    pub kick: Arc<EventFd>,
}

/// All a device needs to serve its queues, handed over when the driver sets DRIVER_OK.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// The feature bits that both sides agreed on; a subset of [`VirtioDevice::features`].
    pub features: u64,
    /// The queues, as many as [`VirtioDevice::queue_sizes`] has entries.
    pub queues: Vec<ActiveQueue>,
    /// How to interrupt the guest.
    pub interrupt: Interrupt,
    /// Whether the machine has been stopped: then the queues are served no more.
    pub stop: StopFlag,
}

/// A virtio device behind a transport. Every argument comes from a hostile guest.
pub trait VirtioDevice: Send {
    /// The device's number (virtio 1.3, chapter 5).
    fn device_type(&self) -> u32;

    /// The largest size of each queue, in descriptors, each a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// The feature bits offered, `VIRTIO_F_VERSION_1` among them.
    fn features(&self) -> u64;

    /// The eventfd by which activation and reset, in a vCPU's thread, tell the thread that serves the
    /// device; none where nobody has to be told.
    fn doorbell(&self) -> Option<RawFd>;

    /// The device's configuration space. It is read only and does not change while the VM lives.
    fn config(&self) -> &[u8];

    /// Starts serving the queues: called once per initialisation, when the driver sets DRIVER_OK.
    ///
    /// # Errors
    /// The transport answers an error by setting DEVICE_NEEDS_RESET; the guest alone suffers.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Takes the queues from the device, which serves nothing until it is activated again, and returns how
    /// far each has come: none if the device is not active. No request is left half done.
    fn stop(&mut self) -> Vec<QueueState>;

    /// Forgets the queues and everything the guest has set up, so that the device can be activated
    /// again. Called when the driver writes 0 to the status register.
    fn reset(&mut self);

    /// What the device itself has to be put back by [`Self::restore`].
    ///
    /// # Errors
    /// The device is in a state that can't be saved.
    fn save(&self) -> Result<DeviceState, SaveError>;

    /// Takes over what [`Self::save`] has returned for a device like this one. If that was active, this one
    /// is activated next, with its queues.
    ///
    /// # Errors
    /// The state is another device's.
    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError>;
}
