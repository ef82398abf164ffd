//! Changes of a namespace are noticed.

use super::*;
use std::fs;

#[test]
fn links_addresses_routes_and_rules_are_watched() {
    let (Some(net), Some(peer)) = (Net::new(), Net::new()) else {
        return;
    };
    for net in [&net, &peer] {
        // Or what the kernel makes of a link-local address comes whenever it likes.
        net.inside(|| {
            fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1").expect("set")
        });
    }
    let mut watch = net.watch();
    let nothing = Duration::from_millis(1);
    assert!(!watch.changed(nothing).expect("watch"));
    net.add_veth("eth0", "02:00:00:00:07:02", &peer);
    assert!(watch.changed(SOON).expect("watch"), "a link");
    for change in [
        "address add 10.7.0.2/24 dev eth0",
        "address add 2001:db8:7::2/64 dev eth0 nodad",
        "route add 10.9.0.0/16 via 10.7.0.1",
        "rule add from 10.7.0.0/24 lookup 100",
        "link set eth0 mtu 1400",
    ] {
        // What is still on its way of the one before isn't this one.
        while watch.changed(Duration::from_millis(500)).expect("watch") {}
        net.ip(change);
        assert!(watch.changed(SOON).expect("watch"), "{change}");
    }
    // Another namespace isn't this one.
    while watch.changed(Duration::from_millis(500)).expect("watch") {}
    peer.ip("address add 10.7.0.1/24 dev peer0");
    assert!(!watch.changed(nothing).expect("watch"));
}
