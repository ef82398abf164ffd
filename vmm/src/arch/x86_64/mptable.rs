//! The MP table (MultiProcessor Specification 1.4): tells a kernel without ACPI of its processors, of
//! the IO-APIC, and which of its pins are wired.

/// Bytes of the floating pointer structure.
pub const POINTER_SIZE: usize = 16;

/// The version of the specification, in both structures: 1.4.
const SPEC: u8 = 4;
/// The local APIC's version: an integrated APIC, as in all processors since the Pentium 4.
const LOCAL_APIC_VERSION: u8 = 0x14;
/// The version that the IO-APIC reports.
const IOAPIC_VERSION: u8 = 0x11;
/// The one bus, an ISA bus: its interrupts are edge-triggered and active high unless told otherwise.
const BUS: u8 = 0;

/// Entry types (MP specification, 4.3).
mod entry {
    pub const PROCESSOR: u8 = 0;
    pub const BUS: u8 = 1;
    pub const IOAPIC: u8 = 2;
    pub const INTERRUPT: u8 = 3;
    pub const LOCAL_INTERRUPT: u8 = 4;
}

/// Interrupt types (MP specification, 4.3.4).
mod interrupt {
    pub const VECTORED: u8 = 0;
    pub const NMI: u8 = 1;
}

/// The addresses that the structures contain.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The table's own guest physical address.
    pub table: u32,
    /// The local APICs' registers.
    pub local_apic: u32,
    /// The IO-APIC's registers.
    pub ioapic: u32,
}

/// Builds the floating pointer and the table for `vcpus` processors and devices on the given
/// IO-APIC pins. The wiring is the identity: interrupt line n is pin n.
pub fn build(
    vcpus: u8,
    pins: impl Iterator<Item = u8>,
    at: Addresses,
) -> ([u8; POINTER_SIZE], Vec<u8>) {
    (floating_pointer(at.table), table(vcpus, pins, at))
}

fn floating_pointer(table: u32) -> [u8; POINTER_SIZE] {
    let mut pointer = [0; POINTER_SIZE];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    pointer[8] = 1; // length, in units of 16 bytes
    pointer[9] = SPEC;
    pointer[10] = checksum(&pointer);
    pointer
}

fn table(vcpus: u8, pins: impl Iterator<Item = u8>, at: Addresses) -> Vec<u8> {
    let ioapic_id = vcpus; // the first APIC id that no processor has
    let mut entries = 0u16;
    let mut table = vec![0; HEADER_SIZE];
    let mut add = |bytes: &[u8]| {
        table.extend_from_slice(bytes);
        entries += 1;
    };

    for id in 0..vcpus {
        let flags = 1 | if id == 0 { 2 } else { 0 }; // enabled; the boot processor
        let mut processor = [0; 20];
        processor[..4].copy_from_slice(&[entry::PROCESSOR, id, LOCAL_APIC_VERSION, flags]);
        add(&processor);
    }
    let [b0, b1, b2, b3, b4, b5] = *b"ISA   ";
    add(&[entry::BUS, BUS, b0, b1, b2, b3, b4, b5]);
    let [a0, a1, a2, a3] = at.ioapic.to_le_bytes();
    add(&[entry::IOAPIC, ioapic_id, IOAPIC_VERSION, 1, a0, a1, a2, a3]);
    // Only pins with a device: for each entry Linux programs the IO-APIC, with two exits per access.
    for pin in pins {
        add(&[
            entry::INTERRUPT,
            interrupt::VECTORED,
            0,
            0,
            BUS,
            pin,
            ioapic_id,
            pin,
        ]);
    }
    add(&[
        entry::LOCAL_INTERRUPT,
        interrupt::NMI,
        0,
        0,
        BUS,
        0,
        0xff,
        1,
    ]);

    let length = u16::try_from(table.len()).expect("at most 255 processors and pins: below 64 KiB");
    table[..HEADER_SIZE].copy_from_slice(&header(length, entries, at.local_apic));
    table[7] = checksum(&table);
    table
}

/// Bytes of the table's header.
const HEADER_SIZE: usize = 44;

fn header(length: u16, entries: u16, local_apic: u32) -> [u8; HEADER_SIZE] {
    let mut header = [0; HEADER_SIZE];
    header[..4].copy_from_slice(b"PCMP");
    header[4..6].copy_from_slice(&length.to_le_bytes());
    header[6] = SPEC;
    header[8..16].copy_from_slice(b"HULL    ");
    header[16..28].copy_from_slice(b"MICROVM     ");
    header[34..36].copy_from_slice(&entries.to_le_bytes());
    header[36..40].copy_from_slice(&local_apic.to_le_bytes());
    header
}

/// The checksum byte, which makes the sum of all bytes 0; it must still be 0 in `bytes`.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::super::layout;
    use super::*;

    const AT: Addresses = Addresses {
        table: layout::MP_TABLE as u32,
        local_apic: layout::LOCAL_APIC,
        ioapic: layout::IOAPIC,
    };

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn the_checksums_hold() {
        for vcpus in [1, 2, layout::MAX_VCPUS] {
            let (pointer, table) = build(vcpus, 5..9, AT);
            assert_eq!(sum(&pointer), 0);
            assert_eq!(sum(&table), 0);
        }
    }

    #[test]
    fn the_largest_table_fits_its_place() {
        let pins = layout::GSI_FIRST as u8..=layout::GSI_LAST as u8;
        let (_, table) = build(layout::MAX_VCPUS, pins, AT);
        assert!(table.len() <= layout::MP_TABLE_SIZE, "{}", table.len());
    }

    #[test]
    fn the_header_counts_what_follows() {
        let (_, table) = build(2, [5, 6, 7].into_iter(), AT);
        assert_eq!(
            u16::from_le_bytes([table[4], table[5]]) as usize,
            table.len()
        );
        assert_eq!(
            u16::from_le_bytes([table[34], table[35]]),
            2 + 1 + 1 + 3 + 1
        );
        assert_eq!(table.len(), 44 + 2 * 20 + (1 + 1 + 3 + 1) * 8);
    }
}
