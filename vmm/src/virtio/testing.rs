//! What tests of the transport and of devices share: a device that records, and a well-behaved driver.

use std::sync::{Arc, Mutex};

use virtio_queue::Queue;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::device::{ActivateError, Activation, Interrupt, VirtioDevice};
use super::transport::MmioTransport;
use crate::stop::StopFlag;

/// 64 KiB of guest memory.
pub(crate) fn memory() -> Arc<GuestMemoryMmap> {
    let ranges = [(GuestAddress(0), 0x1_0000)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("64 KiB"))
}

/// A device with two queues that records what happens to it.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) device_type: u32,
    pub(crate) fails: bool,
    pub(crate) active: bool,
    /// Features and the number of queues of each activation.
    pub(crate) activations: Vec<(u64, usize)>,
    pub(crate) queues: Vec<Queue>,
    pub(crate) interrupt: Option<Interrupt>,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            device_type: 4,
            fails: false,
            active: false,
            activations: Vec::new(),
            queues: Vec::new(),
            interrupt: None,
        }
    }
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        self.device_type
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }

    fn features(&self) -> u64 {
        1 << 32 | 1 << 29
    }

    fn doorbell(&self) -> Option<std::os::fd::RawFd> {
        None
    }

    fn config(&self) -> &[u8] {
        &[1, 2, 3, 4, 5, 6]
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(!self.active, "activated twice without a reset");
        if self.fails {
            return Err(std::io::Error::other("as the test wants").into());
        }
        self.active = true;
        self.activations
            .push((activation.features, activation.queues.len()));
        self.queues = activation.queues.into_iter().map(|q| q.queue).collect();
        self.interrupt = Some(activation.interrupt);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = false;
        self.queues.clear();
        self.interrupt = None;
    }
}

/// The registers of a [`Probe`], and the probe.
pub(crate) fn transport() -> (MmioTransport, Arc<Mutex<Probe>>) {
    let probe = Arc::new(Mutex::new(Probe::default()));
    let transport =
        MmioTransport::new(memory(), probe.clone(), StopFlag::default()).expect("eventfds");
    (transport, probe)
}

/// The registers of a [`Probe`] that claims to be of a device type.
pub(crate) fn transport_of_type(device_type: u32) -> MmioTransport {
    let probe = Probe {
        device_type,
        ..Probe::default()
    };
    MmioTransport::new(memory(), Arc::new(Mutex::new(probe)), StopFlag::default())
        .expect("eventfds")
}

/// A driver that keeps the rules, for a device with two queues.
pub(crate) struct Driver<'a>(pub(crate) &'a MmioTransport);

impl Driver<'_> {
    pub(crate) fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.0.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&self, register: u64, value: u32) {
        self.0.write(register, &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u32 {
        self.read(0x70)
    }

    /// Up to FEATURES_OK, with VIRTIO_F_VERSION_1 alone.
    pub(crate) fn negotiate(&self) {
        for (register, value) in [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
            self.write(register, value);
        }
    }

    /// A queue of 8 descriptors, its rings 0x100 apart.
    pub(crate) fn set_up_queue(&self, index: u32, base: u32) {
        for (register, value) in [
            (0x30, index),
            (0x38, 8),
            (0x80, base),
            (0x90, base.wrapping_add(0x100)),
            (0xa0, base.wrapping_add(0x200)),
            (0x44, 1),
        ] {
            self.write(register, value);
        }
    }

    /// All of it, with queues at 0x1000 and 0x2000.
    pub(crate) fn start(&self) {
        self.negotiate();
        self.set_up_queue(0, 0x1000);
        self.set_up_queue(1, 0x2000);
        self.write(0x70, 15);
    }
}
