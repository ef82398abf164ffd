//! The network that the host asks for, parsed and checked before anything is changed.

use hull_protocol::agent;
use hull_protocol::network::{
    IFNAME, MAX_ADDRESSES, MAX_INTERFACES, MAX_NEIGHBOURS, MAX_ROUTES, MAX_RULES, MAX_SYSCTLS,
};
use netlink_packet_core::{DecodeError, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;

use super::Error;
use super::entries::{Entry, LOOPBACK};

/// The longest name of an interface, in bytes: `IFNAMSIZ` of linux/if.h without the terminating zero.
const MAX_NAME_LENGTH: usize = 15;

/// A network as it is to be. Interface indexes in its messages are the host's.
#[derive(Debug, Default)]
pub struct Desired {
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
    /// Further addresses of `lo`.
    pub loopback_addresses: Vec<AddressMessage>,
    /// Its routes.
    pub routes: Vec<RouteMessage>,
    /// Its permanent neighbours.
    pub neighbours: Vec<NeighbourMessage>,
    /// Its rules, without those that the kernel makes.
    pub rules: Vec<RuleMessage>,
    /// Rules that the kernel makes and that are to be removed.
    pub removed_rules: Vec<RuleMessage>,
}

/// An interface as it is to be.
#[derive(Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: Vec<u8>,
    /// Its MTU, if the NIC's own isn't to be kept.
    pub mtu: Option<u32>,
    /// Whether it is up.
    pub up: bool,
    /// Whether it resolves neighbours.
    pub arp: bool,
    /// The slot that its NIC is in, if the host names it.
    pub slot: Option<u32>,
    /// Its index on the host.
    pub host_index: u32,
    /// Its addresses.
    pub addresses: Vec<AddressMessage>,
    /// Its sysctls.
    pub sysctls: Vec<Sysctl>,
}

/// A sysctl of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// `conf` or `neigh`.
    pub group: String,
    /// Its name, the last part of the key.
    pub name: String,
    /// The value to set.
    pub value: String,
}

impl Desired {
    /// Parses a request.
    ///
    /// # Errors
    /// Names the field that is invalid.
    pub fn read(network: &agent::Network) -> Result<Self, Error> {
        check_count("interfaces", network.interfaces.len(), MAX_INTERFACES)?;
        let interfaces = network.interfaces.iter().map(Interface::read);
        let mut desired = Self {
            interfaces: interfaces.collect::<Result<_, _>>()?,
            loopback_addresses: entries(
                "loopback_addresses",
                &network.loopback_addresses,
                MAX_ADDRESSES,
            )?,
            routes: entries("routes", &network.routes, MAX_ROUTES)?,
            neighbours: entries("neighbours", &network.neighbours, MAX_NEIGHBOURS)?,
            rules: entries("rules", &network.rules, MAX_RULES)?,
            removed_rules: entries("removed_rules", &network.removed_rules, MAX_RULES)?,
        };
        desired.check_interfaces()?;
        for address in &mut desired.loopback_addresses {
            address.header.index = LOOPBACK;
        }
        Ok(desired)
    }

    /// Checks that the interfaces can be told apart.
    fn check_interfaces(&self) -> Result<(), Error> {
        for (position, one) in self.interfaces.iter().enumerate() {
            let before = self.interfaces.iter().take(position);
            for other in before {
                let by_mac = one.slot.is_none() && other.slot.is_none();
                let field = match () {
                    () if one.name == other.name => "name",
                    () if one.host_index == other.host_index => "host_index",
                    () if one.slot.is_some() && one.slot == other.slot => "slot",
                    () if by_mac && one.mac == other.mac => "mac",
                    () => continue,
                };
                let problem = format!("interfaces[{}] has the same", other.name);
                return Err(invalid(format!("{}: {field}", one.field()), problem));
            }
        }
        Ok(())
    }

