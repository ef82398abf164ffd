//! aarch64: not implemented yet. This folder exports the names that every architecture must, with
//! the constants that are known already; everything else returns [`NotSupported`], so creating a
//! machine fails.
//!
//! Each part describes how it is going to be implemented. `make lint` compiles it, so that code
//! outside of `arch` that depends on x86-64 is noticed.

mod kernel;
pub(crate) mod layout;
mod platform;
mod syscalls;
mod vcpu;
mod vcpu_state;

use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::GuestMemoryMmap;

pub(crate) use kernel::KernelImage;
pub use platform::{Platform, PlatformState};
pub(crate) use syscalls::{VCPU_IOCTLS, arch_syscalls};
pub(crate) use vcpu::{VcpuSetup, instruction_address};
pub use vcpu_state::{ClockState, VcpuSaver, VcpuState};

use super::{BootData, BootError, NotSupported, ProbeError, ProbeOutcome};
use crate::vm::VmError;

/// The KVM capabilities that a machine needs in addition to those of every architecture, with their
/// names for errors: in-kernel devices, for the GIC, and PSCI 0.2, by which the guest starts its
/// vCPUs and powers off.
pub(crate) const NEEDED_CAPABILITIES: [(Cap, &str); 2] = [
    (Cap::DeviceCtrl, "KVM_CAP_DEVICE_CTRL"),
    (Cap::ArmPsci02, "KVM_CAP_ARM_PSCI_0_2"),
];

/// What to do if there is no /dev/kvm.
pub(crate) const ENABLE_KVM_HINT: &str = "boot the host's kernel at EL2";

/// The hardware virtualisation that running an unmodified kernel takes.
pub(crate) const VIRTUALISATION: &str = "EL2";

/// Guest physical address and size in bytes of each region of guest memory, for `size` bytes in
/// all: a single region, since there is no gap.
pub(crate) fn memory_regions(size: u64) -> impl Iterator<Item = (u64, usize)> {
    std::iter::once((layout::MEMORY_START, size as usize))
}

/// Where memory that is plugged in later begins, for a machine whose memory ends at `end`.
pub(crate) fn hotplug_start(end: u64) -> u64 {
    end.next_multiple_of(layout::SECTION)
}

/// Prepares a VM for vCPUs. It will create a GICv3 in KVM
/// (Documentation/virt/kvm/devices/arm-vgic-v3.rst), which takes the devices' irqfds as its SPIs
/// without a routing table.
pub(crate) fn configure_vm(_: &VmFd) -> Result<(), VmError> {
    let what = "create an interrupt controller";
    Err(NotSupported { what }.into())
}

/// Writes the boot data. It will be a device tree (Documentation/arch/arm64/booting.rst, 2) with
/// memory, command line, initramfs, random seed, vCPUs, GIC and devices.
pub(crate) fn write_boot_data(_: &GuestMemoryMmap, _: &BootData<'_>) -> Result<(), BootError> {
    let what = "write a device tree";
    Err(NotSupported { what }.into())
}

/// Finds out whether KVM runs guests on the processor. It will not have to run a test guest, since
/// KVM on arm64 never emulates the guest's instructions instead.
///
/// # Errors
/// Always, as long as no guest runs on it.
pub fn probe(_: &Kvm) -> Result<ProbeOutcome, ProbeError> {
    let what = "run a guest";
    Err(NotSupported { what }.into())
}
