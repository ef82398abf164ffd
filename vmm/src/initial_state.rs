//! The initial state of a machine that boots a kernel.
//!
//! This is the only part of a machine that will differ when it is restored from a snapshot: the
//! contents of guest memory, the initial state of the vCPUs, and what is done once all devices are
//! attached. With snapshots, [`InitialState`] is to become an enum of the two cases with the same
//! functions, which then restore what [`state`](crate::state) lists, in the order given there.

use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::arch::{self, BootData, BootError, DeviceLocation, KernelImage};
use crate::image::Image;
use crate::kernel::{self, KernelError, low_memory};
use crate::machine::{MachineConfig, MachineError};
use crate::memory;
use crate::vm::VmError;

/// The page size that the initramfs is aligned to.
const PAGE: u64 = 4096;

/// What of the initial state isn't in guest memory yet.
#[derive(Debug)]
pub(crate) struct InitialState {
    setup: arch::VcpuSetup,
    cmdline: String,
    /// Guest physical address and size of the initramfs.
    initramfs: (u64, u64),
    /// The memory that the guest is booted with; what is plugged in later isn't part of it.
    memory: GuestMemoryMmap,
}

impl InitialState {
    /// Allocates guest memory, and loads the kernel and the initramfs into it.
    pub(crate) fn load(
        kvm: &Kvm,
        config: &MachineConfig<'_>,
    ) -> Result<(Self, GuestMemoryMmap), MachineError> {
        let memory = memory::allocate(config.memory_mib)?;
        memory::prefer_huge_pages_for_memmap(&memory);
        let (entry, initramfs) = place(&memory, config.kernel, &config.initramfs)?;
        let setup = arch::VcpuSetup::new(kvm, config.vcpus.get(), entry)?;
        let state = Self {
            setup,
            cmdline: config.cmdline.trim().to_owned(),
            initramfs,
            memory: memory.clone(),
        };
        Ok((state, memory))
    }

    /// Sets up a vCPU; number 0 is the boot processor.
    pub(crate) fn apply(&mut self, vcpu: &VcpuFd, number: u8) -> Result<(), VmError> {
        self.setup.apply(vcpu, number)
    }

    /// Writes the boot data, which describes the vCPUs and the devices. To be called once all
    /// devices are attached.
    pub(crate) fn write_boot_data(
        &self,
        vcpus: u8,
        devices: &[DeviceLocation],
    ) -> Result<(), BootError> {
        let boot = BootData {
            cmdline: &self.cmdline,
            initramfs: self.initramfs,
            vcpus,
            devices,
        };
        arch::write_boot_data(&self.memory, &boot)
    }
}

/// Loads the kernel, and the initramfs right after it, into guest memory. Returns the kernel's
/// entry point, and the address and the size of the initramfs.
fn place(
    memory: &GuestMemoryMmap,
    kernel: Image<'_>,
    initramfs: &Image<'_>,
) -> Result<(u64, (u64, u64)), MachineError> {
    let kernel = KernelImage::parse(kernel)?;
    let start = kernel.end().next_multiple_of(PAGE);
    let size = initramfs.bytes().len() as u64;
    let end = start.saturating_add(size);
    let low = low_memory(memory);
    if end > low {
        return Err(KernelError::NoRoom { end, memory: low }.into());
    }
    kernel.load(memory)?;
    kernel::place(initramfs, memory, GuestAddress(start), end)?;
    Ok((kernel.entry(), (start, size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initramfs_follows_the_kernel_and_both_must_fit() {
        let memory = memory::allocate(32).expect("32 MiB");
        let image = arch::kernel::tests::image(0x10_0000, b"code", 0x1001);
        let place = |initramfs: &[u8]| place(&memory, image[..].into(), &initramfs.into());
        assert_eq!(place(b"files").ok(), Some((0x10_0000, (0x10_2000, 5))));
        let error = place(&vec![0; 31 << 20]).expect_err("too large");
        assert!(
            error.to_string().contains("the guest has only 32 MiB"),
            "{error}"
        );
    }
}
