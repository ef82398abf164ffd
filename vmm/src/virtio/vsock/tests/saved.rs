//! Saving and restoring the device.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use super::driver::{FIRST_PORT, GUEST_CID, Guest, is_readable, pipe, read_to_end};
use crate::virtio::testing::Bench;
use crate::virtio::vsock::device::{EVENT, RX, TX};
use crate::virtio::vsock::packet::{HEADER_SIZE, Header, op};
use crate::virtio::vsock::{Direction, Vsock};

const PORT: u32 = 5000;
/// The host's port that the streams are on.
const HOST_PORT: u32 = 7;
const WRITE: u16 = 2;

fn vsock() -> Vsock {
    let folder = tempfile::tempdir().expect("folder");
    let listener = UnixListener::bind(folder.path().join("vsock")).expect("socket");
    Vsock::new(GUEST_CID, FIRST_PORT, listener).expect("device")
}

fn offer(bench: &Bench<Vsock>, fd: OwnedFd) {
    let mut device = bench.device.lock().expect("free");
    let offered = device.attach_without_token(HOST_PORT, Direction::FromGuest, fd);
    offered.expect("a free port");
}

/// Sends a packet to the host's port.
fn send(bench: &mut Bench<Vsock>, op: u16, payload: &[u8]) {
    let header = Header {
        len: payload.len() as u32,
        ..Guest::header(PORT, HOST_PORT, op)
    };
    let packet = [&header.encode(), payload].concat();
    let at = bench.put(0x5000, &packet);
    let length = packet.len() as u32;
    assert_eq!(bench.request(TX as u32, &[(at, length, 0)]), 0);
}

/// The operation of the packet that answers what `ask` does.
fn answer(bench: &mut Bench<Vsock>, ask: impl FnOnce(&mut Bench<Vsock>)) -> u16 {
    let before = bench.used(RX as u32);
    bench.offer(RX as u32, &[(0x6000, HEADER_SIZE as u32, WRITE)]);
    ask(bench);
    assert_eq!(bench.used(RX as u32), before + 1, "an answer");
    let bytes = bench.get(0x6000, HEADER_SIZE);
    Header::decode(&bytes.try_into().expect("a header")).op
}

/// Dials the host's port, and writes to the stream.
fn write(bench: &mut Bench<Vsock>, bytes: &[u8]) {
    let dial = |bench: &mut Bench<Vsock>| send(bench, op::REQUEST, &[]);
    assert_eq!(answer(bench, dial), op::RESPONSE);
    send(bench, op::RW, bytes);
}

#[test]
fn a_saved_device_goes_on_without_its_connections() {
    let mut bench = Bench::new(vsock());
    bench.start();
    let (reader, writer) = pipe();
    offer(&bench, writer);
    write(&mut bench, b"before");
    bench.put(0x7000, &[0xff; 4]);
    bench.offer(EVENT as u32, &[(0x7000, 4, WRITE)]);
    bench.turn();
    assert_eq!(bench.used(EVENT as u32), 0);
    let state = bench.save();

    let mut restored = bench.restored(vsock(), &state).expect("the same");
    restored.turn();
    assert_eq!(restored.used(EVENT as u32), 1, "the guest hears of it");
    assert_eq!(restored.get(0x7000, 4), [0; 4], "a reset of the transport");
    let stale = answer(&mut restored, |bench| send(bench, op::RW, b"late"));
    assert_eq!(stale, op::RST);
    let (second, writer) = pipe();
    offer(&restored, writer);
    write(&mut restored, b"after");
    assert!(is_readable(&second));
    drop((bench, restored));
    assert_eq!(read_to_end(reader), b"before");
    assert_eq!(read_to_end(second), b"after");
}

#[test]
fn no_port_is_handed_out_twice() {
    let attach = |bench: &Bench<Vsock>| {
        let mut device = bench.device.lock().expect("free");
        let attached = device.attach(vec![(Direction::ToGuest, pipe().0)]);
        attached.expect("room").streams[0].port
    };
    let bench = Bench::new(vsock());
    let first = attach(&bench);
    let state = bench.save();
    let restored = bench.restored(vsock(), &state).expect("the same");
    assert!(attach(&restored) > first);
}
