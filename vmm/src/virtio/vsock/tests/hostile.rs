//! A guest that breaks every rule: nothing panics, and nothing grows.

use std::io::Write;

use proptest::prelude::*;

use super::driver::{FIRST_PORT, GUEST_CID, Guest, is_readable, pipe};
use crate::virtio::vsock::connection::BUFFER_SIZE;
use crate::virtio::vsock::muxer::MAX_RESETS;
use crate::virtio::vsock::packet::{HEADER_SIZE, Header, SHUTDOWN_SEND, op};
use crate::virtio::vsock::{Direction, HOST_CID};

const PORT: u32 = 5000;

/// A guest with one stream from it, and its port.
fn with_stream() -> (Guest, std::os::fd::OwnedFd, u32) {
    let mut guest = Guest::new();
    let (reader, writer) = pipe();
    let attached = guest.device().attach(vec![(Direction::FromGuest, writer)]);
    let port = attached.expect("attach").ports[0];
    guest.dial(PORT, port);
    (guest, reader, port)
}

#[test]
fn a_port_that_is_not_on_offer_is_reset() {
    let mut guest = Guest::new();
    guest.send_op(PORT, 77, op::REQUEST);
    let (header, _) = guest.expect(op::RST);
    assert_eq!((header.src_port, header.dst_port), (77, PORT));
    assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
}

#[test]
fn a_port_serves_one_connection_in_its_life() {
    let (mut guest, _reader, port) = with_stream();
    guest.send_op(PORT + 1, port, op::REQUEST);
    assert_eq!(guest.expect(op::RST).0.dst_port, PORT + 1);
    guest.send_shutdown(PORT, port, SHUTDOWN_SEND);
    guest.expect(op::RST);
    guest.send_op(PORT, port, op::REQUEST);
    guest.expect(op::RST);
}

#[test]
fn more_data_than_credit_resets_the_stream() {
    let (mut guest, _reader, port) = with_stream();
    let pipe_and_buffer = 65536 + BUFFER_SIZE;
    for _ in 0..pipe_and_buffer / 65536 {
        guest.send_data(PORT, port, &[0; 65536]);
    }
    guest.send_data(PORT, port, &[0]);
    let mut last = None;
    while let Some((header, _)) = guest.received() {
        last = Some(header.op);
    }
    assert_eq!(last, Some(op::RST));
}

#[test]
fn data_for_a_stream_to_the_guest_resets_it() {
    let mut guest = Guest::new();
    let (reader, _writer) = pipe();
    let attached = guest.device().attach(vec![(Direction::ToGuest, reader)]);
    let port = attached.expect("attach").ports[0];
    guest.dial(PORT, port);
    guest.send_data(PORT, port, b"?");
    guest.expect(op::RST);
    assert_eq!(guest.device().streams(), 0);
}

#[test]
fn unknown_operations_reset_the_stream() {
    for operation in [0, 8, u16::MAX, op::REQUEST, op::RESPONSE] {
        let (mut guest, _reader, port) = with_stream();
        guest.send_op(PORT, port, operation);
        guest.expect(op::RST);
        assert_eq!(guest.device().streams(), 0, "operation {operation}");
    }
}

#[test]
fn other_socket_types_are_reset_in_kind() {
    let mut guest = Guest::new();
    for type_ in [0, 2, 3, u16::MAX] {
        let mut header = Guest::header(PORT, 1, op::REQUEST);
        header.type_ = type_;
        guest.send(header, &[]);
        assert_eq!(guest.expect(op::RST).0.type_, type_);
    }
}

#[test]
fn packets_from_and_to_other_contexts_are_dropped() {
    let mut guest = Guest::new();
    for (src_cid, dst_cid) in [(2, 2), (GUEST_CID, 1), (GUEST_CID, u64::MAX), (9, HOST_CID)] {
        let mut header = Guest::header(PORT, 1, op::REQUEST);
        (header.src_cid, header.dst_cid) = (src_cid, dst_cid);
        guest.send(header, &[]);
        guest.expect_nothing();
    }
}

