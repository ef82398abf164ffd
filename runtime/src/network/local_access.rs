//! A container's own addresses, reached by processes of the host that are in its network namespace there.
//!
//! Rootless engines forward published ports by such a process: podman's connects to the container's address from
//! within its namespace. That address is also the interface's on the host, so the host's stack would answer for itself.
//! With this it asks the guest, for IPv4:
//!
//! ```text
//! ip address add 192.0.0.8/32 dev hull-N scope host
//! ip route add ADDRESS dev hull-N src 192.0.0.8 table 26741        for each address of the interface
//! ip rule add iif lo lookup 26741 pref 0                           before the rule of the table `local`
//! ```
//!
//! The rule is for what the host's own processes send (`iif lo`). The guest sees [`SOURCE`] as their address, and its
//! answers, which it sends to its gateway, are taken from the tap by [`admission`]. The same
//! lookup has the kernel accept them, whatever `rp_filter` says: what comes from the container's address comes from
//! where packets to it go. The tap has the interface's hardware address, which is the guest's: without ARP a kernel
//! sends everything to that.
//!
//! All but the rule goes with the tap, and a rule whose table is empty does nothing. The rule of the table `local`
//! stays what it was; the kernel has no other way to put one before it than to add it once more, behind, and to remove
//! the first.
//!
//! Not reached are addresses of IPv6, and a container without a route to [`SOURCE`]: one without a default route.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::connect::set_link;
use super::error::{Doing, Error, NetlinkError};
use super::netlink::Netlink;
use super::turn::Turn;
use super::{Interface, Namespace, addresses, admission, routes, rules, tap};

/// Whose packets the guest sees: IPv4's dummy address (RFC 7600), which is nobody's anywhere, may be a source, and is
/// never forwarded to (IANA's registry of special-purpose addresses).
pub(super) const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// The number of hull's routing table: "hu".
const TABLE: u32 = 0x6875;

/// Lets processes of a namespace reach the VM by the IPv4 addresses of its interfaces, which are connected, and by no
/// others any more. What is so already stays as it is.
///
/// # Errors
/// When the kernel refuses; it lacks act_skbedit, say.
pub fn update_local_access(namespace: &Namespace, interfaces: &[Interface]) -> Result<(), Error> {
    let what = "let processes of the container's network namespace reach the VM";
    let turn = Turn::of(namespace)?;
    let interfaces: Vec<_> = interfaces.iter().map(Target::of).collect();
    namespace.within(what, move |netlink| {
        let _taken = turn.take()?;
        update(netlink, &interfaces).doing(|| what.to_owned())
    })
}

/// An interface, and which addresses are to be reached by its tap.
struct Target {
    index: u32,
    mac: [u8; 6],
    addresses: BTreeSet<Ipv4Addr>,
}

impl Target {
    fn of(interface: &Interface) -> Self {
        let own = interface.addresses.iter().filter_map(addresses::local);
        let own = own.filter_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
        Self {
            index: interface.index,
            mac: interface.mac,
            addresses: own.collect(),
        }
    }
}

fn update(netlink: &mut Netlink, targets: &[Target]) -> Result<(), NetlinkError> {
    let (there, routes) = (netlink.addresses()?, own_routes(netlink)?);
    let mut is_used = false;
    for target in targets {
        let Some(tap) = netlink.link(&tap::name(target.index))? else {
            continue;
        };
        let tap = tap.header.index;
        let is_ready = (there.iter()).any(|address| {
            address.header.index == tap && addresses::local(address) == Some(SOURCE.into())
        });
        if !is_ready {
            prepare(netlink, tap, target.mac)?;
        }
        follow_addresses(netlink, tap, &target.addresses, &routes)?;
        is_used |= !target.addresses.is_empty();
    }
    match is_used {
        true => put_rule_first(netlink),
        false => remove_rule(netlink),
    }
}

/// Readies a tap: the address comes last, and says that the rest is there.
fn prepare(netlink: &mut Netlink, tap: u32, mac: [u8; 6]) -> Result<(), NetlinkError> {
    let mac = LinkAttribute::Address(mac.to_vec());
    set_link(netlink, tap, LinkFlags::empty(), vec![mac])?;
    admission::admit(netlink, tap, SOURCE)?;
    let request = RouteNetlinkMessage::NewAddress(source_address(tap));
    once(netlink.ask(request, NLM_F_CREATE | NLM_F_EXCL))
}

