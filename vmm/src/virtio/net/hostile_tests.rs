//! A driver that breaks the rules.

use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::buffers::{Access, Buffers, ChainError, MAX_DESCRIPTORS};
use super::testing::*;
use super::*;

/// A valid frame is sent, whatever came before it.
fn assert_still_sends(rig: &mut Rig, host: &std::os::fd::OwnedFd) {
    while host_gets(host).is_some() {}
    let sent = frame(0x5a, 64);
    rig.transmit(&sent);
    assert_eq!(host_gets(host), Some(sent));
}

#[test]
fn chains_that_are_no_frames_are_returned_and_not_sent() {
    let (mut rig, host) = Rig::with_socket(0);
    rig.put(DATA, &frame(1, 100));
    let end = MEMORY as u64;
    let chains: [&[Buffer]; 10] = [
        &[(DATA, 126, WRITE)],
        &[(DATA, 12, 0), (DATA + 12, 114, WRITE)],
        &[(DATA, 0, 0)],
        &[(DATA, 25, 0)],
        &[(DATA, 126, 0), (end, 10, 0)],
        &[(end - 100, 126, 0)],
        &[(u64::MAX - 4, 126, 0)],
        &[(DATA, 0x1_0000, 0), (DATA, 0x1_0000, 0)],
        &[(DATA, u32::MAX, 0)],
        &[(DATA + 0x1000, 16 * 256, INDIRECT), (DATA, 126, 0)],
    ];
    for (number, chain) in chains.into_iter().enumerate() {
        let head = rig.offer(TX, chain);
        rig.turn();
        assert_eq!(rig.used(TX)[number..], [(head, 0)], "{chain:?}");
        assert_eq!(host_gets(&host), None, "{chain:?}");
    }
    assert_still_sends(&mut rig, &host);
}

#[test]
fn loops_and_endless_chains_are_returned() {
    let (mut rig, host) = Rig::with_socket(0);
    rig.put(DATA, &frame(1, 100));
    // A descriptor whose next is itself, and one whose next is outside of the table.
    let table = 0x4000;
    for next in [0_u16, 300] {
        rig.put_chain(table, 0, &[(DATA, 64, 0)]);
        rig.put(table + 12, &1_u16.to_le_bytes());
        rig.put(table + 14, &next.to_le_bytes());
        rig.offer_head(TX, 0);
        rig.turn();
        assert_eq!(host_gets(&host), None);
    }
    // Indirect tables of as many descriptors as the queue has, and of one more; then nested ones.
    let table = 0x2_0000;
    for (count, is_sent) in [(256, true), (257, false)] {
        rig.put_chain(table, 0, &vec![(DATA, 1, 0); count]);
        rig.offer(TX, &[(table, 16 * count as u32, INDIRECT)]);
        rig.turn();
        assert_eq!(host_gets(&host).is_some(), is_sent, "{count}");
    }
    rig.put_chain(table, 0, &[(table, 16, INDIRECT)]);
    rig.offer(TX, &[(table, 16, INDIRECT)]);
    rig.offer(TX, &[(table, 15, INDIRECT)]);
    rig.turn();
    assert_eq!(host_gets(&host), None);
    assert_eq!(rig.used(TX).len(), 6);
    assert_still_sends(&mut rig, &host);
}

