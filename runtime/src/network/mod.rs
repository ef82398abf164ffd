//! The network that a container has on the host: what an engine has put into its network namespace, and how that
//! becomes the guest's.
//!
//! An engine (podman, docker, a CNI plugin, pasta) gives a container a network by putting an interface into its
//! network namespace on the host (a veth, macvlan, ipvlan, tap), with addresses, routes, neighbours, rules and
//! sysctls. The container's processes are in a guest. So [`read()`] takes down what is there, [`connect()`] makes a
//! tap beside each interface that passes everything on, and the agent sets up an interface of the same name, hardware
//! address and MTU in the container's namespace in the guest, with all that was read. [`watch()`] tells when to read
//! again, [`update_local_access`] has processes of the namespace reach the guest, and [`disconnect`] leaves the
//! namespace as it was. All of it is done by a thread that enters the namespace, or by a process that is in it
//! ([`Namespace::own`]). [`connect_to_resolver`] finds docker's resolver, and [`move_into`] is for
//! `linux.netDevices`: interfaces that hull itself is to put there.
//!
//! Nothing here knows the VM or the agent, decides when any of it is done, or gives a container an address: that is the
//! engine's.
//!
//! What is read are rtnetlink's own messages, with all their attributes, known to hull or not: the guest's kernel
//! takes what this one told. Left out is what a kernel makes or learns by itself (`addresses`, `routes`,
//! `neighbours`, `rules` and `sysctls` say what); changed is only what would keep it from being taken. The
//! messages' interface indexes are this namespace's: whoever replays them puts the guest's in their place. The order
//! is, for each interface, its sysctls, its addresses, and whether it is up; and then for all together the routes as
//! they are sorted (NLM_F_CREATE, NLM_F_APPEND), neighbours (NLM_F_CREATE, NLM_F_REPLACE), and rules.
//!
//! Of an interface are not carried along: its queue length, alternative names, group, alias, promiscuity and
//! multicast addresses.

mod addresses;
mod admission;
mod body;
mod connect;
mod error;
mod links;
mod local_access;
mod namespace;
mod neighbours;
mod netdevices;
mod netlink;
mod read;
mod redirect;
mod resolver;
mod routes;
mod rules;
mod sysctls;
mod tap;
#[cfg(test)]
mod tests;
mod told;
mod turn;
mod watch;

pub use netlink_packet_route::address::AddressMessage;
pub use netlink_packet_route::neighbour::NeighbourMessage;
pub use netlink_packet_route::route::RouteMessage;
pub use netlink_packet_route::rule::RuleMessage;

pub use body::to_bytes;
pub use connect::{Connection, connect, disconnect, disconnect_all};
pub use error::{Error, NetlinkError};
pub use local_access::update_local_access;
pub use namespace::Namespace;
pub use netdevices::{is_interface_name, move_into};
pub use read::{count, read, read_possible};
pub use resolver::{UDP_SOCKETS, connect_to_resolver};
pub use sysctls::{Sysctl, SysctlTable};
pub use tap::HEADER_LENGTH;
pub use watch::{Watch, watch};

/// What is in a network namespace beside what a kernel puts there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// All but `lo`, hull's own taps, and what nobody has set up, in the order of their indexes.
    pub interfaces: Vec<Interface>,
    /// The addresses of `lo`, whose index is 1 everywhere, but for 127.0.0.1 and ::1.
    pub loopback: Vec<AddressMessage>,
    /// Of all tables, in an order in which a gateway comes after the way to it.
    pub routes: Vec<RouteMessage>,
    /// Those that somebody has set.
    pub neighbours: Vec<NeighbourMessage>,
    /// Those that somebody has added.
    pub rules: Vec<RuleMessage>,
    /// Those that each namespace starts with and that somebody has removed, as RTM_DELRULE takes them.
    pub removed_rules: Vec<RuleMessage>,
}

impl Network {
    /// Leaves an interface out, with what depends on it.
    pub fn leave_out(&mut self, index: u32) {
        self.interfaces.retain(|interface| interface.index != index);
        self.routes
            .retain(|route| !routes::interfaces(route).contains(&index));
        self.neighbours
            .retain(|neighbour| neighbour.header.ifindex != index);
    }
}

/// An Ethernet interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index in this namespace, by which the messages name it; from 2 to 2³¹-1.
    pub index: u32,
    /// Its name: up to 15 bytes.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The longest packet that it takes, in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Whether somebody has brought it up.
    pub up: bool,
    /// Whether neighbours are looked for (IFF_NOARP isn't set): not with an ipvlan of layer 3.
    pub arp: bool,
    /// In the order in which they are to be added. IPv6's come with IFA_F_NODAD, but for those whose duplicates are
    /// still being looked for.
    pub addresses: Vec<AddressMessage>,
    /// Those that somebody has changed, in the order in which they are to be set: before the addresses, and before the
    /// interface is up.
    pub sysctls: Vec<Sysctl>,
}
