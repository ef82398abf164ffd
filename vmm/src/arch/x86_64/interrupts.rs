//! Interrupt controllers: the local APICs in KVM, the IO-APIC [ours](super::ioapic), and no PIC, which
//! Linux finds out with three port accesses. No timer chip: the guest's clocks are kvm-clock and the
//! local APIC's TSC deadline, and with both known Linux asks for no PIT (`apic_needs_pit`).

use kvm_bindings::kvm_enable_cap;
use kvm_ioctls::{Cap, VmFd};

use super::layout;

/// Creates the local APICs, with routes for all pins of the IO-APIC. Must come before the first vCPU.
pub(super) fn create(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    // Only Intel processors of before 2010 use these; elsewhere KVM returns at once.
    vm.set_identity_map_address(layout::IDENTITY_MAP)?;
    vm.set_tss_address(layout::TSS as usize)?;
    vm.enable_cap(&kvm_enable_cap {
        cap: Cap::SplitIrqchip as u32,
        args: [u64::from(layout::GSI_LAST) + 1, 0, 0, 0],
        ..Default::default()
    })
}
