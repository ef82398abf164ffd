//! The IO-APIC (Intel 82093AA), by which the guest chooses the vector and the destination processor
//! of each device's interrupt.
//!
//! It is emulated here instead of by KVM for two reasons. Linux accesses every pin several times at
//! boot, at two exits each, and KVM's IO-APIC has 24 pins, while this one has only as many as there
//! are devices. And each redirection entry becomes an MSI route in KVM, so that an irqfd injects
//! the interrupt into the local APIC directly; with KVM's own IO-APIC it would go through a worker
//! thread.
//!
//! All devices are edge-triggered: the trigger mode can be written and read back, and has no
//! effect.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::arch::PlatformStateError;

/// The two MMIO registers: the one that selects a register (IOREGSEL),
const SELECT: u64 = 0x00;
/// and the window through which it is accessed (IOWIN).
const WINDOW: u64 = 0x10;

/// The registers behind the window: the id,
const ID: u8 = 0x00;
/// the version and the last pin,
const VERSION: u8 = 0x01;
/// the arbitration id, the same as the id,
const ARBITRATION: u8 = 0x02;
/// and from here on the redirection table, two registers a pin.
const TABLE: u8 = 0x10;

/// The bits of the id that can be written.
const ID_BITS: u32 = 0x0f00_0000;

/// The version of the 82093AA, which has no EOI register.
const VERSION_NUMBER: u32 = 0x11;

/// Redirection entries: the vector, delivery and destination mode,
const VECTOR: u64 = 0xff;
const DELIVERY_MODE: u64 = 7 << 8;
const LOGICAL: u64 = 1 << 11;
/// bits that only the chip itself writes (delivery status, remote IRR),
const READ_ONLY: u64 = 1 << 12 | 1 << 14;
/// whether the pin is masked,
const MASKED: u64 = 1 << 16;
/// what is always zero,
const RESERVED: u64 = 0x00ff_ffff_fffe_0000;
/// and the destination's APIC id.
const DESTINATION_SHIFT: u32 = 56;

/// A message-signalled interrupt: the address and the data that a device would write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Msi {
    pub(crate) address: u32,
    pub(crate) data: u32,
}

/// What the IO-APIC needs from KVM and the devices.
pub(crate) trait InterruptLines: Send + Sync {
    /// Sets each pin's route; the interrupts of a pin without a route are dropped.
    fn route(&self, pins: &[Option<Msi>]);

    /// Raises the interrupt of the device on a pin again if the guest hasn't acknowledged it.
    fn repeat(&self, pin: usize);
}

/// The IO-APIC.
pub(super) struct IoApic {
    lines: Box<dyn InterruptLines>,
    state: Mutex<IoApicState>,
}

impl std::fmt::Debug for IoApic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoApic")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// The registers, which are the whole state of the IO-APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IoApicState {
    selected: u8,
    id: u32,
    entries: Vec<u64>,
}

impl IoApic {
    /// An IO-APIC after reset, with this many pins, 1 to 120, all masked.
    pub(super) fn new(pins: usize, lines: Box<dyn InterruptLines>) -> Self {
        let state = IoApicState {
            selected: 0,
            id: 0,
            entries: vec![MASKED; pins.clamp(1, 120)],
        };
        Self {
            lines,
            state: Mutex::new(state),
        }
    }

    /// The registers as a serialisable value.
    pub(super) fn save(&self) -> IoApicState {
        self.lock().clone()
    }

    /// Restores a state that was saved from an IO-APIC with as many pins, and sets the routes in
    /// KVM. Pending interrupts of the devices are raised again: any that came before there were
    /// routes are lost.
    pub(super) fn restore(&self, saved: &IoApicState) -> Result<(), PlatformStateError> {
        let mut state = self.lock();
        let (saved_pins, own) = (saved.entries.len(), state.entries.len());
        if saved_pins != own {
            let saved = saved_pins;
            return Err(PlatformStateError::Pins { saved, own });
        }
        if !saved.is_reachable() {
            return Err(PlatformStateError::IoApic);
        }
        *state = saved.clone();
        let routes = state.routes();
        self.lines.route(&routes);
        let routed = (0..).zip(&routes).filter(|(_, route)| route.is_some());
        routed.for_each(|(pin, _)| self.lines.repeat(pin));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, IoApicState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles a 4-byte read at an offset in the IO-APIC's page.
    pub(super) fn read(&self, offset: u64) -> u32 {
        let state = self.lock();
        match offset {
            SELECT => state.selected.into(),
            WINDOW => state.read(),
            _ => 0,
        }
    }

    /// Handles a 4-byte write at an offset in the IO-APIC's page.
    pub(super) fn write(&self, offset: u64, value: u32) {
        let mut state = self.lock();
        match offset {
            SELECT => state.selected = value as u8,
            WINDOW => {
                if let Some(change) = state.write(value) {
                    // With the lock held: another vCPU's route must not overtake this one.
                    self.lines.route(&state.routes());
                    if change.unmasked {
                        self.lines.repeat(change.pin);
                    }
                }
            }
            _ => {}
        }
    }
}

/// A pin whose route has changed.
struct Change {
    pin: usize,
    /// The pin had no route before.
    unmasked: bool,
}

impl IoApicState {
    /// The pin of the selected register, and whether the register is the upper half of its entry.
    fn selected_pin(&self) -> Option<(usize, bool)> {
        let register = self.selected.checked_sub(TABLE)?;
        let pin = usize::from(register / 2);
        (pin < self.entries.len()).then_some((pin, register % 2 == 1))
    }

