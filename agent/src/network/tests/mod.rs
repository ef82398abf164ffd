//! Sets up networks in a network namespace for the container, with another for the host, and one for the guest. The
//! links of the host and the NICs of the guest are dummy or ifb links. iproute2 creates and shows what is in the
//! namespaces, and the request is what the kernel dumps of the host's.
//!
//! The tests need root and a kernel with such links; without, they say so and are skipped.

mod resolver;
mod setup;

use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;

use hull_protocol::agent;
use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;

use super::namespaces::Namespaces;
use super::{NamespaceState, Network};
use setup::{MAC, Namespace, OTHER_MAC, Setup, bytes, move_nic, sysctl};

/// What the host has: something of each kind.
const OF_THE_HOST: &[&str] = &[
    "addr add 10.1.0.2/24 brd + dev eth0",
    "addr add 10.1.0.3/24 dev eth0",
    "addr add 10.9.0.1 peer 10.9.0.2/32 dev eth0",
    "addr add 2001:db8::2/64 nodad dev eth0",
    "addr add 10.7.0.2/24 valid_lft 5000 preferred_lft 4000 noprefixroute dev eth0",
    "route add default via 10.1.0.1 metric 100 src 10.1.0.3",
    "route add default via 10.1.0.9 metric 200",
    "route add 10.2.0.0/16 via 192.0.2.1 dev eth0 onlink",
    "route add 10.3.0.0/16 nexthop via 10.1.0.4 weight 2 nexthop via 10.1.0.5",
    "route add 10.4.0.0/16 dev eth0 scope link mtu 1300 advmss 1000",
    "route add 10.5.0.0/16 via 10.1.0.1 table 77 proto static",
    "route add blackhole 10.6.0.0/16",
    "-6 route add default via 2001:db8::1 dev eth0 metric 300",
    "-6 route add 2001:db8:1::/48 via fe80::1 dev eth0 pref high",
    "-6 route add 2001:db8:2::/48 nexthop via 2001:db8::3 dev eth0 nexthop via 2001:db8::4 dev eth0",
    "-6 route add unreachable 2001:db8:3::/48",
    "neigh add 10.1.0.1 lladdr 02:00:00:00:00:99 dev eth0",
    "neigh add 2001:db8::1 lladdr 02:00:00:00:00:99 router dev eth0",
    "rule add from 10.1.0.3 lookup 77 priority 1000",
    "rule add not fwmark 0x5/0xff iif eth0 lookup 78 priority 1001",
    "-6 rule add to 2001:db8:9::/48 lookup 79 suppress_prefixlength 0",
];

#[test]
fn a_container_has_what_the_host_has_and_follows_it() {
    let Some(setup) = Setup::new() else { return };
    setup.host.ips(OF_THE_HOST);
    let mut first = setup.described();
    first.interfaces[0].sysctls = vec![sysctl("net.ipv4.conf.IFNAME.rp_filter", "2")];
    assert_eq!(setup.update(&first), Ok(()));
    let lifetime = |line: &String| !line.contains("10.7.0.2/24");
    let of = |namespace: &Namespace| -> Vec<String> {
        namespace
            .everything()
            .into_iter()
            .filter(lifetime)
            .collect()
    };
    assert_eq!(of(&setup.container), of(&setup.host));
    let finite = setup.container.ip("addr show to 10.7.0.2");
    assert!(
        finite.contains("valid_lft 4") || finite.contains("valid_lft 5000"),
        "{finite}"
    );
    assert!(setup.container.ip("link show eth0").contains("mtu 1400"));
    let set = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/rp_filter");
    assert_eq!(setup.container.with(set).expect("a sysctl"), "2\n");
    // The same once more changes nothing.
    assert_eq!(setup.update(&first), Ok(()));
    assert_eq!(of(&setup.container), of(&setup.host));

    setup.host.ips(&[
        "addr del 10.7.0.2/24 dev eth0",
        "addr del 10.9.0.1 peer 10.9.0.2/32 dev eth0",
        "addr add 10.8.0.2/24 dev eth0",
        "addr add 2001:db8:8::2/64 nodad dev eth0",
        "route del default metric 200",
        "route change default via 10.1.0.7 metric 100",
        "route del 10.3.0.0/16",
        "-6 route del 2001:db8:1::/48 dev eth0",
        "neigh change 10.1.0.1 lladdr 02:00:00:00:00:98 dev eth0",
        "neigh del 2001:db8::1 dev eth0",
        "rule del priority 1000",
        "rule add lookup 80 priority 1002",
        "link set eth0 mtu 1350",
        "link set eth0 name net1",
    ]);
    let updated = setup.update(&setup.host.describe(&[("net1", MAC)]));
    assert_eq!(updated, Ok(()));
    assert_eq!(setup.container.everything(), setup.host.everything());
    assert!(setup.container.ip("link show net1").contains("mtu 1350"));
}

