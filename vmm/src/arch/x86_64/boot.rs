//! The data that Linux expects in memory when it is entered by its 64-bit boot protocol
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
//!
//! PVH would work as well. The 64-bit protocol was chosen because it saves the guest the switch
//! from 32-bit mode and the conversion of the start info into a zero page.

use linux_loader::loader::bootparam::{LOADED_HIGH, SETUP_RNG_SEED, boot_e820_entry, boot_params};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use super::{layout, mptable};
use crate::arch::{BootData, BootError};

/// Values of `struct setup_header` that say "this was a Linux boot loader".
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const LOADER_UNDEFINED: u8 = 0xff;
/// The protocol's version whose fields are used: 2.15.
const PROTOCOL: u16 = 0x020f;

const E820_RAM: u32 = 1;

/// A page table entry: present, writable,
const PRESENT_WRITABLE: u64 = 0b11;
/// and, in a page directory, a page of 2 MiB.
const LARGE: u64 = 1 << 7;

/// Writes the boot data: everything that the kernel reads when it starts, except its own image and
/// the initramfs.
pub(crate) fn write(memory: &GuestMemoryMmap, data: &BootData<'_>) -> Result<(), BootError> {
    write_cmdline(memory, &whole_cmdline(data))?;
    write_seed(memory)?;
    write_zero_page(memory, data)?;
    write_mptable(memory, data)?;
    write_gdt(memory)?;
    write_page_tables(memory)
}

/// The whole command line. Devices come first: what follows "--" is for init.
fn whole_cmdline(data: &BootData<'_>) -> String {
    let devices = data.devices.iter();
    let words = devices.map(|at| format!("virtio_mmio.device=4K@{:#x}:{}", at.address, at.gsi));
    let mut words: Vec<String> = words.collect();
    words.push(data.cmdline.to_owned());
    words.join(" ")
}

fn write_cmdline(memory: &GuestMemoryMmap, cmdline: &str) -> Result<(), BootError> {
    let bytes = cmdline.as_bytes();
    if bytes.len() >= layout::CMDLINE_SIZE {
        return Err(BootError::CmdlineLength {
            length: bytes.len(),
        });
    }
    if let Some(&byte) = bytes.iter().find(|b| !matches!(b, b' '..=b'~')) {
        return Err(BootError::CmdlineByte { byte });
    }
    // Guest memory is zero, so the terminating NUL is there already.
    Ok(memory.write_slice(bytes, GuestAddress(layout::CMDLINE))?)
}

/// Writes a random seed from the host: without it, a guest whose processor has no RDRAND would have
/// to wait until it has gathered entropy of its own.
fn write_seed(memory: &GuestMemoryMmap) -> Result<(), BootError> {
    const SEED: usize = 32;
    // struct setup_data: next (u64), type (u32), length (u32), data
    let mut node = [0u8; 16 + SEED];
    node[8..12].copy_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    node[12..16].copy_from_slice(&(SEED as u32).to_le_bytes());
    rustix::rand::getrandom(&mut node[16..], rustix::rand::GetRandomFlags::empty())
        .map_err(BootError::Random)?;
    Ok(memory.write_slice(&node, GuestAddress(layout::RNG_SEED))?)
}

fn write_zero_page(memory: &GuestMemoryMmap, data: &BootData<'_>) -> Result<(), BootError> {
    let mut zero_page = boot_params::default();
    zero_page.hdr.boot_flag = BOOT_FLAG;
    zero_page.hdr.header = HEADER_MAGIC;
    zero_page.hdr.version = PROTOCOL;
    zero_page.hdr.type_of_loader = LOADER_UNDEFINED;
    zero_page.hdr.loadflags = LOADED_HIGH as u8;
    zero_page.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    zero_page.hdr.cmdline_size = layout::CMDLINE_SIZE as u32 - 1;
    zero_page.hdr.setup_data = layout::RNG_SEED;
    // The layout keeps the initramfs below 3 GiB, so it has no upper halves.
    let (address, size) = data.initramfs;
    zero_page.hdr.ramdisk_image = address as u32;
    zero_page.hdr.ramdisk_size = size as u32;

    let mut entries = 0;
    for (start, end) in usable_memory(memory) {
        zero_page.e820_table[entries] = boot_e820_entry {
            addr: start,
            size: end - start,
            type_: E820_RAM,
        };
        entries += 1;
    }
    zero_page.e820_entries = entries as u8;
    Ok(memory.write_slice(zero_page.as_slice(), GuestAddress(layout::ZERO_PAGE))?)
}

