//! Streams that another thread gives to the device while the guest runs.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::driver::{Guest, is_readable};
use crate::virtio::vsock::Offered;
use crate::virtio::vsock::given::{FIRST_PORT, MOST};
use crate::virtio::vsock::packet::{SHUTDOWN_BOTH, SHUTDOWN_SEND, op};

const PORT: u32 = 5000;

/// A stream that is given: the end that the test keeps, and where the guest finds the other.
fn given(guest: &Guest) -> (UnixStream, Offered) {
    let (near, far) = UnixStream::pair().expect("sockets");
    let offered = guest.giver.give(near.into()).expect("given");
    (far, offered)
}

#[test]
fn a_stream_is_found_at_its_port_at_once_and_goes_both_ways() {
    let mut guest = Guest::new();
    // The loop hears of the packet first.
    guest.post(Guest::header(PORT, FIRST_PORT, op::REQUEST), &[]);
    let (mut far, Offered { port, token }) = given(&guest);
    guest.expect(op::RESPONSE);
    guest.send_data(PORT, port, &token);
    guest.send_data(PORT, port, b"question");
    guest.send_shutdown(PORT, port, SHUTDOWN_SEND);
    let mut asked = String::new();
    far.read_to_string(&mut asked).expect("to its end");
    assert_eq!(asked, "question");
    far.write_all(b"answer").expect("half of it is open");
    assert_eq!(guest.expect(op::RW).1, b"answer");
    drop(far);
    guest.expect(op::RST);
}

#[test]
fn a_port_that_was_not_given_is_reset_and_one_that_was_needs_its_token() {
    let mut guest = Guest::new();
    guest.send_op(PORT, FIRST_PORT, op::REQUEST);
    guest.expect(op::RST);
    let (far, Offered { port, token }) = given(&guest);
    guest.claim(PORT, port);
    let guess = token.map(|byte| !byte);
    guest.send_data(PORT, port, &guess);
    guest.expect(op::RST);
    assert!(!is_readable(&far));
    guest.dial(PORT, port);
}

#[test]
fn one_that_nobody_comes_for_is_closed_after_a_while() {
    let mut guest = Guest::new();
    guest.device().shorten_timeouts();
    let (far, _) = given(&guest);
    guest.turn_until("the end of the stream", |_| is_readable(&far));
    assert_eq!(guest.device().streams(), 0);
}

#[test]
fn there_are_only_so_many_and_one_that_ends_makes_room() {
    let mut guest = Guest::new();
    let mut kept = Vec::new();
    while !guest.giver.is_full() {
        kept.push(given(&guest));
        guest.turn();
    }
    assert_eq!(kept.len(), MOST);
    let (_, Offered { port, .. }) = kept[7];
    guest.dial(PORT, port);
    guest.send_shutdown(PORT, port, SHUTDOWN_BOTH);
    guest.expect(op::RST);
    assert!(!guest.giver.is_full());
}

/// A giver that has been taken over can't have a stream at another's port.
#[test]
fn what_comes_with_a_port_of_others_is_closed() {
    let mut guest = Guest::new();
    for message in [&[0; 20][..], &[0xff; 20], &[0; 3], &[]] {
        let (near, far) = UnixStream::pair().expect("sockets");
        send(&guest, message, near.into());
        guest.turn();
        assert!(is_readable(&far), "{message:?}");
        assert_eq!(guest.device().streams(), 0);
    }
    let (_far, _) = given(&guest);
    guest.turn();
    assert_eq!(guest.device().streams(), 1);
}

fn send(guest: &Guest, message: &[u8], stream: OwnedFd) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [stream.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let message = [std::io::IoSlice::new(message)];
    sendmsg(
        guest.giver.socket(),
        &message,
        &mut control,
        SendFlags::empty(),
    )
    .expect("sent");
}
