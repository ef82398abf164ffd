//! What an empty slot is to a driver, well-behaved and not, and what it becomes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::testing::{Driver, Probe, memory};
use super::transport::{FillError, MmioTransport, TransportState};
use super::{RestoreError, VirtioDevice};
use crate::stop::StopFlag;

const DEVICE_ID: u64 = 0x08;
const CONFIG: u64 = 0x100;
/// The configuration of a [`Probe`].
const WHOLE: u64 = 0x0605_0403_0201;

/// A slot for a [`Probe`], which has two queues and no activation_eventfd.
fn slot() -> MmioTransport {
    slot_in(memory())
}

fn slot_in(memory: Arc<GuestMemoryMmap>) -> MmioTransport {
    MmioTransport::empty(memory, 2, None, StopFlag::default()).expect("eventfds")
}

fn probe() -> Arc<Mutex<Probe>> {
    Arc::default()
}

fn config(slot: &MmioTransport) -> u64 {
    let mut data = [0xaa; 8];
    slot.read(CONFIG, &mut data);
    u64::from_le_bytes(data)
}

#[test]
fn an_empty_slot_is_a_placeholder_whatever_is_written_to_it() {
    let slot = slot();
    let driver = Driver(&slot);
    let seen = || (0..0x100).step_by(4).map(|register| driver.read(register));
    let before: Vec<u32> = seen().collect();
    assert_eq!(driver.read(0), 0x7472_6976);
    assert_eq!(driver.read(4), 2);
    assert_eq!(driver.read(DEVICE_ID), 0);
    driver.start();
    for register in (0..0x200).step_by(4) {
        for value in [0, 1, 0xff, u32::MAX] {
            driver.write(register, value);
        }
    }
    driver.start();
    assert_eq!(seen().collect::<Vec<_>>(), before);
    assert_eq!(config(&slot), 0);
    assert!(slot.irqfd().read().is_err(), "no interrupt");
}

#[test]
fn a_driver_finds_a_device_as_after_a_reset_in_a_slot_that_was_filled() {
    let (slot, probe) = (slot(), probe());
    let driver = Driver(&slot);
    driver.start();
    driver.write(0x14, 1);
    slot.fill(probe.clone()).expect("filled");
    assert_eq!(driver.read(DEVICE_ID), 4);
    assert_eq!(config(&slot), WHOLE);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read(0x10), 1 << 29, "the lower half of the features");
    assert_eq!(driver.read(0x44), 0, "no queue is ready");
    assert!(probe.lock().expect("free").activations.is_empty());
    driver.start();
    assert_eq!(driver.status(), 15);
    assert_eq!(probe.lock().expect("free").activations, [(1 << 32, 2)]);
}

#[test]
fn a_slot_is_filled_once_by_a_device_that_it_was_made_for() {
    let other = MmioTransport::empty(memory(), 1, None, StopFlag::default()).expect("eventfds");
    assert_eq!(other.fill(probe()), Err(FillError::WrongKind));
    let other = MmioTransport::empty(memory(), 2, Some(7), StopFlag::default()).expect("eventfds");
    assert_eq!(other.fill(probe()), Err(FillError::WrongKind));
    assert_eq!(Driver(&other).read(DEVICE_ID), 0);

    let slot = slot();
    slot.fill(probe()).expect("filled");
    let driver = Driver(&slot);
    driver.start();
    let second = Probe {
        device_type: 19,
        ..Probe::default()
    };
    assert_eq!(
        slot.fill(Arc::new(Mutex::new(second))),
        Err(FillError::Occupied)
    );
    assert_eq!((driver.read(DEVICE_ID), driver.status()), (4, 15));
}

#[test]
fn a_slot_that_is_emptied_is_a_placeholder_again() {
    let (slot, first) = (slot(), probe());
    let driver = Driver(&slot);
    slot.fill(first.clone()).expect("filled");
    driver.start();
    slot.empty_slot();
    assert_eq!((driver.read(DEVICE_ID), driver.status()), (0, 0));
    assert_eq!(config(&slot), 0);
    driver.start();
    assert_eq!(driver.status(), 0);
    assert_eq!(first.lock().expect("free").activations.len(), 1);
    let second = probe();
    slot.fill(second.clone()).expect("filled again");
    driver.start();
    assert_eq!(driver.status(), 15);
    assert_eq!(second.lock().expect("free").activations.len(), 1);
    slot.empty_slot();
    slot.empty_slot();
    assert_eq!(driver.read(DEVICE_ID), 0);
}

