//! The model-specific registers that firmware would set on a PC, and Linux relies on.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// `IA32_MISC_ENABLE`: without its first bit Linux takes `rep movs` for slow on Intel processors.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1 << 0;

/// `IA32_MTRR_DEF_TYPE`: memory is cached unless said otherwise.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// Builds the list once for all vCPUs.
pub(super) fn build() -> Msrs {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[
        entry(MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
        entry(MISC_ENABLE, FAST_STRINGS),
    ])
    .expect("two entries are far below the limit")
}

/// Sets a vCPU's registers. KVM stops at the first one that it doesn't know, which is no error: an
/// older KVM may not know the last, and both only affect performance.
pub(super) fn set(vcpu: &VcpuFd, msrs: &Msrs) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_msrs(msrs).map(drop)
}
