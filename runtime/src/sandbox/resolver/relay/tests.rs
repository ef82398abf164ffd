//! The relay in a main loop, between an agent and a resolver that the test is.

use super::*;
use std::io::{BufReader, Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use hull_protocol::resolver::{MAX_DATAGRAM, MAX_MESSAGE};
use hull_vmm::EventLoop;
use hull_vmm::event_loop::StopHandle;
use hull_vmm::virtio::vsock::Vsock;

use crate::host::send_with_fds;
use crate::sandbox::socket;

/// The main thread of a VM process, as far as a resolver is concerned.
struct Vmm {
    folder: tempfile::TempDir,
    stop: StopHandle,
}

impl Vmm {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("socket")).expect("a socket");
        let mut vsock = Vsock::new(3, 0x1_0000, listener).expect("a device");
        let mut events = EventLoop::new().expect("a loop");
        let relay = Arc::new(Mutex::new(Relay::new().expect("an eventfd")));
        events.add(Arc::clone(&relay) as _);
        vsock.on_other_requests(move |request| {
            drop(relay.lock().expect("free").take(request));
        });
        events.add(Arc::new(Mutex::new(vsock)));
        let stop = events.stop_handle();
        events.spawn("main", |_| Ok(())).expect("a thread");
        Self { folder, stop }
    }

    /// What is answered to a request with these descriptors.
    fn ask(&self, descriptors: &[&dyn AsFd]) -> String {
        let path = self.folder.path().join("socket");
        let mut client = UnixStream::connect(path).expect("a connection");
        let descriptors: Vec<_> = descriptors.iter().map(|one| one.as_fd()).collect();
        send_with_fds(&mut client, b"RESOLVER\n", &descriptors).expect("sent");
        let timeout = Some(Duration::from_secs(20));
        socket::answer(&mut BufReader::new(client), 100, timeout).expect("an answer")
    }

    /// The agent's end of a new relay to that resolver.
    fn relay(&self, resolver: &UdpSocket) -> UnixStream {
        let (agent, vmms) = UnixStream::pair().expect("sockets");
        let timeout = Some(Duration::from_secs(20));
        agent.set_read_timeout(timeout).expect("a time limit");
        resolver.set_read_timeout(timeout).expect("a time limit");
        assert_eq!(self.ask(&[&vmms, &connected(resolver)]), "OK\n");
        agent
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

fn resolver() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").expect("a socket")
}

fn connected(resolver: &UdpSocket) -> OwnedFd {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = resolver.local_addr().expect("an address");
    socket.connect(address).expect("connected");
    socket.into()
}

fn say(mut agent: &UnixStream, message: &[u8]) {
    let length = u16::try_from(message.len())
        .expect("a length")
        .to_be_bytes();
    agent.write_all(&[&length, message].concat()).expect("sent");
}

fn hear(mut agent: &UnixStream) -> Vec<u8> {
    let mut length = [0; 2];
    agent.read_exact(&mut length).expect("a length");
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    agent.read_exact(&mut message).expect("a message");
    message
}

#[test]
fn messages_of_any_length_go_both_ways() {
    let (vmm, resolver) = (Vmm::new(), resolver());
    let agent = vmm.relay(&resolver);
    let mut bytes = vec![0; MAX_MESSAGE];
    for length in [1, 12, 512, 4097, MAX_DATAGRAM] {
        let message = vec![length.to_le_bytes()[0]; length];
        say(&agent, &message);
        let (count, client) = resolver.recv_from(&mut bytes).expect("a question");
        assert_eq!(bytes[..count], message, "{length} bytes");
        resolver.send_to(&message, client).expect("answered");
        assert_eq!(hear(&agent), message, "{length} bytes back");
    }
    // None that is longer is a datagram: it is lost, and nothing else is.
    say(&agent, &vec![0; MAX_DATAGRAM + 1]);
    say(&agent, b"next");
    assert_eq!(resolver.recv(&mut bytes).expect("the next one"), 4);
}

#[test]
fn an_agent_that_takes_no_answers_holds_nothing_up() {
    let (vmm, resolver) = (Vmm::new(), resolver());
    let agent = vmm.relay(&resolver);
    say(&agent, b"first");
    let mut bytes = [0; 100];
    let (_, client) = resolver.recv_from(&mut bytes).expect("a question");
    for number in 0_u16..2000 {
        let answer = [&number.to_be_bytes()[..], &[0; 998]].concat();
        resolver.send_to(&answer, client).expect("sent");
    }
    say(&agent, b"second");
    assert_eq!(resolver.recv(&mut bytes).expect("the second one"), 6);
    // Those that it has are whole, and in order; others are lost.
    let answers: Vec<_> = (0..50).map(|_| hear(&agent)).collect();
    assert!(answers.iter().all(|answer| answer.len() == 1000));
    assert!(answers.is_sorted_by_key(|answer| [answer[0], answer[1]]));
}

#[test]
fn a_later_request_takes_the_place_of_an_earlier_one() {
    let (vmm, first, second) = (Vmm::new(), resolver(), resolver());
    let left = vmm.relay(&first);
    let agent = vmm.relay(&second);
    assert_eq!((&left).read(&mut [0]).expect("its end"), 0);
    say(&agent, b"hello");
    assert_eq!(second.recv(&mut [0; 100]).expect("a question"), 5);
    drop(agent);
    let agent = vmm.relay(&first);
    say(&agent, b"again");
    assert_eq!(first.recv(&mut [0; 100]).expect("a question"), 5);
}

#[test]
fn a_request_has_a_stream_and_one_socket_or_two() {
    let (vmm, resolver) = (Vmm::new(), resolver());
    let (_agent, vmms) = UnixStream::pair().expect("sockets");
    let socket = connected(&resolver);
    assert!(vmm.ask(&[&vmms]).starts_with("ERROR expected a stream"));
    assert_eq!(vmm.ask(&[&vmms, &socket, &socket]), "OK\n");
}

#[test]
fn where_nobody_listens_any_more_the_other_socket_is_used() {
    let (old, new) = (resolver(), resolver());
    let sockets = [&old, &new].map(|resolver| Socket::new(connected(resolver)));
    let mut sockets = Sockets {
        sockets: sockets.into(),
        used: 0,
    };
    drop(old);
    let timeout = Some(Duration::from_secs(20));
    new.set_read_timeout(timeout).expect("a time limit");
    let receive = || new.recv(&mut [0; 10]).expect("a question");
    let now = Instant::now();
    // Lost, which the kernel tells at once.
    sockets.send(b"1", now);
    sockets.send(b"12", now);
    assert_eq!(receive(), 2);
    assert!(sockets.sockets[0].rests(now));
    sockets.sockets[1].refused(now);
    sockets.send(b"123", now);
    sockets.send(b"1234", now + REST);
    assert_eq!(receive(), 4, "while both rest, nothing is sent");
}

#[test]
fn a_socket_that_had_answers_rests_longer() {
    let resolver = resolver();
    let mut socket = Socket::new(connected(&resolver));
    let now = Instant::now();
    socket.refused(now);
    assert!(socket.rests(now) && !socket.rests(now + REST));
    socket.has_answered = true;
    socket.refused(now);
    assert!(socket.rests(now + REST) && !socket.rests(now + REST_AFTER_ANSWERS));
}
