//! The sockets by which a container reaches the resolver: what is sent to its address and port comes to them, although
//! they are bound to ports that nobody has asked for.
//!
//! A socket bound to the resolver's own port would be in the way of a container that serves names itself, at 0.0.0.0:53.
//! Docker's resolver isn't, as packets are redirected to it (NAT). Here a program of the kernel's decides about it when it
//! looks up the socket for a packet (`BPF_PROG_TYPE_SK_LOOKUP`): that costs the container's other packets nothing, needs no
//! connection tracking, and shows in no list of rules. An answer to a datagram then needs the resolver's port as its
//! source, which only a raw socket can give it; one on a connection has it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use hull_protocol::resolver::{ADDRESS, PORT};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};

use crate::bpf::{self, Kind, instruction};

/// `IPPROTO_TCP` and `IPPROTO_UDP`.
const TCP: u32 = 6;
const UDP: u8 = 17;

/// The sockets' places in the program's map.
const TCP_KEY: u32 = 0;
const UDP_KEY: u32 = 1;

/// The lengths of the headers of IP and UDP, in bytes.
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// The first byte of an IP header without options: version 4, five words.
const IPV4: u8 = 0x45;

/// The hops that an answer may take; it takes none.
const TTL: u8 = 64;

/// All of them, in the container's network namespace. They belong to no event loop yet.
#[derive(Debug)]
pub struct Sockets {
    /// Receives questions.
    pub datagrams: std::net::UdpSocket,
    /// Accepts connections.
    pub connections: std::net::TcpListener,
    /// Sends answers to datagrams.
    pub answers: Answers,
    /// Keeps the program in the namespace.
    pub steering: OwnedFd,
}

/// Sends answers to datagrams.
#[derive(Debug)]
pub struct Answers(OwnedFd);

impl Sockets {
    /// To be called by a thread in the namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let datagrams = std::net::UdpSocket::bind((ADDRESS, 0))?;
        datagrams.set_nonblocking(true)?;
        let connections = std::net::TcpListener::bind((ADDRESS, 0))?;
        connections.set_nonblocking(true)?;
        let steering = steer(&connections, &datagrams)?;
        Ok(Self {
            datagrams,
            connections,
            answers: Answers::open()?,
            steering,
        })
    }
}

/// Has the kernel give those two what comes for the resolver.
fn steer(
    connections: &std::net::TcpListener,
    datagrams: &std::net::UdpSocket,
) -> io::Result<OwnedFd> {
    // In the order of their keys.
    let map = bpf::socket_map(&[connections.as_fd(), datagrams.as_fd()])?;
    let program = bpf::load(Kind::SocketLookup, &program(&map))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = openat(CWD, "/proc/thread-self/ns/net", flags, Mode::empty())?;
    bpf::link(&program, namespace.as_fd())
}

/// Registers: the return value, the arguments of a call, of which the first is the program's own at first, two that
/// calls leave alone, and the stack's end.
const RESULT: u8 = 0;
const FIRST: u8 = 1;
const SECOND: u8 = 2;
const THIRD: u8 = 3;
const CONTEXT: u8 = 6;
const SOCKET: u8 = 7;
const STACK: u8 = 10;

/// Opcodes (Documentation/bpf/standardization/instruction-set.rst). `JNE` and `JEQ` take a constant, and `MAP` an
/// instruction more.
const LDXW: u8 = 0x61;
const STXW: u8 = 0x63;
const MOV: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const ADD: u8 = 0x07;
const JNE: u8 = 0x55;
const JEQ: u8 = 0x15;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LDDW: u8 = 0x18;

/// `BPF_PSEUDO_MAP_FD`: the constant is a map's descriptor.
const MAP_FD: u8 = 1;

/// The kernel's functions, `BPF_FUNC_*` of linux/bpf.h.
const MAP_LOOKUP_ELEM: u32 = 1;
const SK_RELEASE: u32 = 86;
const SK_ASSIGN: u32 = 124;

/// Fields of `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_ADDRESS: i16 = 40;
const LOCAL_PORT: i16 = 60;

/// Lets the usual lookup go on, where no socket was assigned.
const SK_PASS: u32 = 1;

/// Where the key for the map is, from the stack's end.
const KEY: i16 = -4;

