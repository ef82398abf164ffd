//! The virtio-mmio transport: registers that a driver reads and writes, joined to a device.
//!
//! Registers may also be those of a slot that is empty, which a device is put into later, once and for
//! good: until then they are a placeholder (virtio 1.3, 4.2.2), which drivers leave alone.
//!
//! It is called by vCPU threads. Kicks don't come here: KVM turns a write to `QueueNotify` into an
//! eventfd by itself; nor do the interrupt registers take a lock that a device's thread may hold.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_QUEUE_NOTIFY,
};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{
    ActivateError, Activation, ActiveQueue, DeviceState, Interrupt, RestoreError, SaveError,
    VirtioDevice,
};
use super::registers::{Effect, Registers};
use crate::stop::StopFlag;

/// Offset of the register that a driver kicks a queue with, by writing the queue's number.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

/// A device's registers, or those of a slot for one.
pub struct MmioTransport {
    memory: Arc<GuestMemoryMmap>,
    /// Set while the registers are locked, and read by who has found a device in them.
    present: OnceLock<Present>,
    interrupt_status: Arc<AtomicU32>,
    irqfd: Arc<EventFd>,
    kicks: Vec<Arc<EventFd>>,
    /// The device's own; see [`VirtioDevice::doorbell`].
    doorbell: Option<RawFd>,
    stop: StopFlag,
    registers: Mutex<Registers>,
}

/// What is behind the registers.
struct Present {
    device: Arc<Mutex<dyn VirtioDevice>>,
    /// A copy: it does not change, and reading it must not wait for the device.
    config: Vec<u8>,
}

/// Why a device can't be put into a slot. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// There is one in it.
    #[error("there is a device in the slot already")]
    Filled,
    /// The slot has the eventfds of another kind of device.
    #[error("the slot was made for a device of another kind")]
    OtherKind,
}

