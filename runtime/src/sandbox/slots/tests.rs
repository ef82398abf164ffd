//! Disks and network interfaces handed to the main thread of a VM process.

use super::*;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use hull_vmm::EventLoop;
use hull_vmm::event_loop::StopHandle;
use hull_vmm::virtio::block::{DiskSlot, DisklessBlock, SlotHandle};
use hull_vmm::virtio::net::{NetSlot, TaplessNet};
use hull_vmm::virtio::transport::MmioTransport;
use hull_vmm::virtio::vsock::Vsock;

/// The number of the first slot.
const FIRST: u8 = 3;

/// The main thread of a VM process, as far as disks are concerned.
struct Vmm {
    folder: tempfile::TempDir,
    stop: StopHandle,
}

impl Vmm {
    /// With a disk `hull-0`, and these slots.
    fn new(handles: Vec<SlotHandle>, timeout: Duration) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("socket")).expect("a socket");
        let mut vsock = Vsock::new(3, 0x1_0000, listener).expect("a device");
        let mut events = EventLoop::new().expect("a loop");
        if !handles.is_empty() {
            let serials = vec!["hull-0".to_owned()];
            let slots = Slots::<DiskLine>::new((FIRST..).zip(handles), serials);
            let mut slots = slots.expect("a timer");
            slots.timeout = timeout;
            let slots = Arc::new(Mutex::new(slots));
            events.add(Arc::clone(&slots) as _);
            vsock.on_other_requests(move |request| {
                drop(slots.lock().expect("free").take(request));
            });
        }
        events.add(Arc::new(Mutex::new(vsock)));
        let stop = events.stop_handle();
        events.spawn("main", |_| Ok(())).expect("a thread");
        Self { folder, stop }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("socket")
    }

    fn hand(&self, device: impl AsFd, serial: &str) -> Result<u8, String> {
        let words = format!("{serial} rw");
        let handed = super::hand::<DiskLine>(&self.socket(), &words, &[device.as_fd()]);
        handed.map_err(|error| error.to_string())
    }

    fn refuses(&self, device: impl AsFd, serial: &str, why: &str) {
        let refused = self.hand(device, serial).expect_err(why);
        assert!(refused.contains(why), "{refused}");
    }

    /// What is answered to a line without a descriptor.
    fn say(&self, line: &[u8]) -> String {
        let mut client = UnixStream::connect(self.socket()).expect("a connection");
        client.write_all(line).expect("sent");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

fn slot() -> (DiskSlot, SlotHandle) {
    let diskless = DisklessBlock::new().expect("an eventfd");
    let (queues, activation_eventfd) = (diskless.queues(), Some(diskless.activation_eventfd()));
    let stop = Default::default();
    let registers = MmioTransport::empty(Arc::default(), queues, activation_eventfd, stop);
    DiskSlot::new(diskless, Arc::new(registers.expect("eventfds"))).expect("sockets")
}

/// Serves a slot in a thread of its own, which ends with the test's process.
fn serve(slot: DiskSlot) {
    let mut events = EventLoop::new().expect("a loop");
    events.add(Arc::new(Mutex::new(slot)));
    events.spawn("slot", |_| Ok(())).expect("a thread");
}

fn disk() -> File {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(1 << 20).expect("sparse");
    file
}

#[test]
fn disks_are_put_into_slots_until_none_is_empty() {
    let (slots, handles): (Vec<_>, Vec<_>) = [slot(), slot()].into_iter().unzip();
    slots.into_iter().for_each(serve);
    let vmm = Vmm::new(handles, ANSWER_TIMEOUT);
    let (pipe, _writer) = rustix::pipe::pipe().expect("a pipe");
    vmm.refuses(&pipe, "a", "neither a block device nor a regular file");
    assert_eq!(vmm.hand(disk(), "a"), Ok(FIRST));
    vmm.refuses(disk(), "a", "there is a disk a already");
    vmm.refuses(disk(), "hull-0", "there is a disk hull-0 already");
    for serial in ["", "..", "a/b", "-a", "123456789012345678901"] {
        vmm.refuses(disk(), serial, "a serial number has");
    }
    vmm.refuses(disk(), "a b", "expected DISK");
    assert_eq!(vmm.hand(disk(), "b"), Ok(FIRST + 1));
    vmm.refuses(disk(), "c", "no slot is empty");
}

#[test]
fn a_line_alone_is_no_disk() {
    let (slot, handle) = slot();
    serve(slot);
    let vmm = Vmm::new(vec![handle], ANSWER_TIMEOUT);
    assert!(vmm.say(b"DISK a ro\n").contains("and at least one; got 0"));
    for line in [&b"DISK\n"[..], b"DISK a\n", b"DISK a wo\n"] {
        assert!(vmm.say(line).starts_with("ERROR expected DISK"));
    }
    assert_eq!(vmm.say(b"HELLO\n"), "", "nobody's business");
    assert_eq!(vmm.hand(disk(), "a"), Ok(FIRST));
}

#[test]
fn a_thread_that_does_not_answer_is_not_waited_for() {
    let (late, handle) = slot();
    let vmm = Vmm::new(vec![handle], Duration::from_millis(20));
    vmm.refuses(disk(), "a", "did not answer");
    vmm.refuses(disk(), "b", "no slot is empty");
    serve(late);
    vmm.refuses(disk(), "a", "there is a disk a already");
}

#[test]
fn a_thread_that_is_gone_is_asked_no_more() {
    let ((gone, handle), (slot, second)) = (slot(), slot());
    let vmm = Vmm::new(vec![handle, second], ANSWER_TIMEOUT);
    serve(slot);
    let folder = vmm.socket();
    let asking = std::thread::spawn(move || hand::<DiskLine>(&folder, "a rw", &[disk().as_fd()]));
    std::thread::sleep(Duration::from_millis(20));
    drop(gone);
    // Told so, or put into the other slot if it was seen to be gone before.
    match asking.join().expect("no panic") {
        Err(error) => {
            assert!(error.to_string().contains("is gone"), "{error}");
            assert_eq!(vmm.hand(disk(), "b"), Ok(FIRST + 1));
        }
        Ok(number) => assert_eq!(number, FIRST + 1),
    }
    vmm.refuses(disk(), "c", "no slot is empty");
}

#[test]
fn a_vm_without_slots_takes_no_disk() {
    let vmm = Vmm::new(Vec::new(), ANSWER_TIMEOUT);
    vmm.refuses(disk(), "a", DiskLine::NO_SLOTS);
}

#[test]
fn answers_are_told_from_each_other_and_can_be_shown() {
    assert_eq!(parse_answer("OK 3\n"), Some(Ok(3)));
    let refused = Some(Err("a? b".to_owned()));
    assert_eq!(parse_answer("ERROR a\x1b b\n"), refused);
    for bad in ["", "\n", "OK\n", "OK 256\n", "OK x\n", "DONE 3\n"] {
        assert_eq!(parse_answer(bad), None, "{bad:?}");
    }
}

#[test]
fn what_a_line_says_of_a_network_interface_is_checked() {
    for line in ["02:00:00:00:00:01 1500", "52:54:00:12:34:56 65535"] {
        assert!(NicLine::parse(line).is_ok(), "{line}");
    }
    for line in [
        "",
        "02:00:00:00:00:01",
        "02:00:00:00:00:01 67",
        "02:00:00:00:00:01 65536",
        "02:00:00:00:00:01 1500 1",
        "03:00:00:00:00:01 1500",
        "00:00:00:00:00:00 1500",
        "02:00:00:00:00 1500",
        "+2:00:00:00:00:01 1500",
    ] {
        assert!(NicLine::parse(line).is_err(), "{line}");
    }
}

#[test]
fn what_is_no_tap_leaves_the_slot_of_a_network_interface_empty() {
    let tapless = TaplessNet::new(std::num::NonZeroU8::MIN).expect("an eventfd");
    let (queues, eventfd) = (tapless.queues(), Some(tapless.activation_eventfd()));
    let registers = MmioTransport::empty(Arc::default(), queues, eventfd, Default::default());
    let registers = Arc::new(registers.expect("eventfds"));
    let (slot, handle) = NetSlot::new(tapless, registers).expect("sockets");
    let mut slots = Slots::<NicLine>::new([(FIRST, handle)], Vec::new()).expect("a timer");
    let mut events = EventLoop::new().expect("a loop");
    events.add(Arc::new(Mutex::new(slot)));
    let stop = events.stop_handle();
    events.spawn("virtio-net", |_| Ok(())).expect("a thread");

    let words = "02:00:00:00:00:01 1500";
    let too_many = (0..9).map(|_| disk().into()).collect();
    let refused = slots.hand_on(words, too_many).expect_err("refused");
    assert!(matches!(refused, Refusal::Descriptors { most: 8, got: 9 }));
    let (index, mac) = slots.hand_on(words, vec![disk().into()]).expect("sent");
    assert_eq!((index, mac.as_str()), (0, "02:00:00:00:00:01"));
    let handle = &slots.slots[0].handle;
    assert!(crate::host::wait_readable(handle, deadline()).expect("a socket"));
    let answer = handle.receive_answer().expect("an answer");
    assert!(matches!(answer, SlotAnswer::Refused(_)), "{answer:?}");
    for words in ["3", "4", "", "x"] {
        assert!(matches!(
            slots.ask_to_remove(words),
            Err(Refusal::Missing { .. })
        ));
    }
    slots.slots[0].state = State::Filled("02:00:00:00:00:01".to_owned());
    assert_eq!(slots.ask_to_remove("3").expect("asked").0, 0);
    let handle = &slots.slots[0].handle;
    assert!(crate::host::wait_readable(handle, deadline()).expect("a socket"));
    assert_eq!(handle.receive_answer(), Some(SlotAnswer::Removed));
    slots.slots[0].on_answer(SlotAnswer::Removed);
    assert!(matches!(slots.slots[0].state, State::Empty));
    let mut slot = slots.slots.pop().expect("a slot");
    assert!(slot.on_answer(answer).is_none(), "nobody waits");
    stop.stop();
}

fn deadline() -> std::time::Instant {
    std::time::Instant::now() + ANSWER_TIMEOUT
}
