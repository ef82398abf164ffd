//! The slots of a thread, between the sender of NICs and drivers.

use std::io;
use std::num::NonZeroU8;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::testing::*;
use super::*;
use crate::event_loop::{EventLoop, StopHandle};
use crate::jail::test_child::{self, End, is_root};
use crate::jail::{self, Identity, Role};
use crate::virtio::slot::SlotAnswer;
use crate::virtio::testing::{Driver, memory};
use crate::virtio::transport::{MmioTransport, QUEUE_NOTIFY};

/// Where the driver's rings of [`Driver::start`] are, and its buffers.
const QUEUES_AT: [u64; 2] = [0x1000, 0x2000];
const BUFFER: u64 = 0x4000;

/// A slot, its handle, and its machine's part of it.
struct Rig {
    memory: Arc<GuestMemoryMmap>,
    registers: Arc<MmioTransport>,
    handle: NetSlotHandle,
}

impl Rig {
    fn new(events: &mut EventLoop) -> Self {
        Self::with_pairs(NonZeroU8::MIN, events)
    }

    fn with_pairs(pairs: NonZeroU8, events: &mut EventLoop) -> Self {
        let memory = memory();
        let tapless = TaplessNet::new(pairs).expect("an eventfd");
        let (queues, activation_eventfd) = (tapless.queues(), Some(tapless.activation_eventfd()));
        let stop = crate::stop::StopFlag::default();
        let registers = MmioTransport::empty(Arc::clone(&memory), queues, activation_eventfd, stop);
        let registers = Arc::new(registers.expect("eventfds"));
        let (slot, handle) = NetSlot::new(tapless, Arc::clone(&registers)).expect("sockets");
        events.add(Arc::new(Mutex::new(slot)));
        events.keep_open(registers.descriptors());
        Self {
            memory,
            registers,
            handle,
        }
    }

    fn answer(&self) -> SlotAnswer {
        let mut answer = None;
        wait("an answer", || {
            answer = self.handle.receive_answer();
            answer.is_some()
        });
        answer.expect("an answer")
    }

    fn refusal(&self) -> String {
        match self.answer() {
            SlotAnswer::Refused(why) => why,
            other => panic!("{other:?}"),
        }
    }

    fn send_nic(&self, nic: NicConfig, tap: &OwnedFd) -> SlotAnswer {
        let sent = self.handle.send_nic(nic, &[tap.as_fd()]);
        sent.expect("sent");
        self.answer()
    }

    /// Makes a queue's first buffer available, waits until it is used, and returns how much of it
    /// was written.
    fn use_first(&self, queue: usize, length: u32, flags: u16) -> u32 {
        let at = QUEUES_AT[queue];
        let put = |at, bytes: &[u8]| {
            let written = self.memory.write_slice(bytes, GuestAddress(at));
            written.expect("in memory");
        };
        put(at, &BUFFER.to_le_bytes());
        put(at + 8, &length.to_le_bytes());
        put(at + 12, &flags.to_le_bytes());
        put(at + 0x102, &1_u16.to_le_bytes());
        let kick = (queue as u32).to_le_bytes();
        self.registers.write(QUEUE_NOTIFY, &kick);
        let word = |at| -> u32 { self.memory.read_obj(GuestAddress(at)).expect("in memory") };
        wait("the device", || word(at + 0x200) >> 16 == 1);
        word(at + 0x208)
    }

    /// Activates the device, and moves a frame in each direction.
    fn use_both_ways(&self, wire: &Wire) {
        Driver(&self.registers).start();
        assert_eq!(Driver(&self.registers).status(), 15);
        let sent = frame(3, 100);
        self.memory
            .write_slice(&sent, GuestAddress(BUFFER))
            .expect("in memory");
        assert_eq!(self.use_first(TX, sent.len() as u32, 0), 0);
        wait("the frame", || wire.next().is_some());
        // Any frame will do: the host sends frames of its own.
        wire.send(&sent[HEADER_SIZE..]);
        assert!(self.use_first(RX, 2000, WRITE) > HEADER_SIZE as u32);
    }
}