/// A device and its registers as a value, in the form that a snapshot of the machine keeps.
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
    /// Joins registers to a device, which no driver can bring up any more once `stop` is set.
    ///
    /// # Errors
    /// No eventfd is to be had: the process has too many files open.
    pub fn new(
        memory: Arc<GuestMemoryMmap>,
        device: Arc<Mutex<dyn VirtioDevice>>,
        stop: StopFlag,
    ) -> io::Result<Self> {
        let (queues, doorbell) = {
            let device = lock(&device);
            (device.queue_sizes().len(), device.doorbell())
        };
        let transport = Self::empty(memory, queues, doorbell, stop)?;
        transport.fill(device).map_err(io::Error::other)?;
        Ok(transport)
    }

    /// The registers of an empty slot, for a device with so many queues and this doorbell: all that the
    /// threads have open for it they have from the start.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn empty(
        memory: Arc<GuestMemoryMmap>,
        queues: usize,
        doorbell: Option<RawFd>,
        stop: StopFlag,
    ) -> io::Result<Self> {
        let new_eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        Ok(Self {
            memory,
            present: OnceLock::new(),
            interrupt_status: Arc::new(AtomicU32::new(0)),
            irqfd: new_eventfd()?,
            kicks: (0..queues)
                .map(|_| new_eventfd())
                .collect::<Result<_, _>>()?,
            doorbell,
            stop,
            registers: Mutex::new(Registers::empty()),
        })
    }

    /// Puts a device into an empty slot, where a driver finds it as after a reset, whatever has been
    /// written to the registers before. Its configuration is whole as soon as its number can be read.
    ///
    /// # Errors
    /// See [`FillError`].
    pub fn fill(&self, device: Arc<Mutex<dyn VirtioDevice>>) -> Result<(), FillError> {
        let mut registers = lock(&self.registers);
        let (fresh, config) = {
            let device = lock(&device);
            let sizes = device.queue_sizes();
            if sizes.len() != self.kicks.len() || device.doorbell() != self.doorbell {
                return Err(FillError::OtherKind);
            }
            let fresh = Registers::new(device.device_type(), device.features(), sizes);
            (fresh, device.config().to_vec())
        };
        let present = Present { device, config };
        self.present.set(present).map_err(|_| FillError::Filled)?;
        *registers = fresh;
        self.interrupt_status.store(0, Ordering::SeqCst);
        Ok(())
    }

    /// The device's configuration; nothing where there is no device.
    fn config(&self) -> &[u8] {
        (self.present.get()).map_or(&[], |present| &present.config)
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

    /// The eventfds by which the device is kicked and interrupts: for the thread that serves it.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let kicks = self.kicks.iter().map(|kick| kick.as_raw_fd());
        kicks.chain([self.irqfd.as_raw_fd()]).collect()
    }

    /// What serving the registers takes: for a vCPU's thread.
    pub(crate) fn register_descriptors(&self) -> Vec<RawFd> {
        let mut descriptors = self.descriptors();
        descriptors.extend(self.doorbell);
        descriptors
    }

    /// Serves a read at `offset` of the device's registers.
    ///
    /// Registers are read by 4 aligned bytes, the configuration by 1, 2, 4 or 8 aligned ones; all else
    /// reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !is_aligned(offset, data.len()) {
            return;
        }
        if let Some(offset) = offset.checked_sub(CONFIG) {
            let rest = usize::try_from(offset)
                .ok()
                .and_then(|at| self.config().get(at..));
            for (byte, value) in data.iter_mut().zip(rest.unwrap_or_default()) {
                *byte = *value;
            }
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = self.read_register(offset as u32).to_le_bytes();
        }
    }

    /// Serves a write at `offset` of the device's registers, of 4 aligned bytes; all else is lost, and
    /// so are writes to the configuration, of which no device of ours has a writable part.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(bytes) = <[u8; 4]>::try_from(data)
            && is_aligned(offset, data.len())
            && offset < CONFIG
        {
            self.write_register(offset as u32, u32::from_le_bytes(bytes));
        }
    }

    /// Interrupts again, if the driver has not acknowledged the last time: its interrupt may have been
    /// lost while it was masked.
    pub(crate) fn repeat_interrupt(&self) {
        if self.interrupt_status.load(Ordering::SeqCst) != 0 {
            let _ = self.irqfd.write(1); // a full eventfd interrupts all the same
        }
    }

    /// Stops the device and takes its state, which is put back by [`Self::restore`], here or where the same
    /// bytes are in guest memory. No vCPU may run from before this on. A slot that is empty is saved as such.
    ///
    /// # Errors
    /// The device can't be saved as it is. Nothing has happened to it then.
    pub fn save(&self) -> Result<TransportState, SaveError> {
        let mut registers = lock(&self.registers);
        let device = match self.present.get() {
            None => DeviceState::Absent,
            Some(present) => {
                let mut device = lock(&present.device);
                let state = device.save()?;
                registers.note_progress(&device.stop());
                state
            }
        };
        Ok(TransportState {
            registers: registers.clone(),
            interrupt_status: self.interrupt_status.load(Ordering::SeqCst),
            config: self.config().to_vec(),
            device,
        })
    }

    /// Puts a state back into a device that is like the saved one and not active, and activates it if that
    /// one was. An activation that fails, as of a device with a queue out of order, is what it is for any
    /// driver: the device needs a reset.
    ///
    /// The state of a slot that had been filled is put back into one that has been filled alike, and that of an
    /// empty slot into an empty one.
    ///
    /// # Errors
    /// The state is of a device with other properties, or none that registers can have.
    pub fn restore(&self, state: TransportState) -> Result<(), RestoreError> {
        if state.config != self.config() {
            let what = "configuration";
            return Err(RestoreError::Differs { what });
        }
        let mut registers = lock(&self.registers);
        registers.restore(state.registers)?;
        match (self.present.get(), state.device) {
            (Some(present), device) => lock(&present.device).restore(device)?,
            (None, DeviceState::Absent) => {}
            (None, _) => return Err(RestoreError::Differs { what: "type" }),
        }
        let interrupt_status = state.interrupt_status;
        self.interrupt_status
            .store(interrupt_status, Ordering::SeqCst);
        if registers.is_running() {
            self.activate(&mut registers);
        }
        // The interrupt itself may have been on its way.
        self.repeat_interrupt();
        Ok(())
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status.load(Ordering::SeqCst),
            _ => lock(&self.registers).read(offset),
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupt_status.fetch_and(!value, Ordering::SeqCst);
            }
            VIRTIO_MMIO_QUEUE_NOTIFY => self.kick(value),
            _ => {
                // Held until the device has followed, so that no other vCPU sees a state in between.
                let mut registers = lock(&self.registers);
                match registers.write(offset, value) {
                    Effect::None => {}
                    Effect::Activate => self.activate(&mut registers),
                    Effect::Reset => self.reset(),
                }
            }
        }
    }

    /// A kick that KVM did not take: where its ioeventfd doesn't match, in a number out of range, say.
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
        let queues = registers
            .queues(&self.memory)
            .ok_or(ActivateError::Queues)?;
        let queues = queues
            .into_iter()
            .zip(&self.kicks)
            .map(|(queue, kick)| ActiveQueue {
                queue,
                kick: Arc::clone(kick),
            });
        let present = self.present.get().ok_or(ActivateError::Absent)?;
        let mut device = lock(&present.device);
        // Under the lock: who resets the device after the stop finds it as it is from then on.
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
        if let Some(present) = self.present.get() {
            lock(&present.device).reset();
        }
        // After the device has let go: it can't interrupt any more.
        self.interrupt_status.store(0, Ordering::SeqCst);
    }

    fn interrupt(&self) -> Interrupt {
        let status = Arc::clone(&self.interrupt_status);
        Interrupt::new(status, Arc::clone(&self.irqfd))
    }
}

/// Whether an access of `size` bytes is one that a bus makes: a power of two, aligned to itself.
fn is_aligned(offset: u64, size: usize) -> bool {
    matches!(size, 1 | 2 | 4 | 8) && offset.is_multiple_of(size as u64)
}

