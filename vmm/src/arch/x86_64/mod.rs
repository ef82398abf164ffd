//! x86-64: a PC without firmware, buses, or legacy devices, entered by Linux's 64-bit boot protocol.

mod boot;
mod cpuid;
mod interrupts;
mod ioapic;
pub(crate) mod layout;
mod mptable;
mod msrs;
mod platform;
mod ports;
mod probe;
mod regs;

use std::ops::Range;

use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, Msrs, kvm_enable_cap};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

pub use boot::BootError;
pub(crate) use boot::{BootData, DeviceAt, write as write_boot_data};
pub(crate) use ioapic::{Lines, Msi};
pub(crate) use platform::Platform;
pub use probe::{Probe, ProbeError, probe};

/// `EM_X86_64` of an ELF header.
pub(crate) const ELF_MACHINE: u16 = 62;

/// Where a kernel may lie.
pub(crate) const KERNEL_RANGE: Range<u64> = layout::KERNEL_MIN..layout::KERNEL_MAX;

/// Guest physical address and bytes of each region, for `size` bytes of memory in all.
pub(crate) fn memory_regions(size: u64) -> impl Iterator<Item = (u64, usize)> {
    let low = size.min(layout::MMIO_GAP_START);
    [(0, low), (layout::MMIO_GAP_END, size - low)]
        .into_iter()
        .filter(|(_, size)| *size > 0)
        .map(|(start, size)| (start, size as usize))
}

/// Prepares a VM for vCPUs: the interrupt controllers, and no performance counters, whose state KVM
/// would otherwise look at on every entry into the guest.
pub(crate) fn configure_vm(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let no_counters = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    // Since Linux 5.18; an older one only loses the speed.
    let _ = vm.enable_cap(&no_counters);
    interrupts::create(vm)
}

/// What the vCPUs of a machine are set up with.
#[derive(Debug)]
pub(crate) struct VcpuSetup {
    cpuid: cpuid::Template,
    msrs: Msrs,
    entry: u64,
}

impl VcpuSetup {
    /// Asks KVM once what all `vcpus` have in common; `entry` is the kernel's first instruction.
    pub(crate) fn new(kvm: &Kvm, vcpus: u8, entry: u64) -> Result<Self, kvm_ioctls::Error> {
        Ok(Self {
            cpuid: cpuid::Template::new(kvm, vcpus)?,
            msrs: msrs::build(),
            entry,
        })
    }

    /// Sets up a vCPU; number 0 is the one that boots.
    pub(crate) fn apply(&mut self, vcpu: &VcpuFd, number: u8) -> Result<(), kvm_ioctls::Error> {
        vcpu.set_cpuid2(self.cpuid.for_vcpu(number))?;
        msrs::set(vcpu, &self.msrs)?;
        if number == 0 {
            regs::set(vcpu, self.entry)?;
        }
        Ok(())
    }
}
