//! What iproute2 sets up is what is read, and what is read makes another namespace the same.

use super::*;
use crate::network::body::{from_bytes, to_bytes};
use crate::network::namespace;
use crate::network::netlink::Netlink;
use crate::network::{Sysctl, SysctlTable};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use std::fs;
use std::path::Path;

const MAC: &str = "02:00:00:00:07:02";

/// A namespace with `eth0`, and the one with its other end.
fn pair() -> Option<(Net, Net)> {
    let (container, peer) = (Net::new()?, Net::new()?);
    container.add_veth("eth0", MAC, &peer);
    container.until(|| {
        let (shown, _) = container.try_run("ip", "-6 address show dev eth0 scope link");
        shown.contains("fe80::ff:fe00:702/64")
    });
    Some((container, peer))
}

/// Sets up in a namespace, where `eth0` has the same index, what was read of another: what the agent does in a guest.
fn replay(network: &Network, net: &Net) {
    for Interface { name, mtu, .. } in &network.interfaces {
        net.ip(&format!("link set {name} mtu {mtu}"));
    }
    net.inside(|| {
        let mut netlink = Netlink::open(namespace::deadline()).expect("a socket");
        let mut ask = |message, flags| netlink.ask(message, flags).map(drop).expect("taken");
        for interface in &network.interfaces {
            for sysctl in &interface.sysctls {
                let path = Path::new("/proc/sys").join(sysctl.path(&interface.name));
                fs::write(&path, &sysctl.value).expect("a sysctl");
            }
            for address in &interface.addresses {
                let address = from_bytes(&to_bytes(address)).expect("its bytes");
                ask(Message::NewAddress(address), NLM_F_CREATE | NLM_F_REPLACE);
            }
        }
        for address in &network.loopback {
            ask(
                Message::NewAddress(address.clone()),
                NLM_F_CREATE | NLM_F_REPLACE,
            );
        }
        for route in &network.routes {
            let route = from_bytes(&to_bytes(route)).expect("its bytes");
            ask(Message::NewRoute(route), NLM_F_CREATE | NLM_F_APPEND);
        }
        for neighbour in &network.neighbours {
            let neighbour = from_bytes(&to_bytes(neighbour)).expect("its bytes");
            ask(
                Message::NewNeighbour(neighbour),
                NLM_F_CREATE | NLM_F_REPLACE,
            );
        }
        for rule in &network.removed_rules {
            ask(Message::DelRule(rule.clone()), 0);
        }
        for rule in &network.rules {
            let rule = from_bytes(&to_bytes(rule)).expect("its bytes");
            ask(Message::NewRule(rule), NLM_F_CREATE);
        }
    });
}

/// All that iproute2 shows of it, but for the flag by which a kernel is told to make no route to an address's prefix.
fn shown(net: &Net) -> String {
    [
        "address show dev eth0 scope global",
        "address show dev lo",
        "route show table main",
        "route show table 100",
        "-6 route show table main",
        "-6 route show table 100",
        "rule show",
        "-6 rule show",
        "neighbour show nud permanent",
        "neighbour show proxy",
    ]
    .map(|what| {
        // A table without routes is an error to it.
        let (text, _) = net.try_run("ip", what);
        format!("{what}:\n{}\n", text.replace(" noprefixroute", ""))
    })
    .concat()
}

/// Has a copy made of what `commands` of iproute2 set up, and compares.
fn is_copied(commands: &[&str]) -> Option<Network> {
    let (original, _peer) = pair()?;
    for command in commands {
        original.ip(command);
    }
    let network = original.read();
    let (copy, _other_peer) = pair()?;
    replay(&network, &copy);
    let (original, like_it) = (shown(&original), shown(&copy));
    assert!(
        original == like_it,
        "original:\n{original}\n\ncopy:\n{like_it}"
    );
    assert_eq!(copy.read(), network);
    Some(network)
}