/// A poisoned lock is taken all the same: a panic ends the process, except in tests.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Driver, Probe, memory, transport};
    use super::*;
    use proptest::prelude::*;

    fn read(transport: &MmioTransport, offset: u64, size: usize) -> u64 {
        let mut data = [0xaa; 8];
        transport.read(offset, &mut data[..size]);
        data[size..].fill(0);
        u64::from_le_bytes(data)
    }

    #[test]
    fn a_driver_brings_the_device_up_and_resets_it() {
        let (transport, probe) = transport();
        let driver = Driver(&transport);
        driver.start();
        assert_eq!(driver.status(), 15);
        assert_eq!(lock(&probe).activations, [(1 << 32, 2)]);
        driver.write(0x70, 0);
        assert_eq!(driver.status(), 0);
        assert!(!lock(&probe).active);
        driver.start();
        assert_eq!(lock(&probe).activations.len(), 2);
    }

    #[test]
    fn a_device_that_fails_tells_the_driver_to_reset() {
        let (transport, probe) = transport();
        lock(&probe).fails = true;
        let driver = Driver(&transport);
        driver.start();
        assert_eq!(driver.status(), 15 | 64);
        assert_eq!(driver.read(0x60), 2, "a configuration change");
        assert_eq!(transport.irqfd().read().ok(), Some(1));
        driver.write(0x64, 2);
        assert_eq!(driver.read(0x60), 0);
    }

    #[test]
    fn no_driver_brings_up_a_device_of_a_machine_that_was_stopped() {
        let (transport, probe) = transport();
        transport.stop.set();
        let driver = Driver(&transport);
        driver.start();
        assert_eq!(driver.status(), 15 | 64);
        assert!(lock(&probe).activations.is_empty());
    }

    #[test]
    fn invalid_queues_never_reach_the_device() {
        let (transport, probe) = transport();
        let driver = Driver(&transport);
        driver.negotiate();
        driver.set_up_queue(0, 0x1000);
        driver.set_up_queue(1, 0xffff_f000);
        driver.write(0x70, 15);
        assert_eq!(driver.status(), 15 | 64);
        assert!(lock(&probe).activations.is_empty());
    }

    #[test]
    fn interrupts_are_seen_and_acknowledged_while_the_device_is_busy() {
        let (transport, probe) = transport();
        let driver = Driver(&transport);
        driver.start();
        let busy = lock(&probe);
        busy.interrupt.as_ref().expect("active").used_buffer();
        assert_eq!(driver.read(0x60), 1);
        driver.write(0x64, 1);
        assert_eq!(driver.read(0x60), 0);
        assert_eq!(
            read(&transport, 0x100, 4),
            0x0403_0201,
            "the configuration, too"
        );
    }

    #[test]
    fn odd_accesses_read_zero_and_write_nothing() {
        let (transport, _) = transport();
        for (offset, size) in [
            (0, 1),
            (0, 2),
            (0, 8),
            (2, 4),
            (1, 1),
            (0xfc, 8),
            (0x101, 4),
        ] {
            assert_eq!(read(&transport, offset, size), 0, "{offset:#x} {size}");
        }
        assert_eq!(read(&transport, 0, 4), 0x7472_6976);
        for data in [&[1][..], &[1, 0], &[1, 0, 0, 0, 0, 0, 0, 0], &[]] {
            transport.write(0x70, data);
        }
        transport.write(0x72, &[1, 0, 0, 0]);
        transport.write(u64::MAX, &[1, 0, 0, 0]);
        assert_eq!(Driver(&transport).status(), 0);
    }

    #[test]
    fn the_configuration_is_read_in_every_size_and_ends_in_zeros() {
        let (transport, _) = transport();
        assert_eq!(read(&transport, 0x101, 1), 2);
        assert_eq!(read(&transport, 0x102, 2), 0x0403);
        assert_eq!(read(&transport, 0x100, 8), 0x0605_0403_0201);
        assert_eq!(read(&transport, 0x108, 4), 0);
        assert_eq!(read(&transport, 0xff8, 8), 0);
        transport.write(0x100, &[9, 9, 9, 9]);
        assert_eq!(read(&transport, 0x100, 4), 0x0403_0201);
    }

    #[test]
    fn there_is_no_shared_memory_region() {
        let (transport, _) = transport();
        for register in [0xb0, 0xb4, 0xb8, 0xbc] {
            assert_eq!(read(&transport, register, 4), 0xffff_ffff);
        }
    }

    proptest! {
        #[test]
        fn no_sequence_of_accesses_breaks_it(
            accesses in proptest::collection::vec(
                (any::<bool>(), 0u64..0x110, 0usize..9, prop_oneof![0u64..16, any::<u64>()]),
                0..300,
            )
        ) {
            let (transport, probe) = transport();
            for (write, offset, size, value) in accesses {
                let mut data = value.to_le_bytes();
                if write {
                    transport.write(offset, &data[..size]);
                } else {
                    transport.read(offset, &mut data[..size]);
                }
            }
            let memory = memory();
            for queue in &lock(&probe).queues {
                prop_assert!(virtio_queue::QueueT::is_valid(queue, &*memory));
            }
        }
    }

    #[test]
    fn probes_are_of_one_type() {
        let transport = super::super::testing::transport_of_type(42);
        assert_eq!(read(&transport, 8, 4), 42);
        assert_eq!(Probe::default().queue_sizes().len(), 2);
    }
}
