//! Reading what an engine has set up in a network namespace.

use std::collections::HashSet;

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::route::RouteMessage;

use super::addresses::{self, LinkLocal, PrefixRoute};
use super::error::{Doing, Error};
use super::links::{self, Link};
use super::netlink::Netlink;
use super::sysctls::Defaults;
use super::{Interface, Namespace, Network, Sysctl, SysctlTable, neighbours, routes, rules};

/// The index of `lo` in every namespace.
const LOOPBACK: u32 = 1;

/// Reads the network of a namespace. Each kind of thing is read whole, but not all of them at one moment: who has a
/// [`Watch`](super::Watch) from before knows whether something has changed meanwhile. `connected` are the indexes of
/// interfaces that the caller has connected: one that is gone may have left its tap.
///
/// # Errors
/// For an interface that is in use and that a VM can't have, a route that can't be another kernel's, and when the
/// kernel refuses or says what hull doesn't understand.
pub fn read(namespace: &Namespace, connected: &[u32]) -> Result<Network, Error> {
    let (network, all_can_be) = read_possible(namespace, connected)?;
    all_can_be.map(|()| network)
}

/// The same, without the interfaces that are in use and that a VM can't have. What is wrong with the first of them is
/// beside it.
///
/// # Errors
/// As with [`read`], but for such an interface.
pub fn read_possible(
    namespace: &Namespace,
    connected: &[u32],
) -> Result<(Network, Result<(), Error>), Error> {
    let connected = connected.to_vec();
    namespace.within("tell of the container's network", move |netlink| {
        Reading::of(netlink)?.network(&connected)
    })
}

/// How many interfaces of a namespace a VM can have: a look that costs little.
///
/// # Errors
/// For an interface that is in use and that a VM can't have.
pub fn count(namespace: &Namespace) -> Result<usize, Error> {
    namespace.within("tell of the container's interfaces", |netlink| {
        let what = || "read the interfaces of the container's network namespace".to_owned();
        let links = netlink.links().doing(what)?;
        let links: Vec<Link> = links.into_iter().map(Link::from).collect();
        let (wanted, all_can_be) = links::wanted(&links, &[]);
        all_can_be.map(|()| wanted.len())
    })
}

/// All that the kernel tells.
struct Reading {
    links: Vec<Link>,
    addresses: Vec<AddressMessage>,
    routes: Vec<RouteMessage>,
    neighbours: Vec<super::NeighbourMessage>,
    rules: Vec<super::RuleMessage>,
}

impl Reading {
    fn of(netlink: &mut Netlink) -> Result<Self, Error> {
        let doing = |what| move || format!("read the {what} of the container's network namespace");
        let links = netlink.links().doing(doing("interfaces"))?;
        let mut links: Vec<Link> = links.into_iter().map(Link::from).collect();
        for table in netlink
            .neighbour_tables()
            .doing(doing("neighbour tables"))?
        {
            for link in &mut links {
                link.told.add(link.index, &table);
            }
        }
        Ok(Self {
            links,
            addresses: netlink.addresses().doing(doing("addresses"))?,
            routes: netlink.routes().doing(doing("routes"))?,
            neighbours: netlink.neighbours().doing(doing("neighbours"))?,
            rules: netlink.rules().doing(doing("routing rules"))?,
        })
    }

    /// Without what the guest's kernel makes by itself. To be called by a thread in the namespace.
    fn network(self, connected: &[u32]) -> Result<(Network, Result<(), Error>), Error> {
        let there = self.routes.iter().filter_map(PrefixRoute::of_route);
        let there: HashSet<_> = there.collect();
        let (mut made, mut defaults) = (HashSet::new(), Defaults::default());
        let lo = self.links.iter().find(|link| link.is_loopback());
        let lo = lo.map(|lo| lo.told.clone()).unwrap_or_default();
        let mut interfaces = Vec::new();
        let (wanted, all_can_be) = links::wanted(&self.links, connected);
        for link in wanted {
            let sysctls = defaults.changed(link, &lo)?;
            interfaces.extend(interface(link, &self.addresses, &there, &mut made, sysctls));
        }
        let (rules, removed_rules) = rules::changes(self.rules);
        let neighbours = self.neighbours.into_iter();
        let network = Network {
            loopback: of_loopback(self.addresses),
            routes: carried_routes(self.routes, &made, &interfaces)?,
            neighbours: neighbours
                .filter_map(|neighbour| neighbours::carried(neighbour, &interfaces))
                .collect(),
            interfaces,
            rules,
            removed_rules,
        };
        Ok((network, all_can_be))
    }
}

/// An interface, and which routes to prefixes the guest's kernel makes by itself for its addresses.
fn interface(
    link: &Link,
    all: &[AddressMessage],
    there: &HashSet<PrefixRoute>,
    made: &mut HashSet<PrefixRoute>,
    mut sysctls: Vec<Sysctl>,
) -> Option<Interface> {
    let mac = link.mac?;
    let own = (all.iter()).filter(|address| address.header.index == link.index);
    let mut addresses = addresses::settled(own.cloned());
    let has_ipv6 =
        !(sysctls.iter()).any(|sysctl| sysctl.is(SysctlTable::Ipv6, "disable_ipv6", "1"));
    let is_running = link.is_running() && has_ipv6;
    let link_local = LinkLocal::of(&addresses, mac, link.addr_gen_mode, is_running);
    if link_local == LinkLocal::Others {
        make_no_link_local_address(&mut sysctls);
    }
    if link.is_up() {
        addresses::leave_prefix_routes(&mut addresses, there, made);
    }
    if let LinkLocal::Made(made) = link_local {
        addresses.retain(|address| addresses::local(address) != Some(made.into()));
    }
    Some(Interface {
        index: link.index,
        name: link.name.clone(),
        mac,
        mtu: link.mtu,
        up: link.is_up(),
        arp: !link.flags.contains(LinkFlags::Noarp),
        addresses,
        sysctls,
    })
}

/// Has the guest's kernel make no link-local address: IN6_ADDR_GEN_MODE_NONE, after all other sysctls.
fn make_no_link_local_address(sysctls: &mut Vec<Sysctl>) {
    let (table, name) = (SysctlTable::Ipv6, "addr_gen_mode");
    sysctls.retain(|sysctl| (sysctl.table, sysctl.name.as_str()) != (table, name));
    let (name, value) = (name.to_owned(), "1".to_owned());
    sysctls.push(Sysctl { table, name, value });
}

fn of_loopback(addresses: Vec<AddressMessage>) -> Vec<AddressMessage> {
    let is_added = |address: &AddressMessage| {
        address.header.index == LOOPBACK && !addresses::is_loopback(address)
    };
    addresses::settled(addresses.into_iter().filter(is_added))
}

/// The routes that the guest's kernel doesn't make, in an order in which it takes them. Those of a tap of hull's aren't
/// the container's.
fn carried_routes(
    all: Vec<RouteMessage>,
    made: &HashSet<PrefixRoute>,
    interfaces: &[Interface],
) -> Result<Vec<RouteMessage>, Error> {
    let is_known = |index: &u32| {
        *index == LOOPBACK || interfaces.iter().any(|interface| interface.index == *index)
    };
    let mut carried = Vec::new();
    for route in all {
        let is_made = PrefixRoute::of_route(&route).is_some_and(|route| made.contains(&route));
        if !is_made && routes::interfaces(&route).iter().all(is_known) {
            carried.extend(routes::carried(route)?);
        }
    }
    routes::sort(&mut carried);
    Ok(carried)
}