/// Writes all that makes a driver, again and again, as a vCPU might while the slot is filled.
fn keep_driving(slot: &MmioTransport, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        Driver(slot).start();
        Driver(slot).write(0x70, 0);
    }
}

#[test]
fn the_configuration_is_whole_as_soon_as_there_is_a_device() {
    for _ in 0..100 {
        let (slot, probe, done) = (slot(), probe(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| keep_driving(&slot, &done));
            scope.spawn(|| {
                while Driver(&slot).read(DEVICE_ID) == 0 {
                    assert!([0, WHOLE].contains(&config(&slot)), "never a part");
                }
                assert_eq!(config(&slot), WHOLE);
                done.store(true, Ordering::Relaxed);
            });
            slot.fill(probe.clone()).expect("filled");
        });
        // The probe itself would have panicked if it had been activated twice.
        Driver(&slot).write(0x70, 0);
        assert!(!probe.lock().expect("no panic").active);
        Driver(&slot).start();
        assert!(probe.lock().expect("no panic").active);
    }
}

#[test]
fn an_empty_slot_is_saved_as_empty_and_put_back_as_such() {
    let memory = memory();
    let saved = |slot: &MmioTransport| -> TransportState {
        let state = slot.save().expect("a state");
        let text = serde_json::to_string(&state).expect("JSON");
        serde_json::from_str(&text).expect("the same")
    };
    let filled = || {
        let slot = slot_in(Arc::clone(&memory));
        slot.fill(probe()).expect("filled");
        slot
    };
    let empty = slot_in(Arc::clone(&memory));
    Driver(&empty).start();
    let (of_empty, of_filled) = (saved(&empty), saved(&filled()));

    let differs = |result| matches!(result, Err(RestoreError::Differs { .. }));
    assert!(differs(filled().restore(of_empty.clone())));
    assert!(differs(
        slot_in(Arc::clone(&memory)).restore(of_filled.clone())
    ));
    filled().restore(of_filled).expect("the same");
    let slot = slot_in(Arc::clone(&memory));
    slot.restore(of_empty).expect("the same");
    assert_eq!(Driver(&slot).read(DEVICE_ID), 0);
    slot.fill(probe()).expect("filled later");
    assert_eq!(Driver(&slot).read(DEVICE_ID), 4);
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_breaks_a_slot_or_the_device_that_comes(
        accesses in proptest::collection::vec(
            (any::<bool>(), 0u64..0x110, 0usize..9, prop_oneof![0u64..16, any::<u64>()]),
            0..300,
        ),
        filled_at in 0usize..300,
    ) {
        let (slot, probe) = (slot(), probe());
        for (number, (write, offset, size, value)) in accesses.into_iter().enumerate() {
            if number == filled_at {
                prop_assert_eq!(Driver(&slot).read(DEVICE_ID), 0);
                prop_assert_eq!(Driver(&slot).status(), 0);
                prop_assert_eq!(config(&slot), 0);
                slot.fill(probe.clone()).expect("filled");
                prop_assert_eq!(Driver(&slot).status(), 0);
            }
            let mut data = value.to_le_bytes();
            if write {
                slot.write(offset, &data[..size]);
            } else {
                slot.read(offset, &mut data[..size]);
            }
            if number < filled_at {
                prop_assert!(probe.lock().expect("free").activations.is_empty());
            }
        }
        let offered = probe.lock().expect("free").features();
        for (features, _) in &probe.lock().expect("free").activations {
            prop_assert_eq!(features & !offered, 0);
        }
        Driver(&slot).write(0x70, 0);
        Driver(&slot).start();
        let is_filled = Driver(&slot).read(DEVICE_ID) != 0;
        prop_assert_eq!(probe.lock().expect("free").active, is_filled);
    }
}
