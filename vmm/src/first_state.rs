//! What a machine starts from: a kernel that is booted.
//!
//! [`FirstState`] is all that will tell such a machine from one that goes on from a snapshot: what lies in
//! its memory, what its vCPUs start with, and what happens once all devices are attached and the platform is
//! there. A snapshot is to make it an enum of the two, with the same functions, which put back what
//! [`state`](crate::state) has, in its order; and nothing else of a machine.

use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::arch::{self, BootData, BootError, DeviceAt, KernelImage};
use crate::image::Image;
use crate::kernel::{self, KernelError, low_memory};
use crate::machine::{MachineConfig, MachineError};
use crate::memory;
use crate::vm::VmError;

/// The page size that the initramfs is aligned to.
const PAGE: u64 = 4096;

/// The state, as far as it isn't in guest memory yet.
#[derive(Debug)]
pub(crate) struct FirstState {
    setup: arch::VcpuSetup,
    cmdline: String,
    /// Guest physical address and size of the initramfs.
    initramfs: (u64, u64),
}

impl FirstState {
    /// Makes guest memory with kernel and initramfs in it.
    pub(crate) fn load(
        kvm: &Kvm,
        config: &MachineConfig<'_>,
    ) -> Result<(Self, GuestMemoryMmap), MachineError> {
        let memory = memory::allocate(config.memory_mib)?;
        memory::expect_page_descriptors(&memory);
        let (entry, initramfs) = place(&memory, config.kernel, &config.initramfs)?;
        let setup = arch::VcpuSetup::new(kvm, config.vcpus.get(), entry)?;
        let state = Self {
            setup,
            cmdline: config.cmdline.trim().to_owned(),
            initramfs,
        };
        Ok((state, memory))
    }

    /// Sets up a vCPU; number 0 is the one that boots.
    pub(crate) fn apply(&mut self, vcpu: &VcpuFd, number: u8) -> Result<(), VmError> {
        self.setup.apply(vcpu, number)
    }

    /// Tells the guest of its `vcpus` vCPUs, and of its devices, which are all there now.
    pub(crate) fn complete(
        &self,
        memory: &GuestMemoryMmap,
        vcpus: u8,
        devices: &[DeviceAt],
    ) -> Result<(), BootError> {
        let boot = BootData {
            cmdline: &self.cmdline,
            initramfs: self.initramfs,
            vcpus,
            devices,
        };
        arch::write_boot_data(memory, &boot)
    }
}

/// Puts the kernel, and the initramfs right behind it, into guest memory. Returns the address of the first
/// instruction, and the address and the size of the initramfs.
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
