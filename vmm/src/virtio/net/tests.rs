//! A well-behaved driver, with a pair of sockets as a substitute for a tap.

use std::os::fd::OwnedFd;

use super::testing::*;
use super::*;
use crate::virtio::testing::Bench;

#[test]
fn the_driver_finds_the_nics_configuration_and_features() {
    let (rig, _host) = Rig::with_socket(0);
    let net = rig.net();
    assert_eq!(net.device_type(), 1);
    assert_eq!(net.queue_sizes(), [256, 256]);
    assert_eq!(net.config()[..6], [0x52, 0x54, 0, 0, 0, 1]);
    assert_eq!(net.config()[10..12], 1500_u16.to_le_bytes());
    // CSUM, GUEST_CSUM, MTU, MAC, TSO4, TSO6 and ECN both ways, MRG_RXBUF; indirect, event_idx, version 1.
    let offered = 0b1011_1011_1010_1011 | 1 << 28 | 1 << 29 | 1 << 32;
    assert_eq!(net.features(), offered);
}

#[test]
fn a_frame_goes_to_the_tap_with_its_header() {
    let (mut rig, host) = Rig::with_socket(0);
    let mut sent = frame(7, 100);
    sent[0] = 1;
    rig.transmit(&sent);
    assert_eq!(host_gets(&host), Some(sent.clone()));
    assert_eq!(rig.used(TX), [(0, 0)]);
    assert_eq!(rig.irq.read().ok(), Some(1));

    // The header and the frame in several buffers, split as the driver likes.
    rig.put(DATA, &sent);
    let head = rig.offer(TX, &[(DATA, 5, 0), (DATA + 5, 20, 0), (DATA + 25, 101, 0)]);
    rig.turn();
    assert_eq!(host_gets(&host), Some(sent));
    assert_eq!(rig.used(TX)[1..], [(head, 0)]);
    assert_eq!(host_gets(&host), None);
}