#[test]
fn a_reset_is_never_answered() {
    let mut guest = Guest::new();
    guest.send_op(PORT, 1, op::RST);
    guest.expect_nothing();
}

#[test]
fn lengths_that_lie_are_dropped() {
    let (mut guest, reader, port) = with_stream();
    for len in [2, 65537, u32::MAX] {
        let mut header = Guest::header(PORT, port, op::RW);
        header.len = len;
        guest.send(header, b"x");
    }
    guest.expect_nothing();
    assert!(!is_readable(&reader));
}

#[test]
fn chains_that_are_no_packets_are_given_back() {
    let (mut guest, _reader, port) = with_stream();
    let header = HEADER_SIZE as u32;
    let chains: [&[(u64, u32, u16)]; 5] = [
        &[(0, 0, 0)],
        &[(0, header - 1, 0)],
        &[(0, header, 2)],            // write-only
        &[(u64::MAX - 8, header, 0)], // outside memory
        &[(8 << 20, u32::MAX, 0)],
    ];
    let memory = guest.memory.clone();
    for chain in chains {
        let head = guest.tx.take_free().expect("free");
        guest.tx.offer(&memory, head, chain);
        guest.tx.notify(&memory);
        guest.turn();
    }
    guest.send_op(PORT, port, op::CREDIT_REQUEST);
    guest.expect(op::CREDIT_UPDATE);
}

#[test]
fn a_chain_that_loops_is_given_back() {
    let (mut guest, _reader, port) = with_stream();
    let memory = guest.memory.clone();
    let head = guest.tx.take_free().expect("free");
    // Two descriptors of the chain, the second of which leads back to the first.
    guest.tx.offer(&memory, head, &[(0, 1, 1), (0, 1, 1)]);
    let second = 0x2_0000 + (u64::from(head) + 1) * 16 + 14;
    vm_memory::Bytes::write_obj(&*memory, head, vm_memory::GuestAddress(second)).expect("write");
    guest.tx.notify(&memory);
    guest.turn();
    guest.send_op(PORT, port, op::CREDIT_REQUEST);
    guest.expect(op::CREDIT_UPDATE);
}

#[test]
fn receive_buffers_that_are_none_are_given_back() {
    let mut guest = Guest::new();
    guest.refill = false;
    // The good buffers are used up by resets.
    for port in 0..16 {
        guest.send_op(PORT, port, op::REQUEST);
        guest.expect(op::RST);
    }
    let memory = guest.memory.clone();
    for chain in [(0, 100, 0), (0, 10, 2), (u64::MAX, 100, 2)] {
        let head = guest.rx.take_free().expect("free");
        guest.rx.offer(&memory, head, &[chain]);
    }
    let head = guest.rx.take_free().expect("free");
    guest.give_buffer(head);
    guest.turn();
    guest.send_op(PORT, 99, op::REQUEST);
    for _ in 0..3 {
        assert_eq!(guest.rx_used_len(), Some(0));
    }
    guest.expect(op::RST);
}

#[test]
fn a_flood_of_requests_leaves_a_bounded_number_of_resets() {
    let mut guest = Guest::new();
    guest.refill = false;
    for port in 0..10 * MAX_RESETS as u32 {
        guest.send_op(port, port, op::REQUEST);
    }
    assert_eq!(guest.device().queued_resets(), MAX_RESETS);
}

#[test]
fn an_available_index_that_jumps_stops_the_queue_alone() {
    let (mut guest, _reader, _) = with_stream();
    let memory = guest.memory.clone();
    guest.tx.set_avail(&memory, 40_000);
    guest.tx.notify(&memory);
    guest.turn();
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\n").expect("write");
    guest.expect(op::REQUEST);
}