/// Has a tap's routes lead to these addresses.
fn follow_addresses(
    netlink: &mut Netlink,
    tap: u32,
    wanted: &BTreeSet<Ipv4Addr>,
    routes: &[RouteMessage],
) -> Result<(), NetlinkError> {
    let of_tap = (routes.iter()).filter(|route| routes::interfaces(route).contains(&tap));
    let there: BTreeSet<Ipv4Addr> = of_tap.filter_map(destination).collect();
    for address in wanted.difference(&there) {
        let request = RouteNetlinkMessage::NewRoute(route(*address, tap));
        once(netlink.ask(request, NLM_F_CREATE | NLM_F_EXCL))?;
    }
    for address in there.difference(wanted) {
        let request = RouteNetlinkMessage::DelRoute(route(*address, tap));
        match netlink.ask(request, 0) {
            Err(e) if e.is(libc::ESRCH) => {}
            deleted => deleted.map(drop)?,
        }
    }
    Ok(())
}

/// Takes the rule away, if nothing is reached by it any more.
pub(super) fn remove_if_unused(netlink: &mut Netlink) -> Result<(), NetlinkError> {
    match own_routes(netlink)?.is_empty() {
        true => remove_rule(netlink),
        false => Ok(()),
    }
}

/// Has the rule come before that of the table `local`, of which there is one at any time.
fn put_rule_first(netlink: &mut Netlink) -> Result<(), NetlinkError> {
    let all = netlink.rules()?;
    let own = all.iter().position(is_own_rule);
    let local = all.iter().position(rules::is_local);
    if own.is_some_and(|own| local.is_none_or(|local| own < local)) {
        return Ok(());
    }
    if own.is_none() {
        netlink.ask(RouteNetlinkMessage::NewRule(rule()), NLM_F_CREATE)?;
    }
    if local.is_some() {
        let (add, remove) = (rules::local(), rules::local());
        netlink.ask(RouteNetlinkMessage::NewRule(add), NLM_F_CREATE)?;
        netlink.ask(RouteNetlinkMessage::DelRule(remove), 0)?;
    }
    Ok(())
}

fn remove_rule(netlink: &mut Netlink) -> Result<(), NetlinkError> {
    if !netlink.rules()?.iter().any(is_own_rule) {
        return Ok(());
    }
    match netlink.ask(RouteNetlinkMessage::DelRule(rule()), 0) {
        // Somebody else was faster.
        Err(e) if e.is(libc::ENOENT) => Ok(()),
        removed => removed.map(drop),
    }
}

fn own_routes(netlink: &mut Netlink) -> Result<Vec<RouteMessage>, NetlinkError> {
    let mut all = netlink.routes()?;
    all.retain(|route| routes::table(route) == TABLE);
    Ok(all)
}

/// Whether a rule is hull's, and not the container's.
pub(super) fn is_own_rule(rule: &RuleMessage) -> bool {
    (rule.attributes.iter())
        .any(|attribute| matches!(attribute, RuleAttribute::Table(table) if *table == TABLE))
}

/// What is there already is fine.
fn once<T>(made: Result<T, NetlinkError>) -> Result<(), NetlinkError> {
    match made {
        Err(e) if e.is(libc::EEXIST) => Ok(()),
        made => made.map(drop),
    }
}

fn destination(route: &RouteMessage) -> Option<Ipv4Addr> {
    (route.attributes.iter()).find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(*to),
        _ => None,
    })
}

/// Its scope keeps it from being chosen for anything else.
fn source_address(tap: u32) -> AddressMessage {
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = 32;
    address.header.scope = AddressScope::Host;
    address.header.index = tap;
    address.attributes = vec![
        AddressAttribute::Local(SOURCE.into()),
        AddressAttribute::Address(SOURCE.into()),
    ];
    address
}

fn route(to: Ipv4Addr, tap: u32) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.destination_prefix_length = 32;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Link;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![
        RouteAttribute::Table(TABLE),
        RouteAttribute::Destination(RouteAddress::Inet(to)),
        RouteAttribute::Oif(tap),
        RouteAttribute::PrefSource(RouteAddress::Inet(SOURCE)),
    ];
    route
}

/// For what processes of the namespace itself send.
fn rule() -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = AddressFamily::Inet;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Table(TABLE),
        RuleAttribute::Priority(0),
        RuleAttribute::Iifname("lo".to_owned()),
    ];
    rule
}
