//! System calls that are this processor's: what the jail lets threads call besides what every processor has.

use crate::jail::Role;

/// `ioctl` numbers of KVM that a vCPU's thread may use (linux/kvm.h: `_IO(0xAE, nr)` and the like).
pub(crate) const VCPU_IOCTLS: &[u32] = &[
    // `KVM_RUN`.
    0xae80,
    // `KVM_GET_REGS`: for the address at which KVM gave up, in the message about it.
    0x8090_ae81,
    // `KVM_SET_GSI_ROUTING`: the guest programs its IO-APIC, which is ours.
    0x4008_ae6a,
];

/// Calls that newer processors' tables lack, and that the C library still makes on this one: waits of event
/// loops, and of a pollfd or two with a time limit.
pub(crate) fn calls_of(role: Role) -> &'static [libc::c_long] {
    match role {
        Role::Main => &[libc::SYS_epoll_wait, libc::SYS_poll],
        Role::Filesystem | Role::Block | Role::DiskSlot => &[libc::SYS_epoll_wait],
        Role::Vcpu => &[],
    }
}