    /// Whether it has nothing.
    pub fn is_empty(&self) -> bool {
        self.interfaces.is_empty()
            && self.loopback_addresses.is_empty()
            && self.routes.is_empty()
            && self.neighbours.is_empty()
            && self.rules.is_empty()
            && self.removed_rules.is_empty()
    }
}

impl Interface {
    fn read(given: &agent::Interface) -> Result<Self, Error> {
        let name = &given.name;
        if !is_valid_name(name) {
            let problem = format!("{name:?} is not a valid name of an interface");
            return Err(invalid("interfaces: name", problem));
        }
        let field = |field| format!("interfaces[{name}]: {field}");
        if given.mac.len() != 6 {
            let problem = format!("it has {} bytes, not 6", given.mac.len());
            return Err(invalid(field("mac"), problem));
        }
        if matches!(given.host_index, 0 | LOOPBACK) {
            let problem = format!("{} can't be that of a NIC", given.host_index);
            return Err(invalid(field("host_index"), problem));
        }
        check_count(&field("sysctls"), given.sysctls.len(), MAX_SYSCTLS)?;
        let sysctls = given.sysctls.iter().map(|sysctl| {
            let problem = || format!("{:?} is not a sysctl of an interface", sysctl.key);
            Sysctl::read(sysctl).ok_or_else(|| invalid(field("sysctls"), problem()))
        });
        let mut addresses: Vec<AddressMessage> =
            entries(&field("addresses"), &given.addresses, MAX_ADDRESSES)?;
        for address in &mut addresses {
            address.header.index = given.host_index;
        }
        Ok(Self {
            name: name.clone(),
            mac: given.mac.clone(),
            mtu: Some(given.mtu).filter(|mtu| *mtu != 0),
            up: !given.down,
            arp: !given.no_arp,
            slot: given.slot.checked_sub(1),
            host_index: given.host_index,
            addresses,
            sysctls: sysctls.collect::<Result<_, _>>()?,
        })
    }

    /// The interface in the text of an error.
    pub fn field(&self) -> String {
        format!("interfaces[{}]", self.name)
    }
}

impl Sysctl {
    /// Parses `net.FAMILY.GROUP.IFNAME.NAME`. Anything else could become a path to another file.
    fn read(given: &agent::Sysctl) -> Option<Self> {
        let parts: Vec<&str> = given.key.split('.').collect();
        let [
            "net",
            family @ ("ipv4" | "ipv6"),
            group @ ("conf" | "neigh"),
            IFNAME,
            name,
        ] = *parts
        else {
            return None;
        };
        let is_allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
        (!name.is_empty() && name.bytes().all(is_allowed)).then(|| Self {
            family: family.to_owned(),
            group: group.to_owned(),
            name: name.to_owned(),
            value: given.value.clone(),
        })
    }

    /// Its key in the request.
    pub fn key(&self) -> String {
        format!("net.{}.{}.{IFNAME}.{}", self.family, self.group, self.name)
    }

    /// Whether both are the same sysctl, whatever the value.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.family, &self.group, &self.name) == (&other.family, &other.group, &other.name)
    }
}

/// Whether the kernel accepts a name (`dev_valid_name`) as it is: in the place of `%d` it would put a number.
fn is_valid_name(name: &str) -> bool {
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c);
    (1..=MAX_NAME_LENGTH).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(forbidden)
}

/// Parses messages, and leaves out of them what a request doesn't take. Messages of other families than IPv4 and IPv6
/// are left out: a dump of all families has those of multicast routing, whose daemons make them.
fn entries<E: Entry + Parseable<[u8]>>(
    field: &str,
    given: &[Vec<u8>],
    max: usize,
) -> Result<Vec<E>, Error> {
    check_count(field, given.len(), max)?;
    let is_ip = |entry: &E| matches!(entry.family(), AddressFamily::Inet | AddressFamily::Inet6);
    let parse = |(index, body): (usize, &Vec<u8>)| {
        let invalid = |source| Error::Message {
            field: format!("{field}[{index}]"),
            source,
        };
        // The crate's parsers don't check for the whole header.
        if body.len() < E::HEADER {
            return Err(invalid(DecodeError::from("it is shorter than its header")));
        }
        Ok(E::parse(body).map_err(invalid)?.normalized())
    };
    let parsed = given.iter().enumerate().map(parse);
    let mut entries = parsed.collect::<Result<Vec<_>, _>>()?;
    entries.retain(is_ip);
    Ok(entries)
}

