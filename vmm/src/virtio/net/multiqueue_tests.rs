//! Several pairs of queues, with pairs of sockets as a substitute for the queues of a tap.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::testing::*;
use super::*;
use crate::virtio::testing::Bench;

const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;

/// Where buffers are, behind the rings of nine queues, and a command and its answer.
const BUFFERS: u64 = 0x4_0000;
const COMMAND: u64 = BUFFERS + 0x1_0000;
const ANSWER: u64 = COMMAND + 0x100;

/// What is in the place of an answer that the device hasn't written.
const NONE: u8 = 0xee;

/// The index of a queue of a pair.
fn of(pair: usize, queue: usize) -> usize {
    2 * pair + queue
}

impl Rig {
    /// Gives a command in a chain of two descriptors, as Linux does, and returns the answer.
    fn command(&mut self, control: usize, command: &[u8]) -> u8 {
        self.put(COMMAND, command);
        self.put(ANSWER, &[NONE]);
        let chain = [(COMMAND, command.len() as u32, 0), (ANSWER, 1, WRITE)];
        self.offer(control, &chain);
        self.turn();
        self.get(ANSWER, 1)[0]
    }

    fn use_pairs(&mut self, pairs: u8) -> u8 {
        self.command(8, &[4, 0, pairs, 0])
    }

    /// Makes a receive buffer of a pair available.
    fn give_buffer(&mut self, pair: usize) {
        let at = BUFFERS + 0x1000 * pair as u64;
        self.offer(of(pair, RX), &[(at, 1600, WRITE)]);
        self.turn();
    }

    /// Sends a frame on a pair.
    fn transmit_on(&mut self, pair: usize, frame: &[u8]) {
        let at = BUFFERS + 0x8000 + 0x1000 * pair as u64;
        self.put(at, frame);
        self.offer(of(pair, TX), &[(at, frame.len() as u32, 0)]);
        self.turn();
    }
}

fn rig() -> (Rig, [OwnedFd; 4]) {
    Rig::with_sockets(MRG_RXBUF | MQ | CTRL_VQ)
}

#[test]
fn the_driver_finds_as_many_pairs_as_the_tap_has_queues() {
    let (rig, _hosts) = rig();
    let net = rig.net();
    assert_eq!(net.config()[8..10], [4, 0]);
    assert_eq!(net.queue_sizes(), [256; 9]);
    assert_eq!(net.features() & (MQ | CTRL_VQ), MQ | CTRL_VQ);
    let (rig, _host) = Rig::with_socket(0);
    let net = rig.net();
    assert_eq!(net.config()[8..10], [1, 0]);
    assert_eq!(net.queue_sizes(), [256; 2]);
    assert_eq!(net.features() & (MQ | CTRL_VQ), 0);
}

#[test]
fn the_pairs_that_the_driver_uses_move_frames_and_the_others_dont() {
    let (mut rig, hosts) = rig();
    for pairs in [1, 4, 2, 3] {
        assert_eq!(rig.use_pairs(pairs), 0);
        let received = |rig: &Rig| (0..4).map(|pair| rig.used(of(pair, RX)).len()).collect();
        let before: Vec<_> = received(&rig);
        for (pair, host) in hosts.iter().enumerate() {
            rig.give_buffer(pair);
            host_sends(host, &frame(pair as u8, 100));
            rig.transmit_on(pair, &frame(0x10 + pair as u8, 100));
        }
        let after: Vec<usize> = received(&rig);
        for (pair, host) in hosts.iter().enumerate() {
            let is_used = pair < usize::from(pairs);
            let sent = is_used.then(|| frame(0x10 + pair as u8, 100));
            assert_eq!(host_gets(host), sent, "{pair} of {pairs}");
            assert_eq!(after[pair] > before[pair], is_used, "{pair} of {pairs}");
        }
        // Those of the pairs that aren't in use come once they are.
        assert_eq!(rig.use_pairs(4), 0);
        for (pair, host) in hosts.iter().enumerate().skip(pairs.into()) {
            assert_eq!(host_gets(host), Some(frame(0x10 + pair as u8, 100)));
            let at = BUFFERS + 0x1000 * pair as u64 + HEADER_SIZE as u64 + 14;
            assert_eq!(rig.get(at, 1), [pair as u8]);
        }
    }
}

