//! A tap is as good as the interface beside it, and leaves nothing.

use super::*;
use crate::host::wait_readable;
use crate::network::{Connection, Error, HEADER_LENGTH, connect, disconnect};
use std::num::NonZeroU16;
use std::time::Instant;

const MAC: [u8; 6] = [2, 0, 0, 0, 7, 2];

/// A namespace with `eth0`, and the one with its other end, which is 10.7.0.1.
fn pair() -> Option<(Net, Net)> {
    let (container, peer) = (Net::new()?, Net::new()?);
    container.add_veth("eth0", "02:00:00:00:07:02", &peer);
    peer.ip("address add 10.7.0.1/24 dev peer0");
    Some((container, peer))
}

fn queues(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).expect("some")
}

fn try_connect(net: &Net) -> Result<Connection, Error> {
    connect(&net.0, &net.interface("eth0"), queues(1))
}

/// All that hull could leave.
fn state(net: &Net) -> String {
    // Without their state, which may still be on its way.
    let links = net.ip("-br link show");
    let links: Vec<_> = (links
        .lines()
        .filter_map(|line| line.split_whitespace().next()))
    .collect();
    let (qdiscs, filters) = (net.tc("qdisc show"), net.tc("filter show dev eth0 ingress"));
    format!("{links:?}\n{qdiscs}\n{filters}")
}

/// Who has 10.7.0.1? as 10.7.0.2 asks, padded to what Ethernet takes.
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0; HEADER_LENGTH];
    frame.extend([0xff; 6]);
    frame.extend(MAC);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(MAC);
    frame.extend([10, 7, 0, 2]);
    frame.extend([0; 6]);
    frame.extend([10, 7, 0, 1]);
    frame.resize(HEADER_LENGTH + 60, 0);
    frame
}

fn is_arp_reply(frame: &[u8]) -> bool {
    let ethernet = &frame[HEADER_LENGTH..];
    ethernet[..6] == MAC && ethernet[12..14] == [8, 6] && ethernet[20..22] == [0, 2]
}

/// Whether the other end answers what a VM asks.
fn is_answered(connection: &Connection) -> bool {
    let tap = &connection.queues[0];
    let request = arp_request();
    assert_eq!(
        rustix::io::write(tap, &request).expect("sent"),
        request.len()
    );
    let deadline = Instant::now() + SOON;
    let mut frame = [0; 2048];
    loop {
        if !wait_readable(tap, deadline).expect("poll") {
            return false;
        }
        let length = rustix::io::read(tap, &mut frame).expect("received");
        if is_arp_reply(&frame[..length]) {
            return true;
        }
    }
}

#[test]
fn frames_pass_both_ways_and_nothing_stays() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    net.ip("link set eth0 mtu 1400");
    let before = state(&net);
    let connection = try_connect(&net).expect("connected");
    assert!(is_answered(&connection));
    let tap = net.ip(&format!("-d link show {}", connection.tap));
    for word in ["NOARP", "UP", "mtu 1400", "addrgenmode none", "vnet_hdr on"] {
        assert!(tap.contains(word), "{word}: {tap}");
    }
    assert!(!tap.contains("persist on"), "{tap}");
    // The tap is hull's own.
    assert_eq!(net.read().interfaces.len(), 1);

    drop(connection);
    disconnect(&net.0, net.interface("eth0").index).expect("disconnected");
    assert_eq!(state(&net), before);
    disconnect(&net.0, net.interface("eth0").index).expect("once more");
    disconnect(&net.0, 4711).expect("an interface that is gone");
}

#[test]
fn an_interface_is_connected_once() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    let connection = try_connect(&net).expect("connected");
    let during = state(&net);
    let refused = try_connect(&net).expect_err("busy");
    assert!(matches!(refused, Error::Busy { .. }), "{refused}");
    assert!(refused.to_string().contains("interface eth0"), "{refused}");
    assert_eq!(state(&net), during);
    assert!(is_answered(&connection));
}

#[test]
fn a_tap_that_is_about_to_go_is_waited_for() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    let eth0 = net.interface("eth0");
    let first = connect(&net.0, &eth0, queues(1)).expect("connected");
    let second = thread::scope(|scope| {
        scope.spawn(move || drop(first));
        connect(&net.0, &eth0, queues(1))
    });
    assert!(is_answered(&second.expect("connected")));
}

#[test]
fn what_a_killed_vm_leaves_is_no_hindrance() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    drop(try_connect(&net).expect("connected"));
    assert!(net.tc("filter show dev eth0 ingress").contains("mirred"));
    let again = try_connect(&net).expect("connected");
    assert!(is_answered(&again));
}

#[test]
fn an_engines_filters_are_not_touched() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    net.tc("qdisc add dev eth0 ingress");
    net.tc("filter add dev eth0 parent ffff: protocol ip prio 5 u32 match u32 0 0 flowid 1:1");
    let before = state(&net);
    let said = try_connect(&net).expect_err("refused").to_string();
    assert!(
        said.contains("interface eth0 has tc filters at its ingress (u32)"),
        "{said}"
    );
    disconnect(&net.0, net.interface("eth0").index).expect("nothing to do");
    // A tap was there for a moment.
    assert_eq!(state(&net), before);
}

#[test]
fn an_engines_qdiscs_are_used_and_kept() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    net.tc("qdisc add dev eth0 clsact");
    net.tc("qdisc add dev eth0 root tbf rate 100mbit burst 32kbit latency 400ms");
    let before = state(&net);
    let connection = try_connect(&net).expect("connected");
    assert!(is_answered(&connection));
    drop(connection);
    disconnect(&net.0, net.interface("eth0").index).expect("disconnected");
    assert_eq!(state(&net), before);
}

#[test]
fn a_failure_leaves_nothing() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    let before = state(&net);
    let gone = Interface {
        index: 4711,
        ..net.interface("eth0")
    };
    connect(&net.0, &gone, queues(1)).expect_err("no such interface");
    let too_large = Interface {
        mtu: 65_536,
        ..net.interface("eth0")
    };
    let failed = connect(&net.0, &too_large, queues(1)).expect_err("no such MTU");
    assert!(chain(&failed).contains("eth0"), "{failed}");
    assert_eq!(state(&net), before);
}

#[test]
fn a_tap_has_as_many_queues_as_asked_for() {
    let Some((net, _peer)) = pair() else {
        return;
    };
    let several = connect(&net.0, &net.interface("eth0"), queues(4)).expect("connected");
    assert_eq!(several.queues.len(), 4);
    // In place of one for each of 256 queues.
    let qdiscs = net.tc(&format!("qdisc show dev {}", several.tap));
    assert!(qdiscs.contains("qdisc noqueue"), "{qdiscs}");
    assert!(!qdiscs.contains("qdisc mq"), "{qdiscs}");
    let tap = net.ip(&format!("-d link show {}", several.tap));
    assert!(tap.contains("multi_queue"), "{tap}");
    // Nobody joins it by mistake.
    let refused = connect(&net.0, &net.interface("eth0"), queues(4));
    assert!(matches!(refused, Err(Error::Busy { .. })));
}
