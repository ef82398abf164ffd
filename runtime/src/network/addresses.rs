//! Addresses as another kernel is to take them: without the state of this one, and with what it makes of them by
//! itself.
//!
//! A kernel gives an IPv6 interface a link-local address, and makes a route to the prefix of each address. Where
//! that is as it was here, it is left to the guest's kernel. Where somebody has changed it, the guest is told not to
//! make it (`addr_gen_mode` none, IFA_F_NOPREFIXROUTE), and it comes along like any other address or route.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::In6AddrGenMode;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RoutePreference, RouteProtocol, RouteScope,
    RouteType,
};

use super::routes;

/// The metric of IPv6 routes to prefixes (IP6_RT_PRIO_ADDRCONF of net/ip6_route.h).
const ADDRCONF_METRIC: u32 = 256;

/// What the kernel says of an address: the header has room for the first eight flags only.
pub(super) fn flags(address: &AddressMessage) -> AddressFlags {
    let all = (address.attributes.iter()).find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    all.unwrap_or_else(|| AddressFlags::from_bits_retain(address.header.flags.bits().into()))
}

fn set_flags(address: &mut AddressMessage, flags: AddressFlags) {
    let [low, ..] = flags.bits().to_le_bytes();
    address.header.flags = AddressHeaderFlags::from_bits_retain(low);
    let place = (address.attributes.iter_mut()).find_map(|attribute| match attribute {
        AddressAttribute::Flags(place) => Some(place),
        _ => None,
    });
    match place {
        Some(place) => *place = flags,
        None => (address.attributes).push(AddressAttribute::Flags(flags)),
    }
}

/// The interface's own address.
pub(super) fn local(address: &AddressMessage) -> Option<IpAddr> {
    let own = (address.attributes.iter()).find_map(|attribute| match attribute {
        AddressAttribute::Local(own) => Some(*own),
        _ => None,
    });
    own.or_else(|| peer(address))
}

/// The other end's address; the own one, if that isn't told.
fn peer(address: &AddressMessage) -> Option<IpAddr> {
    (address.attributes.iter()).find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}

/// Addresses of an interface as they are to be added to one of another kernel, in that order. The kernel lists IPv6
/// addresses with the latest first, and prefers that one as a source.
pub(super) fn settled(addresses: impl Iterator<Item = AddressMessage>) -> Vec<AddressMessage> {
    let (mut v4, mut v6): (Vec<_>, Vec<_>) = (addresses.filter_map(settle))
        .partition(|address| address.header.family == AddressFamily::Inet);
    v6.reverse();
    v4.append(&mut v6);
    v4
}

/// An address without what is this machine's; `None` for one that another machine has too.
///
/// An IPv6 address comes with IFA_F_NODAD: it has been looked for already. One whose duplicates are still being
/// looked for comes without, so that the guest's kernel goes on with that, and nobody waits here.
fn settle(mut address: AddressMessage) -> Option<AddressMessage> {
    for attribute in &mut address.attributes {
        // When it was made and changed, by this machine's clock.
        if let AddressAttribute::CacheInfo(info) = attribute {
            (info.cstamp, info.tstamp) = (0, 0);
        }
    }
    if address.header.family != AddressFamily::Inet6 {
        return Some(address);
    }
    let mut flags = flags(&address);
    if flags.contains(AddressFlags::Dadfailed) {
        let own = local(&address).map(|own| own.to_string());
        log::warn!(
            "the address {} of the container's network is left out: another machine has it too",
            own.unwrap_or_default()
        );
        return None;
    }
    let searching = AddressFlags::Tentative | AddressFlags::Optimistic;
    if !flags.intersects(searching) {
        flags |= AddressFlags::Nodad;
    }
    set_flags(&mut address, flags - searching);
    Some(address)
}

/// What an interface's link-local addresses tell.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LinkLocal {
    /// The guest's kernel makes this one of the hardware address, as this one did.
    Made(Ipv6Addr),
    /// The guest's kernel is to make none: those that there are would not be the ones that it makes.
    Others,
    /// Nothing: there are none. The kernel will make one when there is a carrier, or isn't to, or somebody has
    /// removed it, which looks the same.
    Nothing,
}

