//! A KVM VM together with its guest memory, which must stay mapped as long as the VM exists.
#![allow(unsafe_code)] // KVM_SET_USER_MEMORY_REGION

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::{self, NotSupported};
use crate::virtio::transport::{MmioTransport, QUEUE_NOTIFY};

/// How many queues of a device KVM has kicked by writes to its register, where there is a port for that: the first ones,
/// for kernels that don't know the port. At each that KVM is told of, the VM's start waits until no reader of KVM's table
/// is left. What is written for another queue exits to the VMM, which kicks it all the same.
const KICKED_BY_REGISTER: usize = 2;

/// Why a VM or its vCPUs can't be created or set up.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// An ioctl of KVM failed.
    #[error("KVM cannot {what}")]
    Kvm {
        /// What it was for.
        what: &'static str,
        /// Its error.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// hull doesn't do this on this architecture yet.
    #[error(transparent)]
    NotSupported(#[from] NotSupported),
}

/// Adds what an ioctl was for to its error.
pub(crate) fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { what, source }
}

/// The VM. Whoever holds a vCPU of it must hold this too, so that guest memory stays mapped.
#[derive(Debug)]
pub(crate) struct Vm {
    // Closed before the memory is unmapped: fields are dropped in order.
    pub(crate) fd: VmFd,
    memory: Arc<GuestMemoryMmap>,
}

impl Vm {
    /// Creates a VM with this memory and with interrupt controllers.
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
        arch::configure_vm(&fd)?;
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

    /// Registers a device's irqfd and the ioeventfds of its queues, so that interrupts and kicks
    /// need no exit to user space: kicks by the register at `address`, and by the port that the device shows.
    pub(crate) fn connect(
        &self,
        device: &MmioTransport,
        address: u64,
        gsi: u32,
    ) -> Result<(), VmError> {
        self.fd
            .register_irqfd(device.irqfd(), gsi)
            .map_err(failed("take a device's interrupt"))?;
        let register = IoEventAddress::Mmio(address + QUEUE_NOTIFY);
        match device.kick_port() {
            Some(port) => {
                let port = IoEventAddress::Pio(port.into());
                self.take_kicks(device.kicks(), &port)?;
                self.take_kicks(device.kicks().take(KICKED_BY_REGISTER), &register)
            }
            None => self.take_kicks(device.kicks(), &register),
        }
    }

    /// Has what is written at an address kick the queue of that number.
    fn take_kicks<'a>(
        &self,
        kicks: impl Iterator<Item = &'a EventFd>,
        address: &IoEventAddress,
    ) -> Result<(), VmError> {
        for (kick, queue) in kicks.zip(0u32..) {
            self.fd
                .register_ioevent(kick, address, queue)
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
