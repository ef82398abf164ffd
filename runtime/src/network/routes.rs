//! Routes as another kernel is to take them, in an order in which it can.
//!
//! | route | becomes |
//! | --- | --- |
//! | of an address (table `local`, prefixes), multicast, the null route | the guest's kernel's own |
//! | cloned (RTM_F_CLONED), of an ICMP redirect | nothing: the guest learns them |
//! | of a router advertisement, with a lifetime | nothing: the guest learns it, unless a copy is in the way |
//! | the same without a lifetime | a route: somebody has set it, as pasta does with copies of the host's |
//! | with another lifetime | a route with what is left of it, in seconds (RTA_EXPIRES) |
//! | through a nexthop object | a route through what the object stands for, or a refusal by its number |
//! | else, in whichever table and of whichever type | itself |
//!
//! State of this kernel (RTNH_F_DEAD, RTNH_F_LINKDOWN, offloads) is taken away. To be added with
//! NLM_F_CREATE and NLM_F_APPEND: two may differ in nothing that makes them one.

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteCacheInfo, RouteFlags, RouteMessage, RouteNextHop,
    RouteNextHopFlags, RouteProtocol, RouteScope, RouteType,
};

use super::Error;

/// RT_TABLE_MAIN of linux/rtnetlink.h.
pub(super) const MAIN_TABLE: u32 = 254;

/// RT_TABLE_LOCAL of linux/rtnetlink.h.
const LOCAL_TABLE: u32 = 255;

/// Lifetimes are told in clock ticks for users (USER_HZ).
const TICKS_PER_SECOND: u32 = 100;

/// The number of a route's table: the header has room for small ones only.
pub(super) fn table(route: &RouteMessage) -> u32 {
    let large = (route.attributes.iter()).find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    large.unwrap_or_else(|| route.header.table.into())
}

/// The route as the guest is to have it; `None` if its kernel makes it, or learns it.
///
/// # Errors
/// When it leads through a nexthop object whose contents the kernel doesn't show.
pub(super) fn carried(mut route: RouteMessage) -> Result<Option<RouteMessage>, Error> {
    let lifetime = lifetime(&route);
    if is_made(&route) || is_learnt(&route, lifetime) {
        return Ok(None);
    }
    resolve_nexthop(&mut route)?;
    route.header.flags &= RouteFlags::Onlink;
    for attribute in &mut route.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            for hop in hops {
                hop.flags &= RouteNextHopFlags::Onlink;
            }
        }
    }
    let is_state = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::CacheInfo(_) | RouteAttribute::Expires(_)
        )
    };
    route.attributes.retain(|attribute| !is_state(attribute));
    let left = lifetime.map(|ticks| RouteAttribute::Expires(ticks.div_ceil(TICKS_PER_SECOND)));
    route.attributes.extend(left);
    Ok(Some(route))
}

/// What is left of a route's time, in ticks; `None` if it stays.
fn lifetime(route: &RouteMessage) -> Option<u32> {
    let info = (route.attributes.iter()).find_map(|attribute| match attribute {
        RouteAttribute::CacheInfo(info) => Some(info),
        _ => None,
    });
    // A signed number; it is negative where the time is over, and the route not yet gone.
    info.map(|RouteCacheInfo { expires, .. }| *expires)
        .filter(|ticks| *ticks != 0)
        .map(|ticks| u32::try_from(ticks.cast_signed()).unwrap_or(1))
}

/// Whether every kernel makes it by itself. Routes to prefixes aren't judged here: they depend on addresses.
fn is_made(route: &RouteMessage) -> bool {
    let header = &route.header;
    let by_kernel = header.protocol == RouteProtocol::Kernel;
    let is_v6 = header.address_family == AddressFamily::Inet6;
    let is_multicast = is_v6
        && table(route) == LOCAL_TABLE
        && header.destination_prefix_length == 8
        && (route.attributes.iter()).any(
            |attribute| matches!(attribute, RouteAttribute::Destination(RouteAddress::Inet6(to)) if to.is_multicast()),
        );
    let is_null = is_v6 && by_kernel && header.kind == RouteType::Unreachable;
    is_multicast || is_null || (by_kernel && table(route) == LOCAL_TABLE)
}

