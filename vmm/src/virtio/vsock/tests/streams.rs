//! Bytes between ports and descriptors: order, ends, credit, slow readers.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::driver::{GUEST_BUFFER, Guest, is_readable, pipe, read_to_end};
use crate::virtio::vsock::claims::TOKEN_LENGTH;
use crate::virtio::vsock::connection::BUFFER_SIZE;
use crate::virtio::vsock::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use crate::virtio::vsock::{Direction, VsockError};

const PORT: u32 = 5000;

fn offer(guest: &Guest, direction: Direction, fd: OwnedFd) -> u32 {
    let attached = guest
        .device()
        .attach(vec![(direction, fd)])
        .expect("attach");
    attached.streams[0].port
}

#[test]
fn what_the_guest_sends_is_written_to_the_descriptor() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe();
    let port = offer(&guest, Direction::FromGuest, writer);
    guest.dial(PORT, port);
    guest.send_data(PORT, port, b"hello ");
    guest.send_data(PORT, port, b"world");
    guest.send_shutdown(PORT, port, SHUTDOWN_SEND);
    guest.expect(op::RST);
    assert_eq!(read_to_end(reader), b"hello world");
}

#[test]
fn what_the_descriptor_gives_goes_to_the_guest_and_then_its_end() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe();
    let port = offer(&guest, Direction::ToGuest, reader);
    guest.dial(PORT, port);
    rustix::io::write(&writer, b"hello").expect("write");
    assert_eq!(guest.expect(op::RW).1, b"hello");
    drop(writer);
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND);
    guest.expect_nothing();
    guest.send_shutdown(PORT, port, SHUTDOWN_BOTH);
    guest.expect(op::RST);
}

#[test]
fn large_data_fills_many_buffers_in_order() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe();
    let port = offer(&guest, Direction::ToGuest, reader);
    guest.dial(PORT, port);
    let sent: Vec<u8> = (0..60_000u32).map(|n| (n % 251) as u8).collect();
    rustix::io::write(&writer, &sent).expect("write");
    let mut got = Vec::new();
    while got.len() < sent.len() {
        got.extend(guest.expect(op::RW).1);
    }
    assert_eq!(got, sent);
}

#[test]
fn a_duplex_stream_closes_half_by_half() {
    let mut guest = Guest::new();
    let (near, mut far) = UnixStream::pair().expect("sockets");
    let port = offer(&guest, Direction::Duplex, near.into());
    guest.dial(PORT, port);
    far.write_all(b"question").expect("write");
    assert_eq!(guest.expect(op::RW).1, b"question");
    far.shutdown(std::net::Shutdown::Write).expect("shutdown");
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND);
    guest.send_data(PORT, port, b"answer");
    guest.send_shutdown(PORT, port, SHUTDOWN_SEND);
    assert_eq!(read_to_end(far.into()), b"answer");
}

#[test]
fn a_closed_socket_ends_both_directions() {
    let mut guest = Guest::new();
    let (near, far) = UnixStream::pair().expect("sockets");
    let port = offer(&guest, Direction::Duplex, near.into());
    guest.dial(PORT, port);
    drop(far);
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_BOTH);
    guest.send_op(PORT, port, op::RST);
    guest.expect_nothing();
}

#[test]
fn a_socket_may_be_one_streams_source_and_anothers_drain() {
    let mut guest = Guest::new();
    let (near, far) = UnixStream::pair().expect("sockets");
    let also_near = near.try_clone().expect("a descriptor");
    let source = offer(&guest, Direction::ToGuest, near.into());
    let drain = offer(&guest, Direction::FromGuest, also_near.into());
    guest.dial(PORT, source);
    guest.dial(PORT + 1, drain);
    far.shutdown(std::net::Shutdown::Write).expect("shutdown");
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND);
    guest.send_shutdown(PORT, source, SHUTDOWN_BOTH);
    guest.expect(op::RST);
    guest.send_data(PORT + 1, drain, b"answer");
    guest.send_shutdown(PORT + 1, drain, SHUTDOWN_SEND);
    guest.expect(op::RST);
    assert_eq!(read_to_end(far.into()), b"answer");
}

#[test]
fn an_unanswered_shutdown_ends_in_a_reset() {
    let mut guest = Guest::new();
    guest.device().shorten_timeouts();
    let (near, far) = UnixStream::pair().expect("sockets");
    let port = offer(&guest, Direction::Duplex, near.into());
    guest.dial(PORT, port);
    drop(far);
    guest.expect(op::SHUTDOWN);
    guest.expect(op::RST);
}

