//! Interfaces as rtnetlink tells of them, and which of them a VM is to have.

use std::collections::HashSet;

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage,
};

use super::told::Told;
use super::{Error, tap};

/// What hull needs to know of an interface.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<[u8; 6]>,
    pub mtu: u32,
    pub flags: LinkFlags,
    pub layer: LinkLayerType,
    pub kind: Option<InfoKind>,
    /// Whether it is a port of a bridge or the like, or on top of another interface of the namespace.
    pub is_joined: bool,
    /// How it gets its link-local address; `None` where there is no IPv6.
    pub addr_gen_mode: Option<In6AddrGenMode>,
    /// What is known of its sysctls without reading them.
    pub told: Told,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            flags: message.header.flags,
            layer: message.header.link_layer_type,
            kind: None,
            is_joined: false,
            addr_gen_mode: None,
            told: Told::default(),
        };
        let (mut below, mut is_below_elsewhere, mut is_port) = (None, false, false);
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Link(index) => below = Some(index),
                LinkAttribute::LinkNetNsId(_) => is_below_elsewhere = true,
                LinkAttribute::Controller(_) => is_port = true,
                LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
                LinkAttribute::AfSpecUnspec(families) => {
                    link.told = Told::of(&families);
                    link.addr_gen_mode = addr_gen_mode(families);
                }
                _ => {}
            }
        }
        // A veth's other end isn't below it.
        let is_on_top = link.kind != Some(InfoKind::Veth)
            && !is_below_elsewhere
            && below.is_some_and(|below| below != 0 && below != link.index);
        link.is_joined = is_port || is_on_top;
        link
    }
}

fn kind(infos: Vec<LinkInfo>) -> Option<InfoKind> {
    infos.into_iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

fn addr_gen_mode(families: Vec<AfSpecUnspec>) -> Option<In6AddrGenMode> {
    let v6 = families.into_iter().find_map(|family| match family {
        AfSpecUnspec::Inet6(v6) => Some(v6),
        _ => None,
    });
    v6?.into_iter().find_map(|attribute| match attribute {
        AfSpecInet6::AddrGenMode(mode) => Some(mode),
        _ => None,
    })
}

impl Link {
    /// Whether it is up, has a carrier, and the kernel has made of that what it does.
    pub fn is_running(&self) -> bool {
        self.flags.contains(LinkFlags::Up | LinkFlags::Running)
    }

    pub fn is_up(&self) -> bool {
        self.flags.contains(LinkFlags::Up)
    }

    pub fn is_loopback(&self) -> bool {
        self.flags.contains(LinkFlags::Loopback)
    }

    /// Whether a VM is to have it.
    ///
    /// # Errors
    /// When it should, but can't.
    fn is_wanted(&self, taps: &HashSet<String>) -> Result<bool, Error> {
        let is_own_tap = self.kind == Some(InfoKind::Tun) && taps.contains(&self.name);
        if self.is_loopback() || is_own_tap {
            return Ok(false);
        }
        let interface = self.name.clone();
        if self.layer != LinkLayerType::Ether {
            // Some of the kernel's modules put one into every namespace (sit0, tunl0, ip6tnl0, gre0).
            return match self.is_up() {
                true => Err(Error::NotEthernet {
                    interface,
                    kind: self.layer,
                }),
                false => Ok(false),
            };
        }
        // Theirs of Ethernet (gretap0, erspan0) have no hardware address.
        let is_nobodys = !self.is_up() && self.mac.is_none_or(|mac| mac == [0; 6]);
        match self.is_joined && !is_nobodys {
            true => Err(Error::Joined { interface }),
            false => Ok(!is_nobodys),
        }
    }
}

/// Those of a namespace's interfaces that a VM is to have, in the order of their indexes. Taps of interfaces that are
/// there, or that were `connected`, aren't among them. Beside them, what is wrong with the first one that is in use
/// and can't be a VM's.
pub(super) fn wanted<'a>(
    links: &'a [Link],
    connected: &[u32],
) -> (Vec<&'a Link>, Result<(), Error>) {
    let there = links.iter().map(|link| &link.index);
    let taps = there.chain(connected).map(|index| tap::name(*index));
    let taps = taps.collect();
    let (mut wanted, mut all_can_be) = (Vec::new(), Ok(()));
    for link in links {
        match link.is_wanted(&taps) {
            Ok(true) => wanted.push(link),
            Ok(false) => {}
            Err(e) => all_can_be = all_can_be.and(Err(e)),
        }
    }
    wanted.sort_by_key(|link| link.index);
    (wanted, all_can_be)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            flags: LinkFlags::Up,
            layer: LinkLayerType::Ether,
            kind: None,
            is_joined: false,
            addr_gen_mode: None,
            told: Told::default(),
        }
    }

    fn names(links: &[Link]) -> Result<Vec<&str>, Error> {
        let (wanted, all_can_be) = wanted(links, &[]);
        all_can_be?;
        Ok(wanted.iter().map(|link| link.name.as_str()).collect())
    }

    #[test]
    fn what_nobody_has_set_up_is_left_out() {
        let lo = Link {
            flags: LinkFlags::Up | LinkFlags::Loopback,
            layer: LinkLayerType::Loopback,
            ..link(1, "lo")
        };
        let sit = Link {
            flags: LinkFlags::empty(),
            layer: LinkLayerType::Sit,
            mac: None,
            ..link(2, "sit0")
        };
        let gretap = Link {
            flags: LinkFlags::empty(),
            mac: Some([0; 6]),
            ..link(3, "gretap0")
        };
        let tap = Link {
            kind: Some(InfoKind::Tun),
            ..link(6, &tap::name(5))
        };
        // One that an engine names so is no tap of hull's: no interface has that index.
        let others = Link {
            kind: Some(InfoKind::Tun),
            ..link(7, &tap::name(99))
        };
        let down = Link {
            flags: LinkFlags::empty(),
            ..link(4, "eth1")
        };
        let all = [lo, sit, gretap, link(5, "eth0"), tap, others.clone(), down];
        assert_eq!(names(&all).expect("fine"), ["eth1", "eth0", &others.name]);
    }

    #[test]
    fn what_a_vm_cannot_have_is_refused_by_its_name() {
        let wireguard = Link {
            layer: LinkLayerType::None,
            ..link(2, "wg0")
        };
        let port = Link {
            is_joined: true,
            ..link(3, "port0")
        };
        for link in [wireguard, port] {
            let said = names(std::slice::from_ref(&link))
                .expect_err("refused")
                .to_string();
            assert!(said.contains(&format!("interface {}", link.name)), "{said}");
        }
    }

    #[test]
    fn what_a_vm_cannot_have_keeps_no_other_back() {
        let wireguard = Link {
            layer: LinkLayerType::None,
            ..link(2, "wg0")
        };
        let all = [wireguard, link(3, "eth0")];
        let (wanted, all_can_be) = wanted(&all, &[]);
        assert_eq!(wanted.len(), 1);
        assert_eq!(wanted[0].name, "eth0");
        all_can_be.expect_err("one is told of");
    }
}
