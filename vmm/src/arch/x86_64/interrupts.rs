//! Interrupt controllers: the local APICs are KVM's, the IO-APIC is [emulated here](super::ioapic),
//! and there is no PIC, which Linux detects with three port accesses. There is no PIT either: the
//! guest's clock is kvm-clock and its timer the local APIC's TSC deadline, and with these Linux
//! needs none (`apic_needs_pit`).

use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry, kvm_irq_routing_msi,
};
use kvm_ioctls::{Cap, VmFd};

use super::ioapic::{InterruptLines, Msi};
use super::layout;
use crate::bus::Bus;
use crate::vm::{Vm, VmError, failed};

/// Creates the local APICs (split irqchip), with GSI routes for all pins of the IO-APIC. Must be
/// called before the first vCPU is created.
pub(super) fn create(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    // Used on Intel processors from before 2010 only; on others these ioctls have no effect.
    vm.set_identity_map_address(layout::IDENTITY_MAP)?;
    vm.set_tss_address(layout::TSS as usize)?;
    vm.enable_cap(&kvm_enable_cap {
        cap: Cap::SplitIrqchip as u32,
        args: [u64::from(layout::GSI_LAST) + 1, 0, 0, 0],
        ..Default::default()
    })
}

/// The devices' interrupts, on the pins from [`layout::GSI_FIRST`] on.
pub(super) struct DeviceLines {
    pub(super) vm: Arc<Vm>,
    pub(super) bus: Arc<Bus>,
}

impl InterruptLines for DeviceLines {
    fn route(&self, pins: &[Option<Msi>]) {
        if let Err(error) = route(&self.vm.fd, pins) {
            // This happens only if the host is out of memory. The guest misses interrupts then.
            log::error!("{error}");
        }
    }

    fn repeat(&self, pin: usize) {
        let slot = pin.checked_sub(layout::GSI_FIRST as usize);
        if let Some(device) = slot.and_then(|slot| self.bus.devices().get(slot)) {
            device.repeat_interrupt();
        }
    }
}

/// Sets the GSI routes in KVM; the interrupts of a pin without a route are dropped.
fn route(vm: &VmFd, pins: &[Option<Msi>]) -> Result<(), VmError> {
    let routed = pins.iter().zip(0u32..);
    let entries: Vec<_> = routed
        .filter_map(|(msi, pin)| Some(msi_route(pin, (*msi)?)))
        .collect();
    let routing = KvmIrqRouting::from_entries(&entries)
        .expect("far fewer pins than KVM's limit of 4096 routes");
    vm.set_gsi_routing(&routing)
        .map_err(failed("route the guest's interrupts"))
}

fn msi_route(pin: u32, msi: Msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: msi.address,
        data: msi.data,
        ..Default::default()
    };
    entry
}
