//! The kernel's own data path, where this machine has vhost-net.

use std::io;
use std::num::NonZeroU8;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::testing::*;
use super::*;
use crate::event_loop::{EventLoop, StopHandle};
use crate::jail::test_child::{self, End, is_root};
use crate::jail::{self, Identity, Role};
use crate::stop::StopFlag;
use crate::virtio::slot::SlotAnswer;
use crate::virtio::testing::{Driver, memory};
use crate::virtio::transport::{MmioTransport, QUEUE_NOTIFY};

/// Where the driver's rings of [`Driver::start`] are, and what is sent.
const QUEUES_AT: [u64; 5] = [0x1000, 0x2000, 0x3000, 0xc000, 0xd000];
const SENT: u64 = 0x8000;
const ANSWER: u64 = 0x9000;

fn vhost() -> Option<OwnedFd> {
    let mut options = std::fs::OpenOptions::new();
    let opened = options.read(true).write(true).open("/dev/vhost-net");
    if let Err(error) = &opened {
        eprintln!("skipped: /dev/vhost-net: {error}");
    }
    opened.ok().map(OwnedFd::from)
}

/// A NIC in a thread of its own, and its driver.
struct Rig {
    memory: Arc<GuestMemoryMmap>,
    registers: Arc<MmioTransport>,
    available: [u16; 5],
    stop: StopHandle,
}

impl Rig {
    fn new(
        memory: Arc<GuestMemoryMmap>,
        tap: OwnedFd,
        vhost: OwnedFd,
        confine: impl FnOnce(Vec<i32>) -> io::Result<()> + Send + 'static,
    ) -> Self {
        Self::with_pairs(memory, vec![tap], vec![vhost], confine)
    }

    fn with_pairs(
        memory: Arc<GuestMemoryMmap>,
        taps: Vec<OwnedFd>,
        vhosts: Vec<OwnedFd>,
        confine: impl FnOnce(Vec<i32>) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let vhosts = vhosts.into_iter().map(Vhost::new).collect::<Result<_, _>>();
        let taps = Taps::new(taps).expect("a tap");
        let nic = VhostNet::new(nic(1, 1500), taps, vhosts.expect("vhost-net"));
        let (device, server) = nic.expect("an eventfd");
        let device = Arc::new(Mutex::new(device));
        let registers = MmioTransport::new(Arc::clone(&memory), device, StopFlag::default());
        let registers = Arc::new(registers.expect("eventfds"));
        let mut events = EventLoop::new().expect("epoll");
        events.add(Arc::new(Mutex::new(server)));
        events.keep_open(registers.descriptors());
        let stop = events.stop_handle();
        events.spawn("vhost", confine).expect("a thread");
        Self {
            memory,
            registers,
            available: [0; 5],
            stop,
        }
    }

