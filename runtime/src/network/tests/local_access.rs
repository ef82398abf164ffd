//! Processes of a namespace reach the guest by the interface's own address, and hull leaves nothing of that.

use super::*;
use crate::host::wait_readable;
use crate::network::{Connection, HEADER_LENGTH, connect, disconnect, update_local_access};
use std::net::UdpSocket;
use std::num::NonZeroU16;
use std::time::Instant;

const MAC: [u8; 6] = [2, 0, 0, 0, 7, 2];

/// A namespace with `eth0`, which is connected and 10.7.0.2, and the one with its other end. `None` where there can be
/// no such thing.
fn connected() -> Option<(Net, Net, Connection)> {
    let (net, peer) = (Net::new()?, Net::new()?);
    net.add_veth("eth0", "02:00:00:00:07:02", &peer);
    net.ip("address add 10.7.0.2/24 dev eth0");
    let connection = connect(&net.0, &net.interface("eth0"), NonZeroU16::MIN).expect("connected");
    let add = format!(
        "filter add dev {} ingress pref 1 protocol ip u32 match u32 0 0 action skbedit ptype host",
        connection.tap
    );
    let (said, has_skbedit) = net.try_run("tc", &add);
    if !has_skbedit {
        eprintln!("skipped: this kernel has no act_skbedit: {said}");
        return None;
    }
    net.tc(&format!("filter del dev {} ingress pref 1", connection.tap));
    Some((net, peer, connection))
}

fn update(net: &Net) {
    update_local_access(&net.0, &net.read().interfaces).expect("updated");
}

/// Has a process of the namespace send a datagram to 10.7.0.2, and returns its socket and the frame that the guest gets.
fn ask(net: &Net, connection: &Connection) -> (UdpSocket, Vec<u8>) {
    let socket = net.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect("10.7.0.2:53").expect("a route");
        socket.send(b"asked").expect("sent");
        socket
    });
    let (tap, deadline) = (&connection.queues[0], Instant::now() + SOON);
    let mut frame = [0; 2048];
    loop {
        assert!(wait_readable(tap, deadline).expect("poll"), "nothing sent");
        let length = rustix::io::read(tap, &mut frame).expect("received");
        if frame[..length].ends_with(b"asked") {
            return (socket, frame[HEADER_LENGTH..length].to_vec());
        }
    }
}

/// The same back, as a guest sends it by its gateway. The sum of the IP header stays the same, and UDP needs none.
fn answer(question: &[u8]) -> Vec<u8> {
    let mut frame = question.to_vec();
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 7, 1, 2, 0, 0, 0, 7, 2]);
    frame[26..34].rotate_left(4);
    frame[34..38].rotate_left(2);
    frame[40..42].fill(0);
    [&[0; HEADER_LENGTH], &frame[..]].concat()
}

fn is_answered(net: &Net, connection: &Connection) {
    let (socket, question) = ask(net, connection);
    assert_eq!(question[..6], MAC);
    assert_eq!(question[26..34], [192, 0, 0, 8, 10, 7, 0, 2]);
    let answer = answer(&question);
    let written = rustix::io::write(&connection.queues[0], &answer);
    assert_eq!(written.expect("sent"), answer.len());
    socket.set_read_timeout(Some(SOON)).expect("a limit");
    let mut received = [0; 16];
    let length = socket.recv(&mut received).expect("an answer");
    assert_eq!(&received[..length], b"asked");
}

#[test]
fn a_process_of_the_namespace_asks_the_guest() {
    let Some((net, _peer, connection)) = connected() else {
        return;
    };
    update(&net);
    is_answered(&net, &connection);
    // Whoever else has rules.
    net.ip("rule add from all lookup 7 pref 0");
    update(&net);
    is_answered(&net, &connection);
    // The kernel's check of sources finds nothing wrong.
    net.run("sysctl", "-q -w net.ipv4.conf.all.rp_filter=1");
    is_answered(&net, &connection);
}

#[test]
fn it_is_no_part_of_the_containers_network() {
    let Some((net, _peer, _connection)) = connected() else {
        return;
    };
    let before = net.read();
    update(&net);
    assert_eq!(net.read(), before);
}

#[test]
fn it_follows_the_addresses() {
    let Some((net, _peer, _connection)) = connected() else {
        return;
    };
    let routes = || net.ip("-o route show table 26741").lines().count();
    update(&net);
    assert_eq!(routes(), 1);
    net.ip("address add 10.7.0.3/24 dev eth0");
    update(&net);
    update(&net);
    assert_eq!(routes(), 2);
    net.ip("address flush dev eth0");
    update(&net);
    assert_eq!(routes(), 0);
    assert!(!net.ip("rule").contains("26741"));
}

#[test]
fn nothing_is_left() {
    let Some((net, _peer, connection)) = connected() else {
        return;
    };
    let look = || net.ip("rule") + &net.ip("-4 route show table all");
    let before = look();
    update(&net);
    assert_ne!(look(), before);
    drop(connection);
    disconnect(&net.0, net.interface("eth0").index).expect("disconnected");
    assert_eq!(look(), before);
}