fn wait(what: &str, mut is_done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_done() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `COUNT` slots in one thread, which first calls `confine`.
fn slots<const COUNT: usize>(
    confine: impl FnOnce(Vec<i32>) -> io::Result<()> + Send + 'static,
) -> ([Rig; COUNT], StopHandle) {
    let mut events = EventLoop::new().expect("epoll");
    let rigs = std::array::from_fn(|_| Rig::new(&mut events));
    let stop = events.stop_handle();
    events.spawn("slots", confine).expect("a thread");
    (rigs, stop)
}

fn tap(name: &str) -> (OwnedFd, Wire) {
    let tap = make_tap(name, TAP_FLAGS, false);
    let wire = Wire::new(name);
    (tap, wire)
}

#[test]
fn one_thread_serves_several_nics() {
    in_network(|| {
        let ([first, second, third], stop) = slots(|_| Ok(()));
        let (tap_1, wire_1) = tap("tap1");
        let (tap_2, wire_2) = tap("tap2");
        assert_eq!(second.send_nic(nic(2, 9000), &tap_2), SlotAnswer::Filled);
        second.use_both_ways(&wire_2);
        assert_eq!(first.send_nic(nic(1, 1500), &tap_1), SlotAnswer::Filled);
        first.use_both_ways(&wire_1);
        let id = |rig: &Rig| Driver(&rig.registers).read(8);
        assert_eq!([id(&first), id(&second), id(&third)], [1, 1, 0]);
        let mut config = [0; 8];
        second.registers.read(0x100, &mut config);
        assert_eq!(config, [0x52, 0x54, 0, 0, 0, 2, 1, 0]);
        stop.stop();
    });
}

#[test]
fn a_nic_that_is_removed_leaves_the_slot_for_another_whatever_its_driver_does() {
    in_network(|| {
        let ([rig], stop) = slots(|_| Ok(()));
        let remove = || {
            rig.handle.send_removal().expect("sent");
            assert_eq!(rig.answer(), SlotAnswer::Removed);
            let mut config = [0xaa; 8];
            rig.registers.read(0x100, &mut config);
            assert_eq!((Driver(&rig.registers).read(8), config), (0, [0; 8]));
        };
        remove();
        for round in 1..4 {
            let name = format!("tap{round}");
            let (tap, wire) = tap(&name);
            assert_eq!(rig.send_nic(nic(round, 1500), &tap), SlotAnswer::Filled);
            let second = rig.handle.send_nic(nic(9, 1500), &[tap.as_fd()]);
            second.expect("sent");
            assert!(rig.refusal().contains("there is a device in the slot"));
            rig.use_both_ways(&wire);
            // The last driver is still at it.
            if round == 1 {
                Driver(&rig.registers).write(0x70, 0);
            }
            drop(tap);
            remove();
            wait("the end of the tap", || !interface_exists(&name));
            // Of the driver that hasn't noticed nothing is left.
            rig.registers.write(QUEUE_NOTIFY, &[0; 4]);
            Driver(&rig.registers).start();
            assert_eq!(Driver(&rig.registers).status(), 0);
            let cleared = vec![0; 0x1000];
            for at in QUEUES_AT {
                let written = rig.memory.write_slice(&cleared, GuestAddress(at));
                written.expect("in memory");
            }
        }
        stop.stop();
    });
}

fn interface_exists(name: &str) -> bool {
    let all = std::fs::read_to_string("/proc/thread-self/net/dev").expect("a list");
    all.contains(&format!("{name}:"))
}

#[test]
fn what_is_no_nic_is_refused_and_the_slot_stays_empty() {
    in_network(|| {
        let ([rig], stop) = slots(|_| Ok(()));
        let (tap, wire) = tap("tap1");
        let null = open("/dev/null", 0);
        let send_request = |line: &str, descriptors: &[&OwnedFd]| {
            let descriptors: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
            rig.handle.send(line, &descriptors).expect("sent");
            rig.refusal()
        };
        for line in [
            "52:54:00:00:00:01",
            "52:54:00:00:00 1500",
            "52:54:00:00:00:01 70000",
            "52:54:00:00:00:01 +",
            "52:54:00:00:00:01 150000",
            " ",
        ] {
            let why = send_request(line, &[&tap]);
            assert!(
                why.contains("not a NIC with its MAC address"),
                "{line}: {why}"
            );
        }
        assert!(send_request("01:54:00:00:00:01 1500", &[&tap]).contains("MAC address"));
        assert!(send_request("52:54:00:00:00:01 60", &[&tap]).contains("68 bytes"));
        assert!(send_request("52:54:00:00:00:01 1500", &[&null]).contains("not a tap"));
        let why = send_request("52:54:00:00:00:01 1500", &[&tap, &null]);
        assert!(why.contains("vhost-net: cannot read its features"), "{why}");
        for (packet, expected) in [
            (&b"52:54:00:00:00:01 1500"[..], "0 descriptors came"),
            (&[b'x'; 4096], "not a NIC"),
        ] {
            let sent = send(&rig.handle, packet, SendFlags::empty());
            assert_eq!(sent, Ok(packet.len()));
            assert!(rig.refusal().contains(expected));
        }
        assert_eq!(Driver(&rig.registers).read(8), 0);
        assert_eq!(rig.send_nic(nic(1, 1500), &tap), SlotAnswer::Filled);
        rig.use_both_ways(&wire);
        stop.stop();
    });
}

/// Sends a NIC of descriptors to a slot that is made for two pairs of queues.
fn refused_with_two_pairs(rig: &Rig, descriptors: &[&OwnedFd]) -> String {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let sent = rig.handle.send_nic(nic(1, 1500), &descriptors);
    sent.expect("sent");
    rig.refusal()
}

#[test]
fn a_nic_with_several_pairs_has_a_queue_of_one_tap_for_each() {
    in_network(|| {
        let mut events = EventLoop::new().expect("epoll");
        let rig = Rig::with_pairs(NonZeroU8::new(2).expect("two"), &mut events);
        let stop = events.stop_handle();
        events.spawn("slots", |_| Ok(())).expect("a thread");
        let several = TAP_FLAGS | libc::IFF_MULTI_QUEUE;
        let queue = |name| make_tap(name, several, false);
        let (first, second, third) = (queue("tap1"), queue("tap1"), queue("tap1"));
        let (other, single) = (queue("tap2"), make_tap("tap3", TAP_FLAGS, false));
        let null = open("/dev/null", 0);
        for descriptors in [&[&first][..], &[&first, &second, &third], &[&first; 5]] {
            let why = refused_with_two_pairs(&rig, descriptors);
            let came = format!(
                "has 2 queues of a tap, and as many of vhost-net or none: {}",
                descriptors.len()
            );
            assert!(why.contains(&came), "{why}");
        }
        for (second, expected) in [
            (&other, "must be of one tap"),
            (&single, "must be of one tap"),
            (&null, "not a tap"),
        ] {
            let why = refused_with_two_pairs(&rig, &[&first, second]);
            assert!(why.contains(expected), "{why}");
        }
        let why = refused_with_two_pairs(&rig, &[&single, &single]);
        assert!(why.contains("IFF_MULTI_QUEUE"), "{why}");
        let why = refused_with_two_pairs(&rig, &[&first, &second, &null, &null]);
        assert!(why.contains("vhost-net: cannot read"), "{why}");

        let wire = Wire::new("tap1");
        drop(third);
        let sent = rig
            .handle
            .send_nic(nic(1, 1500), &[first.as_fd(), second.as_fd()]);
        sent.expect("sent");
        assert_eq!(rig.answer(), SlotAnswer::Filled);
        assert_eq!(Driver(&rig.registers).read(0x108) & 0xffff, 2, "pairs");
        // A driver that takes one pair has all frames there.
        rig.use_both_ways(&wire);
        stop.stop();
    });
}

#[test]
fn the_jail_allows_all_that_a_slot_for_nics_does() {
    if !is_root() {
        return;
    }
    let end = test_child::run(|| {
        enter_network();
        let (tap, wire) = tap("tap1");
        let null = open("/dev/null", 0);
        let identity = Identity::unique_user().expect("a user");
        let ([rig, _], _) = slots(move |needed| {
            let own = jail::confine(Role::NetSlot, identity, &needed);
            own.map(drop).map_err(io::Error::other)
        });
        assert!(matches!(
            rig.send_nic(nic(1, 1500), &null),
            SlotAnswer::Refused(_)
        ));
        let both = rig
            .handle
            .send_nic(nic(1, 1500), &[tap.as_fd(), null.as_fd()]);
        both.expect("sent");
        assert!(rig.refusal().contains("vhost-net"));
        assert_eq!(rig.send_nic(nic(1, 1500), &tap), SlotAnswer::Filled);
        rig.use_both_ways(&wire);
        rig.handle.send_removal().expect("sent");
        assert_eq!(rig.answer(), SlotAnswer::Removed);
        assert_eq!(Driver(&rig.registers).read(8), 0);
    });
    assert_eq!(end, End::Returned);
}