#[test]
fn a_frame_comes_into_one_buffer() {
    let (mut rig, host) = Rig::with_socket(GUEST_CSUM);
    let head = rig.offer(RX, &[(DATA, 12, WRITE), (DATA + 0x1000, 1600, WRITE)]);
    rig.turn();
    assert_eq!(rig.used(RX), []);
    let mut sent = frame(7, 1000);
    sent[0] = 2;
    host_sends(&host, &sent);
    rig.turn();
    assert_eq!(rig.used(RX), [(head, 1026)]);
    assert_eq!(rig.irq.read().ok(), Some(1));
    assert_eq!(rig.get(DATA, 12), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(rig.get(DATA + 0x1000, 1014), sent[12..]);
    assert_eq!(rig.get(DATA + 0x1000 + 1014, 1), [0]);
}

#[test]
fn a_driver_without_checksum_offload_gets_no_flags() {
    let (mut rig, host) = Rig::with_socket(0);
    rig.offer(RX, &[(DATA, 1600, WRITE)]);
    let mut sent = frame(7, 100);
    sent[0] = 3;
    host_sends(&host, &sent);
    rig.turn();
    assert_eq!(rig.get(DATA, 1), [0]);
}

#[test]
fn a_large_frame_is_spread_over_several_buffers_and_says_how_many() {
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    let heads: Vec<_> = (0..5)
        .map(|number| rig.offer(RX, &[(DATA + 0x1000 * number, 1000, WRITE)]))
        .collect();
    host_sends(&host, &frame(1, 3000));
    host_sends(&host, &frame(2, 30));
    rig.turn();
    let used = [1000, 1000, 1000, 26, 56];
    let used: Vec<_> = heads.iter().copied().zip(used).collect();
    assert_eq!(rig.used(RX), used);
    assert_eq!(rig.get(DATA + 10, 2), [4, 0]);
    assert_eq!(rig.get(DATA + 0x3000, 26), [1; 26]);
    assert_eq!(rig.get(DATA + 0x4000 + 10, 2), [1, 0]);
    assert_eq!(rig.get(DATA + 0x4000 + 26, 30), [2; 30]);
}

#[test]
fn a_header_may_be_spread_over_several_buffers() {
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    for number in 0..4 {
        rig.offer(RX, &[(DATA + 0x100 * number, 11, WRITE)]);
    }
    rig.offer(RX, &[(DATA + 0x1000, 2000, WRITE)]);
    host_sends(&host, &frame(9, 100));
    rig.turn();
    let lengths: Vec<_> = rig.used(RX).iter().map(|(_, length)| *length).collect();
    assert_eq!(lengths, [11, 11, 11, 11, 126 - 44]);
    assert_eq!(rig.get(DATA + 10, 1), [5], "the number's first byte");
    assert_eq!(rig.get(DATA + 0x100, 1), [0], "and its second");
}

#[test]
fn without_buffers_frames_stay_in_the_tap_and_the_loop_is_idle() {
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    for byte in 1..=3 {
        host_sends(&host, &frame(byte, 100));
    }
    rig.turn();
    assert_eq!(rig.turn_once(), 0, "the tap is readable");
    for number in 0..2 {
        rig.offer(RX, &[(DATA + 0x1000 * number, 1600, WRITE)]);
    }
    rig.turn();
    assert_eq!(rig.used(RX).len(), 2);
    assert_eq!(rig.turn_once(), 0);
    rig.offer(RX, &[(DATA + 0x2000, 1600, WRITE)]);
    rig.turn();
    for number in 0..3 {
        assert_eq!(rig.get(DATA + 0x1000 * number + 26, 1), [number as u8 + 1]);
    }
    // With buffers, frames are received without a kick.
    rig.offer(RX, &[(DATA, 1600, WRITE)]);
    rig.turn();
    host_sends(&host, &frame(4, 100));
    rig.turn();
    assert_eq!(rig.used(RX).len(), 4);
}

#[test]
fn frames_from_before_the_driver_are_dropped() {
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    rig.net().reset();
    rig.turn();
    for byte in 1..=3 {
        host_sends(&host, &frame(byte, 100));
    }
    assert_eq!(rig.turn_once(), 0, "without a driver, the loop is idle");
    rig.start(VERSION_1);
    rig.offer(RX, &[(DATA, 1600, WRITE)]);
    rig.turn();
    assert_eq!(rig.used(RX), []);
    host_sends(&host, &frame(4, 100));
    rig.turn();
    assert_eq!(rig.used(RX), [(0, 126)]);
    assert_eq!(rig.get(DATA + 26, 1), [4]);
}

#[test]
fn a_frame_larger_than_the_buffers_waits_for_more_and_stays_the_first() {
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    for number in 0..2 {
        rig.offer(RX, &[(DATA + 0x1000 * number, 1000, WRITE)]);
    }
    let mut large = frame(1, 0);
    large.extend((0..4000).map(|number| (number % 251) as u8));
    host_sends(&host, &large);
    host_sends(&host, &frame(2, 100));
    rig.turn();
    assert_eq!(rig.used(RX), []);
    assert_eq!(rig.turn_once(), 0);
    rig.offer(RX, &[(DATA + 0x2000, 1000, WRITE)]);
    rig.turn();
    assert_eq!(rig.used(RX), []);
    for number in 3..7 {
        rig.offer(RX, &[(DATA + 0x1000 * number, 1000, WRITE)]);
    }
    rig.turn();
    let lengths: Vec<_> = rig.used(RX).iter().map(|(_, length)| *length).collect();
    assert_eq!(lengths, [1000, 1000, 1000, 1000, 26, 126]);
    let mut got = Vec::new();
    for (number, length) in (0..).zip([1000, 1000, 1000, 1000, 26]) {
        got.extend(rig.get(DATA + 0x1000 * number, length));
    }
    assert_eq!(got[10..12], [5, 0]);
    assert_eq!(got[12..], large[12..]);
    assert_eq!(rig.get(DATA + 0x5000 + 26, 1), [2]);
}

#[test]
fn a_frame_that_never_fits_is_dropped() {
    // Without mergeable buffers, it must fit into one chain.
    let (mut rig, host) = Rig::with_socket(0);
    rig.offer(RX, &[(DATA, 500, WRITE)]);
    host_sends(&host, &frame(1, 1000));
    host_sends(&host, &frame(2, 100));
    rig.turn();
    assert_eq!(rig.used(RX), [(0, 126)]);
    assert_eq!(rig.get(DATA + 26, 1), [2]);

    // With them, into as many as the queue has.
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    rig.offer(RX, &[(DATA, 200, WRITE)]);
    for _ in 0..255 {
        rig.offer_head(RX, 0);
    }
    host_sends(&host, &frame(1, 200 * 256));
    host_sends(&host, &frame(2, 100));
    rig.turn();
    assert_eq!(rig.used(RX), [(0, 126)]);
}

/// Sends 200 frames, more than the tap takes. Returns how many it has taken, and 200.
fn fill(rig: &mut Rig) -> (usize, usize) {
    for number in 0..200_u8 {
        let at = DATA + 0x1000 * u64::from(number);
        rig.put(at, &frame(number, 3000));
        rig.offer(TX, &[(at, 3026, 0)]);
    }
    rig.turn();
    (rig.used(TX).len(), 200)
}

fn bytes_of(host: &OwnedFd) -> Vec<u8> {
    std::iter::from_fn(|| host_gets(host))
        .map(|frame| frame[26])
        .collect()
}

#[test]
fn a_full_tap_keeps_the_order_and_the_loop_is_idle() {
    let (mut rig, host) = Rig::with_socket(0);
    let (taken, all) = fill(&mut rig);
    assert!(taken < all, "{taken} of {all}");
    assert_eq!(rig.turn_once(), 0, "it isn't writable");
    rig.kicks[TX].write(1).expect("kicked");
    rig.turn();
    assert_eq!(rig.used(TX).len(), taken, "a kick changes nothing");
    let mut bytes = Vec::new();
    while bytes.len() < all {
        let before = bytes.len();
        bytes.extend(bytes_of(&host));
        assert!(bytes.len() > before, "it goes on");
        rig.turn();
    }
    assert_eq!(bytes, (0..200).collect::<Vec<u8>>());
    assert_eq!(rig.used(TX).len(), all);
}

#[test]
fn with_a_full_tap_frames_are_received_and_a_reset_works() {
    let (mut rig, host) = Rig::with_socket(0);
    fill(&mut rig);
    rig.offer(RX, &[(0xf_0000, 1600, WRITE)]);
    host_sends(&host, &frame(1, 100));
    rig.turn();
    assert_eq!(rig.used(RX).len(), 1);
    rig.net().reset();
    rig.turn();
    rig.start(VERSION_1);
    bytes_of(&host);
    rig.transmit(&frame(77, 100));
    assert_eq!(bytes_of(&host), [77]);
}

#[test]
fn a_turn_is_bounded_both_ways() {
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    rig.put(DATA, &frame(1, 20));
    rig.offer(TX, &[(DATA, 46, 0)]);
    for _ in 0..BUDGET {
        rig.offer_head(TX, 0);
    }
    assert_eq!(rig.turn_once(), 1);
    assert_eq!(rig.used(TX).len(), BUDGET);
    rig.turn();
    assert_eq!(rig.used(TX).len(), BUDGET + 1, "the rest follows");

    rig.offer(RX, &[(DATA, 1000, WRITE)]);
    for _ in 0..BUDGET {
        rig.offer_head(RX, 0);
    }
    rig.turn();
    for _ in 0..=BUDGET {
        host_sends(&host, &frame(1, 20));
    }
    assert_eq!(rig.turn_once(), 1);
    assert_eq!(rig.used(RX).len(), BUDGET);
    rig.turn();
    assert_eq!(rig.used(RX).len(), BUDGET + 1);
}

#[test]
fn popped_buffers_are_available_again_after_a_stop() {
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    for number in 0..5 {
        rig.offer(RX, &[(DATA + 0x1000 * number, 1000, WRITE)]);
    }
    host_sends(&host, &frame(1, 100));
    rig.turn();
    let states = rig.net().stop();
    let progress: Vec<_> = states.iter().map(|q| (q.next_avail, q.next_used)).collect();
    assert_eq!(progress, [(1, 1), (0, 0)]);
    host_sends(&host, &frame(2, 100));
    rig.turn();
    assert_eq!(rig.used(RX).len(), 1, "nobody serves it any more");
    assert_eq!(rig.net().stop().len(), 0);
}

#[test]
fn a_stopped_machine_moves_no_frames() {
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    rig.offer(RX, &[(DATA, 1000, WRITE)]);
    rig.turn();
    rig.stop.set();
    host_sends(&host, &frame(1, 100));
    rig.transmit(&frame(2, 100));
    assert_eq!(rig.used(RX), []);
    assert_eq!(rig.used(TX), []);
    assert_eq!(host_gets(&host), None);
}

#[test]
fn frames_for_a_deleted_interface_are_dropped() {
    let (mut rig, host) = Rig::with_socket(MRG_RXBUF);
    rig.offer(RX, &[(DATA, 1000, WRITE)]);
    rig.turn();
    drop(host);
    rig.turn();
    assert_eq!(rig.turn_once(), 0, "the hang-up is one event");
    rig.transmit(&frame(1, 100));
    assert_eq!(rig.used(TX).len(), 1, "it was dropped");
    rig.net().reset();
    rig.turn();
    rig.start(VERSION_1);
    rig.offer(RX, &[(DATA, 1000, WRITE)]);
    rig.transmit(&frame(1, 100));
    assert_eq!((rig.used(TX).len(), rig.used(RX).len()), (1, 0));
}

#[test]
fn a_restored_nic_continues_where_the_saved_one_was() {
    let pair = || {
        let flags = rustix::net::SocketFlags::NONBLOCK;
        let family = rustix::net::AddressFamily::UNIX;
        let kind = rustix::net::SocketType::SEQPACKET;
        rustix::net::socketpair(family, kind, flags, None).expect("sockets")
    };
    let net = |last, mtu, socket| {
        let tap = Tap::from_test_socket(socket).expect("non-blocking");
        Net::new(nic(last, mtu), tap.into()).expect("a device")
    };
    let (own, host) = pair();
    let mut bench = Bench::new(net(1, 1500, own));
    bench.start();
    bench.offer(0, &[(0x4000, 1600, WRITE)]);
    bench.offer(0, &[(0x5000, 1600, WRITE)]);
    bench.turn();
    host_sends(&host, &frame(1, 100));
    bench.turn();
    assert_eq!(bench.used(0), 1);
    let state = bench.save();
    for other in [net(2, 1500, pair().0), net(1, 1400, pair().0)] {
        assert!(bench.restored(other, &state).is_err());
    }

    let (own, host) = pair();
    let same = net(1, 1500, own);
    let mut bench = bench.restored(same, &state).expect("the same");
    bench.turn();
    host_sends(&host, &frame(2, 100));
    bench.turn();
    assert_eq!(bench.used(0), 2);
    assert_eq!(bench.get(0x5000 + 26, 1), [2]);
    bench.put(0x6000, &frame(3, 100));
    bench.offer(1, &[(0x6000, 126, 0)]);
    bench.turn();
    assert_eq!(host_gets(&host), Some(frame(3, 100)));
}