#[test]
fn a_reader_that_leaves_is_the_guests_broken_pipe() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe();
    let port = offer(&guest, Direction::FromGuest, writer);
    guest.dial(PORT, port);
    drop(reader);
    guest.send_data(PORT, port, b"to nobody");
    let (header, _) = guest.expect(op::SHUTDOWN);
    assert_eq!(header.flags & SHUTDOWN_RECEIVE, SHUTDOWN_RECEIVE);
}

#[test]
fn the_guest_is_sent_no_more_than_its_credit() {
    let mut guest = Guest::new();
    let file = tempfile::tempfile().expect("file");
    file.set_len(u64::from(GUEST_BUFFER) + 10).expect("length");
    let port = offer(&guest, Direction::ToGuest, file.into());
    guest.dial(PORT, port);
    let mut got = 0;
    while let Some((header, _)) = guest.received() {
        match header.op {
            op::RW => got += header.len,
            other => assert_eq!(other, op::CREDIT_REQUEST),
        }
    }
    assert_eq!(got, GUEST_BUFFER);
    guest.send_credit(PORT, port, 4);
    assert_eq!(guest.expect(op::RW).0.len, 4);
    guest.expect(op::CREDIT_REQUEST);
    guest.send_credit(PORT, port, GUEST_BUFFER);
    assert_eq!(guest.expect(op::RW).0.len, 6);
    guest.expect(op::SHUTDOWN);
}

#[test]
fn a_slow_reader_costs_the_guest_its_credit_and_no_other_stream_anything() {
    let mut guest = Guest::new();
    let (slow_reader, slow_writer) = pipe();
    let (reader, writer) = pipe();
    let slow = offer(&guest, Direction::FromGuest, slow_writer);
    let quick = offer(&guest, Direction::FromGuest, writer);
    guest.dial(PORT, slow);
    guest.dial(PORT + 1, quick);
    let piece = vec![7; 64 * 1024];
    for _ in 0..BUFFER_SIZE / 65536 {
        guest.send_data(PORT, slow, &piece);
    }
    guest.send_data(PORT + 1, quick, b"through");
    let mut bytes = [0; 16];
    assert_eq!(rustix::io::read(&reader, &mut bytes), Ok(7));

    // The slow reader wakes up, and the guest hears of new room.
    let mut drained = 0;
    let mut told = 0;
    let mut piece = vec![0; 64 * 1024];
    while drained < BUFFER_SIZE as usize {
        drained += rustix::io::read(&slow_reader, &mut piece).expect("read");
        assert!(piece.iter().all(|byte| *byte == 7));
        while let Some((header, _)) = guest.received() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            told = header.fwd_cnt;
        }
    }
    assert!(told >= BUFFER_SIZE / 2);
}

#[test]
fn a_request_for_credit_is_answered() {
    let mut guest = Guest::new();
    let (_reader, writer) = pipe();
    let port = offer(&guest, Direction::FromGuest, writer);
    guest.dial(PORT, port);
    guest.send_data(PORT, port, b"12345");
    guest.send_op(PORT, port, op::CREDIT_REQUEST);
    let (header, _) = guest.expect(op::CREDIT_UPDATE);
    assert_eq!(
        (header.buf_alloc, header.fwd_cnt),
        (BUFFER_SIZE, TOKEN_LENGTH as u32 + 5)
    );
}

#[test]
fn a_group_is_done_when_all_is_written() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe();
    let (stdin, _stdin_writer) = pipe();
    let streams = vec![(Direction::ToGuest, stdin), (Direction::FromGuest, writer)];
    let group = guest.device().attach(streams).expect("attach");
    guest.dial(PORT, group.streams[0].port);
    guest.dial(PORT + 1, group.streams[1].port);
    // More than the pipe takes: a rest is buffered.
    let piece = vec![1; 64 * 1024];
    guest.send_data(PORT + 1, group.streams[1].port, &piece);
    guest.send_data(PORT + 1, group.streams[1].port, &piece);
    guest.send_shutdown(PORT + 1, group.streams[1].port, SHUTDOWN_BOTH);
    guest.send_shutdown(PORT, group.streams[0].port, SHUTDOWN_BOTH);
    guest.turn();
    assert!(group.done.read().is_err(), "half of it isn't written");
    let reading = std::thread::spawn(|| read_to_end(reader).len());
    guest.turn_until("the group's end", |_| group.done.read().is_ok());
    assert_eq!(reading.join().expect("reader"), 2 * piece.len());
}

