//! The control socket: the requests of its clients, and clients that misbehave.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::driver::{FIRST_PORT, Guest, is_readable, pipe, read_to_end};
use crate::virtio::vsock::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_SEND, op};

const AGENT: u32 = 1024;

/// Reads one line, while the loop runs; nothing if the socket is closed.
fn line(guest: &mut Guest, client: &mut UnixStream) -> String {
    guest.turn_until("an answer", |_| is_readable(&*client));
    let mut text = String::new();
    let mut byte = [0];
    // A socket that is closed with something unread gives ECONNRESET.
    while !text.ends_with('\n') && client.read(&mut byte).unwrap_or(0) == 1 {
        text.push(byte[0].into());
    }
    text
}

fn send_fds(client: &UnixStream, line: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = sendmsg(
        client,
        &[IoSlice::new(line)],
        &mut control,
        SendFlags::empty(),
    );
    assert_eq!(sent, Ok(line.len()));
}

/// A client whose `CONNECT` the guest has accepted, and the header of its `REQUEST`.
fn connected(guest: &mut Guest) -> (UnixStream, Header) {
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\n").expect("write");
    let (request, _) = guest.expect(op::REQUEST);
    guest.send_op(AGENT, request.src_port, op::RESPONSE);
    let answer = line(guest, &mut client);
    assert_eq!(answer, format!("OK {}\n", request.src_port));
    (client, request)
}

/// The ports in an answer, whose tokens must be those of the offers.
fn ports(guest: &Guest, answer: &str) -> [u32; 3] {
    let streams = answer.trim_end().strip_prefix("OK ").expect("OK");
    let port = |stream: &str| {
        let Some((port, token)) = stream.split_once(':') else {
            return stream.parse().expect("a number");
        };
        let port = port.parse().expect("a number");
        let token = u128::from_str_radix(token, 16).expect("hexadecimal digits");
        assert_eq!(guest.device().token(port), Some(token.to_be_bytes()));
        port
    };
    let numbers: Vec<u32> = streams.split(' ').map(port).collect();
    numbers.try_into().expect("three")
}

#[test]
fn connect_dials_the_guest_and_the_socket_becomes_the_stream() {
    let mut guest = Guest::new();
    let (mut client, request) = connected(&mut guest);
    assert_eq!(request.dst_port, AGENT);
    assert!(request.src_port >= FIRST_PORT);
    client.write_all(b"ping").expect("write");
    assert_eq!(guest.expect(op::RW).1, b"ping");
    guest.send_data(AGENT, request.src_port, b"pong");
    let mut answer = [0; 4];
    client.read_exact(&mut answer).expect("read");
    assert_eq!(&answer, b"pong");
    guest.send_shutdown(AGENT, request.src_port, SHUTDOWN_BOTH);
    guest.expect(op::RST);
    assert_eq!(read_to_end(client.into()), b"");
}

#[test]
fn bytes_right_behind_the_connect_line_belong_to_the_stream() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\nimpatient").expect("write");
    let (request, _) = guest.expect(op::REQUEST);
    guest.send_op(AGENT, request.src_port, op::RESPONSE);
    assert_eq!(guest.expect(op::RW).1, b"impatient");
}

#[test]
fn a_refused_connect_closes_the_socket() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\n").expect("write");
    let (request, _) = guest.expect(op::REQUEST);
    guest.send_op(AGENT, request.src_port, op::RST);
    assert_eq!(read_to_end(client.into()), b"");
    guest.expect_nothing();
}

#[test]
fn an_unanswered_connect_closes_the_socket() {
    let mut guest = Guest::new();
    guest.device().shorten_timeouts();
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\n").expect("write");
    guest.expect(op::REQUEST);
    guest.expect(op::RST);
    assert_eq!(read_to_end(client.into()), b"");
}

#[test]
fn connect_is_refused_while_there_is_no_driver() {
    let mut guest = Guest::without_driver();
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\n").expect("write");
    assert_eq!(line(&mut guest, &mut client), "");
}

#[test]
fn attach_offers_descriptors_and_says_when_they_are_done() {
    let mut guest = Guest::new();
    let (stdin, stdin_writer) = pipe();
    let (stdout_reader, stdout) = pipe();
    let mut client = guest.client();
    send_fds(&client, b"ATTACH rw-\n", &[stdin.as_fd(), stdout.as_fd()]);
    drop((stdin, stdout));
    let answer = line(&mut guest, &mut client);
    let [stdin, stdout, none] = ports(&guest, &answer);
    assert_eq!(none, 0);
    guest.dial(1, stdin);
    guest.dial(2, stdout);
    drop(stdin_writer);
    guest.expect(op::SHUTDOWN);
    guest.send_data(2, stdout, b"output");
    guest.send_shutdown(2, stdout, SHUTDOWN_SEND);
    guest.expect(op::RST);
    assert!(!is_readable(&client), "stdin isn't done");
    guest.send_shutdown(1, stdin, SHUTDOWN_BOTH);
    assert_eq!(read_to_end(client.into()), b"DONE\n");
    assert_eq!(read_to_end(stdout_reader), b"output");
}