#[test]
fn routes_that_go_with_an_address_come_back_if_the_host_has_them() {
    let Some(setup) = Setup::new() else { return };
    let default = "route replace default via 10.1.0.1 dev eth0 onlink";
    setup.host.ips(&["addr add 10.1.0.2/24 dev eth0", default]);
    setup.follow();
    // The kernel drops all routes of an interface with its last address, and secondary addresses with the first.
    setup.host.ips(&[
        "addr del 10.1.0.2/24 dev eth0",
        "addr add 10.2.0.2/24 dev eth0",
        "addr add 10.2.0.3/24 dev eth0",
        default,
    ]);
    setup.follow();
    setup.host.ip("addr del 10.2.0.2/24 dev eth0");
    let _ = setup.host.try_ip("addr add 10.2.0.3/24 dev eth0"); // where it wasn't promoted
    setup.host.ip(default);
    setup.follow();
    setup.host.ip("link set eth0 down");
    let mut down = setup.described();
    down.interfaces[0].down = true;
    assert_eq!(setup.update(&down), Ok(()));
    assert_eq!(setup.container.everything(), setup.host.everything());
    setup.host.ips(&["link set eth0 up", default]);
    setup.follow();
}

#[test]
fn all_of_it_is_taken_back_and_the_nic_can_be_used_again() {
    let Some(setup) = Setup::new() else { return };
    let before = setup.container.everything();
    setup.host.ips(OF_THE_HOST);
    assert_eq!(setup.update(&setup.described()), Ok(()));
    assert!(setup.guest.try_ip("link show nic0").is_err());
    assert_eq!(setup.update(&agent::Network::default()), Ok(()));
    assert_eq!(setup.container.everything(), before);
    let back = setup.guest.ip("-o link show");
    assert!(back.contains(MAC), "{back}");
    assert_eq!(setup.update(&setup.described()), Ok(()));
    assert!(setup.container.ip("-o link show eth0").contains(MAC));
}

#[test]
fn what_the_container_has_made_itself_stays() {
    let Some(setup) = Setup::new() else { return };
    // Its own things, of the same kind as the host's.
    setup.container.add_link("own0", "");
    setup.container.ips(&[
        "link set own0 up",
        "addr add 10.1.0.2/24 dev own0",
        "route add default via 10.1.0.1",
        "rule add from 10.1.0.3 lookup 77 priority 1000",
    ]);
    let routes: String = (0..1000)
        .map(|n| format!("route add 172.16.{}.{} dev own0\n", n / 250, n % 250))
        .collect();
    let batch = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(batch.path(), routes).expect("written");
    setup
        .container
        .ip(&format!("-batch {}", batch.path().display()));
    let before = setup.container.everything();
    setup.host.ips(&[
        "addr add 10.1.0.2/24 dev eth0",
        "route add default via 10.1.0.1",
        "rule add from 10.1.0.3 lookup 77 priority 1000",
    ]);
    assert_eq!(setup.update(&setup.described()), Ok(()));
    assert!(setup.container.ip("addr show eth0").contains("10.1.0.2/24"));
    assert_eq!(setup.update(&agent::Network::default()), Ok(()));
    assert_eq!(setup.container.everything(), before);
}

