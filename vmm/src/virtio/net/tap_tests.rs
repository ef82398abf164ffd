//! Real taps, in network namespaces of the tests' own.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::testing::*;
use super::*;
use crate::jail::test_child::{self, End, is_root};
use crate::jail::{self, Identity, Role};

/// A tap with the interface `tap0`, which is up, and a packet socket for it.
fn tap() -> (Tap, Wire) {
    let tap = make_tap("tap0", TAP_FLAGS, false);
    let wire = Wire::new("tap0");
    (Tap::new(tap).expect("a tap"), wire)
}

/// The features of a driver that uses several pairs of queues: `VIRTIO_NET_F_CTRL_VQ` and `VIRTIO_NET_F_MQ`.
const MULTIQUEUE: u64 = 1 << 17 | 1 << 22;

/// As [`tap`], with several queues.
fn taps<const PAIRS: usize>() -> (Taps, Wire) {
    let flags = TAP_FLAGS | libc::IFF_MULTI_QUEUE;
    let queues = (0..PAIRS).map(|_| make_tap("tap0", flags, false));
    let taps = Taps::new(queues.collect()).expect("a tap");
    (taps, Wire::new("tap0"))
}

/// Has the driver use that many pairs, by its queue of this index, and returns the answer.
fn use_pairs(rig: &mut Rig, control: usize, pairs: u8) -> u8 {
    let (command, answer) = (DATA + 0x7_0000, DATA + 0x7_1000);
    rig.put(command, &[4, 0, pairs, 0]);
    rig.offer(control, &[(command, 4, 0), (answer, 1, WRITE)]);
    rig.turn();
    rig.get(answer, 1)[0]
}

/// Receives frames at `DATA` until one is `wanted`: the host sends frames of its own.
fn next_received(rig: &mut Rig, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let before = rig.used(RX).len();
        rig.offer(RX, &[(DATA, 2000, WRITE)]);
        while rig.used(RX).len() == before {
            assert!(Instant::now() < deadline, "waited for a frame");
            rig.turn();
        }
        let (_, length) = rig.used(RX)[before];
        let frame = rig.get(DATA, length as usize);
        if wanted(&frame[HEADER_SIZE..]) {
            return frame;
        }
    }
}