fn check_count(field: &str, count: usize, max: usize) -> Result<(), Error> {
    if count <= max {
        return Ok(());
    }
    let problem = format!("there are {count}, and can be {max} at most");
    Err(invalid(field, problem))
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Invalid {
        field: field.into(),
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface() -> agent::Interface {
        agent::Interface {
            name: "eth0".into(),
            mac: vec![2, 0, 0, 0, 0, 1],
            host_index: 7,
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut agent::Network)) -> String {
        let mut network = agent::Network {
            interfaces: vec![interface()],
            ..Default::default()
        };
        assert!(Desired::read(&network).is_ok());
        change(&mut network);
        let refused = Desired::read(&network);
        refused.expect_err("it is invalid").to_string()
    }

    #[test]
    fn an_invalid_field_is_named() {
        let names = ["", "a/b", "..", "eth%d", "a name", "sixteen-letters0"];
        for name in names {
            let problem = refused(|network| network.interfaces[0].name = name.into());
            let expected =
                format!("interfaces: name: {name:?} is not a valid name of an interface");
            assert_eq!(problem, expected);
        }
        let mac = refused(|network| network.interfaces[0].mac = vec![1]);
        assert_eq!(mac, "interfaces[eth0]: mac: it has 1 bytes, not 6");
        let lo = refused(|network| network.interfaces[0].host_index = 1);
        let expected = "interfaces[eth0]: host_index: 1 can't be that of a NIC";
        assert_eq!(lo, expected);
        let other = |change: fn(&mut agent::Interface)| {
            refused(|network| {
                network.interfaces[0].slot = 3;
                let mut other = agent::Interface {
                    name: "eth1".into(),
                    mac: vec![2, 0, 0, 0, 0, 2],
                    host_index: 8,
                    slot: 4,
                    ..Default::default()
                };
                change(&mut other);
                network.interfaces.push(other);
            })
        };
        let same = "interfaces[eth0] has the same";
        let index = other(|other| other.host_index = 7);
        assert_eq!(index, format!("interfaces[eth1]: host_index: {same}"));
        let slot = other(|other| other.slot = 3);
        assert_eq!(slot, format!("interfaces[eth1]: slot: {same}"));
        let name = other(|other| other.name = "eth0".into());
        assert_eq!(name, format!("interfaces[eth0]: name: {same}"));
        let many = refused(|network| network.rules = vec![Vec::new(); MAX_RULES + 1]);
        assert_eq!(many, "rules: there are 1025, and can be 1024 at most");
        let short = refused(|network| network.routes = vec![vec![2; 11]]);
        assert_eq!(short, "routes[0]: it is shorter than its header");
    }

    #[test]
    fn a_sysctl_is_one_of_the_interface() {
        let read = |key: &str| {
            Sysctl::read(&agent::Sysctl {
                key: key.into(),
                ..Default::default()
            })
        };
        let sysctl = read("net.ipv6.conf.IFNAME.accept_ra").expect("a sysctl");
        assert_eq!((&*sysctl.family, &*sysctl.name), ("ipv6", "accept_ra"));
        assert!(read("net.ipv4.neigh.IFNAME.base_reachable_time_ms").is_some());
        for key in [
            "net.ipv4.ip_forward",
            "net.ipv4.conf.all.forwarding",
            "net.ipv4.conf.IFNAME.",
            "net.ipv4.conf.IFNAME./../../x",
            "kernel.ipv4.conf.IFNAME.x",
            "net.mpls.conf.IFNAME.input",
        ] {
            assert!(read(key).is_none(), "{key}");
        }
    }
}