/// Whether the guest's kernel finds it out by itself.
fn is_learnt(route: &RouteMessage, lifetime: Option<u32>) -> bool {
    route.header.flags.contains(RouteFlags::Cloned)
        || match route.header.protocol {
            RouteProtocol::IcmpRedirect => true,
            RouteProtocol::Ra => lifetime.is_some(),
            _ => false,
        }
}

/// Takes the nexthop object away: the kernel shows beside it what it stands for (net.ipv4.nexthop_compat_mode).
fn resolve_nexthop(route: &mut RouteMessage) -> Result<(), Error> {
    let id = (route.attributes.iter()).find_map(|attribute| match attribute {
        RouteAttribute::NhId(id) => Some(*id),
        _ => None,
    });
    let Some(id) = id else {
        return Ok(());
    };
    let leads_somewhere = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::Oif(_) | RouteAttribute::MultiPath(_)
        )
    };
    let needs_no_way = route.header.kind != RouteType::Unicast;
    if !needs_no_way && !route.attributes.iter().any(leads_somewhere) {
        let destination = destination(route);
        return Err(Error::NexthopObject { destination, id });
    }
    let is_object = |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::NhId(_));
    route.attributes.retain(|attribute| !is_object(attribute));
    Ok(())
}

/// As ip-route(8) writes it.
fn destination(route: &RouteMessage) -> String {
    let length = route.header.destination_prefix_length;
    let to = (route.attributes.iter()).find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(to.to_string()),
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(to.to_string()),
        _ => None,
    });
    to.map_or_else(|| "default".to_owned(), |to| format!("{to}/{length}"))
}

/// The interfaces that a route leads through.
pub(super) fn interfaces(route: &RouteMessage) -> Vec<u32> {
    let mut all = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => all.push(*index),
            RouteAttribute::MultiPath(hops) => {
                all.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    all
}

/// Puts routes into an order in which each finds its gateway: those without one first, then those that need no way to
/// it or whose gateway is on the link, then the rest. Among equals the kernel's own order stays.
pub(super) fn sort(routes: &mut [RouteMessage]) {
    routes.sort_by_key(|route| {
        let header = &route.header;
        let is_on_link = header.flags.contains(RouteFlags::Onlink)
            || matches!(header.scope, RouteScope::Link | RouteScope::Host);
        let hops = (route.attributes.iter()).flat_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => hops.as_slice(),
            _ => &[],
        });
        let mut has_gateway = has_gateway(&route.attributes);
        let mut needs_way = has_gateway && !is_on_link;
        for RouteNextHop {
            flags, attributes, ..
        } in hops
        {
            let hop_has_gateway = self::has_gateway(attributes);
            has_gateway |= hop_has_gateway;
            needs_way |= hop_has_gateway && !flags.contains(RouteNextHopFlags::Onlink);
        }
        (has_gateway, needs_way)
    });
}

