//! Addresses, routes, neighbours and rules. Each is the body of an rtnetlink(7) message, as a dump on the host gives
//! it, with the host's interface indexes.

use std::fmt::Write;
use std::net::IpAddr;

use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteType,
};
use netlink_packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};

/// The index of `lo`, in every network namespace.
pub const LOOPBACK: u32 = 1;

/// The host's interface indexes and the guest's.
#[derive(Clone, Debug, Default)]
pub struct Indexes(pub Vec<(u32, u32)>);

impl Indexes {
    /// The guest's index of the interface with this index on the host, if the guest has it.
    fn guest(&self, host: u32) -> Option<u32> {
        match host {
            0 | LOOPBACK => Some(host),
            _ => {
                let mut known = self.0.iter();
                known.find_map(|(known, guest)| (*known == host).then_some(*guest))
            }
        }
    }

    fn translate(&self, index: &mut u32) -> Result<(), UnknownIndex> {
        *index = self.guest(*index).ok_or(UnknownIndex(*index))?;
        Ok(())
    }
}

/// The guest has no interface with this index on the host.
#[derive(Debug)]
pub struct UnknownIndex(pub u32);

/// What can be in a routing table once: a route, by its table, destination, source, TOS and metric.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct RouteKey {
    table: u32,
    destination: (Option<IpAddr>, u8),
    source: (Option<IpAddr>, u8),
    tos: u8,
    metric: u32,
    is_ipv6: bool,
}

/// An address, route, neighbour or rule.
pub trait Entry: Emitable + Clone + PartialEq {
    /// The length of the message's header.
    const HEADER: usize;
    /// The request to add one, `RTM_NEW*`.
    const ADD: u16;
    /// The flags of that request, `NLM_F_*`.
    const ADD_FLAGS: u16 = NLM_F_CREATE | NLM_F_EXCL;
    /// The request to remove one, `RTM_DEL*`.
    const REMOVE: u16;
    /// What ip(8) calls one.
    const NAME: &'static str;

    /// Its address family.
    fn family(&self) -> AddressFamily;

    /// Without what a dump reports but a request doesn't take, or takes in another sense.
    #[must_use]
    fn normalized(self) -> Self;

    /// With the guest's indexes.
    ///
    /// # Errors
    /// When the guest doesn't have an interface.
    fn translated(&self, indexes: &Indexes) -> Result<Self, UnknownIndex>;

    /// The body of the request to remove it.
    #[must_use]
    fn to_remove(self) -> Self {
        self
    }

    /// The host's index of its interface; 0 for none.
    fn host_index(&self) -> u32;

    /// For a route, what the kernel takes once, unless it is asked to append.
    fn route_key(&self) -> Option<RouteKey> {
        None
    }

    /// A short description in the words of ip(8).
    fn describe(&self) -> String;
}

impl Entry for AddressMessage {
    const HEADER: usize = 8;
    const ADD: u16 = libc::RTM_NEWADDR;
    const REMOVE: u16 = libc::RTM_DELADDR;
    const NAME: &'static str = "address";

    fn family(&self) -> AddressFamily {
        self.header.family
    }

    fn normalized(mut self) -> Self {
        let kept = AddressFlags::Homeaddress
            | AddressFlags::Managetempaddr
            | AddressFlags::Noprefixroute
            | AddressFlags::Mcautojoin
            | AddressFlags::Nodad;
        let mut flags = AddressFlags::from_bits_retain(self.header.flags.bits().into()) & kept;
        self.header.flags = AddressHeaderFlags::empty();
        self.attributes.retain_mut(|attribute| match attribute {
            AddressAttribute::Flags(given) => {
                flags = *given & kept;
                false
            }
            AddressAttribute::CacheInfo(lifetime) => {
                (lifetime.cstamp, lifetime.tstamp) = (0, 0);
                lifetime.ifa_valid != u32::MAX || lifetime.ifa_preferred != u32::MAX
            }
            AddressAttribute::Address(_)
            | AddressAttribute::Local(_)
            | AddressAttribute::Label(_)
            | AddressAttribute::Broadcast(_)
            | AddressAttribute::RoutePriority(_)
            | AddressAttribute::Protocol(_) => true,
            _ => false,
        });
        self.attributes.push(AddressAttribute::Flags(flags));
        self
    }