#[test]
fn what_an_engine_sets_up_comes_through() {
    let Some(network) = is_copied(&[
        "link set eth0 mtu 1400",
        "address add 10.7.0.2/24 brd + dev eth0",
        "address add 10.7.0.3/24 brd + dev eth0",
        "address add 10.8.0.2 peer 10.8.0.1/32 dev eth0",
        "address add 10.6.0.2/24 dev eth0 metric 50",
        "address add 192.0.2.1/32 dev lo",
        "address add 2001:db8:7::2/64 dev eth0 nodad",
        "address add 2001:db8:8::2/128 dev eth0 nodad",
        "address add 2001:db8:9::2 peer 2001:db8:9::1 dev eth0 nodad",
        "route add default via 10.7.0.1 proto static",
        "route add 10.9.0.0/16 via 192.168.77.1 dev eth0 onlink",
        "route add 10.10.0.0/16 via 10.7.0.1 metric 77 mtu 1300 src 10.7.0.3",
        "route add 10.11.0.0/16 nexthop via 10.7.0.1 weight 2 nexthop via 10.7.0.9",
        "route add blackhole 10.12.0.0/16",
        "route add 10.13.0.0/16 dev eth0 table 100",
        "route add default via 10.7.0.1 table 100",
        "route add local 10.14.0.0/16 dev lo",
        "-6 route add default via fe80::1 dev eth0",
        "-6 route add 2001:db8:aa::/48 via 2001:db8:7::1 metric 20",
        "-6 route add unreachable 2001:db8:bb::/48",
        "-6 route add 2001:db8:cc::/48 dev eth0 table 100",
        "-6 route add default via fe80::2 dev eth0 proto ra metric 2000",
        "rule add from 10.7.0.0/24 lookup 100 priority 1000",
        "rule add not fwmark 0x10/0xff iif eth0 lookup main suppress_prefixlength 0",
        "-6 rule add to 2001:db8:cc::/48 lookup 100",
        "neighbour add 10.7.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
        "neighbour add 2001:db8:7::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent router",
        "neighbour add proxy 10.7.0.77 dev eth0",
    ]) else {
        return;
    };
    let [eth0] = &network.interfaces[..] else {
        panic!("{:?}", network.interfaces);
    };
    assert_eq!((eth0.name.as_str(), eth0.mtu), ("eth0", 1400));
    assert_eq!(eth0.mac, [2, 0, 0, 0, 7, 2]);
    assert!(eth0.up && eth0.arp && eth0.sysctls.is_empty(), "{eth0:?}");
    assert_eq!(network.loopback.len(), 1);
    assert_eq!(network.neighbours.len(), 3);
    assert_eq!((network.rules.len(), network.removed_rules.len()), (3, 0));
}

#[test]
fn what_ends_goes_along_with_the_time_that_is_left() {
    let Some((original, _peer)) = pair() else {
        return;
    };
    original.ip("address add 10.7.0.2/24 dev eth0 valid_lft 9000 preferred_lft 8000");
    original.ip("-6 route add 2001:db8:aa::/48 via fe80::1 dev eth0 expires 9000");
    let (copy, _other_peer) = pair().expect("root");
    replay(&original.read(), &copy);
    for what in [
        "address show dev eth0 scope global",
        "-6 route show 2001:db8:aa::/48",
    ] {
        let shown = copy.ip(what);
        assert!(
            ["valid_lft 8", "expires 8", "9000sec"]
                .iter()
                .any(|left| shown.contains(left)),
            "{shown}"
        );
    }
}

#[test]
fn what_a_kernel_makes_by_itself_is_not_read() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    net.ip("address add 10.7.0.2/24 dev eth0");
    net.ip("address add 2001:db8:7::2/64 dev eth0 nodad");
    let network = net.read();
    assert_eq!(network.interfaces[0].addresses.len(), 2);
    let others = (network.routes.is_empty(), network.rules.is_empty());
    assert_eq!(
        (others, network.loopback.len()),
        ((true, true), 0),
        "{network:?}"
    );
}

#[test]
fn what_somebody_has_changed_of_it_is() {
    let Some(network) = is_copied(&[
        "address add 10.7.0.2/24 dev eth0",
        "route del 10.7.0.0/24 dev eth0",
        "address add 10.8.0.2/24 dev eth0",
        "route del 10.8.0.0/24 dev eth0",
        "route add 10.8.0.0/24 dev eth0 proto kernel scope link src 10.8.0.2 metric 5",
        "address add 10.9.0.2/24 dev eth0 noprefixroute",
        "address add 2001:db8:7::2/64 dev eth0 nodad",
        "-6 route del 2001:db8:7::/64 dev eth0",
        "rule del priority 0",
        "rule add lookup local priority 10",
        "-6 rule del priority 32766",
    ]) else {
        return;
    };
    assert_eq!(network.routes.len(), 1, "{:?}", network.routes);
    assert_eq!((network.rules.len(), network.removed_rules.len()), (1, 2));
}

#[test]
fn sysctls_that_somebody_has_changed_are_read() {
    let Some((net, peer)) = pair() else {
        return;
    };
    net.inside(|| {
        let set = |path: &str, value| fs::write(Path::new("/proc/sys/net").join(path), value);
        set("ipv4/conf/eth0/arp_ignore", "1").expect("set");
        set("ipv6/neigh/eth0/base_reachable_time_ms", "12000").expect("set");
        set("ipv6/conf/eth0/disable_ipv6", "1").expect("set");
    });
    let path_and_value = |interface: &Interface| -> Vec<_> {
        (interface.sysctls.iter())
            .map(|sysctl| format!("{}={}", sysctl.path("x").display(), sysctl.value))
            .collect()
    };
    let expected = [
        "net/ipv4/conf/x/arp_ignore=1",
        "net/ipv6/conf/x/disable_ipv6=1",
        "net/ipv6/neigh/x/base_reachable_time_ms=12000",
    ];
    let mut read = path_and_value(&net.interface("eth0"));
    read.sort();
    let mut expected = expected.map(str::to_owned);
    expected.sort();
    assert_eq!(read, expected);
    // What the one namespace has isn't the other's.
    assert!(path_and_value(&peer.interface("peer0")).is_empty());
}

