//! Interfaces of the host that become a container's.

use super::*;
use crate::network::{Error, move_into};
use std::fs;

/// A namespace that is the host for the test, with `dummy0` in it, and the container's.
fn host_and_container() -> Option<(Net, Net)> {
    let (host, container) = (Net::new()?, Net::new()?);
    let (text, is_there) =
        host.try_run("ip", "link add dummy0 address 02:00:00:00:07:07 type dummy");
    if !is_there {
        // A veth does as well.
        eprintln!("no dummy interfaces here: {text}");
        host.ip("link add dummy0 address 02:00:00:00:07:07 type veth peer name other0");
    }
    host.ip("link set dummy0 mtu 1789 up");
    Some((host, container))
}

#[test]
fn an_interface_comes_with_its_permanent_global_addresses() {
    let Some((host, container)) = host_and_container() else {
        return;
    };
    for address in [
        "10.7.0.2/24 brd +",
        "10.7.1.2 peer 10.7.1.1/32",
        "169.254.1.1/16 scope link",
        "10.7.2.2/24 valid_lft 1000 preferred_lft 1000",
        "2001:db8:7::2/64 nodad",
    ] {
        host.ip(&format!("address add {address} dev dummy0"));
    }
    let index = host.inside(|| move_into(&container.0, "dummy0", Some("ctr0")));
    let index = index.expect("moved");
    assert!(!host.ip("-br link show").contains("dummy0"));
    let shown = container.ip("address show dev ctr0");
    for word in [
        &format!("{index}: ctr0"),
        "mtu 1789",
        ",UP",
        "02:00:00:00:07:07",
        "inet 10.7.0.2/24 brd 10.7.0.255 scope global",
        "inet 10.7.1.2 peer 10.7.1.1/32",
        "inet6 2001:db8:7::2/64",
    ] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    for word in ["169.254.1.1", "10.7.2.2"] {
        assert!(!shown.contains(word), "{word}: {shown}");
    }
}

#[test]
fn a_name_that_is_taken_leaves_it_where_it_was() {
    let Some((host, container)) = host_and_container() else {
        return;
    };
    host.ip("address add 10.7.0.2/24 brd + dev dummy0");
    host.ip("address add 2001:db8:7::2/64 dev dummy0 nodad");
    container.ip("link add ctr0 type veth peer name ctr1");
    let before = host.ip("address show dev dummy0 scope global");
    let taken = host.inside(|| move_into(&container.0, "dummy0", Some("ctr0")));
    assert!(matches!(taken, Err(Error::Taken(name)) if name == "ctr0"));
    assert_eq!(host.ip("address show dev dummy0 scope global"), before);
}

#[test]
fn one_that_cannot_be_moved_is_as_it_was() {
    let Some((host, container)) = host_and_container() else {
        return;
    };
    host.ip("address add 10.7.0.2/24 brd + dev dummy0");
    host.ip("address add 2001:db8:7::2/64 dev dummy0 nodad");
    let before = host.ip("address show dev dummy0 scope global");
    // There the interface may have no addresses like these.
    container.inside(|| {
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("a sysctl");
    });
    let moved = host.inside(|| move_into(&container.0, "dummy0", Some("ctr0")));
    let said = chain(&moved.expect_err("no IPv6"));
    assert!(said.contains("move interface dummy0"), "{said}");
    assert_eq!(host.ip("address show dev dummy0 scope global"), before);
    assert!(!container.ip("-br link show").contains("ctr0"));
}

#[test]
fn what_is_not_there_or_no_name_is_refused() {
    let Some((host, container)) = host_and_container() else {
        return;
    };
    let refused = |from, to| {
        let moved = host.inside(|| move_into(&container.0, from, to));
        moved.expect_err("refused")
    };
    assert!(matches!(refused("eth7", None), Error::NoInterface(name) if name == "eth7"));
    assert!(matches!(refused("dummy0", Some("a/b")), Error::Name(name) if name == "a/b"));
    assert!(host.ip("link show dummy0").contains(",UP"));
}
