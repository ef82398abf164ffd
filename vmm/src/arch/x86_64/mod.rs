//! x86-64: a PC without firmware, buses, or legacy devices, entered by Linux's 64-bit boot protocol.

mod boot;
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
mod syscalls;
mod vcpu_state;
mod xsave;

use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, Msrs, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

pub(crate) use boot::write as write_boot_data;
pub(crate) use kernel::KernelImage;
pub use platform::{Platform, PlatformState};
pub use probe::probe;
pub(crate) use syscalls::{VCPU_IOCTLS, arch_syscalls};
pub use vcpu_state::{ClockState, VcpuSaver, VcpuState};

use crate::vm::{VmError, failed};

/// The KVM capabilities that a machine needs in addition to those of every architecture, with their
/// names for errors.
pub(crate) const NEEDED_CAPABILITIES: [(Cap, &str); 2] = [
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

/// What to do if there is no /dev/kvm.
pub(crate) const ENABLE_KVM_HINT: &str = "load the module kvm_intel or kvm_amd";

/// The hardware virtualisation that running an unmodified kernel takes.
pub(crate) const VIRTUALISATION: &str = "Intel VT-x or AMD-V";

/// Guest physical address and size in bytes of each region of guest memory, for `size` bytes in
/// all.
pub(crate) fn memory_regions(size: u64) -> impl Iterator<Item = (u64, usize)> {
    let low = size.min(layout::MMIO_GAP_START);
    [(0, low), (layout::MMIO_GAP_END, size - low)]
        .into_iter()
        .filter(|(_, size)| *size > 0)
        .map(|(start, size)| (start, size as usize))
}

/// Where memory that is plugged in later begins, for a machine whose memory ends at `end`: above the gap,
/// on a section of Linux's.
pub(crate) fn hotplug_start(end: u64) -> u64 {
    end.max(layout::MMIO_GAP_END)
        .next_multiple_of(layout::SECTION)
}

/// Prepares a VM for vCPUs: creates the interrupt controllers, and disables the PMU, whose state
/// KVM would otherwise check on every VM entry.
pub(crate) fn configure_vm(vm: &VmFd) -> Result<(), VmError> {
    let no_counters = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    // Available since Linux 5.18. On an older kernel VM entries are a little slower.
    let _ = vm.enable_cap(&no_counters);
    interrupts::create(vm).map_err(failed("create interrupt controllers"))
}

/// The initial state of a machine's vCPUs.
#[derive(Debug)]
pub(crate) struct VcpuSetup {
    cpuid: cpuid::Template,
    msrs: Msrs,
    entry: u64,
}

impl VcpuSetup {
    /// Builds what all `vcpus` vCPUs have in common; `entry` is the kernel's entry point.
    pub(crate) fn new(kvm: &Kvm, vcpus: u8, entry: u64) -> Result<Self, VmError> {
        let cpuid = cpuid::Template::new(kvm, vcpus);
        Ok(Self {
            cpuid: cpuid.map_err(failed("report the CPUID that it supports"))?,
            msrs: msrs::build(),
            entry,
        })
    }

    /// Sets up a vCPU; number 0 is the boot processor.
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

/// The instruction pointer of a vCPU, if KVM returns it.
pub(crate) fn instruction_address(vcpu: &VcpuFd) -> Option<u64> {
    vcpu.get_regs().ok().map(|regs| regs.rip)
}
