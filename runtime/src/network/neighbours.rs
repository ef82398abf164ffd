//! Neighbours (ip-neighbour(8)) that somebody has set, as another kernel is to take them.

use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState,
};

use super::Interface;

/// The neighbour as the guest is to have it; `None` if its kernel finds it out by itself.
///
/// Kept are permanent ones, those that the kernel keeps up for somebody (`managed`), those that an interface answers
/// for (`proxy`), and those without ARP (NUD_NOARP), unless it is the kernel that needs none for them.
pub(super) fn carried(
    mut neighbour: NeighbourMessage,
    interfaces: &[Interface],
) -> Option<NeighbourMessage> {
    let interface =
        (interfaces.iter()).find(|interface| interface.index == neighbour.header.ifindex)?;
    let is_managed = neighbour.attributes.iter().any(|attribute| {
        matches!(attribute, NeighbourAttribute::ExtFlags(flags) if flags.contains(NeighbourExtFlags::Managed))
    });
    let is_set = is_managed
        || neighbour.header.flags.contains(NeighbourFlags::Proxy)
        || match neighbour.header.state {
            NeighbourState::Permanent => true,
            NeighbourState::Noarp => !needs_no_arp(&neighbour, interface),
            _ => false,
        };
    let is_state = |attribute: &NeighbourAttribute| {
        matches!(
            attribute,
            NeighbourAttribute::CacheInfo(_) | NeighbourAttribute::Probes(_)
        )
    };
    neighbour
        .attributes
        .retain(|attribute| !is_state(attribute));
    is_set.then_some(neighbour)
}

/// Whether the kernel knows the hardware address by itself (`arp_constructor`, `ndisc_constructor`).
fn needs_no_arp(neighbour: &NeighbourMessage, interface: &Interface) -> bool {
    let known = (neighbour.attributes.iter()).any(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(to)) => {
            to.is_multicast() || *to == Ipv4Addr::BROADCAST || *to == Ipv4Addr::UNSPECIFIED
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(to)) => {
            to.is_multicast() || *to == Ipv6Addr::UNSPECIFIED
        }
        NeighbourAttribute::LinkLayerAddress(to) => {
            *to == interface.mac || *to == [0; 6] || *to == [0xff; 6]
        }
        _ => false,
    });
    known || !interface.arp
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(arp: bool) -> Interface {
        Interface {
            index: 2,
            name: "eth0".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            up: true,
            arp,
            addresses: vec![],
            sysctls: vec![],
        }
    }

    fn neighbour(state: NeighbourState, to: [u8; 4], mac: [u8; 6]) -> NeighbourMessage {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.ifindex = 2;
        neighbour.header.state = state;
        let to = NeighbourAddress::Inet(to.into());
        neighbour.attributes = vec![
            NeighbourAttribute::Destination(to),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        neighbour
    }

    #[test]
    fn only_what_somebody_has_set_is_kept() {
        let (near, other) = ([10, 0, 0, 1], [2, 0, 0, 0, 0, 9]);
        let (permanent, noarp) = (NeighbourState::Permanent, NeighbourState::Noarp);
        let kept = |neighbour: NeighbourMessage, arp| carried(neighbour, &[interface(arp)]);
        assert!(kept(neighbour(permanent, near, other), true).is_some());
        assert!(kept(neighbour(noarp, near, other), true).is_some());
        assert!(kept(neighbour(noarp, near, other), false).is_none());
        assert!(kept(neighbour(noarp, [224, 0, 0, 1], other), true).is_none());
        assert!(kept(neighbour(noarp, [10, 0, 0, 255], [0xff; 6]), true).is_none());
        assert!(kept(neighbour(NeighbourState::Reachable, near, other), true).is_none());
        let mut proxy = neighbour(NeighbourState::None, near, other);
        proxy.header.flags = NeighbourFlags::Proxy;
        assert!(kept(proxy, true).is_some());
        let mut elsewhere = neighbour(permanent, near, other);
        elsewhere.header.ifindex = 3;
        assert!(kept(elsewhere, true).is_none());
    }
}