#[test]
fn commands_that_are_none_are_answered_with_an_error_or_left_alone() {
    let (mut rig, _hosts) = rig();
    assert_eq!(rig.use_pairs(2), 0);
    let _ = rig.irq.read();
    for command in [
        &[4, 0, 0, 0][..], // no pair
        &[4, 0, 5, 0],     // more than there are
        &[4, 0, 2, 1],     // far more
        &[4, 0, 2],        // cut off
        &[4, 0, 2, 0, 0],  // more than a command
        &[4, 1, 2, 0],     // RSS
        &[0, 0, 1],        // the classes of what isn't offered
        &[1, 1, 2, 0, 0, 0, 0, 9],
        &[2, 0, 1, 0],
        &[3, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[255; 300],
        &[4],
    ] {
        assert_eq!(rig.command(8, command), 1, "{command:?}");
        assert_eq!(
            rig.net().data_path.as_ref().map(|path| path.in_use),
            Some(2)
        );
    }
    assert_eq!(rig.irq.read().ok(), Some(13), "each is answered");
    let end = MEMORY as u64;
    rig.put(COMMAND, &[4, 0, 3, 0]);
    rig.put(ANSWER, &[NONE]);
    let long = [(COMMAND, 4, 0), (COMMAND, 0, 0)]
        .into_iter()
        .cycle()
        .take(20);
    let long: Vec<Buffer> = long.collect();
    for chain in [
        &[(COMMAND, 4, 0)][..], // no room for an answer
        &[(COMMAND, 4, 0), (ANSWER, 0, WRITE)],
        &[(COMMAND, 4, 0), (end, 1, WRITE)],
        &[(end - 2, 4, 0), (ANSWER, 1, WRITE)],
        &[(u64::MAX, 4, 0), (ANSWER, 1, WRITE)],
        &long,
        &[(COMMAND + 0x1000, 16 * 300, INDIRECT)],
    ] {
        let before = rig.used(8).len();
        let head = rig.offer(8, chain);
        rig.turn();
        assert_eq!(rig.used(8)[before..], [(head, 0)], "{chain:?}");
        assert_eq!(rig.get(ANSWER, 1), [NONE], "{chain:?}");
    }
    // A chain that loops.
    rig.put(8 * 0x4000 + 16 * 255 + 12, &1_u16.to_le_bytes());
    rig.put(8 * 0x4000 + 16 * 255 + 14, &255_u16.to_le_bytes());
    rig.offer_head(8, 255);
    rig.turn();
    assert_eq!(rig.use_pairs(3), 0, "it goes on");
}

#[test]
fn a_turn_takes_a_few_commands() {
    let (mut rig, _hosts) = rig();
    assert_eq!(rig.use_pairs(4), 0);
    for _ in 0..10 {
        rig.offer_head(8, 0);
    }
    assert_eq!(rig.turn_once(), 1);
    assert_eq!(rig.used(8).len(), 1 + 4);
    rig.turn();
    assert_eq!(rig.used(8).len(), 11);
}

#[test]
fn a_driver_that_changes_its_mind_all_the_time_is_refused() {
    let (mut rig, _hosts) = rig();
    let answers: Vec<u8> = (0..40_u8).map(|n| rig.use_pairs(2 + n % 2)).collect();
    assert_eq!(
        answers.iter().filter(|answer| **answer == 0).count(),
        16 + 12
    );
    assert_eq!(answers[..16], [0; 16]);
}

#[test]
fn a_driver_without_the_feature_has_one_pair_and_no_command() {
    let (mut rig, hosts) = Rig::with_sockets::<4>(CTRL_VQ);
    assert_eq!(rig.command(2, &[4, 0, 2, 0]), 1);
    assert_eq!(rig.command(2, &[4, 0, 1, 0]), 1);
    rig.transmit(&frame(1, 100));
    assert_eq!(host_gets(&hosts[0]), Some(frame(1, 100)));
    for features in [0, MQ] {
        rig.net().reset();
        rig.turn();
        rig.start(VERSION_1 | features);
        rig.transmit(&frame(2, 100));
        assert_eq!(host_gets(&hosts[0]), Some(frame(2, 100)));
    }
    // Another one has to say it anew.
    rig.net().reset();
    rig.start(VERSION_1 | MQ | CTRL_VQ);
    rig.transmit_on(1, &frame(3, 100));
    assert_eq!(host_gets(&hosts[1]), None);
    assert_eq!(rig.use_pairs(2), 0);
    assert_eq!(host_gets(&hosts[1]), Some(frame(3, 100)));
}

/// Substitutes for the queues of a tap, and their other ends.
fn taps(count: usize) -> (Taps, Vec<OwnedFd>) {
    let flags = SocketFlags::NONBLOCK;
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let pair = |_| socketpair(family, kind, flags, None).expect("sockets");
    let (own, hosts): (Vec<_>, Vec<_>) = (0..count).map(pair).unzip();
    (Taps::from_test_sockets(own).expect("non-blocking"), hosts)
}

fn bench(pairs: usize) -> (Bench<Net>, Vec<OwnedFd>) {
    let (taps, hosts) = taps(pairs);
    let net = Net::new(nic(1, 1500), taps).expect("a device");
    (Bench::new(net), hosts)
}

#[test]
fn a_driver_sets_up_all_queues_in_any_order_or_has_to_reset() {
    let (control, features) = (8, (MQ | CTRL_VQ) as u32);
    let some: Vec<u32> = (0..8).collect();
    let first = [0, 1, 8];
    let twice = [8, 8, 7, 6, 5, 4, 3, 2, 1, 1];
    let reverse: Vec<u32> = (0..=control).rev().collect();
    for (queues, status) in [
        (&reverse[..], 15),
        (&some, 15 | 64),
        (&first, 15 | 64),
        (&twice, 15 | 64),
        (&[], 15 | 64),
    ] {
        let (mut bench, _hosts) = bench(4);
        bench.driver().negotiate_with(features);
        for queue in queues {
            bench.driver().set_up_queue(*queue, 0x1000 * (queue + 1));
        }
        bench.driver().write(0x70, 15);
        bench.turn();
        assert_eq!(bench.driver().status(), status, "{queues:?}");
        for queue in 0..12 {
            bench.kick(queue);
        }
        bench.turn();
        bench.driver().write(0x70, 0);
        bench.start();
    }
}

#[test]
fn a_restored_nic_goes_on_with_as_many_pairs() {
    let net = |taps| Net::new(nic(1, 1500), taps).expect("a device");
    let (mut bench, _hosts) = bench(2);
    bench.start_with(MQ | CTRL_VQ);
    bench.put(0x8000, &[4, 0, 2, 0]);
    assert_eq!(bench.request(4, &[(0x8000, 4, 0), (0x8100, 1, WRITE)]), 1);
    assert_eq!(bench.get(0x8100, 1), [0]);
    let state = bench.save();
    assert_eq!(bench.save(), state, "it stands still");
    assert!(bench.restored(net(taps(1).0), &state).is_err());
    assert!(bench.restored(net(taps(3).0), &state).is_err());
    for bad in [0, 3, 65535] {
        let state = state.replace("\"pairs_in_use\":2", &format!("\"pairs_in_use\":{bad}"));
        assert!(bench.restored(net(taps(2).0), &state).is_err(), "{bad}");
    }

    let mut bench = bench.restored(net(taps(2).0), &state).expect("the same");
    bench.turn();
    assert_eq!(bench.save(), state, "nothing has changed");
    let (own, hosts) = taps(2);
    let mut bench = bench.restored(net(own), &state).expect("the same");
    bench.turn();
    bench.put(0x9000, &frame(3, 100));
    bench.offer(3, &[(0x9000, 126, 0)]);
    bench.turn();
    assert_eq!(host_gets(&hosts[1]), Some(frame(3, 100)));
    assert_eq!(host_gets(&hosts[0]), None);
}
