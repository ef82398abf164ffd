//! The interface between a virtio device and its transport, and what the transport passes to it on
//! activation.
//!
//! A device is shared through an `Arc<Mutex<…>>` by two users. The transport calls it from a vCPU
//! thread (features, configuration, activation, reset), or to save and restore it; an event loop
//! calls it when a queue is kicked, as an [`event_manager::MutEventSubscriber`]. `lifecycle.rs`
//! implements what all devices have in common.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::block::BlockState;
use super::live_config::LiveConfig;
use super::mem::MemState;
use super::net::NicState;
use super::vsock::VsockState;
use crate::stop::StopFlag;

/// Bit 0 of the MMIO `InterruptStatus` register: a used buffer notification (virtio 1.3, 4.2.2).
pub const INTERRUPT_USED_BUFFER: u32 = 1 << 0;
/// Bit 1 of it: the configuration or the device's status has changed.
pub const INTERRUPT_CONFIG_CHANGE: u32 = 1 << 1;
/// No bit of the register, but kept with it: the host's kernel interrupts the guest by itself, so bit 0
/// always reads as set.
const INTERRUPTED_BY_KERNEL: u32 = 1 << 31;

/// The value of `InterruptStatus` that a driver reads.
pub(super) fn readable_status(status: u32) -> u32 {
    match status & INTERRUPTED_BY_KERNEL {
        0 => status,
        _ => status & !INTERRUPTED_BY_KERNEL | INTERRUPT_USED_BUFFER,
    }
}

/// `value` without the bit that isn't the register's.
pub(super) fn register_bits(value: u32) -> u32 {
    value & !INTERRUPTED_BY_KERNEL
}

/// Why a device could not start serving its queues.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A queue is not ready, or its rings are not in guest memory.
    #[error("the driver did not set up every queue, or not in its memory")]
    Queues,
    /// The number of queues is not the device's.
    #[error("the driver set up {found} queues, the device has {expected}")]
    QueueCount {
        /// Queues the device has.
        expected: usize,
        /// Queues the driver set up.
        found: usize,
    },
    /// The slot is empty.
    #[error("there is no device")]
    NoDevice,
    /// The machine was stopped while a vCPU was activating the device.
    #[error("the machine has been stopped")]
    Stopped,
    /// A system call of the device's own failed.
    #[error("cannot start the device")]
    Io(#[from] std::io::Error),
}

/// The state of a device that is saved in addition to its registers, its queues and guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// An empty slot.
    Absent,
    /// virtio-rng: nothing.
    Rng,
    /// virtio-fs: nothing, since it can only be saved while the guest hasn't mounted the share.
    Fs,
    /// virtio-blk.
    Block(BlockState),
    /// virtio-vsock.
    Vsock(VsockState),
    /// virtio-net: the properties that its configuration space shows, and how many pairs of queues are in use.
    Net(NicState),
    /// virtio-mem: the region, and which of its blocks are plugged.
    Mem(MemState),
}

/// Why a device can't be saved. The device continues unchanged.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// virtio-fs: the guest's inodes and open files are descriptors held by virtiofsd's library.
    #[error("the guest has mounted the shared tree, whose open files and inodes can't be saved")]
    ShareMounted,
}

/// Why a saved state can't be restored into a device, which must not be used afterwards.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state was saved from a device with other properties.
    #[error("the saved state is of a device with another {what}")]
    Differs {
        /// The property that differs.
        what: &'static str,
    },
    /// No sequence of a driver's writes leads to these registers.
    #[error("the saved registers are in a state that no driver brings them into")]
    Registers,
}

/// Interrupts the guest for a device: by an irqfd, and the interrupt status register that the
/// driver reads.
#[derive(Clone, Debug)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    irqfd: Arc<EventFd>,
}

impl Interrupt {
    /// Uses the transport's interrupt status register, and an eventfd registered with KVM as an
    /// irqfd.
    pub fn new(status: Arc<AtomicU32>, irqfd: Arc<EventFd>) -> Self {
        Self { status, irqfd }
    }

