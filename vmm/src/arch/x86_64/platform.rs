//! What the machine has besides virtio devices: I/O ports, and the IO-APIC.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::ioapic::{IoApic, Lines};
use super::layout;
use super::ports::Ports;
use crate::bus::SLOT_SIZE;
use crate::console::Console;
use crate::vcpu::StopReason;

/// All of it, shared by the vCPUs.
#[derive(Debug)]
pub(crate) struct Platform {
    ports: Ports,
    ioapic: IoApic,
}

impl Platform {
    /// With interrupt lines for this many devices.
    pub(crate) fn new(console: Arc<Console>, devices: usize, lines: Box<dyn Lines>) -> Self {
        let pins = layout::GSI_FIRST as usize + devices;
        Self {
            ports: Ports::new(console),
            ioapic: IoApic::new(pins, lines),
        }
    }

    /// Serves a read of a port.
    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port, data);
    }

    /// Serves a write to a port.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) -> ControlFlow<StopReason> {
        self.ports.write(port, data)
    }

    /// Serves a read of memory-mapped registers, if they are the platform's.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some(offset) = ioapic_offset(address) else {
            return false;
        };
        data.fill(0);
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = self.ioapic.read(offset).to_le_bytes();
        }
        true
    }

    /// Serves a write to memory-mapped registers, if they are the platform's.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some(offset) = ioapic_offset(address) else {
            return false;
        };
        if let Ok(data) = <[u8; 4]>::try_from(data) {
            self.ioapic.write(offset, u32::from_le_bytes(data));
        }
        true
    }
}

fn ioapic_offset(address: u64) -> Option<u64> {
    address
        .checked_sub(layout::IOAPIC.into())
        .filter(|offset| *offset < SLOT_SIZE)
}
