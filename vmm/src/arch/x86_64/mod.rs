//! x86-64: a PC without firmware, buses, or legacy devices, entered by Linux's 64-bit boot protocol.

mod boot;
mod calls;
mod cpuid;
mod interrupts;
mod ioapic;
pub(crate) mod kernel;
pub(crate) mod layout;
mod mptable;
mod msrs;
mod platform;
mod ports;
mod probe;
mod regs;
mod vcpu_state;
mod xsave;

use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, Msrs, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

pub(crate) use boot::write as write_boot_data;
pub(crate) use calls::{VCPU_IOCTLS, calls_of};
pub(crate) use kernel::KernelImage;
pub use platform::{Platform, PlatformState};
pub use probe::probe;
pub use vcpu_state::{ClockState, VcpuSaver, VcpuState};

use crate::vm::{VmError, failed};

/// What a machine needs of KVM besides what every processor's has, and what its error calls it.
pub(crate) const NEEDED_CAPABILITIES: [(Cap, &str); 2] = [
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

/// What makes a /dev/kvm appear.
pub(crate) const MISSING_KVM: &str = "load the module kvm_intel or kvm_amd";

/// What a processor must have for an unmodified kernel to run in a guest.
pub(crate) const VIRTUALISATION: &str = "Intel VT-x or AMD-V";

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
pub(crate) fn configure_vm(vm: &VmFd) -> Result<(), VmError> {
    let no_counters = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    // Since Linux 5.18; an older one only loses the speed.
    let _ = vm.enable_cap(&no_counters);
    interrupts::create(vm).map_err(failed("create interrupt controllers"))
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
    pub(crate) fn new(kvm: &Kvm, vcpus: u8, entry: u64) -> Result<Self, VmError> {
        let cpuid = cpuid::Template::new(kvm, vcpus);
        Ok(Self {
            cpuid: cpuid.map_err(failed("tell what CPUs it supports"))?,
            msrs: msrs::build(),
            entry,
        })
    }

    /// Sets up a vCPU; number 0 is the one that boots.
    pub(crate) fn apply(&mut self, vcpu: &VcpuFd, number: u8) -> Result<(), VmError> {
        self.set(vcpu, number).map_err(failed("set up a vCPU"))
    }

    fn set(&mut self, vcpu: &VcpuFd, number: u8) -> Result<(), kvm_ioctls::Error> {
        vcpu.set_cpuid2(self.cpuid.for_vcpu(number))?;
        msrs::set(vcpu, &self.msrs)?;
        if number == 0 {
            regs::set(vcpu, self.entry)?;
        }
        Ok(())
    }
}

/// The address of the instruction that a vCPU is at, if KVM tells.
pub(crate) fn instruction_address(vcpu: &VcpuFd) -> Option<u64> {
    vcpu.get_regs().ok().map(|regs| regs.rip)
}