    fn read(&self) -> u32 {
        let last_pin = self.entries.len() as u32 - 1;
        match (self.selected, self.selected_pin()) {
            (ID | ARBITRATION, _) => self.id,
            (VERSION, _) => last_pin << 16 | VERSION_NUMBER,
            (_, Some((pin, false))) => self.entries[pin] as u32,
            (_, Some((pin, true))) => (self.entries[pin] >> 32) as u32,
            _ => 0,
        }
    }

    fn write(&mut self, value: u32) -> Option<Change> {
        if self.selected == ID {
            self.id = value & ID_BITS;
        }
        let (pin, upper) = self.selected_pin()?;
        let old = self.entries[pin];
        let new = if upper {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            old & !0xffff_ffff | u64::from(value)
        };
        let new = new & !(READ_ONLY | RESERVED);
        self.entries[pin] = new;
        (msi(old) != msi(new)).then(|| Change {
            pin,
            unmasked: msi(old).is_none(),
        })
    }

    /// Whether a guest's writes can lead to this state. Any register can be selected, so that isn't
    /// checked.
    fn is_reachable(&self) -> bool {
        let written = |entry: &u64| entry & (READ_ONLY | RESERVED) == 0;
        self.id & !ID_BITS == 0 && self.entries.iter().all(written)
    }