    fn driver(&self) -> Driver<'_> {
        Driver(&self.registers)
    }

    fn start(&mut self) {
        self.start_with(0, 2);
    }

    /// With these features of the first 32, and as many queues.
    fn start_with(&mut self, features: u32, queues: usize) {
        self.available = [0; 5];
        self.driver().negotiate_with(features);
        for (index, at) in (0..).zip(&QUEUES_AT[..queues]) {
            self.put(*at, &[0; 0x1000]);
            self.driver().set_up_queue(index, *at as u32);
        }
        self.driver().write(0x70, 15);
        assert_eq!(self.driver().status(), 15);
    }

    /// Gives a command on the control queue, the fifth, and returns the answer.
    fn command(&mut self, command: &[u8]) -> u8 {
        let (base, before) = (QUEUES_AT[4], self.used(4));
        self.put(SENT, command);
        // Descriptor 7 is the answer's.
        for (at, address, length, flags) in [
            (0, SENT, command.len() as u32, 1_u16),
            (7, ANSWER, 1, WRITE),
        ] {
            self.put(base + 16 * at, &address.to_le_bytes());
            self.put(base + 16 * at + 8, &length.to_le_bytes());
            self.put(base + 16 * at + 12, &flags.to_le_bytes());
            self.put(base + 16 * at + 14, &7_u16.to_le_bytes());
        }
        let _ = self.registers.irqfd().read();
        self.available[4] = before.wrapping_add(1);
        self.put(base + 0x102, &self.available[4].to_le_bytes()); // the ring's elements are 0
        self.registers.write(QUEUE_NOTIFY, &4_u32.to_le_bytes());
        wait("the answer", || self.used(4) == before.wrapping_add(1));
        wait("an interrupt", || self.registers.irqfd().read().is_ok());
        let answer = self.memory.read_obj(GuestAddress(ANSWER));
        answer.expect("in memory")
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        let written = self.memory.write_slice(bytes, GuestAddress(at));
        written.expect("in memory");
    }

    /// Makes a buffer available and kicks.
    fn offer(&mut self, queue: usize, (address, length, flags): Buffer) {
        let (base, index) = (QUEUES_AT[queue], self.available[queue] % 8);
        let at = base + 16 * u64::from(index);
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &length.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(base + 0x104 + 2 * u64::from(index), &index.to_le_bytes());
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.put(base + 0x102, &self.available[queue].to_le_bytes());
        let kick = (queue as u32).to_le_bytes();
        self.registers.write(QUEUE_NOTIFY, &kick);
    }

    fn used(&self, queue: usize) -> u16 {
        let at = GuestAddress(QUEUES_AT[queue] + 0x202);
        self.memory.read_obj(at).expect("in memory")
    }

    /// Sends a frame, and waits for it and for the interrupt.
    fn transmit(&mut self, wire: &Wire, byte: u8) {
        self.transmit_on(TX, wire, byte);
    }

    fn transmit_on(&mut self, queue: usize, wire: &Wire, byte: u8) {
        let sent = frame(byte, 100);
        self.put(SENT, &sent);
        let before = self.used(queue);
        let _ = self.registers.irqfd().read();
        self.offer(queue, (SENT, sent.len() as u32, 0));
        wait("the buffer to be used", || {
            self.used(queue) == before.wrapping_add(1)
        });
        wait("the frame", || {
            wire.next() == Some(sent[HEADER_SIZE..].to_vec())
        });
        wait("an interrupt", || self.registers.irqfd().read().is_ok());
        assert_eq!(self.driver().read(0x60) & 1, 1, "for a used buffer");
        self.driver().write(0x64, 1);
    }

    /// Sends the guest a frame, and receives frames until it comes.
    fn receive(&mut self, wire: &Wire, byte: u8) {
        let sent = frame(byte, 200);
        wire.send(&sent[HEADER_SIZE..]);
        loop {
            let buffer = 0x4000 + 0x800 * u64::from(self.available[RX] % 8);
            let before = self.used(RX);
            if self.available[RX] == before {
                self.offer(RX, (buffer, 0x800, WRITE));
            }
            wait("a frame", || self.used(RX) == self.available[RX]);
            let mut got = vec![0; sent.len()];
            let buffer = 0x4000 + 0x800 * u64::from(self.available[RX].wrapping_sub(1) % 8);
            let read = self.memory.read_slice(&mut got, GuestAddress(buffer));
            read.expect("in memory");
            if got[HEADER_SIZE..] == sent[HEADER_SIZE..] {
                return;
            }
        }
    }

    /// Stops the device and returns its state as JSON.
    fn save(&self) -> String {
        let state = self.registers.save().expect("a state");
        serde_json::to_string(&state).expect("JSON")
    }

    fn restore(&self, state: &str) {
        let state = serde_json::from_str(state).expect("a state");
        self.registers.restore(state).expect("the same");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

fn wait(what: &str, mut is_done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_done() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A rig with a tap in this thread's network namespace, and a packet socket for the tap.
fn rig(vhost: OwnedFd) -> (Rig, Wire) {
    let tap = make_tap("tap0", TAP_FLAGS, false);
    let wire = Wire::new("tap0");
    (Rig::new(memory(), tap, vhost, |_| Ok(())), wire)
}

#[test]
fn frames_go_both_ways_and_the_guest_is_interrupted() {
    in_network(|| {
        let Some(vhost) = vhost() else { return };
        let (mut rig, wire) = rig(vhost);
        rig.start();
        for byte in 0..20 {
            rig.transmit(&wire, byte);
            rig.receive(&wire, byte);
        }
    });
}

/// Each pair has a tap's queue and a worker of the kernel's, and the command comes to the server.
#[test]
fn several_pairs_move_frames_and_the_driver_says_how_many() {
    in_network(|| {
        let several = TAP_FLAGS | libc::IFF_MULTI_QUEUE;
        let queues: Vec<_> = (0..2).map(|_| make_tap("tap0", several, false)).collect();
        let wire = Wire::new("tap0");
        let (Some(first), Some(second)) = (vhost(), vhost()) else {
            return;
        };
        let mut rig = Rig::with_pairs(memory(), queues, vec![first, second], |_| Ok(()));
        for pairs in [2, 1, 2] {
            rig.start_with(1 << 17 | 1 << 22, 5);
            assert_eq!(rig.command(&[4, 0, 3, 0]), 1);
            assert_eq!(rig.command(&[4, 0, pairs, 0]), 0);
            for byte in 0..5 {
                rig.transmit(&wire, byte);
                if pairs == 2 {
                    rig.transmit_on(3, &wire, byte);
                }
            }
            if pairs == 1 {
                rig.receive(&wire, 7);
            }
            let state = rig.save();
            assert!(
                state.contains(&format!("\"pairs_in_use\":{pairs}")),
                "{state}"
            );
            rig.driver().write(0x70, 0);
        }
        rig.start();
        rig.transmit(&wire, 1);
        rig.receive(&wire, 2);
    });
}

#[test]
fn a_reset_takes_the_queues_back_and_another_driver_gets_them() {
    in_network(|| {
        let Some(vhost) = vhost() else { return };
        let (mut rig, wire) = rig(vhost);
        for round in 0..3 {
            rig.start();
            rig.transmit(&wire, round);
            rig.receive(&wire, round);
            rig.driver().write(0x70, 0);
            assert_eq!(rig.driver().read(0x60), 0, "no interrupt is pending");
            let used = rig.used(TX);
            rig.offer(TX, (SENT, 126, 0));
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(rig.used(TX), used, "nobody has the queue");
        }
    });
}

#[test]
fn a_saved_nic_is_restored_in_another_thread() {
    in_network(|| {
        let (Some(first), Some(second)) = (vhost(), vhost()) else {
            return;
        };
        let (mut rig, wire) = rig(first);
        rig.start();
        rig.transmit(&wire, 1);
        rig.transmit(&wire, 2);
        rig.receive(&wire, 3);
        let state = rig.save();
        assert_eq!(rig.save(), state, "it stands still");
        // A kick that the kernel doesn't receive.
        rig.put(SENT, &frame(4, 100));
        rig.offer(TX, (SENT, 126, 0));

        let tap = make_tap("tap9", TAP_FLAGS, false);
        let other_wire = Wire::new("tap9");
        let memory = Arc::clone(&rig.memory);
        let mut other = Rig::new(memory, tap, second, |_| Ok(()));
        other.available = rig.available;
        other.restore(&state);
        assert_eq!(other.driver().status(), 15);
        wait("what was offered meanwhile", || other_wire.next().is_some());
        wait("it to be used", || other.used(TX) == 3);
        other.transmit(&other_wire, 5);
        other.receive(&other_wire, 6);
        assert_eq!(wire.next(), None);
    });
}

#[test]
fn when_a_vcpu_ends_the_queues_are_taken_back_and_the_tap_is_closed() {
    in_network(|| {
        let Some(vhost) = vhost() else { return };
        let (mut rig, wire) = rig(vhost);
        rig.start();
        rig.transmit(&wire, 1);
        let used = rig.used(TX);
        rig.registers.machine_ended();
        rig.registers.machine_ended();
        std::thread::sleep(Duration::from_millis(50));
        rig.offer(TX, (SENT, 126, 0));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(rig.used(TX), used);
        assert_eq!(wire.next(), None);
        wait("the tap to go", || {
            let interfaces = std::fs::read_to_string("/proc/thread-self/net/dev");
            !interfaces.expect("this network's").contains("tap0")
        });
        // The state is that of the queues when they were taken back.
        let tap = make_tap("tap9", TAP_FLAGS, false);
        let other_wire = Wire::new("tap9");
        let other = Rig::new(
            Arc::clone(&rig.memory),
            tap,
            self::vhost().expect("vhost-net"),
            |_| Ok(()),
        );
        other.restore(&rig.save());
        wait("the frame that was offered", || other_wire.next().is_some());
        wait("it to be used", || other.used(TX) == used + 1);
    });
}

#[test]
fn an_index_that_jumps_costs_its_queue_until_a_reset() {
    in_network(|| {
        let Some(vhost) = vhost() else { return };
        let (mut rig, wire) = rig(vhost);
        for _ in 0..3 {
            rig.start();
            rig.put(QUEUES_AT[TX] + 0x102, &1000_u16.to_le_bytes());
            rig.registers.write(QUEUE_NOTIFY, &1_u32.to_le_bytes());
            rig.driver().write(0x70, 0);
        }
        rig.start();
        rig.transmit(&wire, 1);
    });
}

#[test]
fn a_device_without_a_server_needs_a_reset() {
    in_network(|| {
        let Some(vhost) = vhost() else { return };
        let tap = Tap::new(make_tap("tap0", TAP_FLAGS, false)).expect("a tap");
        let vhost = Vhost::new(vhost).expect("vhost-net");
        let (device, server) =
            VhostNet::new(nic(1, 1500), tap.into(), vec![vhost]).expect("an eventfd");
        let device = Arc::new(Mutex::new(device));
        let registers = MmioTransport::new(memory(), device, StopFlag::default());
        drop(server);
        let registers = registers.expect("eventfds");
        Driver(&registers).start();
        assert_eq!(Driver(&registers).status(), 15 | 64);
        Driver(&registers).write(0x70, 0);
        assert_eq!(Driver(&registers).status(), 0);
    });
}

#[test]
fn what_is_not_vhost_net_is_refused() {
    let null = std::fs::File::open("/dev/null").expect("a file");
    let refused = Vhost::new(null.into()).expect_err("refused");
    assert!(matches!(refused, VhostError::Ioctl { .. }), "{refused}");
}

#[test]
fn the_jail_allows_all_of_it() {
    if !is_root() {
        return;
    }
    let Some(vhost) = vhost() else { return };
    let end = test_child::run(|| {
        enter_network();
        let tap = make_tap("tap0", TAP_FLAGS, false);
        let wire = Wire::new("tap0");
        let identity = Identity::unique_user().expect("a user");
        let mut rig = Rig::new(memory(), tap, vhost, move |needed| {
            let own = jail::confine(Role::Net, identity, &needed);
            own.map(drop).map_err(io::Error::other)
        });
        for round in 0..2 {
            rig.start();
            rig.transmit(&wire, round);
            rig.receive(&wire, round);
            rig.driver().write(0x70, 0);
        }
        std::mem::forget(rig);
    });
    assert_eq!(end, End::Returned);
}

#[test]
fn the_jail_allows_all_of_it_in_a_slot() {
    if !is_root() {
        return;
    }
    let Some(vhost) = vhost() else { return };
    let end = test_child::run(|| {
        enter_network();
        let tap = make_tap("tap0", TAP_FLAGS, false);
        let wire = Wire::new("tap0");
        let memory = memory();
        let tapless = TaplessNet::new(NonZeroU8::MIN).expect("an eventfd");
        let (queues, activation_eventfd) = (tapless.queues(), Some(tapless.activation_eventfd()));
        let stop = StopFlag::default();
        let registers = MmioTransport::empty(Arc::clone(&memory), queues, activation_eventfd, stop);
        let registers = Arc::new(registers.expect("eventfds"));
        let (slot, handle) = NetSlot::new(tapless, Arc::clone(&registers)).expect("sockets");
        let mut events = EventLoop::new().expect("epoll");
        events.add(Arc::new(Mutex::new(slot)));
        events.keep_open(registers.descriptors());
        let stop = events.stop_handle();
        let identity = Identity::unique_user().expect("a user");
        let confine = move |needed: Vec<i32>| {
            let own = jail::confine(Role::NetSlot, identity, &needed);
            own.map(drop).map_err(io::Error::other)
        };
        events.spawn("slot", confine).expect("a thread");
        let sent = handle.send_nic(nic(1, 1500), &[tap.as_fd(), vhost.as_fd()]);
        sent.expect("sent");
        let mut answer = None;
        wait("an answer", || {
            answer = handle.receive_answer();
            answer.is_some()
        });
        assert_eq!(answer, Some(SlotAnswer::Filled));
        let mut rig = Rig {
            memory,
            registers,
            available: [0; 5],
            stop,
        };
        rig.start();
        rig.transmit(&wire, 1);
        rig.receive(&wire, 2);
        rig.driver().write(0x70, 0);
        std::mem::forget(rig);
    });
    assert_eq!(end, End::Returned);
}