impl LinkLocal {
    /// Judges by an interface's addresses. `is_running` says whether the kernel would have made one.
    pub(super) fn of(
        addresses: &[AddressMessage],
        mac: [u8; 6],
        mode: Option<In6AddrGenMode>,
        is_running: bool,
    ) -> Self {
        let made = eui64(mac);
        let known: Vec<_> = addresses.iter().filter_map(link_local).collect();
        match mode {
            None | Some(In6AddrGenMode::None) => Self::Nothing,
            Some(In6AddrGenMode::Eui64) if known.contains(&made) => Self::Made(made),
            // It will have its own beside these.
            Some(In6AddrGenMode::Eui64) if !is_running => Self::Nothing,
            Some(_) if known.is_empty() => Self::Nothing,
            Some(_) => Self::Others,
        }
    }
}

fn link_local(address: &AddressMessage) -> Option<Ipv6Addr> {
    match local(address)? {
        IpAddr::V6(own) if own.is_unicast_link_local() => Some(own),
        _ => None,
    }
}

/// The link-local address of a hardware address (RFC 4291, appendix A).
fn eui64([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let halves = |high, low| u16::from_be_bytes([high, low]);
    let id = [
        halves(a ^ 2, b),
        halves(c, 0xff),
        halves(0xfe, d),
        halves(e, f),
    ];
    Ipv6Addr::new(0xfe80, 0, 0, 0, id[0], id[1], id[2], id[3])
}

/// An address that every `lo` has.
pub(super) fn is_loopback(address: &AddressMessage) -> bool {
    let own = (local(address), address.header.prefix_len);
    own == (Some(Ipv4Addr::LOCALHOST.into()), 8) || own == (Some(Ipv6Addr::LOCALHOST.into()), 128)
}

/// Whether an address is one that goes along to another namespace, by runc's rule for `linux.netDevices`: somebody
/// has set it for good, and it means something beyond the link.
pub(super) fn is_permanent_and_global(address: &AddressMessage) -> bool {
    flags(address).contains(AddressFlags::Permanent)
        && address.header.scope == AddressScope::Universe
}

/// A route to an address's prefix, exactly as a kernel makes it in the main table (`fib_add_ifaddr`,
/// `addrconf_prefix_route`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PrefixRoute {
    interface: u32,
    destination: IpAddr,
    length: u8,
    /// IPv4 only.
    source: Option<IpAddr>,
    metric: u32,
}

impl PrefixRoute {
    /// A route that the kernel has made along with an address, if it is one.
    pub(super) fn of_route(route: &RouteMessage) -> Option<Self> {
        let header = &route.header;
        let is_v4 = header.address_family == AddressFamily::Inet;
        let scope = match is_v4 {
            true => RouteScope::Link,
            false => RouteScope::Universe,
        };
        let is_made = (header.protocol, header.kind, header.scope)
            == (RouteProtocol::Kernel, RouteType::Unicast, scope);
        let is_plain = header.tos == 0
            && header.source_prefix_length == 0
            && routes::table(route) == routes::MAIN_TABLE;
        if !is_made || !is_plain {
            return None;
        }
        let (mut interface, mut destination, mut source, mut metric) = (None, None, None, 0);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::Destination(address) => destination = Some(ip(address)?),
                RouteAttribute::PrefSource(address) => source = Some(ip(address)?),
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Table(_) | RouteAttribute::CacheInfo(_) => {}
                RouteAttribute::Preference(RoutePreference::Medium) => {}
                _ => return None,
            }
        }
        Some(Self {
            interface: interface?,
            destination: destination?,
            length: header.destination_prefix_length,
            source,
            metric,
        })
    }

    /// The one that the kernel makes for an address on an interface that is up, if it makes one.
    fn of_address(address: &AddressMessage) -> Option<Self> {
        let header = &address.header;
        let length = header.prefix_len;
        let metric = (address.attributes.iter()).find_map(|attribute| match attribute {
            AddressAttribute::RoutePriority(priority) => Some(*priority),
            _ => None,
        });
        let (own, far) = (local(address)?, peer(address)?);
        let is_secondary = flags(address).contains(AddressFlags::Secondary);
        let (destination, source, default) = match (own, far) {
            // An IPv4 address has none that is the whole prefix, or shares another's.
            (IpAddr::V4(_), _) if is_secondary || (own == far && length == 32) => return None,
            (IpAddr::V4(_), far) => (far, Some(own), 0),
            (IpAddr::V6(_), _) => (own, None, ADDRCONF_METRIC),
        };
        Some(Self {
            interface: header.index,
            destination: network(destination, length),
            length,
            source,
            metric: metric.filter(|metric| *metric != 0).unwrap_or(default),
        })
    }

    /// The one to the far end of an IPv6 address that has one.
    fn of_far_end(address: &AddressMessage) -> Option<Self> {
        let (own, far) = (local(address)?, peer(address)?);
        let length = 128;
        let to_far_end = |prefix: Self| Self {
            destination: far,
            length,
            ..prefix
        };
        let has_one = own.is_ipv6() && own != far;
        has_one.then(|| Self::of_address(address).map(to_far_end))?
    }
}