    fn routes(&self) -> Vec<Option<Msi>> {
        self.entries.iter().copied().map(msi).collect()
    }
}

/// A redirection entry as an MSI (Intel SDM volume 3, 11.11); `None` if the pin is masked.
fn msi(entry: u64) -> Option<Msi> {
    const LOCAL_APICS: u32 = 0xfee0_0000;
    if entry & MASKED != 0 {
        return None;
    }
    let destination = (entry >> DESTINATION_SHIFT) as u32;
    let logical = if entry & LOGICAL != 0 { 1 << 2 } else { 0 };
    Some(Msi {
        address: LOCAL_APICS | destination << 12 | logical,
        data: (entry & (VECTOR | DELIVERY_MODE)) as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// Records the calls.
    #[derive(Clone, Default)]
    struct Record(Arc<Mutex<(Vec<Routes>, Vec<usize>)>>);

    type Routes = Vec<Option<Msi>>;

    impl Record {
        fn routes(&self) -> Vec<Routes> {
            self.0.lock().expect("no panic").0.clone()
        }
    }

    impl InterruptLines for Record {
        fn route(&self, pins: &[Option<Msi>]) {
            self.0.lock().expect("no panic").0.push(pins.to_vec());
        }

        fn repeat(&self, pin: usize) {
            self.0.lock().expect("no panic").1.push(pin);
        }
    }

    fn chip(pins: usize) -> (IoApic, Record) {
        let record = Record::default();
        (IoApic::new(pins, Box::new(record.clone())), record)
    }

    fn json(state: &IoApicState) -> IoApicState {
        let text = serde_json::to_string(state).expect("JSON");
        serde_json::from_str(&text).expect("a state")
    }

    fn write(chip: &IoApic, register: u8, value: u32) {
        chip.write(SELECT, register.into());
        chip.write(WINDOW, value);
    }

    fn read(chip: &IoApic, register: u8) -> u32 {
        chip.write(SELECT, register.into());
        chip.read(WINDOW)
    }

    #[test]
    fn it_says_how_many_pins_it_has_and_all_are_masked() {
        let (chip, record) = chip(5);
        assert_eq!(read(&chip, VERSION), 0x0004_0011);
        for pin in 0..5 {
            assert_eq!(read(&chip, TABLE + 2 * pin), 0x1_0000);
        }
        assert!(record.routes().is_empty());
    }

    #[test]
    fn an_unmasked_pin_is_routed_and_repeated_and_a_masked_one_is_not() {
        let (chip, record) = chip(2);
        write(&chip, TABLE + 3, 1 << 24); // pin 1, to processor 1: still masked
        assert!(record.routes().is_empty());
        write(&chip, TABLE + 2, 0x31);
        let msi = Msi {
            address: 0xfee0_1000,
            data: 0x31,
        };
        assert_eq!(record.routes(), [[None, Some(msi)]]);
        assert_eq!(record.0.lock().expect("no panic").1, [1]);
        write(&chip, TABLE + 2, 0x31);
        assert_eq!(record.routes().len(), 1, "nothing changed");
        write(&chip, TABLE + 2, 0x1_0031);
        assert_eq!(record.routes()[1], [None, None]);
        assert_eq!(record.0.lock().expect("no panic").1, [1]);
    }

    #[test]
    fn what_is_not_the_guests_to_write_stays_zero() {
        let (chip, _) = chip(1);
        write(&chip, TABLE, u32::MAX);
        write(&chip, TABLE + 1, u32::MAX);
        assert_eq!(read(&chip, TABLE), 0x1_afff);
        assert_eq!(read(&chip, TABLE + 1), 0xff00_0000);
        write(&chip, ID, u32::MAX);
        assert_eq!(read(&chip, ID), 0x0f00_0000);
    }

    #[test]
    fn a_restored_chip_routes_at_once_and_repeats_what_may_have_been_lost() {
        let (saved, _) = chip(3);
        write(&saved, TABLE + 2, 0x31);
        let (restored, record) = chip(3);
        restored.restore(&json(&saved.save())).expect("the same");
        let msi = Msi {
            address: 0xfee0_0000,
            data: 0x31,
        };
        assert_eq!(record.routes(), [[None, Some(msi), None]]);
        assert_eq!(record.0.lock().expect("no panic").1, [1]);
        assert_eq!(read(&restored, TABLE + 2), 0x31);
    }

    #[test]
    fn states_of_other_ioapics_and_impossible_ones_are_refused() {
        let (chip, record) = chip(2);
        let before = chip.save();
        let restore = |change: &dyn Fn(&mut IoApicState)| {
            let mut state = before.clone();
            change(&mut state);
            chip.restore(&state)
        };
        let pins = restore(&|state| state.entries.push(MASKED));
        assert!(matches!(
            pins,
            Err(PlatformStateError::Pins { saved: 3, own: 2 })
        ));
        let none = restore(&|state| state.entries.clear());
        assert!(matches!(none, Err(PlatformStateError::Pins { .. })));
        let impossible: [&dyn Fn(&mut IoApicState); 3] = [
            &|state| state.id = 1,
            &|state| state.entries[1] |= 1 << 14,
            &|state| state.entries[0] |= 1 << 17,
        ];
        for change in impossible {
            assert!(matches!(restore(change), Err(PlatformStateError::IoApic)));
        }
        assert_eq!(chip.save(), before, "nothing has happened to it");
        assert!(record.routes().is_empty());
    }

    proptest! {
        #[test]
        fn any_state_is_put_back_as_it_was_taken(
            writes in proptest::collection::vec((0u8..0x18, any::<u32>()), 0..100)
        ) {
            let (saved, record) = chip(3);
            for (register, value) in writes {
                write(&saved, register, value);
            }
            let state = json(&saved.save());
            let (restored, again) = chip(3);
            restored.restore(&state).expect("the same");
            prop_assert_eq!(restored.save(), state);
            let routes = record.routes().pop().unwrap_or_else(|| vec![None; 3]);
            prop_assert_eq!(again.routes(), [routes]);
        }

        #[test]
        fn any_value_is_refused_or_a_chip(
            selected: u8,
            id in prop_oneof![Just(0u32), any::<u32>()],
            entries in proptest::collection::vec(
                prop_oneof![Just(MASKED), 0u64..0x800, any::<u64>()],
                0..5,
            ),
        ) {
            let (chip, record) = chip(3);
            let before = chip.save();
            let state = json(&IoApicState { selected, id, entries });
            match chip.restore(&state) {
                Ok(()) => prop_assert_eq!(chip.save(), state),
                Err(_) => prop_assert_eq!(chip.save(), before),
            }
            chip.read(WINDOW);
            chip.write(WINDOW, 0x31);
            for register in 0..=u8::MAX {
                read(&chip, register);
            }
            for routes in record.routes() {
                prop_assert_eq!(routes.len(), 3);
            }
        }

        #[test]
        fn no_sequence_of_writes_breaks_it(
            writes in proptest::collection::vec((0u64..0x20, any::<u32>()), 0..200)
        ) {
            let (chip, record) = chip(3);
            for (offset, value) in writes {
                chip.write(offset & !0xf, value);
                chip.read(offset);
            }
            for routes in record.routes() {
                prop_assert_eq!(routes.len(), 3);
                for msi in routes.into_iter().flatten() {
                    prop_assert_eq!(msi.address >> 20, 0xfee);
                    prop_assert_eq!(msi.data & !0x7ff, 0);
                }
            }
        }
    }
}
