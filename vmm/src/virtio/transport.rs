//! The virtio-mmio transport: connects the registers that a driver accesses to a device.
//!
//! A transport may also be an empty slot, into which a device is plugged later. Until then, and once
//! the device has been removed, its registers are those of a placeholder (virtio 1.3, 4.2.2), which
//! drivers ignore.
//!
//! It is called by vCPU threads. Kicks don't come here, since KVM turns a write to `QueueNotify`
//! into an eventfd. Accessing the interrupt registers takes no lock that the device's thread may
//! hold.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_VENDOR_ID,
};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{
    ActivateError, Activation, ActiveQueue, DeviceState, Interrupt, RestoreError, SaveError,
    VirtioDevice, readable_status, register_bits,
};
use super::live_config::ConfigSpace;
use super::registers::{Effect, Registers};
use crate::stop::StopFlag;

/// Offset of the register that a driver kicks a queue with, by writing the queue's number.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

/// The vendor id. The guest kernel that hull brings knows by it (its virtio-mmio-message.patch) that every interrupt
/// is a message of its own, whose line nobody shares, and that the configuration never changes: so it neither reads
/// what an interrupt is for nor acknowledges it, each of which would be an exit. Other drivers ignore it.
const VENDOR: u32 = u32::from_le_bytes(*b"hull");

/// That of devices whose configuration changes: their interrupts have to be asked what they are for.
const VENDOR_OF_CHANGING: u32 = u32::from_le_bytes(*b"Hull");

/// A register of hull's own: the I/O port to which a driver that knows the devices' vendor may write the number of a
/// queue instead of to `QueueNotify`, or 0. The guest kernel that hull brings does (its virtio-mmio-message.patch).
const KICK_PORT: u32 = 0x0e0;

/// The registers of a device or of an empty slot, and the device.
pub struct MmioTransport {
    memory: Arc<GuestMemoryMmap>,
    /// The device, if there is one. Changed with the registers locked, and never locked while
    /// anything is waited for.
    attached: RwLock<Option<AttachedDevice>>,
    interrupt_status: Arc<AtomicU32>,
    irqfd: Arc<EventFd>,
    kicks: Vec<Arc<EventFd>>,
    kick_port: Option<u16>,
    /// The device's; see [`VirtioDevice::activation_eventfd`].
    activation_eventfd: Option<RawFd>,
    stop: StopFlag,
    registers: Mutex<Registers>,
}

/// The device behind the registers.
#[derive(Clone)]
struct AttachedDevice {
    device: Arc<Mutex<dyn VirtioDevice>>,
    config: ConfigSpace,
}

/// Why a device can't be plugged into a slot. The slot is unchanged then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// There is a device in the slot already.
    #[error("there is a device in the slot already")]
    Occupied,
    /// The slot was created for another number of queues, or another activation eventfd.
    #[error("the slot was made for a device of another kind")]
    WrongKind,
}

