//! What the machine has besides virtio devices: to be a serial port (PL011) of which only the transmitter
//! exists. The GIC is KVM's, and there are no I/O ports.

use std::ops::ControlFlow;
use std::sync::Arc;

use kvm_ioctls::VcpuExit;

use crate::arch::NotSupported;
use crate::bus::Bus;
use crate::console::Console;
use crate::vcpu::StopReason;
use crate::vm::{Vm, VmError};

/// All of it, shared by the vCPUs. There is none yet.
#[derive(Debug)]
pub(crate) enum Platform {}

impl Platform {
    /// With interrupt lines for the devices of `bus`.
    pub(crate) fn new(_: Arc<Console>, _: Arc<Vm>, _: Arc<Bus>) -> Result<Self, VmError> {
        let what = "give a guest a serial port";
        Err(NotSupported { what }.into())
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