fn has_gateway(attributes: &[RouteAttribute]) -> bool {
    let is_gateway = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_)
        )
    };
    attributes.iter().any(is_gateway)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn route(family: AddressFamily, protocol: RouteProtocol) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = family;
        route.header.protocol = protocol;
        route.header.kind = RouteType::Unicast;
        route.header.table = 254;
        route
    }

    fn via(route: &mut RouteMessage) {
        let gateway = RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 1));
        route.attributes.push(RouteAttribute::Gateway(gateway));
    }

    fn with_lifetime(protocol: RouteProtocol, ticks: i32) -> RouteMessage {
        let mut route = route(AddressFamily::Inet6, protocol);
        let mut info = [0; 32];
        info[8..12].copy_from_slice(&ticks.to_ne_bytes());
        let info = RouteCacheInfo::parse(&info[..]).expect("rta_cacheinfo");
        route.attributes.push(RouteAttribute::CacheInfo(info));
        route
    }

    fn is_kept(route: RouteMessage) -> bool {
        carried(route).expect("no nexthop object").is_some()
    }

    #[test]
    fn what_a_kernel_makes_or_learns_is_left_out() {
        let mut local = route(AddressFamily::Inet, RouteProtocol::Kernel);
        local.header.table = 255;
        assert!(!is_kept(local.clone()));
        local.header.protocol = RouteProtocol::Boot;
        assert!(is_kept(local), "somebody has added it");

        let mut multicast = route(AddressFamily::Inet6, RouteProtocol::Boot);
        multicast.header.table = 255;
        multicast.header.destination_prefix_length = 8;
        let to = RouteAddress::Inet6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0));
        multicast.attributes.push(RouteAttribute::Destination(to));
        assert!(!is_kept(multicast));

        let mut cloned = route(AddressFamily::Inet6, RouteProtocol::Static);
        cloned.header.flags = RouteFlags::Cloned;
        assert!(!is_kept(cloned));
        assert!(!is_kept(route(
            AddressFamily::Inet,
            RouteProtocol::IcmpRedirect
        )));
    }

    #[test]
    fn an_advertised_route_is_the_guests_to_learn_unless_it_is_for_good() {
        assert!(!is_kept(with_lifetime(RouteProtocol::Ra, 180_000)));
        assert!(is_kept(with_lifetime(RouteProtocol::Ra, 0)));
    }

    #[test]
    fn a_lifetime_goes_along_in_seconds() {
        for (ticks, left) in [
            (1, Some(1)),
            (250, Some(3)),
            (-100, Some(1)),
            (0, None::<u32>),
        ] {
            let route = with_lifetime(RouteProtocol::Static, ticks);
            let route = carried(route).expect("fine").expect("kept");
            let left = left.map(RouteAttribute::Expires);
            assert_eq!(
                route.attributes,
                left.into_iter().collect::<Vec<_>>(),
                "{ticks}"
            );
        }
    }

    #[test]
    fn a_nexthop_object_is_what_it_stands_for() {
        let mut known = route(AddressFamily::Inet, RouteProtocol::Static);
        known.attributes = vec![RouteAttribute::NhId(7), RouteAttribute::Oif(2)];
        let known = carried(known).expect("fine").expect("kept");
        assert_eq!(known.attributes, [RouteAttribute::Oif(2)]);

        let mut unknown = route(AddressFamily::Inet, RouteProtocol::Static);
        unknown.attributes = vec![RouteAttribute::NhId(7)];
        let said = carried(unknown).expect_err("refused").to_string();
        assert!(said.contains("default: its nexthop object 7"), "{said}");
    }

    #[test]
    fn a_gateway_comes_after_the_way_to_it() {
        let mut far = route(AddressFamily::Inet, RouteProtocol::Static);
        via(&mut far);
        let mut multipath = route(AddressFamily::Inet, RouteProtocol::Bgp);
        let mut hop = RouteNextHop::default();
        hop.attributes = far.attributes.clone();
        let hops = RouteAttribute::MultiPath(vec![hop]);
        multipath.attributes.push(hops);
        let mut onlink = far.clone();
        onlink.header.flags = RouteFlags::Onlink;
        let near = route(AddressFamily::Inet, RouteProtocol::Boot);

        let mut routes = vec![far.clone(), multipath.clone(), onlink.clone(), near.clone()];
        sort(&mut routes);
        assert_eq!(routes, [near, onlink, far, multipath]);
    }

    #[test]
    fn the_state_of_this_kernel_stays_here() {
        let mut dead = route(AddressFamily::Inet, RouteProtocol::Static);
        dead.header.flags = RouteFlags::Onlink | RouteFlags::Linkdown | RouteFlags::Dead;
        let alive = carried(dead).expect("fine").expect("kept");
        assert_eq!(alive.header.flags, RouteFlags::Onlink);
    }
}
