//! The device behind its registers: a driver that keeps the rules, and one that doesn't.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::testing::Bench;
use super::*;

const WRITE: u16 = 2;
const START: u64 = 4 << 30;
const BLOCKS: u64 = 8;

/// Where requests and responses lie.
const REQUEST: u64 = 0x4000;
const RESPONSE: u64 = 0x5000;

/// 64 KiB of memory, and a region of eight blocks.
fn memory() -> Arc<GuestMemoryMmap> {
    let size = (BLOCKS * BLOCK_SIZE) as usize;
    let ranges = [(GuestAddress(0), 0x1_0000), (GuestAddress(START), size)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"))
}

fn device(memory: &Arc<GuestMemoryMmap>) -> Mem {
    let size = BLOCKS * BLOCK_SIZE;
    let region = Region { start: START, size };
    Mem::new(Arc::clone(memory), region).expect("a device")
}

/// A device with an active driver, and its memory.
fn bench() -> (Bench<Mem>, Arc<GuestMemoryMmap>) {
    let memory = memory();
    let mut bench = Bench::with_memory(Arc::clone(&memory), device(&memory));
    bench.start();
    (bench, memory)
}

fn request(kind: u16, block: u64, blocks: u16) -> [u8; REQUEST_SIZE] {
    let mut bytes = [0; REQUEST_SIZE];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&(START + block * BLOCK_SIZE).to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

/// Has a request served; the response's type.
fn ask(bench: &mut Bench<Mem>, request: [u8; REQUEST_SIZE]) -> u8 {
    bench.put(REQUEST, &request);
    bench.put(RESPONSE, &[0xff; RESPONSE_SIZE]);
    let chain = [
        (REQUEST, REQUEST_SIZE as u32, 0),
        (RESPONSE, RESPONSE_SIZE as u32, WRITE),
    ];
    assert_eq!(bench.request(0, &chain), RESPONSE_SIZE as u32);
    bench.get(RESPONSE, 1)[0]
}

/// A field of the configuration, by its offset.
fn field(bench: &Bench<Mem>, offset: u64) -> u64 {
    let [low, high] = [0, 4].map(|half| u64::from(bench.driver().read(0x100 + offset + half)));
    low | high << 32
}

const PLUGGED_SIZE: u64 = 40;
const REQUESTED_SIZE: u64 = 48;
const GENERATION: u64 = 0xfc;

/// The guest's kernel takes each interrupt of other devices for one about used buffers, and asks nothing.
#[test]
fn its_interrupts_have_to_be_asked_what_they_are_for() {
    const VENDOR_ID: u64 = 0x0c;
    let (bench, _) = bench();
    let fixed = Bench::new(crate::virtio::rng::Rng::new().expect("a device"));
    let vendors = [
        bench.driver().read(VENDOR_ID),
        fixed.driver().read(VENDOR_ID),
    ];
    assert_eq!(vendors.map(u32::to_le_bytes), [*b"Hull", *b"hull"]);
}

#[test]
fn a_request_of_the_hosts_is_told_and_followed() {
    let (mut bench, _) = bench();
    assert_eq!(field(&bench, 0), BLOCK_SIZE);
    assert_eq!(field(&bench, 16), START);
    assert_eq!(
        [field(&bench, 24), field(&bench, 32)],
        [BLOCKS * BLOCK_SIZE; 2]
    );
    let before = bench.driver().read(GENERATION);
    let device = Arc::clone(&bench.device);
    device.lock().expect("free").request_size(3 * BLOCK_SIZE);
    assert_eq!(bench.driver().read(0x60), 2, "a configuration change");
    bench.driver().write(0x64, 2);
    assert_ne!(bench.driver().read(GENERATION), before);
    assert_eq!(field(&bench, REQUESTED_SIZE), 3 * BLOCK_SIZE);

    assert_eq!(ask(&mut bench, request(0, 1, 3)), 0);
    assert_eq!(field(&bench, PLUGGED_SIZE), 3 * BLOCK_SIZE);
    let plugged = device.lock().expect("free").plugged_eventfd();
    assert_eq!(plugged.read().ok(), Some(1));
    assert_eq!(ask(&mut bench, request(0, 4, 1)), 1, "no more");
    assert!(plugged.read().is_err(), "nothing has changed");
    device.lock().expect("free").request_size(3 * BLOCK_SIZE);
    assert_eq!(bench.driver().read(0x60) & 2, 0, "it is known already");
}

#[test]
fn what_is_unplugged_goes_back_to_the_host() {
    let (mut bench, memory) = bench();
    bench
        .device
        .lock()
        .expect("free")
        .request_size(BLOCKS * BLOCK_SIZE);
    assert_eq!(ask(&mut bench, request(0, 0, 8)), 0);
    let at = |block: u64| GuestAddress(START + block * BLOCK_SIZE);
    for block in 0..BLOCKS {
        memory.write_obj(1_u8, at(block)).expect("in memory");
    }
    assert_eq!(ask(&mut bench, request(1, 2, 2)), 0);
    let holds = |block| memory.read_obj::<u8>(at(block)).expect("in memory");
    assert_eq!([1, 2, 3, 4].map(holds), [1, 0, 0, 1]);
    assert_eq!(field(&bench, PLUGGED_SIZE), 6 * BLOCK_SIZE);
    assert_eq!(ask(&mut bench, request(2, 0, 0)), 0);
    assert_eq!([0, 1, 7].map(holds), [0; 3]);
    assert_eq!(field(&bench, PLUGGED_SIZE), 0);
}

#[test]
fn a_driver_that_begins_anew_has_its_memory_still() {
    let (mut bench, _) = bench();
    bench.device.lock().expect("free").request_size(BLOCK_SIZE);
    assert_eq!(ask(&mut bench, request(0, 7, 1)), 0);
    bench.driver().write(0x70, 0);
    assert!(!bench.device.lock().expect("free").has_driver());
    assert_eq!(field(&bench, PLUGGED_SIZE), BLOCK_SIZE);
}

#[test]
fn what_is_no_request_is_returned_untouched() {
    let (mut bench, _) = bench();
    bench.put(REQUEST, &request(2, 0, 0));
    let (whole, room) = (REQUEST_SIZE as u32, RESPONSE_SIZE as u32);
    for chain in [
        &[(REQUEST, whole, 0)][..],
        &[(REQUEST, whole - 1, 0), (RESPONSE, room, WRITE)],
        &[(REQUEST, whole, 0), (RESPONSE, room - 1, WRITE)],
        &[(REQUEST, whole, 0), (u64::MAX, room, WRITE)],
        &[(0xffff, whole, 0), (RESPONSE, room, WRITE)],
        &[(START - 4, whole, 0), (RESPONSE, room, WRITE)],
        &[],
    ] {
        assert_eq!(bench.request(0, chain), 0, "{chain:x?}");
    }
    assert_eq!(bench.driver().status(), 15);
    assert_eq!(ask(&mut bench, request(3, 0, 8)), 0, "a state all the same");
    assert_eq!(bench.get(RESPONSE + 8, 1), [1], "unplugged");
}

#[test]
fn a_request_may_lie_in_the_memory_that_it_unplugs() {
    let (mut bench, memory) = bench();
    bench.device.lock().expect("free").request_size(BLOCK_SIZE);
    assert_eq!(ask(&mut bench, request(0, 0, 1)), 0);
    let inside = memory.write_slice(&request(1, 0, 1), GuestAddress(START));
    inside.expect("in memory");
    let chain = [
        (START, REQUEST_SIZE as u32, 0),
        (START + 64, RESPONSE_SIZE as u32, WRITE),
    ];
    assert_eq!(bench.request(0, &chain), RESPONSE_SIZE as u32);
    assert_eq!(field(&bench, PLUGGED_SIZE), 0);
}

#[test]
fn a_saved_device_has_its_blocks_again() {
    let (mut bench, memory) = bench();
    bench
        .device
        .lock()
        .expect("free")
        .request_size(2 * BLOCK_SIZE);
    assert_eq!(ask(&mut bench, request(0, 3, 1)), 0);
    let state = bench.save();
    let restored = bench.restored(device(&memory), &state).expect("the same");
    assert_eq!(field(&restored, PLUGGED_SIZE), BLOCK_SIZE);
    assert_eq!(field(&restored, REQUESTED_SIZE), 2 * BLOCK_SIZE);

    let region = Region {
        start: START,
        size: BLOCK_SIZE,
    };
    let smaller = Mem::new(Arc::clone(&memory), region).expect("a device");
    assert!(bench.restored(smaller, &state).is_err());
    let refused = device(&memory).restore(DeviceState::Rng);
    assert!(matches!(refused, Err(RestoreError::Differs { .. })));
    let lie = state.replace("\"count\":1", "\"count\":2");
    assert_ne!(lie, state);
    assert!(bench.restored(device(&memory), &lie).is_err());
}

#[test]
fn a_region_is_of_whole_blocks_of_guest_memory() {
    let memory = memory();
    for (start, size) in [
        (START, 0),
        (START + 0x1000, BLOCK_SIZE),
        (START, BLOCK_SIZE + 0x1000),
        (START, (BLOCKS + 1) * BLOCK_SIZE),
        (START - BLOCK_SIZE, BLOCK_SIZE),
        (!(BLOCK_SIZE - 1), BLOCK_SIZE),
    ] {
        let refused = Mem::new(Arc::clone(&memory), Region { start, size });
        assert!(refused.is_err(), "{start:#x} {size:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_request_breaks_it(
        requests in proptest::collection::vec(
            (any::<[u8; REQUEST_SIZE]>(), 0u16..6, 0u64..10, 0u16..12, any::<bool>()), 0..8,
        ),
        requested in 0u64..12,
    ) {
        let (mut bench, _) = bench();
        let device = Arc::clone(&bench.device);
        device.lock().expect("free").request_size(requested * BLOCK_SIZE);
        for (any, kind, block, blocks, plausible) in requests {
            let bytes = if plausible { request(kind, block, blocks) } else { any };
            prop_assert!(ask(&mut bench, bytes) <= 3);
            let device = device.lock().expect("free");
            prop_assert!(device.plugged_size() <= device.requested_size());
            prop_assert_eq!(field(&bench, PLUGGED_SIZE), device.plugged_size());
        }
    }
}