#[test]
fn malformed_receive_buffers_are_returned_empty() {
    for features in [0, MRG_RXBUF] {
        let (mut rig, host) = Rig::with_socket(features);
        let unusable: [&[Buffer]; 5] = [
            &[(DATA, 1600, 0)],
            &[(DATA, 1600, WRITE), (DATA, 12, 0)],
            &[(DATA, 0, WRITE)],
            &[(MEMORY as u64 - 10, 1600, WRITE)],
            &[(u64::MAX, 1600, WRITE)],
        ];
        for chain in unusable {
            rig.offer(RX, chain);
        }
        rig.turn();
        let lengths: Vec<_> = rig.used(RX).iter().map(|(_, length)| *length).collect();
        assert_eq!(lengths, [0; 5]);
        assert_eq!(rig.get(DATA, 1600), [0; 1600]);
        // One between others is skipped, and returned in order.
        rig.offer(RX, &[(DATA, 30, WRITE)]);
        rig.offer(RX, &[(DATA, 30, 0)]);
        rig.offer(RX, &[(DATA + 0x1000, 1600, WRITE)]);
        host_sends(&host, &frame(1, 100));
        host_sends(&host, &frame(2, 100));
        rig.turn();
        let heads: Vec<_> = rig.used(RX).iter().map(|(head, _)| *head).collect();
        if features == MRG_RXBUF {
            assert_eq!(heads, [0, 1, 3, 4, 5, 6, 7, 8]);
            assert_eq!(rig.get(DATA + 10, 2), [3, 0]);
        }
        assert_still_sends(&mut rig, &host);
    }
}

#[test]
fn endless_empty_chains_are_served_in_bounded_turns() {
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    host_sends(&host, &frame(1, 100));
    rig.offer(RX, &[(DATA, 0, WRITE)]);
    // As a guest does that makes more available all the time.
    for round in 1..20_u16 {
        rig.set_available(RX, round * 256);
        let before = rig.used(RX).len();
        rig.turn_once();
        assert!(rig.used(RX).len() - before <= 512);
    }
    rig.turn();
    rig.offer(TX, &[(DATA, 0, 0)]);
    for round in 1..5_u16 {
        let before = rig.used(TX).len();
        rig.set_available(TX, round * 256);
        rig.turn_once();
        assert!(rig.used(TX).len() - before <= BUDGET);
        rig.turn();
    }
    assert!(rig.net().stop().iter().all(|queue| queue.ready));
}

#[test]
fn an_index_that_jumps_stops_its_queue_until_a_reset() {
    for queue in [RX, TX] {
        let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
        rig.offer(queue, &[(DATA, 1600, if queue == RX { WRITE } else { 0 })]);
        rig.turn();
        rig.set_available(queue, 1000);
        host_sends(&host, &frame(1, 100));
        rig.turn();
        rig.set_available(queue, 2);
        rig.turn();
        assert_eq!(rig.turn_once(), 0);
        assert!(!rig.net().stop()[queue].ready);
        rig.net().reset();
        rig.turn();
        rig.start(VERSION_1);
        assert_still_sends(&mut rig, &host);
    }
}

#[test]
fn a_head_outside_of_the_table_stops_its_queue() {
    for queue in [RX, TX] {
        let (mut rig, _host) = Rig::with_socket(0);
        rig.offer_head(queue, 256);
        rig.turn();
        assert!(!rig.net().stop()[queue].ready);
    }
}

#[test]
fn a_device_works_after_resets_at_any_time() {
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    for round in 0..50_u8 {
        for number in 0..40 {
            rig.offer(RX, &[(DATA + 0x800 * number, 700, WRITE)]);
        }
        host_sends(&host, &frame(round, 1500));
        rig.put(0x8_0000, &frame(round, 100));
        rig.offer(TX, &[(0x8_0000, 126, 0)]);
        if round % 2 == 0 {
            rig.turn_once();
        }
        rig.net().reset();
        // Sometimes the loop runs only after the next activation.
        if round % 3 == 0 {
            rig.turn();
        }
        rig.start(VERSION_1 | if round % 4 == 0 { MRG_RXBUF } else { 0 });
    }
    assert_still_sends(&mut rig, &host);
}

#[test]
fn descriptors_that_change_after_they_were_popped_have_no_effect() {
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    rig.offer(RX, &[(DATA, 1600, WRITE)]);
    rig.turn();
    // The descriptor was parsed already; now it has another address and size.
    rig.put_chain(0, 0, &[(MEMORY as u64 - 1, u32::MAX, WRITE)]);
    host_sends(&host, &frame(1, 100));
    rig.turn();
    assert_eq!(rig.used(RX), [(0, 126)]);
    assert_eq!(rig.get(DATA + 26, 100), [1; 100]);
}

