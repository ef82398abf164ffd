//! aarch64: not there yet. This folder has the names that a processor must have, with what is known of it
//! already; all that would take work ends in [`NotSupported`], so a machine is refused with its first step.
//!
//! What each part is to become is said beside it. It compiles, which `make lint` checks: so nothing outside of
//! `arch` comes to know the processor unnoticed.

mod calls;
mod kernel;
pub(crate) mod layout;
mod platform;
mod vcpu;
mod vcpu_state;

use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::GuestMemoryMmap;

pub(crate) use calls::{VCPU_IOCTLS, calls_of};
pub(crate) use kernel::KernelImage;
pub use platform::{Platform, PlatformState};
pub(crate) use vcpu::{VcpuSetup, instruction_address};
pub use vcpu_state::{ClockState, VcpuSaver, VcpuState};

use super::{BootData, BootError, NotSupported, Probe, ProbeError};
use crate::vm::VmError;

/// What a machine needs of KVM besides what every processor's has, and what its error calls it: devices of
/// its own, for the GIC, and PSCI 0.2, by which the guest starts its vCPUs and ends itself.
pub(crate) const NEEDED_CAPABILITIES: [(Cap, &str); 2] = [
    (Cap::DeviceCtrl, "KVM_CAP_DEVICE_CTRL"),
    (Cap::ArmPsci02, "KVM_CAP_ARM_PSCI_0_2"),
];

/// What makes a /dev/kvm appear.
pub(crate) const MISSING_KVM: &str = "boot the host's kernel at EL2";

/// What a processor must have for an unmodified kernel to run in a guest.
pub(crate) const VIRTUALISATION: &str = "EL2";

/// Guest physical address and bytes of each region, for `size` bytes of memory in all: one, for there is no
/// gap in it.
pub(crate) fn memory_regions(size: u64) -> impl Iterator<Item = (u64, usize)> {
    std::iter::once((layout::MEMORY_START, size as usize))
}

/// Prepares a VM for vCPUs. To be a GICv3 in KVM (Documentation/virt/kvm/devices/arm-vgic-v3.rst), which takes
/// the devices' irqfds as its SPIs without routes of ours.
pub(crate) fn configure_vm(_: &VmFd) -> Result<(), VmError> {
    let what = "create an interrupt controller";
    Err(NotSupported { what }.into())
}

/// Writes all that the kernel reads at its start, apart from itself and the initramfs. To be a device tree
/// (Documentation/arch/arm64/booting.rst, 2): memory, command line, initramfs, seed, vCPUs, GIC and devices.
pub(crate) fn write_boot_data(_: &GuestMemoryMmap, _: &BootData<'_>) -> Result<(), BootError> {
    let what = "write a device tree";
    Err(NotSupported { what }.into())
}

/// Tells whether KVM runs guests on the processor. To be nothing: there is no KVM that interprets.
///
/// # Errors
/// Always, as long as no guest runs on it.
pub fn probe(_: &Kvm) -> Result<Probe, ProbeError> {
    let what = "run a guest";
    Err(NotSupported { what }.into())
}
