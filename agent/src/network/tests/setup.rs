//! The network namespaces of a test, and the requests made of what is in them.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use hull_protocol::agent;
use netlink_packet_core::Parseable;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkHeader;
use netlink_packet_route::neighbour::{NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteMessage, RouteProtocol};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::network::link::{self, Change};
use crate::network::rtnetlink::{Events, Rtnetlink};
use crate::network::{Error, NamespaceState, Network};
use crate::sys;

pub const MAC: &str = "02:00:00:00:00:01";
pub const OTHER_MAC: &str = "02:00:00:00:00:02";

/// Kinds of links that can stand for interfaces and NICs. The first that the kernel has is used.
pub const LINK_KINDS: [&str; 2] = ["dummy", "ifb"];

/// A network namespace.
pub struct Namespace {
    pub fd: OwnedFd,
    /// The kind of links to make in it.
    kind: &'static str,
}

impl Namespace {
    /// A new one, with `lo` up. `None`, with a message, if this machine can't run the tests.
    pub fn new() -> Option<Self> {
        let make = || -> std::io::Result<Self> {
            sys::unshare(libc::CLONE_NEWNET.cast_unsigned())?;
            sys::bring_loopback_up()?;
            let fd = File::open("/proc/thread-self/ns/net")?.into();
            Ok(Self { fd, kind: "" })
        };
        let made = thread::spawn(make).join().expect("no panic").ok();
        let made = made.and_then(|mut made| {
            let works = |kind: &&&str| {
                let add = format!("link add probe0 type {kind}");
                made.try_ip(&add).is_ok() && made.try_ip("link del probe0").is_ok()
            };
            made.kind = LINK_KINDS.iter().find(works)?;
            Some(made)
        });
        if made.is_none() {
            eprintln!("skipped: it needs root, iproute2, and a kernel with dummy or ifb links");
        }
        made
    }

    /// Makes a link, with such options of ip-link(8).
    pub fn add_link(&self, name: &str, options: &str) {
        self.ip(&format!(
            "link add {name}{}{options} type {}",
            if options.is_empty() { "" } else { " " },
            self.kind
        ));
    }

    /// Does something on a thread that is there.
    pub fn with<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter_and_work = || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(self.fd.as_fd(), kind).expect("enter the namespace");
            work()
        };
        thread::scope(|scope| scope.spawn(enter_and_work).join().expect("no panic"))
    }

    pub fn try_ip(&self, arguments: &str) -> Result<String, String> {
        self.with(|| {
            let output = Command::new("ip").args(arguments.split(' ')).output();
            let output = output.map_err(|e| e.to_string())?;
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
            match output.status.success() {
                true => Ok(text(output.stdout)),
                false => Err(text(output.stderr)),
            }
        })
    }

    /// What ip(8) says.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        let said = self.try_ip(arguments);
        said.unwrap_or_else(|e| panic!("ip {arguments}: {e}"))
    }

    #[track_caller]
    pub fn ips(&self, commands: &[&str]) {
        for command in commands {
            self.ip(command);
        }
    }

    /// All that there is, but for indexes of links and what the agent is to do in another way.
    pub fn everything(&self) -> Vec<String> {
        // The kernel takes a moment for the link-local addresses that it makes itself.
        let deadline = Instant::now() + Duration::from_secs(10);
        let groups = libc::RTMGRP_IPV6_IFADDR.cast_unsigned();
        let events = self.with(|| Events::subscribe(groups).expect("a socket"));
        loop {
            let all = self.all_at_once();
            if !all.iter().any(|line| line.contains("tentative")) {
                return all;
            }
            let changed = events.wait(deadline).expect("a notification");
            assert!(changed, "an address stays tentative: {all:#?}");
        }
    }

    pub fn all_at_once(&self) -> Vec<String> {
        let mut all = Vec::new();
        for command in [
            "-o addr show",
            "-o route show table all",
            "-o -6 route show table all",
            "rule",
            "-6 rule",
            "neigh show nud permanent",
        ] {
            let text = self.ip(command);
            let lines = text.lines().map(|line| {
                let line = match line.split_once(": ") {
                    Some((index, rest)) if command == "-o addr show" && index.len() < 4 => rest,
                    _ => line,
                };
                // The kernel's own label of an address whose interface was renamed is a number.
                let (line, _) = line.split_once(" net1:").unwrap_or((line, ""));
                format!("{command}: {}", line.replace(" nodad", "").trim_end())
            });
            all.extend(lines);
        }
        all.sort();
        all
    }

    /// The bodies of a dump of this kind.
    pub fn dump(&self, kind: u16) -> Vec<Vec<u8>> {
        self.with(|| {
            let mut socket = Rtnetlink::open().expect("a socket");
            let dumped = socket.dump(kind, &LinkHeader::default(), |body| Some(body.to_vec()));
            dumped.expect("a dump")
        })
    }

    /// The request for what is here, as far as these interfaces are concerned.
    pub fn describe(&self, interfaces: &[(&str, &str)]) -> agent::Network {
        let addresses = self.dump(libc::RTM_GETADDR);
        let interfaces = interfaces.iter().map(|(name, mac)| {
            let link = self.ip(&format!("-o link show dev {name}"));
            let mut words = link.split([' ', ':']);
            let host_index = words.next().and_then(|word| word.parse().ok());
            let host_index: u32 = host_index.expect("an index");
            let mtu = words.skip_while(|word| *word != "mtu").nth(1);
            let of_it = |body: &&Vec<u8>| {
                let message = AddressMessage::parse(body.as_slice()).expect("a message");
                message.header.index == host_index
            };
            agent::Interface {
                name: (*name).to_owned(),
                mac: bytes(mac),
                mtu: mtu.and_then(|mtu| mtu.parse().ok()).expect("an MTU"),
                host_index,
                addresses: addresses.iter().filter(of_it).cloned().collect(),
                ..Default::default()
            }
        });
        let mut neighbours = self.dump(libc::RTM_GETNEIGH);
        neighbours.retain(|body| {
            let message = NeighbourMessage::parse(body.as_slice()).expect("a message");
            message.header.state == NeighbourState::Permanent
        });
        let mut routes = self.dump(libc::RTM_GETROUTE);
        routes.retain(|body| {
            let message = RouteMessage::parse(body.as_slice()).expect("a message");
            message.header.protocol != RouteProtocol::Kernel
        });
        agent::Network {
            interfaces: interfaces.collect(),
            routes,
            neighbours,
            rules: self.dump(libc::RTM_GETRULE),
            ..Default::default()
        }
    }
}