#[test]
fn streams_outlive_a_client_that_leaves() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe();
    let mut client = guest.client();
    send_fds(&client, b"ATTACH -w-\n", &[writer.as_fd()]);
    drop(writer);
    let answer = line(&mut guest, &mut client);
    let [_, port, _] = ports(&guest, &answer);
    drop(client);
    guest.turn();
    guest.dial(1, port);
    guest.send_data(1, port, b"still here");
    guest.send_shutdown(1, port, SHUTDOWN_BOTH);
    guest.expect(op::RST);
    assert_eq!(read_to_end(reader), b"still here");
}

#[test]
fn a_port_whose_client_left_is_withdrawn_after_a_while() {
    let mut guest = Guest::new();
    guest.device().shorten_timeouts();
    let (reader, writer) = pipe();
    let client = guest.client();
    send_fds(&client, b"ATTACH -w-\n", &[writer.as_fd()]);
    drop((writer, client));
    guest.turn_until("the pipe's end", |_| is_readable(&reader));
    assert_eq!(guest.device().streams(), 0);
}

#[test]
fn nonsense_closes_the_socket() {
    let (_reader, writer) = pipe();
    let too_long = [b'x'; 80];
    let cases: [(&[u8], usize); 10] = [
        (b"HELLO\n", 0),
        (b"CONNECT\n", 0),
        (b"CONNECT +1\n", 0),
        (b"CONNECT 4294967296\n", 0),
        (b"CONNECT 1\n", 1),
        (b"ATTACH rw\n", 2),
        (b"ATTACH rwx\n", 3),
        (b"ATTACH rww\n", 2),
        (b"ATTACH ---\n", 0),
        (&too_long, 0),
    ];
    let mut guest = Guest::new();
    for (request, fds) in cases {
        let mut client = guest.client();
        match fds {
            0 => client.write_all(request).expect("write"),
            fds => send_fds(&client, request, &vec![writer.as_fd(); fds]),
        }
        assert_eq!(line(&mut guest, &mut client), "", "{request:?}");
    }
    assert_eq!(guest.device().streams(), 0);
}

#[test]
fn more_descriptors_than_a_request_has_are_not_taken() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe();
    let mut client = guest.client();
    send_fds(&client, b"ATTACH rww\n", &[writer.as_fd(); 8]);
    drop(writer);
    assert_eq!(line(&mut guest, &mut client), "");
    assert_eq!(read_to_end(reader), b"", "none was kept");
}

#[test]
fn a_client_without_a_request_is_disconnected() {
    let mut guest = Guest::new();
    guest.device().shorten_timeouts();
    let mut client = guest.client();
    client.write_all(b"CONN").expect("write");
    assert_eq!(line(&mut guest, &mut client), "");
}

#[test]
fn other_requests_go_to_the_handler() {
    let mut guest = Guest::new();
    let mut unheard = guest.client();
    unheard.write_all(b"DISK a ro\n").expect("write");
    assert_eq!(line(&mut guest, &mut unheard), "", "nobody takes it");

    let (taker, taken) = mpsc::channel();
    let take = move |request| taker.send(request).expect("the test waits");
    guest.device().on_other_requests(take);
    let (reader, writer) = pipe();
    let mut client = guest.client();
    send_fds(&client, b"DISK a ro\n", &[writer.as_fd()]);
    drop(writer);
    guest.turn();
    let request = taken.try_recv().expect("taken");
    assert_eq!(request.line, "DISK a ro");
    assert_eq!(request.descriptors.len(), 1);
    drop(request.descriptors);
    assert_eq!(read_to_end(reader), b"", "none was kept");
    client.write_all(b"whatever\n").expect("write");
    guest.turn();
    request.client.answer("OK 3");
    assert_eq!(line(&mut guest, &mut client), "OK 3\n");
    assert_eq!(line(&mut guest, &mut client), "", "it is closed");

    let mut client = guest.client();
    client.write_all(b"CONNECT\n").expect("write");
    assert_eq!(line(&mut guest, &mut client), "", "that is about streams");
    taken.try_recv().expect_err("nothing else");
}