#[test]
fn frames_go_both_ways_over_a_tap() {
    in_network(|| {
        let (tap, wire) = tap();
        let mut rig = Rig::new(tap, VERSION_1 | MRG_RXBUF);
        let sent = frame(7, 100);
        rig.transmit(&sent);
        assert_eq!(wire.next(), Some(sent[HEADER_SIZE..].to_vec()));
        wire.send(&frame(8, 500)[HEADER_SIZE..]);
        let got = next_received(&mut rig, is_ours);
        assert_eq!(got[..HEADER_SIZE], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(got[HEADER_SIZE..], frame(8, 500)[HEADER_SIZE..]);
    });
}

#[test]
fn a_header_that_makes_no_sense_costs_its_frame_alone() {
    in_network(|| {
        let (tap, wire) = tap();
        let mut rig = Rig::new(tap, VERSION_1);
        let header = |bytes: [u8; 10]| {
            let mut frame = frame(7, 100);
            frame[..10].copy_from_slice(&bytes);
            frame
        };
        // A checksum beyond the frame; an unknown gso_type; a gso_size of 0.
        rig.transmit(&header([1, 0, 0, 0, 0, 0, 0xff, 0xff, 2, 0]));
        rig.transmit(&header([0, 0x7f, 54, 0, 0, 2, 0, 0, 0, 0]));
        rig.transmit(&header([1, 1, 54, 0, 0, 0, 34, 0, 16, 0]));
        assert_eq!(rig.used(TX).len(), 3);
        assert_eq!(wire.next(), None);
        rig.transmit(&header([0; 10]));
        assert_eq!(wire.next(), Some(frame(7, 100)[HEADER_SIZE..].to_vec()));
    });
}

#[test]
fn an_interface_that_is_down_takes_no_frames_and_one_that_is_up_again_does() {
    in_network(|| {
        let (tap, wire) = tap();
        let mut rig = Rig::new(tap, VERSION_1);
        wire.set_down("tap0");
        rig.transmit(&frame(1, 100));
        assert_eq!(rig.used(TX).len(), 1);
        assert_eq!(rig.turn_once(), 0);
        let wire = Wire::new("tap0");
        rig.transmit(&frame(2, 100));
        assert_eq!(wire.next(), Some(frame(2, 100)[HEADER_SIZE..].to_vec()));
    });
}

/// The virtio-net header of a UDP datagram that the host sends to the tap.
fn header_of_a_datagram(features: u64) -> Vec<u8> {
    let (tap, _wire) = tap();
    set_address("tap0", [10, 99, 0, 1]);
    let mut rig = Rig::new(tap, VERSION_1 | MRG_RXBUF | features);
    let socket = UdpSocket::bind("10.99.0.1:0").expect("a socket");
    socket.set_broadcast(true).expect("broadcasts");
    let sent = socket.send_to(b"for all", "10.99.0.255:9");
    assert_eq!(sent.expect("sent"), 7);
    let is_udp = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 17;
    let mut got = next_received(&mut rig, is_udp);
    got.truncate(HEADER_SIZE);
    got
}

#[test]
fn the_host_leaves_checksums_to_a_driver_that_takes_them() {
    in_network(|| assert_eq!(header_of_a_datagram(0)[0], 0));
    in_network(|| {
        let header = header_of_a_datagram(GUEST_CSUM);
        // NEEDS_CSUM, from the end of the Ethernet and IP headers, to be stored 6 bytes after that.
        assert_eq!((header[0], &header[6..10]), (1, &[34, 0, 6, 0][..]));
    });
}

#[test]
fn frames_go_to_the_queues_of_a_tap_whose_pairs_are_in_use() {
    in_network(|| {
        let (taps, wire) = taps::<4>();
        let mut rig = Rig::new(taps, VERSION_1 | MRG_RXBUF | MULTIQUEUE);
        let attached = |rig: &Rig| {
            rig.net()
                .taps
                .iter()
                .filter(|tap| tap.is_attached())
                .count()
        };
        for pairs in [1, 4, 2, 4, 3, 1] {
            assert_eq!(use_pairs(&mut rig, 8, pairs), 0);
            assert_eq!(attached(&rig), usize::from(pairs));
            // Any number of flows is received, each on some queue.
            for flow in 0..16_u8 {
                let before: Vec<_> = (0..4).map(|pair| rig.used(2 * pair).len()).collect();
                for pair in 0..4 {
                    rig.offer(
                        2 * pair,
                        &[(DATA + 0x3_0000 + 0x1000 * pair as u64, 1600, WRITE)],
                    );
                }
                rig.turn();
                let mut sent = frame(flow, 100);
                sent[HEADER_SIZE + 11] = flow;
                wire.send(&sent[HEADER_SIZE..]);
                rig.turn();
                let used = (0..4).map(|pair| rig.used(2 * pair).len());
                let got = used.zip(&before).position(|(now, before)| now > *before);
                assert!(
                    got.is_some_and(|pair| pair < pairs.into()),
                    "{got:?} of {pairs}"
                );
            }
        }
        rig.net().reset();
        rig.turn();
        rig.start(VERSION_1);
        assert_eq!(attached(&rig), 1);
    });
}

#[test]
fn what_is_no_tap_or_another_kind_is_refused() {
    in_network(|| {
        let refused = |descriptor: OwnedFd| Tap::new(descriptor).expect_err("refused").to_string();
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for none in [
            open("/dev/null", 0),
            socket.into(),
            open("/dev/net/tun", libc::O_NONBLOCK),
        ] {
            assert!(refused(none).contains("not a tap"));
        }
        let (tap, no_pi) = (libc::IFF_TAP, libc::IFF_NO_PI);
        let (tun, header) = (libc::IFF_TUN, libc::IFF_VNET_HDR);
        let frags = libc::IFF_NAPI | libc::IFF_NAPI_FRAGS;
        for flags in [tap | no_pi, tun | no_pi | header, TAP_FLAGS | frags] {
            let why = refused(make_tap("other0", flags, false));
            assert!(why.contains("must have IFF_TAP"), "{why}");
        }
        let why = refused(make_tap("other0", TAP_FLAGS, true));
        assert!(why.contains("O_NONBLOCK"), "{why}");
        assert!(Tap::new(make_tap("other0", TAP_FLAGS, false)).is_ok());
    });
}

#[test]
fn the_jail_allows_all_that_a_nic_does() {
    if !is_root() {
        return;
    }
    let end = test_child::run(|| {
        enter_network();
        let (taps, wire) = taps::<2>();
        let mut rig = Rig::new(taps, VERSION_1);
        // This thread may not send once it is confined.
        std::thread::spawn(move || {
            for _ in 0..500 {
                wire.send(&frame(2, 100)[HEADER_SIZE..]);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let identity = Identity::unique_user().expect("a user");
        jail::confine(Role::Net, identity, &test_child::open_fds()).expect("the jail");
        rig.net().reset();
        rig.turn();
        rig.start(VERSION_1 | MRG_RXBUF | GUEST_CSUM);
        rig.transmit(&frame(1, 100));
        rig.transmit(&[0; 20]);
        assert_eq!(rig.used(TX).len(), 2);
        next_received(&mut rig, is_ours);
        rig.net().reset();
        rig.turn();
        rig.start(VERSION_1 | MRG_RXBUF | MULTIQUEUE);
        for pairs in [2, 1] {
            assert_eq!(use_pairs(&mut rig, 4, pairs), 0);
        }
        // In debug builds, Rust checks a descriptor before closing it, which the filter forbids.
        std::mem::forget(rig);
    });
    assert_eq!(end, End::Returned);
}