#[test]
fn a_nic_is_known_whatever_the_container_does_with_it() {
    let Some(setup) = Setup::new() else { return };
    setup.host.ips(&[
        "addr add 10.1.0.2/24 dev eth0",
        "route add 10.5.0.0/16 via 10.1.0.1",
    ]);
    setup.follow();
    setup.container.ips(&[
        "link set eth0 name lan0",
        "route del 10.5.0.0/16",
        "addr del 10.1.0.2/24 dev lan0",
        "addr add 10.66.0.1/24 dev lan0",
    ]);
    setup.host.ips(&[
        "addr add 10.2.0.2/24 dev eth0",
        "rule add lookup 9 priority 9",
    ]);
    let mut changed = setup.described();
    // What the host hasn't changed stays as the container has it.
    assert_eq!(setup.update(&changed), Ok(()));
    let shown = setup.container.ip("addr show lan0");
    assert!(
        shown.contains("10.2.0.2/24") && shown.contains("10.66.0.1/24"),
        "{shown}"
    );
    assert!(!shown.contains("10.1.0.2/24"), "{shown}");
    changed.interfaces[0].sysctls = vec![sysctl("net.ipv4.conf.IFNAME.arp_ignore", "1")];
    assert_eq!(setup.update(&changed), Ok(()));
    let set = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/lan0/arp_ignore");
    assert_eq!(setup.container.with(set).expect("a sysctl"), "1\n");

    // Moved to another namespace, it is missing until it is back.
    let hidden = Namespace::new().expect("one more");
    move_nic(&setup.container, &hidden);
    let refused = setup.update(&changed).expect_err("it is hidden");
    let expected = format!(
        "interfaces[eth0]: the NIC {MAC} has not appeared in the guest's network namespace within 1 s"
    );
    assert_eq!(refused, expected);
    move_nic(&hidden, &setup.guest);
    assert_eq!(setup.update(&changed), Ok(()));
    assert_eq!(setup.container.everything(), setup.host.everything());

    // One that is deleted doesn't keep the rest from being taken back.
    setup.container.ip("link del eth0");
    assert_eq!(setup.update(&agent::Network::default()), Ok(()));
    assert!(!setup.container.ip("rule").contains("lookup 9"));
}

#[test]
fn what_the_kernel_refuses_is_told_with_the_interface() {
    let Some(setup) = Setup::new() else { return };
    setup.container.add_link("eth0", "");
    let refused = setup.update(&setup.described());
    let expected = "interfaces[eth0]: name: rename it from eth1: file exists";
    let refused = refused.expect_err("the name is taken");
    assert!(refused.starts_with(expected), "{refused}");
    assert!(setup.container.ip("-o link show eth1").contains(MAC));
    setup.container.ip("link del eth0");

    let mut network = setup.described();
    network.interfaces[0].mtu = 67_000_000;
    network.interfaces[0].mtu |= 1 << 31;
    let refused = setup.update(&network).expect_err("no such MTU");
    let expected = "interfaces[eth0]: mtu: set it to 2";
    assert!(refused.starts_with(expected), "{refused}");
    network = setup.described();
    network.interfaces[0].sysctls = vec![sysctl("net.ipv4.conf.IFNAME.none", "1")];
    let refused = setup.update(&network).expect_err("no such sysctl");
    let expected = "interfaces[eth0]: sysctls[net.ipv4.conf.IFNAME.none]: set it to \"1\": no such file or directory";
    assert_eq!(refused, expected);

    setup.host.ips(&[
        "addr add 10.1.0.2/24 dev eth0",
        "route add 10.5.0.0/16 via 10.1.0.1",
    ]);
    network = setup.described();
    network.interfaces[0].addresses.clear();
    let refused = setup.update(&network).expect_err("the gateway is nowhere");
    let expected = "route 10.5.0.0/16 via 10.1.0.1 dev eth0: network is unreachable";
    assert!(refused.starts_with(expected), "{refused}");
    network = setup.described();
    network.interfaces[0].host_index += 100;
    let refused = setup.update(&network).expect_err("whose route?");
    assert!(
        refused.contains("no interface of the request has the host_index"),
        "{refused}"
    );
    // What could not be done keeps nothing else from being done.
    setup.follow();
}

