//! What depends on the processor: what is asked of its KVM, the layout of guest memory, what a kernel's image is
//! like and how it is entered, the state a vCPU starts in, and what a machine has besides virtio devices.
//!
//! There is a folder for each processor, with the same names in it; what they share in form is here. Nothing
//! outside this module knows which architecture it is.

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
    /// What it can't do.
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
    /// There is no boot data for this processor.
    #[error(transparent)]
    NotSupported(#[from] NotSupported),
}

/// Why a platform can't have a saved state. It is not to be used then.
#[derive(Debug, thiserror::Error)]
pub enum PlatformStateError {
    /// The state was taken of a machine with more devices, or fewer.
    #[error("the saved interrupt controller has {saved} pins, and this machine's {own}")]
    Pins {
        /// Pins of the saved one.
        saved: usize,
        /// Pins of this machine's.
        own: usize,
    },
    /// No guest brings an interrupt controller into this state.
    #[error("the saved interrupt controller is in a state that no guest brings it into")]
    IoApic,
    /// No guest leaves such a line at its console.
    #[error("the saved line of the console is none that a guest can have begun")]
    ConsoleLine,
}

/// Why a vCPU's state can't be taken, or put back.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// A call of KVM failed.
    #[error("KVM: {call}")]
    Kvm {
        /// The call, as linux/kvm.h names it.
        call: &'static str,
        /// What the system said.
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
    /// KVM takes no list as long as one of the state.
    #[error("the saved vCPU has more {what} than KVM takes")]
    TooLong {
        /// What it is a list of.
        what: &'static str,
    },
    /// KVM has no such register, or not with this value.
    #[error("this host's KVM refuses {value:#x} in the model-specific register {index:#x}")]
    Register {
        /// The register's number.
        index: u32,
        /// Its value.
        value: u64,
    },
    /// The host can't make its TSC as fast as the saved one's.
    #[error("the saved vCPU's TSC has {saved} kHz, this host's {own}, and it can't be scaled")]
    TscRate {
        /// The rate of the saved one, in kHz.
        saved: u32,
        /// The rate of this host's, in kHz.
        own: u32,
    },
    /// It isn't done on this processor.
    #[error(transparent)]
    NotSupported(#[from] NotSupported),
}

/// Where a guest finds a virtio-mmio device: the first register, and the interrupt line.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    target_arch = "aarch64",
    expect(dead_code, reason = "nothing is written yet")
)]
pub(crate) struct DeviceAt {
    pub address: u64,
    pub gsi: u8,
}

/// What the guest is told of its machine.
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
    /// Processors.
    pub vcpus: u8,
    /// The devices, in the order in which the guest is to find them.
    pub devices: &'a [DeviceAt],
}

/// What became of the guest that [`probe`] tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The processor ran it: this KVM runs unmodified kernels.
    Runs,
    /// KVM could not interpret it: this KVM does not run unmodified kernels.
    Interprets,
}

/// Why the guest could not be tried.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A call of KVM failed.
    #[error("KVM: {call}")]
    Kvm {
        /// The call, as linux/kvm.h names it.
        call: &'static str,
        /// What the system said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The guest's page could not be allocated.
    #[error("a page of memory for the guest: {0}")]
    Memory(String),
    /// The guest ended in a way that nothing explains.
    #[error("the test guest ended unexpectedly: {0}")]
    Exit(String),
    /// There is no such guest for this processor.
    #[error(transparent)]
    NotSupported(#[from] NotSupported),
}
