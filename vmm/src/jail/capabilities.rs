//! The capabilities that each role keeps, with the reason for each.

use caps::{CapSet, Capability, CapsHashSet};

use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};

use super::{Error, Role};

/// What the virtio-fs thread keeps, for the system calls that it makes on behalf of the guest.
const FILESYSTEM: &[(Capability, &str)] = &[
    (
        Capability::CAP_CHOWN,
        "chown to anybody, as the guest's root may",
    ),
    (
        Capability::CAP_DAC_OVERRIDE,
        "open files whatever their mode: the guest's kernel has checked it",
    ),
    (
        Capability::CAP_FOWNER,
        "chmod, utimes and xattrs of files that others own; O_NOATIME",
    ),
    (
        Capability::CAP_FSETID,
        "keep set-id bits where the guest's kernel says that they stay",
    ),
    (
        Capability::CAP_SETGID,
        "create files with the group of the guest's process",
    ),
    (
        Capability::CAP_SETUID,
        "create files with the owner of the guest's process",
    ),
    (
        Capability::CAP_MKNOD,
        "create device nodes; the share is nodev, so here none can be opened",
    ),
    (Capability::CAP_SETFCAP, "set file capabilities"),
];

/// What a follower of the network keeps. It counts in every network namespace of the same user
/// namespace that the process gets at; it is in one, and can enter no other.
const NETWORK_FOLLOWER: &[(Capability, &str)] = &[(
    Capability::CAP_NET_ADMIN,
    "make a tap beside an interface, and redirect between the two",
)];

/// What the out-of-memory reporter keeps.
const OOM_REPORTER: &[(Capability, &str)] = &[(
    Capability::CAP_DAC_OVERRIDE,
    "make a cgroup at the top of all, in a directory that isn't writable by its mode",
)];

/// The capabilities that `role` keeps.
pub(super) fn of_role(role: Role) -> &'static [(Capability, &'static str)] {
    match role {
        Role::Filesystem | Role::FilesystemAndSockets => FILESYSTEM,
        Role::Main | Role::Vcpu | Role::Block | Role::DiskSlot => &[],
        Role::Net | Role::NetSlot | Role::StandIn | Role::Follower => &[],
        Role::NetworkFollower => NETWORK_FOLLOWER,
        Role::OomReporter => OOM_REPORTER,
    }
}

/// Makes the calling thread keep its capabilities when its user changes (`SECBIT_NO_SETUID_FIXUP`),
/// irrevocably.
///
/// The virtio-fs thread switches to the user of the guest's process to create a file, in a
/// directory that the guest's kernel has let the process into: by its mode, or by a capability that
/// the process has in the guest and not on the host. The other threads change their user before
/// they drop their capabilities.
pub(super) fn keep_across_setuid() -> Result<(), Error> {
    let bits =
        CapabilitiesSecureBits::NO_SETUID_FIXUP | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED;
    set_capabilities_secure_bits(bits).map_err(|e| Error::SecureBits(e.into()))
}

/// Reduces the bounding, permitted and effective sets of the calling thread to `kept`, and empties
/// the ambient and inheritable sets.
pub(super) fn keep_only(kept: &[(Capability, &str)]) -> Result<(), Error> {
    let kept: CapsHashSet = kept.iter().map(|(capability, _)| *capability).collect();
    let held = caps::read(None, CapSet::Permitted).map_err(failed("permitted"))?;
    let kept: CapsHashSet = kept.intersection(&held).copied().collect();

    // The bounding set first, since dropping from it takes CAP_SETPCAP. It is defence in depth: the
    // seccomp filter forbids execve(2).
    for capability in caps::all() {
        let is_known = caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false);
        if is_known && !kept.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed("bounding"))?;
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(failed("ambient"))?;
    caps::clear(None, CapSet::Inheritable).map_err(failed("inheritable"))?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed("effective"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed("permitted"))
}

fn failed(set: &'static str) -> impl Fn(caps::errors::CapsError) -> Error {
    move |source| Error::Capabilities { set, source }
}