/// The program: what is sent to the resolver's address and port is for the map's socket of its protocol.
fn program(map: &OwnedFd) -> Vec<u64> {
    let assign = [
        instruction(MOV_REG, SOCKET, RESULT, 0, 0),
        instruction(MOV_REG, FIRST, CONTEXT, 0, 0),
        instruction(MOV_REG, SECOND, SOCKET, 0, 0),
        instruction(MOV, THIRD, 0, 0, 0),
        instruction(CALL, 0, 0, 0, SK_ASSIGN),
        instruction(MOV_REG, FIRST, SOCKET, 0, 0),
        instruction(CALL, 0, 0, 0, SK_RELEASE),
    ];
    let find = [
        instruction(STXW, STACK, THIRD, KEY, 0),
        instruction(LDDW, FIRST, MAP_FD, 0, bpf::number(map)),
        0,
        instruction(MOV_REG, SECOND, STACK, 0, 0),
        instruction(ADD, SECOND, 0, 0, i32::from(KEY).cast_unsigned()),
        instruction(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
    ];
    // TCP's key needs no further look at the protocol.
    let choose_key = [
        instruction(LDXW, SECOND, CONTEXT, PROTOCOL, 0),
        instruction(MOV, THIRD, 0, 0, TCP_KEY),
        instruction(JEQ, SECOND, 0, 2, TCP),
        instruction(MOV, THIRD, 0, 0, UDP_KEY),
    ];
    let found = unless(&find, (JEQ, RESULT, 0), &assign);
    let mut checked = unless(&choose_key, (JNE, SECOND, UDP.into()), &found);
    for (field, wanted) in [
        (LOCAL_PORT, u32::from(PORT)),
        (LOCAL_ADDRESS, u32::from_ne_bytes(ADDRESS.octets())),
        (FAMILY, libc::AF_INET.cast_unsigned()),
    ] {
        let read = [instruction(LDXW, SECOND, CONTEXT, field, 0)];
        checked = unless(&read, (JNE, SECOND, wanted), &checked);
    }
    let mut program = vec![instruction(MOV_REG, CONTEXT, FIRST, 0, 0)];
    program.extend(checked);
    program.push(instruction(MOV, RESULT, 0, 0, SK_PASS));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// Some instructions, and others after them, which this jump skips: its code, its register, and what that is compared to.
fn unless(before: &[u64], (code, register, constant): (u8, u8, u32), rest: &[u64]) -> Vec<u64> {
    // All there are, are less than fifty.
    let skipped = i16::try_from(rest.len()).unwrap_or(i16::MAX);
    let jump = instruction(code, register, 0, skipped, constant);
    [before, &[jump], rest].concat()
}

impl Answers {
    fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // The headers come with the packets.
        let protocol = Some(ipproto::RAW);
        let socket = socket_with(AddressFamily::INET, SocketType::RAW, flags, protocol)?;
        Ok(Self(socket))
    }

    /// Sends an answer. It is lost where the kernel doesn't take it, as a datagram can be.
    pub fn send(&self, message: &[u8], client: SocketAddrV4) {
        let Some(packet) = packet(message, client) else {
            return;
        };
        if let Err(e) = sendto(&self.0, &packet, SendFlags::DONTWAIT, &client) {
            log::debug!("an answer of the resolver's is lost: {e}");
        }
    }
}

/// A message as a datagram from the resolver. The kernel fills in the IP header's checksum; UDP's may be left out. `None`
/// if it is too long.
fn packet(message: &[u8], client: SocketAddrV4) -> Option<Vec<u8>> {
    let length = |headers: usize| u16::try_from(headers + message.len()).ok();
    let (ip, udp) = (length(IP_HEADER + UDP_HEADER)?, length(UDP_HEADER)?);
    let mut packet = Vec::with_capacity(ip.into());
    packet.extend([IPV4, 0]);
    packet.extend(ip.to_be_bytes());
    packet.extend([0, 0, 0, 0, TTL, UDP, 0, 0]);
    for address in [ADDRESS, *client.ip()] {
        packet.extend(Ipv4Addr::octets(&address));
    }
    for field in [PORT, client.port(), udp, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(message);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_never_longer_than_one_can_be() {
        let client = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7);
        let longest = packet(&vec![0; hull_protocol::resolver::MAX_DATAGRAM], client);
        assert_eq!(longest.map(|packet| packet.len()), Some(65535));
        let longer = vec![0; hull_protocol::resolver::MAX_DATAGRAM + 1];
        assert_eq!(packet(&longer, client), None);
    }
}