#[test]
fn a_head_outside_the_table_stops_the_queue() {
    let (mut guest, _reader, _) = with_stream();
    let memory = guest.memory.clone();
    guest.tx.offer(&memory, 9999, &[]);
    guest.tx.notify(&memory);
    guest.turn();
}

/// What the guest does in one step of its attack.
#[derive(Debug, Clone)]
enum Step {
    Packet(Header, Vec<u8>),
    Raw(Vec<(u64, u32, u16)>),
    Client(Vec<u8>),
    Read,
}

fn any_header() -> impl Strategy<Value = Header> {
    let cid = prop_oneof![4 => Just(GUEST_CID), 1 => any::<u64>()];
    let guest_port = prop_oneof![3 => Just(PORT), 2 => Just(1024), 1 => any::<u32>()];
    let host_port = prop_oneof![4 => FIRST_PORT..FIRST_PORT + 8, 1 => any::<u32>()];
    let count = || prop_oneof![2 => Just(0u32), 1 => 0..300_000u32, 1 => any::<u32>()];
    let type_ = prop_oneof![9 => Just(1u16), 1 => any::<u16>()];
    let op = prop_oneof![9 => 0..9u16, 1 => any::<u16>()];
    let ports = (guest_port, host_port);
    (cid, ports, count(), type_, op, 0..5u32, count(), count()).prop_map(
        |(src_cid, (src_port, dst_port), len, type_, op, flags, buf_alloc, fwd_cnt)| Header {
            src_cid,
            dst_cid: HOST_CID,
            src_port,
            dst_port,
            len,
            type_,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        },
    )
}

fn any_step() -> impl Strategy<Value = Step> {
    let payload = prop_oneof![
        Just(vec![]),
        prop::collection::vec(any::<u8>(), 0..5_000),
        Just(vec![7; 65536])
    ];
    let descriptor = (
        prop_oneof![0..0x30_0000u64, any::<u64>()],
        prop_oneof![0..70_000u32, any::<u32>()],
        0..8u16,
    );
    let line = prop_oneof![
        Just(b"CONNECT 1024\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..80)
    ];
    prop_oneof![
        12 => (any_header(), payload, any::<bool>()).prop_map(|(mut header, payload, honest)| {
            if honest {
                header.len = payload.len() as u32;
            }
            Step::Packet(header, payload)
        }),
        1 => prop::collection::vec(descriptor, 1..4).prop_map(Step::Raw),
        2 => line.prop_map(Step::Client),
        3 => Just(Step::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_sequence_of_packets_is_survived(steps in prop::collection::vec(any_step(), 1..40)) {
        let mut guest = Guest::new();
        let mut pipes = Vec::new();
        let mut streams = Vec::new();
        for direction in [Direction::FromGuest, Direction::ToGuest, Direction::Duplex] {
            let (reader, writer) = pipe();
            let (mine, theirs) = match direction {
                Direction::ToGuest => (writer, reader),
                _ => (reader, writer),
            };
            pipes.push(mine);
            streams.push((direction, theirs));
        }
        guest.device().attach(streams).expect("attach");
        let mut clients = Vec::new();
        for step in steps {
            match step {
                Step::Packet(header, payload) => {
                    if guest.can_send() {
                        guest.send(header, &payload);
                    }
                }
                Step::Raw(chain) => {
                    let memory = guest.memory.clone();
                    if let Some(head) = guest.tx.take_free() {
                        guest.tx.offer(&memory, head, &chain);
                        guest.tx.notify(&memory);
                    }
                }
                Step::Client(line) => {
                    let mut client = guest.client();
                    let _ = client.write_all(&line);
                    clients.push(client);
                }
                Step::Read => while guest.received().is_some() {},
            }
            guest.turn();
            let device = guest.device();
            prop_assert!(device.streams() <= 3 + clients.len());
            prop_assert!(device.queued_resets() <= MAX_RESETS);
            prop_assert!(device.buffered() <= device.streams() * BUFFER_SIZE as usize);
        }
    }
}
