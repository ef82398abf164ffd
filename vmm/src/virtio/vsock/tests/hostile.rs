//! A guest that violates the protocol: nothing panics, and nothing grows without bound.

use std::io::Write;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::driver::{FIRST_PORT, GUEST_CID, Guest, is_readable, pipe, read_to_end};
use crate::virtio::vsock::claims::{MAX_CLAIMS, TOKEN_LENGTH};
use crate::virtio::vsock::connection::BUFFER_SIZE;
use crate::virtio::vsock::muxer::MAX_REPLIES;
use crate::virtio::vsock::packet::{HEADER_SIZE, Header, SHUTDOWN_SEND, op};
use crate::virtio::vsock::{Direction, HOST_CID};

const PORT: u32 = 5000;

/// A guest that is offered one stream from it, and its port.
fn with_offer() -> (Guest, std::os::fd::OwnedFd, u32) {
    let guest = Guest::new();
    let (reader, writer) = pipe();
    let attached = guest.device().attach(vec![(Direction::FromGuest, writer)]);
    let port = attached.expect("attach").streams[0].port;
    (guest, reader, port)
}

/// A guest with one stream from it, and its port.
fn with_stream() -> (Guest, std::os::fd::OwnedFd, u32) {
    let (mut guest, reader, port) = with_offer();
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
fn a_guess_is_reset_and_leaves_the_offer() {
    let (mut guest, reader, port) = with_offer();
    let token = guest.device().token(port).expect("on offer");
    for byte in 0..TOKEN_LENGTH {
        let mut guess = token;
        guess[byte] ^= 1;
        guest.claim(PORT, port);
        guest.send_data(PORT, port, &guess);
        assert_eq!(guest.expect(op::RST).0.dst_port, PORT);
    }
    guest.dial(PORT, port);
    guest.send_data(PORT, port, b"mine");
    guest.send_shutdown(PORT, port, SHUTDOWN_SEND);
    guest.expect(op::RST);
    assert_eq!(read_to_end(reader), b"mine");
}

#[test]
fn who_sits_on_a_port_does_not_keep_the_other_out() {
    let (mut guest, reader, port) = with_offer();
    // More than there may be: the first ones go.
    for squatter in 0..MAX_CLAIMS as u32 + 4 {
        guest.send_op(PORT + 1 + squatter, port, op::REQUEST);
        while guest.received().is_some() {}
    }
    assert_eq!(guest.device().claims(), MAX_CLAIMS);

    let token = guest.device().token(port).expect("on offer");
    guest.send_op(PORT, port, op::REQUEST);
    while guest.received().is_some() {}
    guest.send_data(PORT, port, &token);
    guest.send_data(PORT, port, b"mine");

    let mut resets = 0;
    while let Some((header, _)) = guest.received() {
        assert_eq!(header.op, op::RST);
        assert_ne!(header.dst_port, PORT);
        resets += 1;
    }
    assert_eq!((resets, guest.device().claims()), (MAX_CLAIMS - 1, 0));
    assert!(is_readable(&reader));
}

#[test]
fn half_a_token_is_reset_after_a_while_and_leaves_the_offer() {
    let (mut guest, reader, port) = with_offer();
    guest.device().shorten_timeouts();
    let token = guest.device().token(port).expect("on offer");
    for part in [&token[..0], &token[..1], &token[..15]] {
        guest.claim(PORT, port);
        if !part.is_empty() {
            guest.send_data(PORT, port, part);
        }
        guest.expect(op::RST);
    }
    assert!(!is_readable(&reader));
    guest.dial(PORT, port);
}

#[test]
fn a_token_may_come_in_parts_and_with_what_follows_it() {
    let (mut guest, reader, port) = with_offer();
    let token = guest.device().token(port).expect("on offer");
    guest.claim(PORT, port);
    guest.send_data(PORT, port, &token[..1]);
    guest.send_data(PORT, port, &token[1..9]);
    assert_eq!(guest.device().claims(), 1);
    guest.send_data(PORT, port, &[&token[9..], b"and more"].concat());
    guest.send_shutdown(PORT, port, SHUTDOWN_SEND);
    guest.expect(op::RST);
    assert_eq!(read_to_end(reader), b"and more");
}

#[test]
fn more_than_the_token_on_a_stream_to_the_guest_resets_it() {
    let mut guest = Guest::new();
    let (reader, _writer) = pipe();
    let attached = guest.device().attach(vec![(Direction::ToGuest, reader)]);
    let stream = attached.expect("attach").streams[0];
    guest.claim(PORT, stream.port);
    guest.send_data(PORT, stream.port, &[&stream.token[..], b"?"].concat());
    guest.expect(op::RST);
    assert_eq!(guest.device().streams(), 0);
}

#[test]
fn nothing_but_a_token_is_taken_from_who_claims_a_port() {
    for operation in [0, 8, op::REQUEST, op::RESPONSE, op::SHUTDOWN, op::RST] {
        let (mut guest, reader, port) = with_offer();
        guest.claim(PORT, port);
        guest.send_op(PORT, port, operation);
        if operation != op::RST {
            guest.expect(op::RST);
        }
        guest.expect_nothing();
        assert_eq!(guest.device().claims(), 0, "operation {operation}");
        assert!(!is_readable(&reader));
        guest.dial(PORT, port);
    }
}

#[test]
fn a_dial_that_is_given_up_leaves_the_offer_without_a_token_too() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe();
    let offered = guest
        .device()
        .attach_without_token(1, Direction::FromGuest, writer);
    offered.expect("offer");
    guest.claim(PORT, 1);
    guest.send_op(PORT, 1, op::RST);
    guest.claim(PORT + 1, 1);
    guest.send_data(PORT + 1, 1, b"hello");
    guest.send_shutdown(PORT + 1, 1, SHUTDOWN_SEND);
    guest.expect(op::RST);
    assert_eq!(read_to_end(reader), b"hello");
}

