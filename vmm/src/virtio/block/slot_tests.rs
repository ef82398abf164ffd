//! A slot's thread, between the sender of a disk and a driver.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use rustix::net::{SendFlags, send};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::slot::{DiskSlot, SlotHandle};
use super::{DisklessBlock, SECTOR, SERIAL_SIZE, SlotAnswer};
use crate::event_loop::EventLoop;
use crate::jail::test_child::{self, End, is_root};
use crate::jail::{self, Identity, Role};
use crate::stop::StopFlag;
use crate::virtio::testing::{Driver, memory};
use crate::virtio::transport::{MmioTransport, QUEUE_NOTIFY};

const SECTORS: u64 = 64;
const WRITE: u16 = 2;
const IN: u32 = 0;
const OUT: u32 = 1;

/// Where the driver's rings, and a request's header, data and status lie.
const QUEUE: u64 = 0x1000;
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x5000;
const STATUS: u64 = 0x6000;

/// A slot as its machine knows it.
struct Rig {
    memory: Arc<GuestMemoryMmap>,
    registers: Arc<MmioTransport>,
    handle: SlotHandle,
    available: u16,
}

impl Rig {
    fn new() -> (Self, DiskSlot) {
        let memory = memory();
        let diskless = DisklessBlock::new().expect("an eventfd");
        let activation_eventfd = Some(diskless.activation_eventfd());
        let stop = StopFlag::default();
        let registers = MmioTransport::empty(
            Arc::clone(&memory),
            diskless.queues(),
            activation_eventfd,
            stop,
        );
        let registers = Arc::new(registers.expect("eventfds"));
        let (slot, handle) = DiskSlot::new(diskless, Arc::clone(&registers)).expect("sockets");
        let rig = Self {
            memory,
            registers,
            handle,
            available: 0,
        };
        (rig, slot)
    }

    /// With the slot in an event loop that the test runs.
    fn in_loop() -> (Self, EventManager<Arc<Mutex<DiskSlot>>>) {
        let (rig, slot) = Self::new();
        let mut events = EventManager::new().expect("epoll");
        events.add_subscriber(Arc::new(Mutex::new(slot)));
        (rig, events)
    }

    /// With the slot in a thread of its own, which first runs `confine`.
    fn in_thread(
        confine: impl FnOnce(Vec<i32>) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (rig, slot) = Self::new();
        let mut events = EventLoop::new()?;
        events.add(Arc::new(Mutex::new(slot)));
        events.keep_open(rig.registers.descriptors());
        events.spawn("slot", confine)?;
        Ok(rig)
    }

    fn device_id(&self) -> u32 {
        Driver(&self.registers).read(8)
    }

    fn hand(&self, device: BorrowedFd<'_>, serial: &str, read_only: bool) {
        self.handle
            .send_disk(device, serial, read_only)
            .expect("sent");
    }

    /// What another thread answers.
    fn answer(&self) -> SlotAnswer {
        let mut answer = None;
        wait("an answer", || {
            answer = self.handle.receive_answer();
            answer.is_some()
        });
        answer.expect("an answer")
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        let written = self.memory.write_slice(bytes, GuestAddress(address));
        written.expect("in memory");
    }

    fn get<const SIZE: usize>(&self, address: u64) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let read = self.memory.read_slice(&mut bytes, GuestAddress(address));
        read.expect("in memory");
        bytes
    }

    fn start_driver(&self) {
        let driver = Driver(&self.registers);
        driver.negotiate();
        driver.set_up_queue(0, QUEUE as u32);
        driver.write(0x70, 15);
        assert_eq!(driver.status(), 15);
    }

    fn start_driver_on_placeholder(&self) {
        Driver(&self.registers).start();
        self.registers.write(QUEUE_NOTIFY, &0_u32.to_le_bytes());
        assert_eq!(Driver(&self.registers).status(), 0);
    }

    /// Has a sector read or written, and returns the status.
    fn request(&mut self, kind: u32, sector: u64) -> u8 {
        self.put(HEADER, &kind.to_le_bytes());
        self.put(HEADER + 8, &sector.to_le_bytes());
        self.put(STATUS, &[0xee]);
        let data = if kind == IN { WRITE } else { 0 };
        let chain = [
            (HEADER, 16_u32, 1),
            (DATA, 512, data | 1),
            (STATUS, 1, WRITE),
        ];
        for (index, (address, length, flags)) in chain.iter().enumerate() {
            let at = QUEUE + 16 * index as u64;
            self.put(at, &address.to_le_bytes());
            self.put(at + 8, &length.to_le_bytes());
            self.put(at + 12, &flags.to_le_bytes());
            self.put(at + 14, &(index as u16 + 1).to_le_bytes());
        }
        self.available += 1;
        self.put(QUEUE + 0x102, &self.available.to_le_bytes());
        let kick = 0_u32.to_le_bytes();
        self.registers.write(QUEUE_NOTIFY, &kick);
        wait("the device", || {
            self.get(QUEUE + 0x202) == self.available.to_le_bytes()
        });
        let [status] = self.get(STATUS);
        status
    }
}

fn wait(what: &str, mut is_done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_done() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    file.as_file().set_len(SECTORS * SECTOR).expect("sparse");
    file
}

fn open(image: &NamedTempFile, options: &mut OpenOptions) -> File {
    options.open(image.path()).expect("the image")
}

fn to_read(image: &NamedTempFile) -> File {
    open(image, OpenOptions::new().read(true))
}

fn to_write(image: &NamedTempFile) -> File {
    open(image, OpenOptions::new().read(true).write(true))
}

