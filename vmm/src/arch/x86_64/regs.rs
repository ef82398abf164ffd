//! The registers of the boot processor at the kernel's entry point: 64-bit mode, paging on, flat
//! segments, interrupts off. The other processors wait until the kernel starts them.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::layout;

const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION: u64 = 1 << 4; // always 1 since the 486
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_ENABLE: u64 = 1 << 8;
const EFER_LONG_ACTIVE: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set; interrupts are off.
const RFLAGS: u64 = 1 << 1;

/// The selectors that the boot protocol asks for, `__BOOT_CS` and `__BOOT_DS`.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

/// Sets the boot processor's registers.
pub(super) fn set(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE,
        rflags: RFLAGS,
        ..Default::default()
    })?;

    // Read first, since they contain the APIC's base address too.
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = code();
    let data = data();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION | CR0_PAGING;
    sregs.cr3 = layout::PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LONG_ENABLE | EFER_LONG_ACTIVE;
    vcpu.set_sregs(&sregs)
}

/// Execute and read, accessed, 64-bit.
fn code() -> kvm_segment {
    kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0b1011,
        l: 1,
        ..flat()
    }
}

/// Read and write, accessed.
fn data() -> kvm_segment {
    kvm_segment {
        selector: DATA_SELECTOR,
        type_: 0b0011,
        db: 1,
        ..flat()
    }
}

fn flat() -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}