/// The state of a device and its registers as a serialisable value, for a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransportState {
    registers: Registers,
    interrupt_status: u32,
    config: Vec<u8>,
    device: DeviceState,
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("registers", &self.registers)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// The registers of a device. Once `stop` is set, no driver can activate it any more.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new(
        memory: Arc<GuestMemoryMmap>,
        device: Arc<Mutex<dyn VirtioDevice>>,
        stop: StopFlag,
    ) -> io::Result<Self> {
        let (queues, activation_eventfd) = {
            let device = lock(&device);
            (device.queue_sizes().len(), device.activation_eventfd())
        };
        let transport = Self::empty(memory, queues, activation_eventfd, stop)?;
        transport.fill(device).map_err(io::Error::other)?;
        Ok(transport)
    }

    /// The registers of an empty slot, for a device with `queues` queues and this activation
    /// eventfd. All eventfds are created now, so that the threads have them open before they are
    /// confined.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn empty(
        memory: Arc<GuestMemoryMmap>,
        queues: usize,
        activation_eventfd: Option<RawFd>,
        stop: StopFlag,
    ) -> io::Result<Self> {
        let new_eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        Ok(Self {
            memory,
            attached: RwLock::default(),
            interrupt_status: Arc::new(AtomicU32::new(0)),
            irqfd: new_eventfd()?,
            kicks: (0..queues)
                .map(|_| new_eventfd())
                .collect::<Result<_, _>>()?,
            kick_port: None,
            activation_eventfd,
            stop,
            registers: Mutex::new(Registers::empty()),
        })
    }

    /// Shows drivers a port by which the queues can be kicked as by [`QUEUE_NOTIFY`].
    pub(crate) fn show_kick_port(&mut self, port: Option<u16>) {
        self.kick_port = port;
    }

    /// That port.
    pub(crate) fn kick_port(&self) -> Option<u16> {
        self.kick_port
    }

    /// Plugs a device into an empty slot. A driver finds it as after a reset, whatever was written
    /// to the registers before. As soon as its device id can be read, its configuration is
    /// complete.
    ///
    /// # Errors
    /// See [`FillError`].
    pub fn fill(&self, device: Arc<Mutex<dyn VirtioDevice>>) -> Result<(), FillError> {
        let mut registers = lock(&self.registers);
        let (fresh, config) = {
            let device = lock(&device);
            let sizes = device.queue_sizes();
            if sizes.len() != self.kicks.len()
                || device.activation_eventfd() != self.activation_eventfd
            {
                return Err(FillError::WrongKind);
            }
            let fresh = Registers::new(device.device_type(), device.features(), sizes);
            (fresh, ConfigSpace::of(&*device))
        };
        if self.attached().is_some() {
            return Err(FillError::Occupied);
        }
        self.attach(Some(AttachedDevice { device, config }));
        *registers = fresh;
        self.interrupt_status.store(0, Ordering::SeqCst);
        Ok(())
    }

    /// Empties the slot: its registers are a placeholder's again, in one step for every vCPU, and no
    /// vCPU calls the device any more. To be called by the thread that serves the device, which
    /// doesn't do so any more: a vCPU that waits for it would keep this waiting.
    pub fn empty_slot(&self) {
        let mut registers = lock(&self.registers);
        self.attach(None);
        *registers = Registers::empty();
        self.interrupt_status.store(0, Ordering::SeqCst);
    }

    fn attach(&self, device: Option<AttachedDevice>) {
        let mut attached = (self.attached.write()).unwrap_or_else(PoisonError::into_inner);
        *attached = device;
    }

    /// The device, if there is one.
    fn attached(&self) -> Option<AttachedDevice> {
        let attached = self.attached.read();
        attached.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The device's configuration, without a hold on the device: it is to go with the thread that serves it, whose
    /// descriptors it has, and not with a vCPU's that happened to read this.
    fn config(&self) -> ConfigSpace {
        let attached = (self.attached.read()).unwrap_or_else(PoisonError::into_inner);
        let config = attached.as_ref().map(|device| device.config.clone());
        config.unwrap_or_default()
    }

    /// The eventfd that interrupts the guest, to be registered with KVM as an irqfd.
    pub fn irqfd(&self) -> &EventFd {
        &self.irqfd
    }

    /// The eventfds of the queues, in their order, to be registered with KVM as ioeventfds on
    /// [`QUEUE_NOTIFY`], each matching its queue's number.
    pub fn kicks(&self) -> impl Iterator<Item = &EventFd> {
        self.kicks.iter().map(AsRef::as_ref)
    }

    /// The eventfds for kicks and interrupts, which the thread that serves the device needs.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let kicks = self.kicks.iter().map(|kick| kick.as_raw_fd());
        kicks.chain([self.irqfd.as_raw_fd()]).collect()
    }

    /// The descriptors that vCPU threads need to emulate the registers.
    pub(crate) fn register_descriptors(&self) -> Vec<RawFd> {
        let mut descriptors = self.descriptors();
        descriptors.extend(self.activation_eventfd);
        descriptors
    }

    /// Handles a read at `offset` of the device's registers.
    ///
    /// Registers are read by aligned accesses of 4 bytes, the configuration by aligned ones of 1,
    /// 2, 4 or 8; all others read as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !is_aligned(offset, data.len()) {
            return;
        }
        if let Some(offset) = offset.checked_sub(CONFIG) {
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            self.config().read(offset, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = self.read_register(offset as u32).to_le_bytes();
        }
    }

    /// Handles a write at `offset` of the device's registers, of 4 aligned bytes. Others have no
    /// effect, nor do writes to the configuration, which is read-only for all devices here.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(bytes) = <[u8; 4]>::try_from(data)
            && is_aligned(offset, data.len())
            && offset < CONFIG
        {
            self.write_register(offset as u32, u32::from_le_bytes(bytes));
        }
    }

    /// Raises the interrupt again if the driver has not acknowledged the last one, which may have
    /// been lost while it was masked.
    pub(crate) fn repeat_interrupt(&self) {
        if self.interrupt_status.load(Ordering::SeqCst) != 0 {
            let _ = self.irqfd.write(1); // a full eventfd interrupts all the same
        }
    }

    /// Tells the device that a vCPU, and with it the machine, has ended; see
    /// [`VirtioDevice::machine_ended`]. Doesn't wait for the device's lock, which its thread may hold
    /// for long. That of a device that has to know is held by vCPU threads alone, or by whoever saves
    /// and thereby stops it, so the last vCPU thread gets it.
    pub(crate) fn machine_ended(&self) {
        if let Some(attached) = self.attached()
            && let Ok(mut device) = attached.device.try_lock()
        {
            device.machine_ended();
        }
    }

    /// Stops the device and saves its state, which [`Self::restore`] restores here, or in another
    /// VM with the same contents of guest memory. No vCPU may run from before this call. An empty
    /// slot is saved as empty.
    ///
    /// # Errors
    /// The device can't be saved in its current state. It continues unchanged then.
    pub fn save(&self) -> Result<TransportState, SaveError> {
        let mut registers = lock(&self.registers);
        let attached = self.attached();
        let (config, device) = match &attached {
            None => (Vec::new(), DeviceState::Absent),
            Some(attached) => {
                let mut device = lock(&attached.device);
                let state = device.save()?;
                registers.record_queue_positions(&device.stop());
                (device.config().to_vec(), state)
            }
        };
        Ok(TransportState {
            registers: registers.clone(),
            interrupt_status: readable_status(self.interrupt_status.load(Ordering::SeqCst)),
            config,
            device,
        })
    }

    /// Restores a state into an equal device that is not active, and activates it if the saved one
    /// was. If the activation fails, as with a broken queue, the device needs a reset, as after any
    /// failed activation.
    ///
    /// The state of a slot with a device can only be restored into one with an equal device, and
    /// that of an empty slot only into an empty one.
    ///
    /// # Errors
    /// The state is that of a device with other properties, or no driver can have led to it.
    pub fn restore(&self, state: TransportState) -> Result<(), RestoreError> {
        let attached = self.attached();
        let same_config = match &attached {
            Some(attached) => state.config == lock(&attached.device).config(),
            None => state.config.is_empty(),
        };
        if !same_config {
            let what = "configuration";
            return Err(RestoreError::Differs { what });
        }
        let mut registers = lock(&self.registers);
        registers.restore(state.registers)?;
        match (&attached, state.device) {
            (Some(attached), device) => lock(&attached.device).restore(device)?,
            (None, DeviceState::Absent) => {}
            (None, _) => return Err(RestoreError::Differs { what: "type" }),
        }
        let interrupt_status = register_bits(state.interrupt_status);
        self.interrupt_status
            .store(interrupt_status, Ordering::SeqCst);
        if registers.is_running() {
            self.activate(&mut registers);
        }
        // An interrupt may have been pending when the state was saved.
        self.repeat_interrupt();
        Ok(())
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_INTERRUPT_STATUS => {
                readable_status(self.interrupt_status.load(Ordering::SeqCst))
            }
            VIRTIO_MMIO_CONFIG_GENERATION => self.config().generation(),
            VIRTIO_MMIO_VENDOR_ID if self.config().changes() => VENDOR_OF_CHANGING,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            KICK_PORT => self.kick_port.unwrap_or_default().into(),
            _ => lock(&self.registers).read(offset),
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_INTERRUPT_ACK => {
                let bits = register_bits(value);
                self.interrupt_status.fetch_and(!bits, Ordering::SeqCst);
            }
            VIRTIO_MMIO_QUEUE_NOTIFY => self.kick(value),
            _ => {
                // The lock is held until the device has been activated or reset, so that no other
                // vCPU sees an intermediate state.
                let mut registers = lock(&self.registers);
                match registers.write(offset, value) {
                    Effect::None => {}
                    Effect::Activate => self.activate(&mut registers),
                    Effect::Reset => self.reset(),
                }
            }
        }
    }

    /// Handles a kick that KVM did not turn into an eventfd, because none of its ioeventfds matched
    /// the value.
    fn kick(&self, queue: u32) {
        let queue = usize::try_from(queue).ok();
        if let Some(kick) = queue.and_then(|queue| self.kicks.get(queue)) {
            let _ = kick.write(1); // a full eventfd is readable all the same
        }
    }

    fn activate(&self, registers: &mut Registers) {
        if self.try_activate(registers).is_err() {
            registers.set_needs_reset();
            self.interrupt().config_changed();
        }
    }

    fn try_activate(&self, registers: &Registers) -> Result<(), ActivateError> {
        let attached = self.attached().ok_or(ActivateError::NoDevice)?;
        let mut device = lock(&attached.device);
        let count = device.queue_count(registers.features());
        let queues = registers
            .queues(count, &self.memory)
            .ok_or(ActivateError::Queues)?;
        let queues = queues
            .into_iter()
            .zip(&self.kicks)
            .map(|(queue, kick)| ActiveQueue {
                queue,
                kick: Arc::clone(kick),
            });
        // Checked with the device locked: once the machine is stopped and the device reset, it is
        // never activated again.
        if self.stop.is_set() {
            return Err(ActivateError::Stopped);
        }
        device.activate(Activation {
            memory: Arc::clone(&self.memory),
            features: registers.features(),
            queues: queues.collect(),
            interrupt: self.interrupt(),
            stop: self.stop.clone(),
        })
    }

    fn reset(&self) {
        if let Some(attached) = self.attached() {
            lock(&attached.device).reset();
        }
        // After the device has been reset, so that it can't raise an interrupt any more.
        self.interrupt_status.store(0, Ordering::SeqCst);
    }

    fn interrupt(&self) -> Interrupt {
        let status = Arc::clone(&self.interrupt_status);
        Interrupt::new(status, Arc::clone(&self.irqfd))
    }
}

/// Whether an access has a size of 1, 2, 4 or 8 bytes, and is aligned to it.
fn is_aligned(offset: u64, size: usize) -> bool {
    matches!(size, 1 | 2 | 4 | 8) && offset.is_multiple_of(size as u64)
}

/// A poisoned lock is taken all the same: a panic ends the process, except in tests.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
