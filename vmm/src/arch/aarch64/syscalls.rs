//! System calls that the jail allows on this architecture in addition to those that it allows on
//! every one.

use crate::jail::Role;

/// `ioctl` numbers of KVM that a vCPU's thread may use (linux/kvm.h): `KVM_RUN`.
pub(crate) const VCPU_IOCTLS: &[u32] = &[0xae80];

/// The system calls that a role needs only on this architecture: none, the common ones are enough.
pub(crate) fn arch_syscalls(_: Role) -> &'static [libc::c_long] {
    &[]
}