    fn translated(&self, indexes: &Indexes) -> Result<Self, UnknownIndex> {
        let mut message = self.clone();
        indexes.translate(&mut message.header.index)?;
        Ok(message)
    }

    /// Without the label, which the kernel would compare: it may be another in the guest.
    fn to_remove(mut self) -> Self {
        self.attributes.retain(is_key);
        self
    }

    fn host_index(&self) -> u32 {
        self.header.index
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for attribute in key(self) {
            let _ = match attribute {
                AddressAttribute::Local(ip) => write!(text, "{ip} "),
                AddressAttribute::Address(ip) if text.is_empty() => write!(text, "{ip}"),
                AddressAttribute::Address(ip) => write!(text, "peer {ip}"),
                _ => Ok(()),
            };
        }
        format!("{text}/{}", self.header.prefix_len)
    }
}

/// The attributes that distinguish an interface's addresses: `Local` before `Address`, or only one if they are the same.
fn key(message: &AddressMessage) -> Vec<&AddressAttribute> {
    let attributes = message.attributes.iter();
    let mut key: Vec<_> = attributes.filter(|attribute| is_key(attribute)).collect();
    key.sort_by_key(|attribute| !matches!(attribute, AddressAttribute::Local(_)));
    if let [
        AddressAttribute::Local(local),
        AddressAttribute::Address(address),
    ] = *key
        && local == address
    {
        key.remove(0);
    }
    key
}

fn is_key(attribute: &AddressAttribute) -> bool {
    matches!(
        attribute,
        AddressAttribute::Local(_) | AddressAttribute::Address(_)
    )
}

/// Whether two messages are about the same address of an interface, whatever its lifetime and flags.
pub fn same_address(one: &AddressMessage, other: &AddressMessage) -> bool {
    one.header.prefix_len == other.header.prefix_len && key(one) == key(other)
}

impl Entry for RouteMessage {
    const HEADER: usize = 12;
    const ADD: u16 = libc::RTM_NEWROUTE;
    const REMOVE: u16 = libc::RTM_DELROUTE;
    const NAME: &'static str = "route";

    fn family(&self) -> AddressFamily {
        self.header.address_family
    }

    fn normalized(mut self) -> Self {
        self.header.flags &= RouteFlags::Onlink;
        self.attributes.retain_mut(|attribute| {
            if let RouteAttribute::MultiPath(hops) = attribute {
                hops.iter_mut()
                    .for_each(|hop| hop.flags &= RouteNextHopFlags::Onlink);
            }
            // The guest has no such nexthop object. Its gateway and interface are in the message as well.
            !matches!(
                attribute,
                RouteAttribute::CacheInfo(_)
                    | RouteAttribute::MfcStats(_)
                    | RouteAttribute::NhId(_)
                    | RouteAttribute::Iif(_)
                    | RouteAttribute::Uid(_)
            )
        });
        self
    }

    fn translated(&self, indexes: &Indexes) -> Result<Self, UnknownIndex> {
        let mut message = self.clone();
        for attribute in &mut message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => indexes.translate(index)?,
                RouteAttribute::MultiPath(hops) => {
                    let mut hops = hops.iter_mut();
                    hops.try_for_each(|hop| indexes.translate(&mut hop.interface_index))?;
                }
                _ => {}
            }
        }
        Ok(message)
    }

    fn route_key(&self) -> Option<RouteKey> {
        let header = &self.header;
        let mut key = RouteKey {
            table: header.table.into(),
            destination: (None, header.destination_prefix_length),
            source: (None, header.source_prefix_length),
            tos: header.tos,
            metric: 0,
            is_ipv6: header.address_family == AddressFamily::Inet6,
        };
        for attribute in &self.attributes {
            match attribute {
                RouteAttribute::Table(table) => key.table = *table,
                RouteAttribute::Destination(to) => key.destination.0 = ip(to),
                RouteAttribute::Source(from) => key.source.0 = ip(from),
                RouteAttribute::Priority(metric) => key.metric = *metric,
                _ => {}
            }
        }
        Some(key)
    }

    fn host_index(&self) -> u32 {
        let of = |attribute: &RouteAttribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
            _ => None,
        };
        self.attributes.iter().find_map(of).unwrap_or_default()
    }

    fn describe(&self) -> String {
        let mut text = match self.header.kind {
            RouteType::Unicast => String::new(),
            kind => format!("{kind:?} ").to_lowercase(),
        };
        let to = self
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Destination(to) => ip(to),
                _ => None,
            });
        let _ = match to {
            Some(to) => write!(text, "{to}/{}", self.header.destination_prefix_length),
            None => write!(text, "default"),
        };
        let more = self
            .attributes
            .iter()
            .filter_map(|attribute| match attribute {
                RouteAttribute::Gateway(via) => ip(via).map(|via| format!(" via {via}")),
                RouteAttribute::MultiPath(hops) => Some(hops.iter().map(hop).collect()),
                RouteAttribute::Table(table) if *table != u32::from(libc::RT_TABLE_MAIN) => {
                    Some(format!(" table {table}"))
                }
                RouteAttribute::Priority(metric) => Some(format!(" metric {metric}")),
                _ => None,
            });
        text + &more.collect::<String>()
    }
}