#[test]
fn output_survives_the_guests_end() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe();
    let (_, unclaimed) = pipe();
    let streams = vec![
        (Direction::FromGuest, writer),
        (Direction::FromGuest, unclaimed),
    ];
    let group = guest.device().attach(streams).expect("attach");
    guest.dial(PORT, group.streams[0].port);
    let piece = vec![1; 64 * 1024];
    guest.send_data(PORT, group.streams[0].port, &piece);
    guest.send_data(PORT, group.streams[0].port, &piece);
    guest.device().guest_stopped();
    let reading = std::thread::spawn(|| read_to_end(reader).len());
    guest.turn_until("the group's end", |_| group.done.read().is_ok());
    assert_eq!(reading.join().expect("reader"), 2 * piece.len());
}

#[test]
fn files_and_dev_null_are_always_ready() {
    let mut guest = Guest::new();
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    let port = offer(&guest, Direction::ToGuest, null.into());
    guest.dial(PORT, port);
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND);

    let mut file = tempfile::tempfile().expect("file");
    file.write_all(b"before ").expect("write");
    let port = offer(
        &guest,
        Direction::FromGuest,
        file.try_clone().expect("dup").into(),
    );
    guest.dial(PORT, port);
    guest.send_data(PORT, port, b"after");
    std::io::Seek::rewind(&mut file).expect("rewind");
    assert_eq!(read_to_end(file.into()), b"before after");
}

#[test]
fn a_shared_description_keeps_its_flags() {
    let mut guest = Guest::new();
    let (_reader, writer) = pipe();
    let port = offer(
        &guest,
        Direction::FromGuest,
        writer.try_clone().expect("dup"),
    );
    guest.dial(PORT, port);
    for _ in 0..BUFFER_SIZE / 65536 {
        guest.send_data(PORT, port, &[0; 65536]);
    }
    let flags = rustix::fs::fcntl_getfl(writer.as_fd()).expect("flags");
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn streams_stand_still_without_buffers_and_go_on_with_them() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe();
    let port = offer(&guest, Direction::ToGuest, reader);
    guest.dial(PORT, port);
    guest.refill = false;
    let mut got = 0;
    for _ in 0..4 {
        rustix::io::write(&writer, &[0; 16384]).expect("write");
        while let Some((_, payload)) = guest.received() {
            got += payload.len();
        }
    }
    assert_eq!(got, 16 * 4096, "as many buffers as there were");
    rustix::io::write(&writer, b"more").expect("write");
    guest.expect_nothing();
    guest.refill = true;
    while let Some(head) = guest.rx.take_free() {
        guest.give_buffer(head);
    }
    assert_eq!(guest.expect(op::RW).1, b"more");
}

#[test]
fn a_fixed_port_is_offered_once() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe();
    let offered = guest.device().attach_at(1, Direction::FromGuest, writer);
    offered.expect("offer");
    let (_, another) = pipe();
    let taken = guest.device().attach_at(1, Direction::FromGuest, another);
    assert!(matches!(taken, Err(VsockError::PortTaken(1))));
    guest.dial(PORT, 1);
    guest.send_data(PORT, 1, b"!");
    assert!(is_readable(&reader));
}

#[test]
fn a_reset_driver_finds_no_connections_but_the_ports_on_offer() {
    let mut guest = Guest::new();
    let (connected_reader, connected_writer) = pipe();
    let (_reader, writer) = pipe();
    let connected = offer(&guest, Direction::FromGuest, connected_writer);
    let waiting = offer(&guest, Direction::FromGuest, writer);
    guest.dial(PORT, connected);
    guest.reset();
    assert_eq!(read_to_end(connected_reader), b"");
    guest.send_data(PORT, connected, b"late");
    guest.expect(op::RST);
    guest.dial(PORT, waiting);
}

#[test]
fn with_event_idx_no_kick_is_missed_and_interrupts_are_few() {
    let mut guest = Guest::with_event_idx();
    let (near, mut far) = UnixStream::pair().expect("sockets");
    let port = offer(&guest, Direction::Duplex, near.into());
    guest.dial(PORT, port);
    guest.refill = false;
    for round in 0..50 {
        guest.send_data(PORT, port, b"from the guest");
        let mut bytes = [0; 14];
        std::io::Read::read_exact(&mut far, &mut bytes).expect("read");

        guest.send_credit(PORT, port, u32::from(round) * 16384);
        guest.interrupts();
        far.write_all(&[round; 16384]).expect("write");
        let mut got = Vec::new();
        while let Some((_, payload)) = guest.received() {
            got.extend(payload);
            // Only when the last buffer is gone are there new ones.
            if got.len() == 16384 {
                break;
            }
        }
        assert_eq!(guest.interrupts(), 1, "for four packets");
        while let Some(head) = guest.rx.take_free() {
            guest.give_buffer(head);
        }
        assert_eq!(got, [round; 16384]);
    }
}
