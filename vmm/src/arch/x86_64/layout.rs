//! The guest's physical address space.
//!
//! ```text
//! 0x0000_0000  MP floating pointer, MP table, GDT   one page, which Linux never uses as memory
//! 0x0000_1000  zero page (struct boot_params)
//! 0x0000_2000  command line, then the random seed
//! 0x0000_3000  page tables: PML4, PDPT, PD
//! 0x0001_0000  memory
//! 0x000a_0000  legacy hole: not memory by the e820 map (Linux would take it for video memory and ROMs)
//! 0x0010_0000  memory; the kernel is usually linked to 16 MiB, and the initramfs follows it
//! 0xc000_0000  3 GiB: the MMIO gap, no memory
//! 0xd000_0000    virtio-mmio devices, 4 KiB each (and, of the I/O ports, 4 bytes each from 0x1000 on)
//! 0xfec0_0000    IO-APIC
//! 0xfee0_0000    local APICs (in KVM)
//! 0xfffb_c000    identity map page and TSS, which KVM needs on Intel processors of before 2010
//! 0x1_0000_0000  4 GiB: the rest of memory, then what can be plugged in (virtio-mem)
//! ```
//!
//! Everything below 64 KiB is read once, by the kernel's startup code. Linux reserves those 64 KiB
//! unconditionally (`early_reserve_memory`), so nothing there is overwritten before it is read.

/// The MP floating pointer (MP specification 1.4, 4.1): the first 1 KiB of memory is the first place
/// where Linux looks for it.
pub const MP_POINTER: u64 = 0x0;

/// The MP table. After the BIOS data area at 0x400..0x500, from which Linux reads the size of
/// conventional memory: that stays zero, which means "unknown".
pub const MP_TABLE: u64 = 0x500;
/// Room for the MP table, in bytes: up to the GDT.
#[cfg(test)]
pub const MP_TABLE_SIZE: usize = (GDT - MP_TABLE) as usize;

/// The global descriptor table, 4 entries of 8 bytes.
pub const GDT: u64 = 0xf00;

/// The zero page (`struct boot_params`, 4 KiB).
pub const ZERO_PAGE: u64 = 0x1000;

/// The kernel's command line.
pub const CMDLINE: u64 = 0x2000;
/// Room for it, with the NUL that ends it: `COMMAND_LINE_SIZE` of Linux on x86.
pub const CMDLINE_SIZE: usize = 2048;

/// A `struct setup_data` with the seed for the kernel's random numbers.
pub const RNG_SEED: u64 = 0x2800;

/// Identity page tables: the root,
pub const PML4: u64 = 0x3000;
/// the table with one entry,
pub const PDPT: u64 = 0x4000;
/// and 512 entries of 2 MiB, so that they map the first GiB.
pub const PD: u64 = 0x5000;

/// The end of conventional memory, and the start of the hole for video memory and ROMs.
pub const LEGACY_HOLE_START: u64 = 0xa_0000;
/// The end of that hole.
pub const LEGACY_HOLE_END: u64 = 0x10_0000;

/// The lowest address that a kernel may be loaded at.
pub const KERNEL_MIN: u64 = LEGACY_HOLE_END;
/// The end of what the identity page tables map: the kernel must lie below.
pub const KERNEL_MAX: u64 = 1 << 30;

/// The start of the MMIO gap, in which there is no guest memory.
pub const MMIO_GAP_START: u64 = 3 << 30;
/// The end of the MMIO gap.
pub const MMIO_GAP_END: u64 = 4 << 30;

/// The size of Linux's memory sections: `SECTION_SIZE_BITS` of arch/x86/include/asm/sparsemem.h.
pub const SECTION: u64 = 128 << 20;

/// The address of the first device's registers.
pub const DEVICES_START: u64 = 0xd000_0000;

/// The I/O port of the first device's kicks, of 4 bytes; the next device's follows it. No PC has anything there without
/// a PCI bus. KVM has to decode and emulate an instruction that writes to a register, and none for a port.
pub const KICK_PORTS: Option<u16> = Some(0x1000);

/// The IO-APIC's registers, where every PC has them.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APIC's registers, where every processor has them at reset.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// A page that KVM needs for real mode on Intel processors without "unrestricted guest".
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs for the same.
pub const TSS: u64 = IDENTITY_MAP + 0x1000;

/// The first interrupt line given to a device: Linux's drivers take 0 for "no interrupt".
pub const GSI_FIRST: u32 = 1;
/// The last interrupt line given to a device, which limits the number of devices.
pub const GSI_LAST: u32 = 32;

/// The most vCPUs: as many as the guest kernel is built for (`CONFIG_NR_CPUS`).
pub const MAX_VCPUS: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::SLOT_SIZE;

    #[test]
    fn nothing_overlaps() {
        let devices = u64::from(GSI_LAST - GSI_FIRST + 1) * SLOT_SIZE;
        let areas = [
            (MP_POINTER, 16),
            (0x400, 0x100), // the BIOS data area
            (MP_TABLE, MP_TABLE_SIZE as u64),
            (GDT, 4 * 8),
            (ZERO_PAGE, 0x1000),
            (CMDLINE, CMDLINE_SIZE as u64),
            (RNG_SEED, 16 + 32),
            (PML4, 0x1000),
            (PDPT, 0x1000),
            (PD, 0x1000),
            (LEGACY_HOLE_START, LEGACY_HOLE_END - LEGACY_HOLE_START),
            (KERNEL_MIN, KERNEL_MAX - KERNEL_MIN),
            (DEVICES_START, devices),
            (u64::from(IOAPIC), 0x1000),
            (u64::from(LOCAL_APIC), 0x1000),
            (IDENTITY_MAP, 0x1000),
            (TSS, 0x3000),
            (MMIO_GAP_END, 1),
        ];
        for pair in areas.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }

    #[test]
    fn boot_data_lies_where_linux_reserves_it_and_devices_in_the_gap() {
        const { assert!(PD + 0x1000 <= 0x1_0000) };
        const { assert!(MMIO_GAP_START <= DEVICES_START && TSS + 0x3000 <= MMIO_GAP_END) };
    }
}
