//! The devices that aren't virtio. Not implemented: there will be a serial port (PL011) with a
//! transmitter only. The GIC is KVM's, and there are no I/O ports.

use std::ops::ControlFlow;
use std::sync::Arc;

use kvm_ioctls::VcpuExit;
use serde::{Deserialize, Serialize};

use crate::arch::{NotSupported, PlatformStateError};
use crate::bus::Bus;
use crate::console::Console;
use crate::vcpu::StopReason;
use crate::vm::{Vm, VmError};

/// These devices, shared by the vCPUs. No value of it can exist yet.
#[derive(Debug)]
pub enum Platform {}

/// The platform's state as a serialisable value. It will be the GIC's registers
/// (Documentation/virt/kvm/devices/arm-vgic-v3.rst) and the serial port's unfinished line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlatformState {}

impl Platform {
    /// Creates them, with interrupt lines for the devices of `bus`.
    pub(crate) fn new(_: Arc<Console>, _: Arc<Vm>, _: Arc<Bus>) -> Result<Self, VmError> {
        let what = "give a guest a serial port";
        Err(NotSupported { what }.into())
    }

    /// Saves their state.
    pub fn save(&self) -> PlatformState {
        match *self {}
    }

    /// Restores a state that [`Self::save`] has returned.
    ///
    /// # Errors
    /// Never: no state can exist yet.
    pub fn restore(&self, state: &PlatformState) -> Result<(), PlatformStateError> {
        match *state {}
    }

    /// Handles a vCPU exit that only this architecture has.
    pub(crate) fn serve(&self, _: VcpuExit<'_>) -> ControlFlow<StopReason> {
        match *self {}
    }

    /// Handles an MMIO read if the address belongs to one of these devices; returns whether it
    /// does.
    pub(crate) fn read(&self, _address: u64, _data: &mut [u8]) -> bool {
        match *self {}
    }

    /// Handles an MMIO write if the address belongs to one of these devices; returns whether it
    /// does.
    pub(crate) fn write(&self, _address: u64, _data: &[u8]) -> bool {
        match *self {}
    }
}