fn hop(hop: &RouteNextHop) -> String {
    let via = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(via) => ip(via),
        _ => None,
    });
    via.map_or_else(|| " nexthop".into(), |via| format!(" nexthop via {via}"))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

impl Entry for NeighbourMessage {
    const HEADER: usize = 12;
    const ADD: u16 = libc::RTM_NEWNEIGH;
    /// The kernel may have resolved the neighbour already, or have failed to.
    const ADD_FLAGS: u16 = NLM_F_CREATE | NLM_F_REPLACE;
    const REMOVE: u16 = libc::RTM_DELNEIGH;
    const NAME: &'static str = "neighbour";

    fn family(&self) -> AddressFamily {
        self.header.family
    }

    fn normalized(mut self) -> Self {
        self.attributes.retain(|attribute| {
            !matches!(
                attribute,
                NeighbourAttribute::CacheInfo(_)
                    | NeighbourAttribute::Probes(_)
                    | NeighbourAttribute::LinkNetNsId(_)
            )
        });
        self
    }

    fn translated(&self, indexes: &Indexes) -> Result<Self, UnknownIndex> {
        let mut message = self.clone();
        indexes.translate(&mut message.header.ifindex)?;
        for attribute in &mut message.attributes {
            if let NeighbourAttribute::IfIndex(index) | NeighbourAttribute::Controller(index) =
                attribute
            {
                indexes.translate(index)?;
            }
        }
        Ok(message)
    }

    fn host_index(&self) -> u32 {
        self.header.ifindex
    }

    fn describe(&self) -> String {
        let to = self
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(ip.to_string()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    Some(ip.to_string())
                }
                _ => None,
            });
        to.unwrap_or_default()
    }
}

impl Entry for RuleMessage {
    const HEADER: usize = 12;
    const ADD: u16 = libc::RTM_NEWRULE;
    const REMOVE: u16 = libc::RTM_DELRULE;
    const NAME: &'static str = "rule";

    fn family(&self) -> AddressFamily {
        self.header.family
    }

    fn normalized(mut self) -> Self {
        // Without FIB_RULE_PERMANENT: such a rule can't be removed.
        self.header.flags &= RuleFlags::Invert;
        // A dump leaves out the priority 0; for a request without one, the kernel chooses one that is free.
        let is_priority =
            |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Priority(_));
        if !self.attributes.iter().any(is_priority) {
            self.attributes.push(RuleAttribute::Priority(0));
        }
        self
    }

    fn translated(&self, _: &Indexes) -> Result<Self, UnknownIndex> {
        Ok(self.clone()) // a rule has the names of interfaces
    }

    fn host_index(&self) -> u32 {
        0
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for attribute in &self.attributes {
            let _ = match attribute {
                RuleAttribute::Priority(priority) => write!(text, "priority {priority} "),
                RuleAttribute::Source(ip) => write!(text, "from {ip}/{} ", self.header.src_len),
                RuleAttribute::Destination(ip) => write!(text, "to {ip}/{} ", self.header.dst_len),
                RuleAttribute::FwMark(mark) => write!(text, "fwmark {mark:#x} "),
                RuleAttribute::Iifname(name) => write!(text, "iif {name} "),
                RuleAttribute::Oifname(name) => write!(text, "oif {name} "),
                RuleAttribute::Table(table) => write!(text, "lookup {table} "),
                _ => Ok(()),
            };
        }
        text.trim_end().to_owned()
    }
}
