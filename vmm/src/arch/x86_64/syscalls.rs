//! System calls that the jail allows on this architecture in addition to those that it allows on
//! every one.

use crate::jail::Role;

/// `ioctl` numbers of KVM that a vCPU's thread may use (linux/kvm.h: `_IO(0xAE, nr)` and the like).
pub(crate) const VCPU_IOCTLS: &[u32] = &[
    // `KVM_RUN`.
    0xae80,
    // `KVM_GET_REGS`: for the message that names the instruction at which emulation failed.
    0x8090_ae81,
    // `KVM_SET_GSI_ROUTING`: when the guest programs its IO-APIC, which is emulated here.
    0x4008_ae6a,
];

/// The system calls that a role needs only on this architecture: older calls for waiting, which
/// newer architectures lack and which the C library still makes here.
pub(crate) fn arch_syscalls(role: Role) -> &'static [libc::c_long] {
    match role {
        Role::Main | Role::StandIn | Role::NetworkFollower | Role::Follower => {
            &[libc::SYS_epoll_wait, libc::SYS_poll]
        }
        Role::Filesystem
        | Role::FilesystemAndSockets
        | Role::Block
        | Role::DiskSlot
        | Role::Net
        | Role::NetSlot => &[libc::SYS_epoll_wait],
        Role::Vcpu | Role::OomReporter => &[],
    }
}
