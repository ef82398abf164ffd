//! What the machine has besides virtio devices: to be a serial port (PL011) of which only the transmitter
//! exists. The GIC is KVM's, and there are no I/O ports.

use std::ops::ControlFlow;
use std::sync::Arc;

use kvm_ioctls::VcpuExit;
use serde::{Deserialize, Serialize};

use crate::arch::{NotSupported, PlatformStateError};
use crate::bus::Bus;
use crate::console::Console;
use crate::vcpu::StopReason;
use crate::vm::{Vm, VmError};

/// All of it, shared by the vCPUs. There is none yet.
#[derive(Debug)]
pub enum Platform {}

/// What the guest has made of the platform, as a value: to be the GIC's registers
/// (Documentation/virt/kvm/devices/arm-vgic-v3.rst) and the serial port's line. There is none yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlatformState {}

impl Platform {
    /// With interrupt lines for the devices of `bus`.
    pub(crate) fn new(_: Arc<Console>, _: Arc<Vm>, _: Arc<Bus>) -> Result<Self, VmError> {
        let what = "give a guest a serial port";
        Err(NotSupported { what }.into())
    }

    /// Takes its state.
    pub fn save(&self) -> PlatformState {
        match *self {}
    }

    /// Puts back what [`Self::save`] has returned.
    ///
    /// # Errors
    /// None, as long as there is no state.
    pub fn restore(&self, state: &PlatformState) -> Result<(), PlatformStateError> {
        match *state {}
    }

    /// Serves an exit that only this processor has.
    pub(crate) fn serve(&self, _: VcpuExit<'_>) -> ControlFlow<StopReason> {
        match *self {}
    }

    /// Serves a read of memory-mapped registers, if they are the platform's.
    pub(crate) fn read(&self, _address: u64, _data: &mut [u8]) -> bool {
        match *self {}
    }

    /// Serves a write to memory-mapped registers, if they are the platform's.
    pub(crate) fn write(&self, _address: u64, _data: &[u8]) -> bool {
        match *self {}
    }
}