/// Whatever the kernel tells of sysctls without a file being read, none that somebody changes is passed over.
#[test]
fn each_sysctl_that_somebody_changes_is_read() {
    const VALUES: [&str; 7] = ["1", "0", "2", "3", "1400", "20000", "2001:db8::1"];
    let Some((net, _peer)) = pair() else {
        return;
    };
    let mut changed = 0;
    for table in SysctlTable::ALL {
        for name in table.names() {
            let sysctl = |value: &str| Sysctl {
                table,
                name: (*name).to_owned(),
                value: value.to_owned(),
            };
            let path = Path::new("/proc/sys").join(sysctl("").path("eth0"));
            let read = || net.inside(|| fs::read_to_string(&path)).unwrap_or_default();
            let before = read();
            let other = VALUES.iter().find(|value| {
                let written = net.inside(|| fs::write(&path, value));
                written.is_ok() && read() != before
            });
            // Some can't be written, or aren't there.
            if other.is_none() {
                continue;
            }
            let now = sysctl(read().trim_end());
            assert!(net.interface("eth0").sysctls.contains(&now), "{now:?}");
            let _ = net.inside(|| fs::write(&path, before.trim_end()));
            changed += 1;
        }
    }
    assert!(changed > 80, "{changed}");
}

#[test]
fn a_link_local_address_of_ones_own_comes_along() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    net.ip("address flush dev eth0 scope link");
    net.ip("address add fe80::7/64 dev eth0 nodad");
    let eth0 = net.interface("eth0");
    assert_eq!(eth0.addresses.len(), 1);
    let last = eth0.sysctls.last().expect("a sysctl");
    assert_eq!(
        (last.name.as_str(), last.value.as_str()),
        ("addr_gen_mode", "1")
    );
}

#[test]
fn an_interface_that_is_down_is_told_of() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    net.ip("link set eth0 down arp off");
    net.ip("address add 10.7.0.2/24 dev eth0");
    let network = net.read();
    let eth0 = &network.interfaces[0];
    assert!(!eth0.up && !eth0.arp, "{eth0:?}");
    assert!(network.routes.is_empty(), "{:?}", network.routes);
    let flags = crate::network::addresses::flags(&eth0.addresses[0]);
    assert!(!flags.contains(netlink_packet_route::address::AddressFlags::Noprefixroute));
}

#[test]
fn what_a_vm_cannot_have_is_refused() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    let (text, is_there) = net.try_run("ip", "link add link eth0 name eth0.7 type vlan id 7");
    if !is_there {
        return eprintln!("skipped: this machine has no VLANs: {text}");
    }
    let said = read(&net.0, &[]).expect_err("refused").to_string();
    assert!(said.contains("interface eth0.7"), "{said}");
}

#[test]
fn a_route_through_a_nexthop_object_is_one_without() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    net.ip("address add 10.7.0.2/24 dev eth0");
    net.ip("nexthop add id 7 via 10.7.0.1 dev eth0");
    net.ip("route add 10.9.0.0/16 nhid 7");
    let (copy, _other_peer) = pair().expect("root");
    replay(&net.read(), &copy);
    let route = copy.ip("route show 10.9.0.0/16");
    assert_eq!(route.trim(), "10.9.0.0/16 via 10.7.0.1 dev eth0");

    net.inside(|| fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0").expect("a sysctl"));
    let said = read(&net.0, &[]).expect_err("refused").to_string();
    assert!(
        said.contains("route 10.9.0.0/16: its nexthop object 7"),
        "{said}"
    );
}

#[test]
fn a_set_neighbour_without_arp_is_read_and_the_kernels_own_are_not() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    net.ip("address add 10.7.0.2/24 dev eth0");
    net.ip("neighbour add 10.7.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud noarp");
    net.ip("neighbour add 10.7.0.8 lladdr 02:00:00:00:00:08 dev eth0 nud stale");
    assert_eq!(net.read().neighbours.len(), 1);
}

/// Otherwise a copy would never be taken for the original.
#[test]
fn what_is_read_twice_is_the_same() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    assert!(net.interface("eth0").up);
    assert_eq!(net.read(), net.read());
}
