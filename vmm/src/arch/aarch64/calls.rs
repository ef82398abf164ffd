//! System calls that are this processor's: what the jail lets threads call besides what every processor has.

use crate::jail::Role;

/// `ioctl` numbers of KVM that a vCPU's thread may use (linux/kvm.h): `KVM_RUN`.
pub(crate) const VCPU_IOCTLS: &[u32] = &[0xae80];

/// Calls that only this processor's table has: none, it has the newer ones that all have.
pub(crate) fn calls_of(_: Role) -> &'static [libc::c_long] {
    &[]
}