#[test]
fn a_nic_that_is_late_is_waited_for() {
    let Some(setup) = Setup::new() else { return };
    setup.guest.ip("link del nic0");
    let (listed, is_listed) = mpsc::channel();
    thread::scope(|scope| {
        let guest = &setup.guest;
        scope.spawn(move || {
            // The second list is made when changes are being reported.
            for _ in 0..2 {
                is_listed.recv().expect("a list");
            }
            guest.add_link("late0", &format!("address {MAC}"));
        });
        let found = setup.guest.with(|| {
            let container = Some(setup.container.fd.as_fd());
            let mut namespaces = Namespaces::enter(container).expect("entered");
            namespaces.wait_for_link(|link| {
                if link.name == "lo" {
                    let _ = listed.send(()); // nobody counts the later ones
                }
                link.mac == bytes(MAC)
            })
        });
        let found = found.expect("a list").expect("the NIC");
        assert_eq!(found.name, "late0");
    });
}

#[test]
fn a_container_in_the_guests_own_namespace_has_a_network_as_well() {
    let Some(mut setup) = Setup::new() else {
        return;
    };
    let shared = NamespaceState::default();
    setup.network = Network::new(None, shared.clone());
    let other = Network::new(None, shared);
    let before = setup.guest.everything();
    setup.host.ips(OF_THE_HOST);
    setup.host.ip("addr del 10.7.0.2/24 dev eth0");
    assert_eq!(setup.update(&setup.described()), Ok(()));
    assert_eq!(setup.guest.everything(), setup.host.everything());
    // Another container without a namespace has the same network, and keeps it.
    let described = setup.described();
    assert_eq!(setup.in_guest(other.update(&described)), Ok(()));
    assert_eq!(setup.in_guest(setup.network.try_release()), Ok(()));
    assert_eq!(setup.in_guest(setup.network.try_release()), Ok(()));
    assert_eq!(setup.guest.everything(), setup.host.everything());
    let refused = setup.update(&described).expect_err("it was released");
    assert_eq!(refused, "the container is being deleted");
    assert_eq!(setup.in_guest(other.try_release()), Ok(()));
    assert_eq!(setup.guest.everything(), before);
}

#[test]
fn two_interfaces_have_a_nic_each() {
    let Some(setup) = Setup::new() else { return };
    setup.host.add_link("eth1", &format!("address {OTHER_MAC}"));
    setup
        .guest
        .add_link("nic1", &format!("address {OTHER_MAC}"));
    setup.host.ips(&[
        "link set eth1 up",
        "addr add 10.1.0.2/24 dev eth0",
        "addr add 10.2.0.2/24 dev eth1",
        "route add 10.3.0.0/16 nexthop via 10.1.0.1 nexthop via 10.2.0.1",
        "-6 route add default via fe80::9 dev eth1",
    ]);
    let both = [("eth0", MAC), ("eth1", OTHER_MAC)];
    assert_eq!(setup.update(&setup.host.describe(&both)), Ok(()));
    assert_eq!(setup.container.everything(), setup.host.everything());
    // One goes, and with it what went through it.
    setup.host.ip("link del eth0");
    let other = &[("eth1", OTHER_MAC)];
    assert_eq!(setup.update(&setup.host.describe(other)), Ok(()));
    assert_eq!(setup.container.everything(), setup.host.everything());
    // It comes back, with another index.
    setup.host.add_link("eth0", &format!("address {MAC}"));
    setup.host.ip("addr add 10.1.0.2/24 dev eth0");
    setup.host.ip("link set eth0 up");
    for _ in 0..2 {
        assert_eq!(setup.update(&setup.host.describe(&both)), Ok(()));
        assert_eq!(setup.container.everything(), setup.host.everything());
    }
}