#[test]
fn a_port_without_a_token_stays_with_who_speaks_first() {
    let mut guest = Guest::new();
    let (_ours, theirs) = UnixStream::pair().expect("a pair");
    let offered = guest
        .device()
        .attach_without_token(3, Direction::Duplex, theirs.into());
    offered.expect("offer");
    guest.claim(PORT + 1, 3);
    guest.claim(PORT, 3);
    guest.send_data(PORT, 3, &[0]);
    assert_eq!(guest.expect(op::RST).0.dst_port, PORT + 1);
    guest.send_op(PORT + 2, 3, op::REQUEST);
    assert_eq!(guest.expect(op::RST).0.dst_port, PORT + 2);

    guest.send_op(PORT, 3, op::RST);
    assert_eq!(guest.device().streams(), 0);
    guest.send_op(PORT, 3, op::REQUEST);
    guest.expect(op::RST);
}

#[test]
fn tokens_are_not_alike() {
    let guest = Guest::new();
    let streams = (0..32).map(|_| (Direction::FromGuest, pipe().1)).collect();
    let attached = guest.device().attach(streams).expect("attach");
    let tokens: std::collections::HashSet<_> =
        attached.streams.iter().map(|stream| stream.token).collect();
    assert_eq!(tokens.len(), 32);
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
    let port = attached.expect("attach").streams[0].port;
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
    for port in 0..10 * MAX_REPLIES as u32 {
        guest.send_op(port, port, op::REQUEST);
    }
    assert_eq!(guest.device().queued_replies(), MAX_REPLIES);
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
    /// The token of one of the ports on offer, from a port.
    Token(u32, u32),
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
        2 => (prop_oneof![Just(PORT), Just(1024)], FIRST_PORT..FIRST_PORT + 8)
            .prop_map(|(from, to)| Step::Token(from, to)),
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
                Step::Token(from, to) => {
                    let token = guest.device().token(to);
                    if let Some(token) = token && guest.can_send() {
                        guest.send_data(from, to, &token);
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
            prop_assert!(device.claims() <= MAX_CLAIMS);
            prop_assert!(device.queued_replies() <= MAX_REPLIES);
            prop_assert!(device.buffered() <= device.streams() * BUFFER_SIZE as usize);
        }
    }
}
