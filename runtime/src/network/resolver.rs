//! The resolver that docker's user-defined networks have in a network namespace, at an address of its `lo`.
//!
//! Whether there is one shows by its socket: it is bound to that address, at a port that docker has chosen, and what is
//! sent to port 53 is redirected there (NAT). So a VM process that has sockets in the namespace, connected to port 53, can
//! ask it, as the processes of a container of runc's do.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use hull_protocol::resolver::{ADDRESS, PORT};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use super::{Error, Namespace};

/// The UDP sockets of the network namespace that the reading thread is in (proc_net(5)).
pub const UDP_SOCKETS: &str = "/proc/thread-self/net/udp";

/// Opens so many sockets that are connected to a namespace's resolver; none if it has none.
///
/// # Errors
/// When the kernel refuses.
pub fn connect_to_resolver(namespace: &Namespace, count: usize) -> Result<Vec<OwnedFd>, Error> {
    namespace.within(
        "look for a resolver of the container's network",
        move |_| {
            let sockets = File::open(UDP_SOCKETS).map(BufReader::new);
            let is_there = sockets.and_then(|sockets| is_any_at(ADDRESS, sockets));
            if !is_there.map_err(Error::Resolver)? {
                return Ok(Vec::new());
            }
            let open = || -> rustix::io::Result<OwnedFd> {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
                connect(&socket, &SocketAddrV4::new(ADDRESS, PORT))?;
                Ok(socket)
            };
            let sockets = (0..count)
                .map(|_| open())
                .collect::<rustix::io::Result<_>>();
            sockets.map_err(|e| Error::Resolver(e.into()))
        },
    )
}

/// Whether a socket of the kernel's table is bound to the address: the second column, of which the part before the colon
/// is the address as the processor has it, in hexadecimal digits.
fn is_any_at(address: Ipv4Addr, table: impl BufRead) -> io::Result<bool> {
    let wanted = format!("{:08X}", u32::from_ne_bytes(address.octets()));
    for line in table.lines().skip(1) {
        let line = line?;
        let local = line.split_whitespace().nth(1);
        if local.and_then(|local| local.split(':').next()) == Some(&wanted) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    #[test]
    fn a_socket_is_found_by_the_address_that_it_is_bound_to() {
        let table = |local: &str| {
            format!(
                "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n  \
                 4: {local} 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 1 2 3 0\n"
            )
        };
        let is_any = |table: String| is_any_at(ADDRESS, table.as_bytes()).expect("text");
        assert!(is_any(table("0B00007F:A3F1")));
        for other in ["0100007F:0035", "00000000:0035", "3500007F:0035", "0B00007"] {
            assert!(!is_any(table(other)), "{other}");
        }
        assert!(!is_any(String::new()));
    }

    #[test]
    fn it_is_asked_where_there_is_one_and_only_there() {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).ok()?;
            let namespace = File::open("/proc/thread-self/ns/net").expect("a namespace");
            let namespace = Namespace::from(OwnedFd::from(namespace));
            let none = connect_to_resolver(&namespace, 2).expect("a look");
            assert!(none.is_empty());
            let up = std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            up.ok().filter(std::process::ExitStatus::success)?;
            let resolver = UdpSocket::bind((ADDRESS, PORT)).expect("a resolver");
            let sockets = connect_to_resolver(&namespace, 2).expect("a look");
            assert_eq!(sockets.len(), 2);
            for socket in sockets {
                UdpSocket::from(socket).send(b"a question").expect("sent");
                assert_eq!(resolver.recv(&mut [0; 20]).expect("received"), 10);
            }
            Some(())
        };
        if thread::spawn(make).join().expect("no panic").is_none() {
            eprintln!("skipped: it needs root and iproute2");
        }
    }
}