#[test]
fn a_disk_that_is_handed_over_is_in_the_slot_for_good() {
    let (image, other) = (image(), image());
    image.as_file().write_all_at(&[7; 512], 512).expect("on it");
    let mut rig = Rig::in_thread(|_| Ok(())).expect("a thread");
    assert_eq!(rig.device_id(), 0);
    rig.start_driver_on_placeholder();
    rig.hand(to_write(&image).as_fd(), "disk-7", false);
    assert_eq!(rig.answer(), SlotAnswer::Filled);
    assert_eq!(rig.device_id(), 2);
    let mut capacity = [0; 8];
    rig.registers.read(0x100, &mut capacity);
    assert_eq!(capacity, SECTORS.to_le_bytes());

    rig.start_driver();
    assert_eq!(rig.request(IN, 1), 0);
    assert_eq!(rig.get::<512>(DATA), [7; 512]);
    assert_eq!(rig.request(OUT, 2), 0);
    let mut written = [0; 512];
    let read = image.as_file().read_exact_at(&mut written, 1024);
    read.expect("on the disk");
    assert_eq!(written, [7; 512]);

    assert_eq!(rig.answer(), SlotAnswer::Closed, "nobody listens any more");
    let again = rig
        .handle
        .send_disk(to_write(&other).as_fd(), "disk-8", false);
    again.expect_err("it is filled");
    assert_eq!(rig.request(IN, 1), 0, "and goes on");
}

/// Descriptors that can't be used as writable disks, with a part of the error.
fn no_disks(image: &NamedTempFile) -> Vec<(OwnedFd, &'static str)> {
    let kind = "neither a block device nor a regular file";
    let access = "must be open for reading and writing";
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let folder = File::open(std::env::temp_dir()).expect("a folder");
    let zero = open_path("/dev/zero", OpenOptions::new().read(true).write(true));
    let path = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(image.path());
    vec![
        (reader, kind),
        (writer, kind),
        (folder.into(), kind),
        (zero.into(), kind),
        (to_read(image).into(), access),
        (open(image, OpenOptions::new().write(true)).into(), access),
        (
            open(image, OpenOptions::new().read(true).append(true)).into(),
            access,
        ),
        (path.expect("a path").into(), access),
    ]
}

fn open_path(path: &str, options: &mut OpenOptions) -> File {
    options.open(path).expect("a device")
}

#[test]
fn what_is_no_disk_is_refused_and_the_slot_stays_empty() {
    let image = image();
    let (rig, mut events) = Rig::in_loop();
    let mut answer = || {
        while events.run_with_timeout(0).expect("epoll") > 0 {}
        rig.handle.receive_answer()
    };
    let refused = |answer: Option<SlotAnswer>, why: &str| match answer {
        Some(SlotAnswer::Refused(text)) => assert!(text.contains(why), "{text}"),
        other => panic!("{other:?}: refused because of: {why}"),
    };
    for (device, why) in no_disks(&image) {
        rig.hand(device.as_fd(), "disk-7", false);
        refused(answer(), why);
    }
    rig.hand(to_write(&image).as_fd(), "disk-7", true);
    refused(answer(), "must be open for reading alone");
    let long = "x".repeat(SERIAL_SIZE + 1);
    for serial in ["", "a b", "\n", "ü"] {
        rig.hand(to_read(&image).as_fd(), serial, true);
        refused(answer(), "printable characters");
    }
    rig.hand(to_read(&image).as_fd(), &long, true);
    refused(answer(), "not a disk and its serial number");
    rig.hand(to_read(&image).as_fd(), &long[..SERIAL_SIZE], true);
    assert_eq!(answer(), Some(SlotAnswer::Filled));
    assert_eq!(rig.device_id(), 2);
}

#[test]
fn packets_that_make_no_sense_change_nothing() {
    let image = image();
    let (rig, mut events) = Rig::in_loop();
    let mut answer = || {
        while events.run_with_timeout(0).expect("epoll") > 0 {}
        rig.handle.receive_answer()
    };
    let endless = [b'x'; 4096];
    for packet in [&b"rw disk-7"[..], b"x", &endless] {
        let sent = send(&rig.handle, packet, SendFlags::empty());
        assert_eq!(sent, Ok(packet.len()));
        assert!(matches!(answer(), Some(SlotAnswer::Refused(_))));
    }
    assert_eq!(answer(), None);
    assert_eq!(rig.device_id(), 0);
    rig.hand(to_write(&image).as_fd(), "disk-7", false);
    assert_eq!(answer(), Some(SlotAnswer::Filled));
}

#[test]
fn a_slot_whose_handle_is_gone_stays_empty_and_quiet() {
    let (rig, mut events) = Rig::in_loop();
    let Rig {
        registers, handle, ..
    } = rig;
    drop(handle);
    events.run_with_timeout(0).expect("the end");
    assert_eq!(events.run_with_timeout(0), Ok(0));
    assert_eq!(Driver(&registers).read(8), 0);
}

#[test]
fn the_jail_allows_all_that_a_slot_does() {
    if !is_root() {
        return;
    }
    let end = test_child::run(|| {
        let image = image();
        let no_disks = no_disks(&image);
        let disk = to_write(&image);
        let identity = Identity::unique_user().expect("a user");
        let mut rig = Rig::in_thread(move |needed| {
            let own = jail::confine(Role::DiskSlot, identity, &needed);
            own.map(drop).map_err(io::Error::other)
        })
        .expect("a thread");
        for (device, _) in &no_disks {
            rig.hand(device.as_fd(), "disk-7", false);
            assert!(matches!(rig.answer(), SlotAnswer::Refused(_)));
        }
        rig.hand(disk.as_fd(), "disk-7", false);
        assert_eq!(rig.answer(), SlotAnswer::Filled);
        rig.start_driver();
        assert_eq!(rig.request(OUT, 2), 0);
        assert_eq!(rig.request(IN, 2), 0);
    });
    assert_eq!(end, End::Returned);
}
