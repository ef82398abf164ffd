//! The host's KVM: opened, and checked for what a machine needs.

use kvm_ioctls::{Cap, Kvm};

use crate::arch;
pub use crate::arch::{Probe, ProbeError, probe};

/// The only version of KVM's API that ever was (`KVM_API_VERSION`).
const API_VERSION: i32 = 12;

/// What a machine needs of KVM on every processor. All are older than any kernel in use; a
/// /dev/kvm that lacks one is an imitation.
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
        arch::MISSING_KVM
    )]
    Missing,
    /// It may not be opened.
    #[error(
        "no permission to open /dev/kvm: run as root or as a member of the group kvm, and see that \
         the device cgroup allows it"
    )]
    Permission,
    /// It can't be opened for another reason.
    #[error("cannot open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    /// It speaks another API.
    #[error(
        "/dev/kvm speaks version {found} of its API, not {API_VERSION}: update the host's kernel"
    )]
    ApiVersion {
        /// The version it speaks.
        found: i32,
    },
    /// It lacks something.
    #[error("/dev/kvm lacks {name}: update the host's kernel")]
    Capability {
        /// The capability's name in linux/kvm.h.
        name: &'static str,
    },
    /// It takes fewer vCPUs.
    #[error("{asked} vCPUs are more than the {most} that are possible here")]
    Vcpus {
        /// The number asked for.
        asked: u8,
        /// The greatest possible.
        most: usize,
    },
}

/// Opens /dev/kvm and checks that it can hold a machine of `vcpus` vCPUs.
///
/// It is not checked that it can run an unmodified kernel: a paravirtual KVM looks the same, until
/// [`probe`] is asked or a machine ends with
/// [`StopReason::Emulation`](crate::vcpu::StopReason::Emulation).
///
/// # Errors
/// It can't be opened, or isn't enough; each error says what to do.
pub fn open(vcpus: u8) -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Permission,
        _ => KvmError::Open(error),
    })?;
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