/// The usable ranges of the e820 map: guest memory without the legacy hole, at most three ranges.
fn usable_memory(memory: &GuestMemoryMmap) -> impl Iterator<Item = (u64, u64)> {
    let regions = memory.iter().map(|region| {
        let start = region.start_addr().0;
        (start, start + region.len())
    });
    regions.flat_map(|(start, end)| {
        let parts = if start < layout::LEGACY_HOLE_START {
            [
                (start, layout::LEGACY_HOLE_START),
                (layout::LEGACY_HOLE_END, end),
            ]
        } else {
            [(start, end), (end, end)]
        };
        parts.into_iter().filter(|(start, end)| start < end)
    })
}

fn write_mptable(memory: &GuestMemoryMmap, data: &BootData<'_>) -> Result<(), BootError> {
    let at = mptable::Addresses {
        table: layout::MP_TABLE as u32,
        local_apic: layout::LOCAL_APIC,
        ioapic: layout::IOAPIC,
    };
    let pins = data.devices.iter().map(|device| device.gsi);
    let (pointer, table) = mptable::build(data.vcpus, pins, at);
    memory.write_slice(&pointer, GuestAddress(layout::MP_POINTER))?;
    Ok(memory.write_slice(&table, GuestAddress(layout::MP_TABLE))?)
}

/// Flat 64-bit segments; the boot protocol requires code at selector 0x10 and data at 0x18.
fn write_gdt(memory: &GuestMemoryMmap) -> Result<(), BootError> {
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    let table = [0, 0, CODE, DATA].map(u64::to_le_bytes);
    Ok(memory.write_slice(table.as_flattened(), GuestAddress(layout::GDT))?)
}

/// Identity-maps the first GiB; the kernel's startup code switches to its own tables.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), BootError> {
    let entry = |table: u64| (table | PRESENT_WRITABLE).to_le_bytes();
    memory.write_slice(&entry(layout::PDPT), GuestAddress(layout::PML4))?;
    memory.write_slice(&entry(layout::PD), GuestAddress(layout::PDPT))?;
    let directory: [[u8; 8]; 512] = std::array::from_fn(|index| {
        ((index as u64) << 21 | LARGE | PRESENT_WRITABLE).to_le_bytes()
    });
    Ok(memory.write_slice(directory.as_flattened(), GuestAddress(layout::PD))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::DeviceLocation;
    use crate::memory::allocate;

    fn boot_data(cmdline: &str) -> BootData<'_> {
        BootData {
            cmdline,
            initramfs: (0x200_0000, 7),
            vcpus: 2,
            devices: &[],
        }
    }

    #[test]
    fn the_zero_page_tells_of_memory_around_both_holes() {
        let memory = allocate(4096).expect("4 GiB");
        write(&memory, &boot_data("quiet")).expect("written");
        let page: boot_params = {
            let mut page = boot_params::default();
            memory
                .read_slice(page.as_mut_slice(), GuestAddress(layout::ZERO_PAGE))
                .expect("in memory");
            page
        };
        let map: Vec<(u64, u64)> = page.e820_table[..usize::from(page.e820_entries)]
            .iter()
            .map(|e| (e.addr, e.size))
            .collect();
        let gib = 1 << 30;
        assert_eq!(
            map,
            [
                (0, 0xa_0000),
                (0x10_0000, 3 * gib - 0x10_0000),
                (4 * gib, gib)
            ]
        );
        assert_eq!({ page.hdr.ramdisk_size }, 7);
    }

    #[test]
    fn a_command_line_too_long_or_with_odd_bytes_is_refused() {
        let memory = allocate(32).expect("32 MiB");
        let long = "x".repeat(layout::CMDLINE_SIZE);
        for (cmdline, text) in [
            (long.as_str(), "2048 bytes"),
            ("a\nb", "0x0a"),
            ("é", "0xc3"),
        ] {
            let error = write(&memory, &boot_data(cmdline)).expect_err("refused");
            assert!(error.to_string().contains(text), "{error}");
        }
        assert!(write(&memory, &boot_data(&long[1..])).is_ok());
    }

    #[test]
    fn devices_come_before_what_is_for_init() {
        let device = |address, gsi| DeviceLocation { address, gsi };
        let data = BootData {
            devices: &[device(0xd000_0000, 1), device(0xd000_1000, 2)],
            ..boot_data("quiet -- x")
        };
        let words =
            "virtio_mmio.device=4K@0xd0000000:1 virtio_mmio.device=4K@0xd0001000:2 quiet -- x";
        assert_eq!(whole_cmdline(&data), words);
    }

    #[test]
    fn seeds_differ() {
        let memory = allocate(32).expect("32 MiB");
        let mut seeds = [[0u8; 32]; 2];
        for seed in &mut seeds {
            write_seed(&memory).expect("written");
            memory
                .read_slice(seed, GuestAddress(layout::RNG_SEED + 16))
                .expect("in memory");
        }
        assert_ne!(seeds[0], seeds[1]);
        assert_ne!(seeds[0], [0; 32]);
    }
}