#[test]
fn routes_that_differ_in_their_gateway_alone_are_all_added() {
    let Some(setup) = Setup::new() else { return };
    setup.host.ips(&[
        "addr add 10.1.0.2/24 dev eth0",
        "route add 10.3.0.0/16 via 10.1.0.1 metric 5",
        "route append 10.3.0.0/16 via 10.1.0.3 metric 5",
        "route append 10.3.0.0/16 via 10.1.0.4 metric 5",
    ]);
    setup.follow();
    setup.host.ip("route del 10.3.0.0/16 via 10.1.0.3 metric 5");
    setup.follow();
    // One that comes before those that are there.
    setup
        .host
        .ip("route prepend 10.3.0.0/16 via 10.1.0.5 metric 5");
    setup.follow();
}

#[test]
fn rules_of_the_kernel_are_removed_and_restored_and_lo_gets_addresses() {
    let Some(setup) = Setup::new() else { return };
    let before = setup.container.everything();
    let mut network = setup.described();
    let of_lo = |body: &Vec<u8>| {
        let message = AddressMessage::parse(body.as_slice()).expect("a message");
        message.header.index == 1
    };
    let known = setup.host.dump(libc::RTM_GETADDR);
    setup.host.ips(&[
        "addr add 10.66.0.1/32 dev lo",
        "addr add 2001:db8:66::1/128 nodad dev lo",
    ]);
    network.loopback_addresses = setup.host.dump(libc::RTM_GETADDR);
    network
        .loopback_addresses
        .retain(|body| of_lo(body) && !known.contains(body));
    assert_eq!(network.loopback_addresses.len(), 2);
    let rules = setup.host.dump(libc::RTM_GETRULE);
    setup
        .host
        .ips(&["rule del priority 32767", "-6 rule del priority 32766"]);
    network.rules = setup.host.dump(libc::RTM_GETRULE);
    network.removed_rules = rules;
    network
        .removed_rules
        .retain(|rule| !network.rules.contains(rule));
    assert_eq!(network.removed_rules.len(), 2);
    for _ in 0..2 {
        assert_eq!(setup.update(&network), Ok(()));
        assert_eq!(setup.container.everything(), setup.host.everything());
    }
    assert_eq!(setup.update(&agent::Network::default()), Ok(()));
    assert_eq!(setup.container.everything(), before);
}

#[test]
fn neighbours_are_resolved_unless_the_host_has_it_otherwise() {
    let Some(setup) = Setup::new() else { return };
    let mut network = setup.described();
    for no_arp in [true, false, true] {
        network.interfaces[0].no_arp = no_arp;
        assert_eq!(setup.update(&network), Ok(()));
        let shown = setup.container.ip("link show eth0");
        assert_eq!(shown.contains("NOARP"), no_arp, "{shown}");
    }
    // A deleted container gives the NIC back.
    assert_eq!(setup.in_guest(setup.network.try_release()), Ok(()));
    assert!(setup.guest.ip("-o link show").contains(MAC));
}

#[test]
fn a_message_comes_out_of_the_parser_as_it_went_in() {
    let Some(host) = Namespace::new() else { return };
    host.add_link("eth0", "");
    host.ip("link set eth0 up");
    host.ips(OF_THE_HOST);
    fn round<M: Parseable<[u8]> + Emitable>(bodies: &[Vec<u8>]) {
        assert!(!bodies.is_empty());
        for body in bodies {
            let message = M::parse(body).expect("a message");
            let mut emitted = vec![0; message.buffer_len()];
            message.emit(&mut emitted);
            assert_eq!(&emitted, body);
        }
    }
    round::<AddressMessage>(&host.dump(libc::RTM_GETADDR));
    round::<RouteMessage>(&host.dump(libc::RTM_GETROUTE));
    round::<NeighbourMessage>(&host.dump(libc::RTM_GETNEIGH));
    round::<RuleMessage>(&host.dump(libc::RTM_GETRULE));
}
