//! Opens the host's KVM, and checks that it has what a machine needs.
#![allow(unsafe_code)] // a descriptor that becomes the library's own

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_ioctls::{Cap, Kvm};

use crate::arch;
pub use crate::arch::{ProbeError, ProbeOutcome, probe};

/// The only version of KVM's API that there has ever been (`KVM_API_VERSION`).
const API_VERSION: i32 = 12;

/// The KVM capabilities that a machine needs on every architecture. All of them are older than any
/// kernel still in use: a /dev/kvm that lacks one isn't Linux's own.
const NEEDED: [(Cap, &str); 5] = [
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why this host's KVM can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no device.
    #[error(
        "there is no /dev/kvm: {}; in a virtual machine, switch on nested virtualisation; in a container, \
         pass the device in",
        arch::ENABLE_KVM_HINT
    )]
    Missing,
    /// The caller isn't allowed to open it.
    #[error(
        "no permission to open /dev/kvm: run as root or as a member of the group kvm, and see that \
         the device cgroup allows it"
    )]
    Permission,
    /// It can't be opened for another reason.
    #[error("cannot open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    /// It has another API version.
    #[error(
        "/dev/kvm speaks version {found} of its API, not {API_VERSION}: update the host's kernel"
    )]
    ApiVersion {
        /// Its version.
        found: i32,
    },
    /// It lacks a capability.
    #[error("/dev/kvm lacks {name}: update the host's kernel")]
    Capability {
        /// The capability's name in linux/kvm.h.
        name: &'static str,
    },
    /// More vCPUs were asked for than are possible.
    #[error("{asked} vCPUs are more than the {most} that are possible here")]
    Vcpus {
        /// The number asked for.
        asked: u8,
        /// The greatest possible.
        most: usize,
    },
}

/// Opens /dev/kvm.
///
/// # Errors
/// It can't be opened; the error says what to do.
pub fn open_device() -> Result<OwnedFd, KvmError> {
    let fd = Kvm::open_with_cloexec(true).map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Permission,
        _ => KvmError::Open(error),
    })?;
    // SAFETY: it was opened just now, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens /dev/kvm, and [checks](check) it.
///
/// # Errors
/// Those of both.
pub fn open(vcpus: u8) -> Result<Kvm, KvmError> {
    check(open_device()?, vcpus)
}

/// Checks that a /dev/kvm supports a machine with `vcpus` vCPUs.
///
/// This doesn't check that it can run an unmodified kernel: a KVM that only emulates looks the
/// same, until [`probe`] is called or a machine ends with
/// [`StopReason::Emulation`](crate::vcpu::StopReason::Emulation).
///
/// # Errors
/// It lacks something; each error says what to do.
pub fn check(kvm: OwnedFd, vcpus: u8) -> Result<Kvm, KvmError> {
    // SAFETY: the descriptor is handed over.
    let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
    let found = kvm.get_api_version();
    if found != API_VERSION {
        return Err(KvmError::ApiVersion { found });
    }
    let mut needed = NEEDED.iter().chain(&arch::NEEDED_CAPABILITIES);
    if let Some((_, name)) = needed.find(|(cap, _)| !kvm.check_extension(*cap)) {
        return Err(KvmError::Capability { name });
    }
    let most = kvm.get_max_vcpus().min(arch::layout::MAX_VCPUS.into());
    if usize::from(vcpus) > most {
        return Err(KvmError::Vcpus { asked: vcpus, most });
    }
    Ok(kvm)
}