/// Leaves the routes of an interface's addresses to the guest's kernel, by adding them to `made`, and tells it of each
/// address whose route isn't there that it is to make none. The interface must be up: otherwise no kernel has made any.
pub(super) fn leave_prefix_routes(
    addresses: &mut [AddressMessage],
    there: &HashSet<PrefixRoute>,
    made: &mut HashSet<PrefixRoute>,
) {
    for address in addresses {
        made.extend(PrefixRoute::of_far_end(address));
        let flags = flags(address);
        if flags.contains(AddressFlags::Noprefixroute) {
            continue;
        }
        match PrefixRoute::of_address(address) {
            Some(route) if there.contains(&route) => {
                made.insert(route);
            }
            Some(_) => set_flags(address, flags | AddressFlags::Noprefixroute),
            None => {}
        }
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// The first address of a prefix.
fn network(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(address) => {
            let host_bits = u32::MAX.checked_shr(length).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & !host_bits).into()
        }
        IpAddr::V6(address) => {
            let host_bits = u128::MAX.checked_shr(length).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & !host_bits).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x02, 0x42, 0xac, 0x11, 0x00, 0x02];

    fn v6(text: &str, flags: AddressFlags) -> AddressMessage {
        let mut address = AddressMessage::default();
        address.header.family = AddressFamily::Inet6;
        address.header.prefix_len = 64;
        let own = text.parse().expect("an address");
        address.attributes.push(AddressAttribute::Address(own));
        set_flags(&mut address, flags);
        address
    }

    #[test]
    fn an_address_that_is_settled_is_not_looked_for_again() {
        let settled_flags = |before| settle(v6("2001:db8::1", before)).map(|after| flags(&after));
        let permanent = AddressFlags::Permanent;
        assert_eq!(
            settled_flags(permanent),
            Some(permanent | AddressFlags::Nodad)
        );
        assert_eq!(
            settled_flags(permanent | AddressFlags::Tentative),
            Some(permanent)
        );
        let failed = AddressFlags::Tentative | AddressFlags::Dadfailed;
        assert_eq!(settled_flags(permanent | failed), None);
    }

    #[test]
    fn flags_beyond_the_headers_are_kept() {
        let high = AddressFlags::Noprefixroute | AddressFlags::Nodad;
        let address = v6("2001:db8::1", high);
        assert_eq!(address.header.flags, AddressHeaderFlags::Nodad);
        assert_eq!(flags(&address), high);
    }

    #[test]
    fn a_link_local_address_is_left_to_the_guest_if_it_makes_the_same() {
        let of = |addresses: &[_], mode, is_running| {
            LinkLocal::of(addresses, MAC, Some(mode), is_running)
        };
        let made: Ipv6Addr = "fe80::42:acff:fe11:2".parse().expect("an address");
        let own = v6(&made.to_string(), AddressFlags::Permanent);
        let other = v6("fe80::1", AddressFlags::Permanent);
        let (eui64, private) = (In6AddrGenMode::Eui64, In6AddrGenMode::StablePrivacy);
        assert_eq!(
            of(&[own.clone(), other.clone()], eui64, true),
            LinkLocal::Made(made)
        );
        assert_eq!(
            of(std::slice::from_ref(&other), eui64, true),
            LinkLocal::Others
        );
        assert_eq!(of(&[other], eui64, false), LinkLocal::Nothing);
        assert_eq!(of(&[], eui64, true), LinkLocal::Nothing);
        assert_eq!(
            of(std::slice::from_ref(&own), private, true),
            LinkLocal::Others
        );
        assert_eq!(of(&[], In6AddrGenMode::None, true), LinkLocal::Nothing);
        assert_eq!(LinkLocal::of(&[own], MAC, None, true), LinkLocal::Nothing);
    }

    #[test]
    fn a_prefix_has_its_first_address() {
        let first = |text: &str, length| network(text.parse().expect("an address"), length);
        assert_eq!(first("10.1.2.3", 8).to_string(), "10.0.0.0");
        assert_eq!(first("10.1.2.3", 0).to_string(), "0.0.0.0");
        assert_eq!(first("10.1.2.3", 32).to_string(), "10.1.2.3");
        assert_eq!(first("2001:db8::1:2", 112).to_string(), "2001:db8::1:0");
        assert_eq!(first("2001:db8::1:2", 128).to_string(), "2001:db8::1:2");
    }
}
