//! The MMIO bus: virtio devices in consecutive slots of 4 KiB.

use std::sync::Arc;

use crate::arch::layout;
use crate::virtio::transport::MmioTransport;

/// Bytes of address space that a device takes: one page.
pub const SLOT_SIZE: u64 = 0x1000;

/// The guest physical address of a slot's first byte.
pub(crate) fn slot_address(slot: usize) -> u64 {
    layout::DEVICES_START + slot as u64 * SLOT_SIZE
}

/// The I/O port by which a driver may kick the queues of the device in a slot, where the processor has any.
pub(crate) fn kick_port(slot: usize) -> Option<u16> {
    let first = layout::KICK_PORTS?;
    first.checked_add(u16::try_from(4 * slot).ok()?)
}

/// Finds the device that an access goes to. It is filled before the guest runs, and only read by
/// the vCPU threads.
#[derive(Debug, Default)]
pub(crate) struct Bus {
    slots: Vec<Arc<MmioTransport>>,
}

impl Bus {
    /// Puts a device into the next free slot.
    pub(crate) fn add(&mut self, device: Arc<MmioTransport>) {
        self.slots.push(device);
    }

    /// The devices, by slot.
    pub(crate) fn devices(&self) -> &[Arc<MmioTransport>] {
        &self.slots
    }

    /// Handles a read; where there is no device, all bits are 1, as on a floating bus.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Handles a write; where there is no device, it has no effect.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(&MmioTransport, u64)> {
        let offset = address.checked_sub(layout::DEVICES_START)?;
        let slot = usize::try_from(offset / SLOT_SIZE).ok()?;
        Some((self.slots.get(slot)?, offset % SLOT_SIZE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing;

    #[test]
    fn each_slot_has_a_port_of_its_own() {
        if layout::KICK_PORTS.is_some() {
            assert_eq!(kick_port(0), layout::KICK_PORTS);
            assert_eq!(kick_port(31), kick_port(30).map(|port| port + 4));
        }
        assert_eq!(kick_port(usize::from(u16::MAX)), None);
    }

    #[test]
    fn an_access_reaches_its_slot_and_no_other() {
        let mut bus = Bus::default();
        for device_type in [4, 19] {
            bus.add(Arc::new(testing::transport_of_type(device_type)));
        }
        let read = |address| {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            u32::from_le_bytes(data)
        };
        let device_id = 8;
        assert_eq!(read(slot_address(0) + device_id), 4);
        assert_eq!(read(slot_address(1) + device_id), 19);
        for nobody in [0, slot_address(0) - 4, slot_address(2), u64::MAX] {
            assert_eq!(read(nobody), u32::MAX);
            bus.write(nobody, &[1, 2, 3, 4]);
        }
    }
}
