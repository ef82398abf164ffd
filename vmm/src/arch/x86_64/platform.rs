//! The devices that aren't virtio: those behind I/O ports, and the IO-APIC.

use std::ops::ControlFlow;
use std::sync::Arc;

use kvm_ioctls::VcpuExit;
use serde::{Deserialize, Serialize};

use super::interrupts::DeviceLines;
use super::ioapic::{IoApic, IoApicState};
use super::layout;
use super::ports::{Ports, PortsState};
use crate::arch::PlatformStateError;
use crate::bus::{Bus, SLOT_SIZE};
use crate::console::Console;
use crate::vcpu::StopReason;
use crate::vm::{Vm, VmError};

/// These devices, shared by the vCPUs.
#[derive(Debug)]
pub struct Platform {
    ports: Ports,
    ioapic: IoApic,
}

/// The platform's state as a serialisable value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformState {
    ports: PortsState,
    ioapic: IoApicState,
}

impl Platform {
    /// Creates them, with interrupt lines for the devices of `bus`.
    pub(crate) fn new(console: Arc<Console>, vm: Arc<Vm>, bus: Arc<Bus>) -> Result<Self, VmError> {
        let pins = layout::GSI_FIRST as usize + bus.devices().len();
        Ok(Self {
            ports: Ports::new(console),
            ioapic: IoApic::new(pins, Box::new(DeviceLines { vm, bus })),
        })
    }

    /// Saves their state. No vCPU may run meanwhile.
    pub fn save(&self) -> PlatformState {
        PlatformState {
            ports: self.ports.save(),
            ioapic: self.ioapic.save(),
        }
    }

    /// Restores a state that was saved from a machine with as many devices. It raises the devices'
    /// pending interrupts again, so the vCPUs' states must be restored first.
    ///
    /// # Errors
    /// The state doesn't fit this machine, or no guest can have led to it. The machine must not be
    /// used then.
    pub fn restore(&self, state: &PlatformState) -> Result<(), PlatformStateError> {
        self.ports.restore(&state.ports)?;
        self.ioapic.restore(&state.ioapic)
    }

    /// Handles a vCPU exit that only this architecture has.
    pub(crate) fn serve(&self, exit: VcpuExit<'_>) -> ControlFlow<StopReason> {
        match exit {
            VcpuExit::IoOut(port, data) => self.ports.write(port, data),
            VcpuExit::IoIn(port, data) => {
                self.ports.read(port, data);
                ControlFlow::Continue(())
            }
            other => ControlFlow::Break(StopReason::UnknownExit(format!("{other:?}"))),
        }
    }

    /// Handles an MMIO read if the address belongs to one of these devices; returns whether it
    /// does.
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

    /// Handles an MMIO write if the address belongs to one of these devices; returns whether it
    /// does.
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