/// The chain at descriptor 0 of a queue of 256 with its table at 0.
fn buffers_of(
    memory: &Arc<GuestMemoryMmap>,
    access: Access,
) -> (Buffers, Result<(usize, usize), ChainError>) {
    let mut queue = Queue::new(256).expect("a power of two");
    queue.set_avail_ring_address(Some(0x1000), None);
    queue.set_used_ring_address(Some(0x2000), None);
    queue.set_ready(true);
    memory.write_obj(1_u16, GuestAddress(0x1002)).expect("idx");
    let chain = queue.pop_descriptor_chain(&**memory).expect("a chain");
    let mut buffers = Buffers::new(Arc::clone(memory));
    let pushed = buffers.push(chain, access);
    (buffers, pushed)
}

/// The guest addresses of all bytes of a chain, by the rules.
fn model(chain: &[(u64, u32, bool)], access: Access) -> Result<Vec<u64>, ChainError> {
    let mut places = Vec::new();
    for (number, (address, length, writable)) in chain.iter().enumerate() {
        if number == MAX_DESCRIPTORS {
            return Err(ChainError::TooLong);
        }
        if *writable != (access == Access::DeviceWritable) {
            return Err(ChainError::Access);
        }
        let end = address.checked_add(u64::from(*length));
        if *length > 0 && end.is_none_or(|end| end > MEMORY as u64) {
            return Err(ChainError::OutsideMemory);
        }
        places.extend(*address..address.saturating_add((*length).into()));
    }
    Ok(places)
}

fn descriptor() -> impl Strategy<Value = (u64, u32, bool)> {
    let address = prop_oneof![
        20 => DATA..DATA + 0x4000,
        1 => MEMORY as u64 - 64..MEMORY as u64 + 64,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![20 => 0_u32..64, 1 => any::<u32>()];
    (address, length, prop::bool::weighted(0.95))
}

proptest! {
    #[test]
    fn a_chain_becomes_its_buffers_or_nothing(
        chain in proptest::collection::vec(descriptor(), 1..40),
        access in prop_oneof![9 => Just(Access::DeviceWritable), 1 => Just(Access::DeviceReadable)],
        offset in 0_usize..100,
    ) {
        let ranges = [(GuestAddress(0), MEMORY)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"));
        for (number, (address, length, writable)) in chain.iter().enumerate() {
            let flags = u16::from(number + 1 < chain.len()) | u16::from(*writable) << 1;
            let at = 16 * number as u64;
            for (offset, bytes) in [
                (0, &address.to_le_bytes()[..]),
                (8, &length.to_le_bytes()),
                (12, &flags.to_le_bytes()),
                (14, &(number as u16 + 1).to_le_bytes()),
            ] {
                memory.write_slice(bytes, GuestAddress(at + offset)).expect("in memory");
            }
        }
        let (buffers, pushed) = buffers_of(&memory, access);
        match model(&chain, access) {
            Err(error) => {
                prop_assert_eq!(pushed, Err(error));
                buffers.write(0, &[1; 4]);
            }
            Ok(places) => {
                let pieces = chain.iter().filter(|(_, length, _)| *length > 0).count();
                prop_assert_eq!(pushed, Ok((pieces, places.len())));
                // What is written is at these addresses, as far as there is room, and is read back.
                buffers.write(offset, b"hull");
                for (place, byte) in places.iter().skip(offset).zip(b"hull").take(1) {
                    let there: u8 = memory.read_obj(GuestAddress(*place)).expect("in memory");
                    let overwritten = places.iter().filter(|other| *other == place).count() > 1;
                    prop_assert!(overwritten || there == *byte);
                }
                let mut start = vec![0; places.len().min(50)];
                buffers.read(&mut start);
                for (place, byte) in places.iter().zip(start) {
                    let there: u8 = memory.read_obj(GuestAddress(*place)).expect("in memory");
                    prop_assert_eq!(there, byte);
                }
            }
        }
    }
}
