//! The initial state of a vCPU. Not implemented: it will be `KVM_ARM_VCPU_INIT` with PSCI 0.2, all
//! but the first powered off, and the first with the device tree's address in x0 and the kernel's
//! in pc (Documentation/arch/arm64/booting.rst, 5).

use kvm_ioctls::{Kvm, VcpuFd};

use crate::arch::NotSupported;
use crate::vm::VmError;

/// The initial state of a machine's vCPUs. No value of it can exist yet.
#[derive(Debug)]
pub(crate) enum VcpuSetup {}

impl VcpuSetup {
    /// For `vcpus` vCPUs, the first of which starts at `entry`, the kernel's entry point.
    pub(crate) fn new(_: &Kvm, _vcpus: u8, _entry: u64) -> Result<Self, VmError> {
        let what = "set up a vCPU";
        Err(NotSupported { what }.into())
    }

    /// Sets up a vCPU; number 0 is the boot processor.
    pub(crate) fn apply(&mut self, _: &VcpuFd, _number: u8) -> Result<(), VmError> {
        match *self {}
    }
}

/// The program counter of a vCPU. Not implemented: it will be read with `KVM_GET_ONE_REG`.
pub(crate) fn instruction_address(_: &VcpuFd) -> Option<u64> {
    None
}
