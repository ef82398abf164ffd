//! A VM as KVM knows it, tied to the guest memory that it must not outlive.
#![allow(unsafe_code)] // giving KVM our memory

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use crate::arch::{self, Msi};
use crate::virtio::transport::{MmioTransport, QUEUE_NOTIFY};

/// An ioctl of KVM failed.
#[derive(Debug, thiserror::Error)]
#[error("KVM cannot {what}")]
pub struct VmError {
    what: &'static str,
    #[source]
    source: kvm_ioctls::Error,
}

/// Says what an ioctl was for.
pub(crate) fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError { what, source }
}

/// The VM. Whoever holds a vCPU of it holds this too, so that its memory stays mapped.
#[derive(Debug)]
pub(crate) struct Vm {
    // Closed before the memory is unmapped: fields are dropped in order.
    fd: VmFd,
    memory: Arc<GuestMemoryMmap>,
}

impl Vm {
    /// Creates a VM with this memory and interrupt controllers.
    pub(crate) fn new(kvm: &Kvm, memory: Arc<GuestMemoryMmap>) -> Result<Self, VmError> {
        let fd = kvm.create_vm().map_err(failed("create a VM"))?;
        for (slot, region) in memory.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped, belongs to guest memory alone, and stays mapped for as
            // long as this VM and its vCPUs are open: all of them hold `memory`.
            unsafe { fd.set_user_memory_region(region) }
                .map_err(failed("take the guest's memory"))?;
        }
        arch::configure_vm(&fd).map_err(failed("create interrupt controllers"))?;
        Ok(Self { fd, memory })
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    pub(crate) fn create_vcpu(&self, number: u8) -> Result<VcpuFd, VmError> {
        self.fd
            .create_vcpu(number.into())
            .map_err(failed("create a vCPU"))
    }

    /// Routes the interrupts of each pin; those of a pin without a route are lost.
    pub(crate) fn route(&self, pins: &[Option<Msi>]) -> Result<(), VmError> {
        let routed = pins.iter().zip(0u32..);
        let entries: Vec<_> = routed
            .filter_map(|(msi, pin)| Some(msi_route(pin, (*msi)?)))
            .collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .expect("far fewer pins than KVM's limit of 4096 routes");
        self.fd
            .set_gsi_routing(&routing)
            .map_err(failed("route the guest's interrupts"))
    }

    /// Lets a device interrupt the guest, and the guest kick its queues, without an exit to us.
    pub(crate) fn connect(
        &self,
        device: &MmioTransport,
        address: u64,
        gsi: u32,
    ) -> Result<(), VmError> {
        self.fd
            .register_irqfd(device.irqfd(), gsi)
            .map_err(failed("take a device's interrupt"))?;
        let notify = IoEventAddress::Mmio(address + QUEUE_NOTIFY);
        for (kick, queue) in device.kicks().zip(0u32..) {
            self.fd
                .register_ioevent(kick, &notify, queue)
                .map_err(failed("take a device's queue"))?;
        }
        Ok(())
    }
}

impl AsRawFd for Vm {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
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