pub fn bytes(mac: &str) -> Vec<u8> {
    let parts = mac.split(':').map(|part| u8::from_str_radix(part, 16));
    parts.collect::<Result<_, _>>().expect("a MAC address")
}

/// A host with an interface, a guest with a NIC for it, and a container.
pub struct Setup {
    pub host: Namespace,
    pub guest: Namespace,
    pub container: Namespace,
    pub network: Network,
}

impl Setup {
    pub fn new() -> Option<Self> {
        let (host, guest) = (Namespace::new()?, Namespace::new()?);
        let container = Namespace::new()?;
        // Links with other indexes before those that matter.
        host.add_link("x0", "");
        host.add_link("x1", "");
        host.ips(&["link del x0", "link del x1"]);
        host.add_link("eth0", &format!("address {MAC} mtu 1400"));
        host.ip("link set eth0 up");
        guest.add_link("nic0", &format!("address {MAC}"));
        let namespace = container.fd.try_clone().expect("a descriptor");
        let network = Network::new(Some(namespace.into()), NamespaceState::default());
        Some(Self {
            host,
            guest,
            container,
            network,
        })
    }

    /// Asks the agent for a network.
    pub fn update(&self, network: &agent::Network) -> Result<(), String> {
        self.in_guest(self.network.update(network))
    }

    /// Runs the agent, in the guest's own network namespace. Its thread is still there afterwards.
    pub fn in_guest<T: Send>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, String> {
        self.guest.with(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let done = runtime.expect("a runtime").block_on(work);
            let here = std::fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
            let guest = format!("/proc/self/fd/{}", self.guest.fd.as_raw_fd());
            assert_eq!(here, std::fs::read_link(guest).expect("a namespace"));
            done.map_err(|e| e.to_string())
        })
    }

    pub fn described(&self) -> agent::Network {
        self.host.describe(&[("eth0", MAC)])
    }

    /// Sets the container's network up as the host's, and checks that it is the same.
    #[track_caller]
    pub fn follow(&self) {
        let updated = self.update(&self.described());
        assert_eq!(updated, Ok(()));
        assert_eq!(self.container.everything(), self.host.everything());
    }
}

pub fn sysctl(key: &str, value: &str) -> agent::Sysctl {
    agent::Sysctl {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

/// Moves the NIC to another namespace.
pub fn move_nic(from: &Namespace, to: &Namespace) {
    from.with(|| {
        let mut socket = Rtnetlink::open().expect("a socket");
        let links = link::find(&mut socket, |link| link.mac == bytes(MAC)).expect("a list");
        let index = links.first().expect("the NIC").index;
        link::change(&mut socket, index, Change::Namespace(to.fd.as_fd(), None)).expect("moved");
    });
}
