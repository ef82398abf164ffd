//! The architecture-dependent parts: the KVM capabilities needed, the layout of guest memory, the
//! format and the boot protocol of the kernel, the initial state of the vCPUs, and the devices that
//! aren't virtio.
//!
//! There is a folder for each architecture, and all of them export the same names; the types that
//! they have in common are here. No code outside of this module depends on the architecture.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

#[cfg(target_arch = "aarch64")]
pub use aarch64::{ClockState, Platform, PlatformState, VcpuSaver, VcpuState, probe};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{ClockState, Platform, PlatformState, VcpuSaver, VcpuState, probe};

#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
compile_error!("hull runs on x86_64 only, for now");

/// Something that hull can't do on this processor yet.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("hull cannot {what} on {} yet", std::env::consts::ARCH)]
pub struct NotSupported {
    /// What hull can't do, as a verb phrase.
    pub what: &'static str,
}

/// Why the boot data can't be written.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The command line is too long, or not text.
    #[error("the kernel command line has {length} bytes, at most {} are possible", layout::CMDLINE_SIZE - 1)]
    CmdlineLength {
        /// Its length, with what the machine adds to it.
        length: usize,
    },
    /// The command line holds a character that the kernel would misread.
    #[error("the kernel command line holds the byte {byte:#04x}: only printable ASCII is possible")]
    CmdlineByte {
        /// The byte.
        byte: u8,
    },
    /// The kernel gave no random bytes.
    #[error("cannot get random bytes for the guest")]
    Random(#[source] rustix::io::Errno),
    /// Guest memory can't be written.
    #[error("cannot write the boot data into guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// hull can't write boot data for this architecture yet.
    #[error(transparent)]
    NotSupported(#[from] NotSupported),
}

/// Why a saved state can't be restored into a platform, which must not be used afterwards.
#[derive(Debug, thiserror::Error)]
pub enum PlatformStateError {
    /// The state was saved from a machine with another number of devices.
    #[error("the saved interrupt controller has {saved} pins, and this machine's {own}")]
    Pins {
        /// Pins of the saved one.
        saved: usize,
        /// Pins of this machine's.
        own: usize,
    },
    /// No sequence of guest accesses leads to this state.
    #[error("the saved interrupt controller is in a state that no guest brings it into")]
    IoApic,
    /// The console would never hold such an unfinished line.
    #[error("the saved line of the console is none that a guest can have begun")]
    ConsoleLine,
}

/// Why a vCPU's state can't be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// A KVM ioctl failed.
    #[error("KVM: {call}")]
    Kvm {
        /// The ioctl, as linux/kvm.h names it.
        call: &'static str,
        /// The error that it returned.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The saved vCPU's processor has more extended registers than this host's, or fewer.
    #[error("the saved vCPU has {saved} words of extended registers, and this host's have {own}")]
    ExtendedRegisters {
        /// Words of the saved one's.
        saved: usize,
        /// Words of this host's.
        own: usize,
    },
    /// A list in the state is longer than KVM accepts.
    #[error("the saved vCPU has more {what} than KVM takes")]
    TooLong {
        /// What it is a list of.
        what: &'static str,
    },
    /// This host's KVM doesn't know the register, or refuses the value.
    #[error("this host's KVM refuses {value:#x} in the model-specific register {index:#x}")]
    Register {
        /// The register's number.
        index: u32,
        /// Its value.
        value: u64,
    },
    /// The host can't run the guest's TSC at the saved rate.
    #[error("the saved vCPU's TSC has {saved} kHz, this host's {own}, and it can't be scaled")]
    TscRate {
        /// The rate of the saved one, in kHz.
        saved: u32,
        /// The rate of this host's, in kHz.
        own: u32,
    },
    /// hull doesn't do this on this architecture yet.
    #[error(transparent)]
    NotSupported(#[from] NotSupported),
}

/// Where a guest finds a virtio-mmio device: the address of its registers, and its interrupt line.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    target_arch = "aarch64",
    expect(dead_code, reason = "nothing is written yet")
)]
pub(crate) struct DeviceLocation {
    pub address: u64,
    pub gsi: u8,
}

/// What the boot data tells the guest's kernel about its machine.
#[derive(Debug)]
#[cfg_attr(
    target_arch = "aarch64",
    expect(dead_code, reason = "nothing is written yet")
)]
pub(crate) struct BootData<'a> {
    /// The command line, to which a word for each device is added.
    pub cmdline: &'a str,
    /// Guest physical address and size of the initramfs; size 0 for none.
    pub initramfs: (u64, u64),
    /// The number of vCPUs.
    pub vcpus: u8,
    /// The devices, in the order in which the guest is to find them.
    pub devices: &'a [DeviceLocation],
}

/// What running the test guest of [`probe`] has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The processor ran the guest: this KVM runs unmodified kernels.
    RunsGuests,
    /// KVM tried to emulate the guest's instructions and failed: this KVM can't run unmodified
    /// kernels.
    OnlyEmulates,
}

/// Why the test guest could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A KVM ioctl failed.
    #[error("KVM: {call}")]
    Kvm {
        /// The ioctl, as linux/kvm.h names it.
        call: &'static str,
        /// The error that it returned.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The guest's page could not be allocated.
    #[error("a page of memory for the guest: {0}")]
    Memory(String),
    /// The test guest ended with an exit that is neither success nor an emulation failure.
    #[error("the test guest ended unexpectedly: {0}")]
    Exit(String),
    /// There is no test guest for this architecture yet.
    #[error(transparent)]
    NotSupported(#[from] NotSupported),
}
