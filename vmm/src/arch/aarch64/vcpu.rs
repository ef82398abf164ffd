//! What a vCPU starts with: to be `KVM_ARM_VCPU_INIT` with PSCI 0.2, all but the first powered off, and the
//! first with the device tree's address in x0 and the kernel's in pc (Documentation/arch/arm64/booting.rst, 5).

use kvm_ioctls::{Kvm, VcpuFd};

use crate::arch::NotSupported;
use crate::vm::VmError;

/// What the vCPUs of a machine are set up with. There is nothing yet.
#[derive(Debug)]
pub(crate) enum VcpuSetup {}

impl VcpuSetup {
    /// For vCPUs of which the first begins at `entry`, the kernel's first instruction.
    pub(crate) fn new(_: &Kvm, _vcpus: u8, _entry: u64) -> Result<Self, VmError> {
        let what = "set up a vCPU";
        Err(NotSupported { what }.into())
    }

    /// Sets up a vCPU; number 0 is the one that boots.
    pub(crate) fn apply(&mut self, _: &VcpuFd, _number: u8) -> Result<(), VmError> {
        match *self {}
    }
}

/// The address of the instruction that a vCPU is at: to be asked with `KVM_GET_ONE_REG`.
pub(crate) fn instruction_address(_: &VcpuFd) -> Option<u64> {
    None
}