    /// Sends a used buffer notification.
    ///
    /// If the eventfd's counter is full, an interrupt is pending already, so a failed write loses
    /// nothing.
    pub fn used_buffer(&self) {
        self.raise(INTERRUPT_USED_BUFFER);
    }

    /// Sends a configuration change notification: the configuration has changed, or the device needs a
    /// reset.
    pub(crate) fn config_changed(&self) {
        self.raise(INTERRUPT_CONFIG_CHANGE);
    }

    /// The eventfd by which the host's kernel interrupts the guest by itself, from now on until the
    /// device is reset.
    ///
    /// Nobody sets the status bit of a used buffer notification then, so the bit always reads as set:
    /// for every interrupt, the driver checks its queues, and may find no used buffer (virtio 1.3,
    /// 2.7.7.1: a driver has to handle such spurious notifications).
    pub(crate) fn irqfd_for_kernel(&self) -> &EventFd {
        self.status
            .fetch_or(INTERRUPTED_BY_KERNEL, Ordering::SeqCst);
        &self.irqfd
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        let _ = self.irqfd.write(1);
    }
}

/// A queue that the driver has set up and the transport has validated, with its kick eventfd.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The queue: ready, with its rings in guest memory.
    pub queue: Queue,
    /// Readable when the driver has made buffers available (non-blocking).
    pub kick: Arc<EventFd>,
}

/// Everything that a device needs to serve its queues, passed to it when the driver sets DRIVER_OK.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// The negotiated features, a subset of [`VirtioDevice::features`].
    pub features: u64,
    /// The queues, as many as [`VirtioDevice::queue_count`] says.
    pub queues: Vec<ActiveQueue>,
    /// How to interrupt the guest.
    pub interrupt: Interrupt,
    /// Set when the machine is stopped: then the queues must not be served any more.
    pub stop: StopFlag,
}

/// A virtio device behind a transport. Every argument comes from a hostile guest.
pub trait VirtioDevice: Send {
    /// The device id (virtio 1.3, chapter 5).
    fn device_type(&self) -> u32;

    /// The largest size of each queue, in descriptors, each a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// How many of these queues, the first ones, a driver that has negotiated `features` sets up: all of them, but for
    /// a device whose features decide it.
    fn queue_count(&self, features: u64) -> usize {
        let _ = features;
        self.queue_sizes().len()
    }

    /// The offered features, including `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;

    /// The eventfd by which activation and reset, which happen on a vCPU thread, notify the thread
    /// that serves the device; `None` if no thread has to be notified.
    fn activation_eventfd(&self) -> Option<RawFd>;

    /// The device's configuration space. It is read only and does not change while the VM lives, but
    /// for what a device's [`Self::live_config`] has in its place.
    fn config(&self) -> &[u8];

    /// The configuration space of a device that changes it, from when the device is attached on. What
    /// [`Self::config`] returns identifies such a device, and is as it was at the beginning.
    fn live_config(&self) -> Option<Arc<LiveConfig>> {
        None
    }

    /// Starts serving the queues: called once per initialisation, when the driver sets DRIVER_OK.
    ///
    /// # Errors
    /// The transport answers an error by setting DEVICE_NEEDS_RESET; the guest alone suffers.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Deactivates the device, and returns the states of its queues; empty if it was not active. No
    /// request is left half done.
    fn stop(&mut self) -> Vec<QueueState>;

    /// Called by the thread of each vCPU that has ended, and with it the machine. Must not block.
    ///
    /// Only a device whose queues the host's kernel serves has anything to do then: others check
    /// [`Activation::stop`] before they take a request.
    fn machine_ended(&mut self) {}

    /// Deactivates the device and drops all state that the guest has set up, so that it can be
    /// activated again. Called when the driver writes 0 to the status register.
    fn reset(&mut self);

    /// Saves the device's own state.
    ///
    /// # Errors
    /// The device is in a state that can't be saved.
    fn save(&self) -> Result<DeviceState, SaveError>;

    /// Restores a state that [`Self::save`] has returned for an equal device. If that one was
    /// active, this one is activated next, with the same queues.
    ///
    /// # Errors
    /// The state is that of another device.
    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError>;
}
