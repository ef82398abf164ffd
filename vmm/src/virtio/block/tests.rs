//! A driver, well-behaved and not, against a disk in a temporary file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use event_manager::{EventManager, SubscriberOps};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::jail::test_child::{self, End, is_root};
use crate::jail::{self, Identity, Role};
use crate::stop::StopFlag;
use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::testing::Bench;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

const MEMORY: usize = 1 << 20;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where a request's header, data and status lie.
const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x1_8000;

const WRITE: u16 = 2;
/// The disk of these tests, in sectors.
const SECTORS: u64 = 64;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What the driver writes to the status byte before a request.
const NONE: u8 = 0xee;

struct Rig {
    memory: Arc<GuestMemoryMmap>,
    block: Block,
    file: File,
    kick: Arc<EventFd>,
    irq: Arc<EventFd>,
    available: u16,
}

impl Rig {
    fn new(read_only: bool) -> Self {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(SECTORS * SECTOR + 100).expect("sparse");
        let own = file.try_clone().expect("dup");
        let disk = Disk::new(own, "disk-7", read_only).expect("a disk");
        let ranges = [(GuestAddress(0), MEMORY)];
        let eventfd = || Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        let mut rig = Self {
            memory: Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory")),
            block: Block::new(disk).expect("a device"),
            file,
            kick: eventfd(),
            irq: eventfd(),
            available: 0,
        };
        rig.activate(rig.block.features());
        rig
    }

    fn activate(&mut self, features: u64) {
        let mut queue = Queue::new(QUEUE_SIZE).expect("a power of two");
        queue.set_desc_table_address(Some(0), None);
        queue.set_avail_ring_address(Some(AVAIL as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_ready(true);
        let activation = Activation {
            memory: Arc::clone(&self.memory),
            features,
            queues: vec![ActiveQueue {
                queue,
                kick: Arc::clone(&self.kick),
            }],
            interrupt: Interrupt::new(Arc::new(AtomicU32::new(0)), Arc::clone(&self.irq)),
            stop: StopFlag::default(),
        };
        self.block.activate(activation).expect("active");
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        let address = GuestAddress(address);
        self.memory.write_slice(bytes, address).expect("in memory");
    }

    fn get(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        let address = GuestAddress(address);
        self.memory
            .read_slice(&mut bytes, address)
            .expect("in memory");
        bytes
    }

    fn put_descriptors(&self, table: u64, chain: &[(u64, u32, u16)]) {
        for (index, (address, length, flags)) in chain.iter().enumerate() {
            let next = u16::from(index + 1 < chain.len());
            let at = table + 16 * index as u64;
            self.put(at, &address.to_le_bytes());
            self.put(at + 8, &length.to_le_bytes());
            self.put(at + 12, &(flags | next).to_le_bytes());
            self.put(at + 14, &(index as u16 + 1).to_le_bytes());
        }
    }

    /// Makes a chain available, and what has been written of it by the device once it is used.
    fn chain(&mut self, chain: &[(u64, u32, u16)]) -> u32 {
        self.put_descriptors(0, chain);
        self.put(STATUS, &[NONE]);
        self.offer(1);
        self.block.serve();
        let slot = u64::from(self.available.wrapping_sub(1) % QUEUE_SIZE);
        let used = self.get(USED + 2, 2);
        assert_eq!(used, self.available.to_le_bytes(), "it is used");
        let length = self.get(USED + 4 + 8 * slot + 4, 4);
        u32::from_le_bytes(length.try_into().expect("4 bytes"))
    }

    /// Makes the chain at descriptor 0 available so many times; the ring is all zeroes.
    fn offer(&mut self, times: u16) {
        self.available = self.available.wrapping_add(times);
        self.put(AVAIL + 2, &self.available.to_le_bytes());
    }

    /// A request with one buffer of data, and its status.
    fn request(&mut self, kind: u32, sector: u64, data: (u64, u32, u16)) -> u8 {
        self.put_header(kind, sector);
        self.chain(&[(HEADER, 16, 0), data, (STATUS, 1, WRITE)]);
        self.get(STATUS, 1)[0]
    }

    fn put_header(&self, kind: u32, sector: u64) {
        self.put(HEADER, &kind.to_le_bytes());
        self.put(HEADER + 4, &[0; 4]);
        self.put(HEADER + 8, &sector.to_le_bytes());
    }

    fn range(&mut self, kind: u32, sector: u64, count: u32, flags: u32) -> u8 {
        self.put(DATA, &sector.to_le_bytes());
        self.put(DATA + 8, &count.to_le_bytes());
        self.put(DATA + 12, &flags.to_le_bytes());
        self.request(kind, 0, (DATA, 16, 0))
    }

    fn on_disk(&self, sector: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR as usize];
        let read = self.file.read_exact_at(&mut bytes, sector * SECTOR);
        read.expect("on the disk");
        bytes
    }
}

#[test]
fn what_is_written_is_on_the_disk_and_read_back() {
    let mut rig = Rig::new(false);
    rig.put(DATA, &[0x5a; 1024]);
    assert_eq!(rig.request(OUT, 3, (DATA, 1024, 0)), OK);
    assert_eq!(rig.on_disk(4), [0x5a; 512]);
    assert_eq!(rig.on_disk(5), [0; 512]);
    assert_eq!(rig.irq.read().ok(), Some(1));
    // Read into three buffers, the status at the end of the last: framing is the driver's.
    rig.put_header(IN, 3);
    let written = rig.chain(&[
        (HEADER, 10, 0),
        (HEADER + 10, 6, 0),
        (DATA + 0x2000, 1000, WRITE),
        (DATA + 0x4000, 25, WRITE),
    ]);
    assert_eq!(written, 1025);
    assert_eq!(rig.get(DATA + 0x2000, 1000), [0x5a; 1000]);
    assert_eq!(rig.get(DATA + 0x4000, 24), [0x5a; 24]);
    assert_eq!(rig.get(DATA + 0x4018, 1), [OK]);
    assert_eq!(rig.request(FLUSH, 0, (HEADER, 0, 0)), OK);
}

#[test]
fn the_driver_is_told_size_limits_and_serial() {
    let mut rig = Rig::new(false);
    let config = rig.block.config();
    assert_eq!(config[..8], SECTORS.to_le_bytes(), "whole sectors");
    assert_eq!(config[8..12], (32_u32 << 10).to_le_bytes());
    assert_eq!(config[12..16], 126_u32.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(rig.request(GET_ID, 0, (DATA, 20, WRITE)), OK);
    assert_eq!(rig.get(DATA, 20), *b"disk-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(rig.block.features() >> 5 & 1, 0);
    assert_eq!(Rig::new(true).block.features() >> 5 & 1, 1, "read-only");
}

#[test]
fn a_serial_has_its_size() {
    for serial in ["", "123456789012345678901", "a b", "ü"] {
        let file = tempfile::tempfile().expect("a file");
        assert!(Disk::new(file, serial, true).is_err(), "{serial:?}");
    }
}

#[test]
fn nothing_beyond_the_end_is_read_or_written() {
    let mut rig = Rig::new(false);
    let whole = u64::MAX / SECTOR;
    for sector in [SECTORS - 1, SECTORS, whole, whole + 1, 1 << 55, u64::MAX] {
        assert_eq!(rig.request(OUT, sector, (DATA, 1024, 0)), IOERR, "{sector}");
        assert_eq!(rig.request(IN, sector, (DATA, 1024, WRITE)), IOERR);
        assert_eq!(rig.range(DISCARD, sector, 2, 0), IOERR);
    }
    assert_eq!(rig.request(IN, SECTORS - 2, (DATA, 1024, WRITE)), OK);
    assert_eq!(rig.request(IN, 0, (DATA, 511, WRITE)), IOERR);
    let length = rig.file.metadata().expect("its size").len();
    assert_eq!(length, SECTORS * SECTOR + 100);
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let mut rig = Rig::new(true);
    rig.file.write_all_at(&[7; 512], 0).expect("on the host");
    assert_eq!(rig.request(OUT, 0, (DATA, 512, 0)), IOERR);
    assert_eq!(rig.range(DISCARD, 0, 1, 0), IOERR);
    assert_eq!(rig.range(WRITE_ZEROES, 0, 1, 0), IOERR);
    assert_eq!(rig.request(FLUSH, 0, (HEADER, 0, 0)), OK);
    assert_eq!(rig.request(IN, 0, (DATA, 512, WRITE)), OK);
    assert_eq!(rig.get(DATA, 512), [7; 512]);
    assert_eq!(rig.on_disk(0), [7; 512]);
}

#[test]
fn discarded_and_zeroed_sectors_read_as_zeroes() {
    let mut rig = Rig::new(false);
    rig.file.write_all_at(&[7; 8192], 0).expect("on the host");
    assert_eq!(rig.range(DISCARD, 0, 8, 0), OK);
    assert_eq!(rig.range(WRITE_ZEROES, 9, 1, 1), OK);
    assert_eq!(rig.on_disk(7), [0; 512]);
    assert_eq!(rig.on_disk(8), [7; 512]);
    assert_eq!(rig.on_disk(9), [0; 512]);
    assert_eq!(rig.range(DISCARD, 0, 1, 1), UNSUPP, "an unmap that is none");
    assert_eq!(rig.range(DISCARD, 0, request::MAX_RANGE + 1, 0), IOERR);
    rig.put(DATA, &[0; 32]);
    assert_eq!(rig.request(DISCARD, 0, (DATA, 32, 0)), IOERR, "two ranges");
}

#[test]
fn what_is_no_request_does_no_harm() {
    let mut rig = Rig::new(false);
    assert_eq!(rig.request(99, 0, (DATA, 512, 0)), UNSUPP);
    rig.put_header(IN, 0);
    // No room for a status; no header; half of one; buffers that aren't in memory.
    assert_eq!(rig.chain(&[(HEADER, 16, 0), (DATA, 512, 0)]), 0);
    assert_eq!(rig.chain(&[(STATUS, 1, WRITE)]), 1);
    assert_eq!(rig.get(STATUS, 1), [IOERR]);
    assert_eq!(rig.chain(&[(HEADER, 7, 0), (STATUS, 1, WRITE)]), 1);
    for address in [MEMORY as u64 - 10, MEMORY as u64, u64::MAX] {
        let chain = [(HEADER, 16, 0), (address, 512, WRITE), (STATUS, 1, WRITE)];
        assert_eq!(rig.chain(&chain), 0);
        assert_eq!(rig.get(STATUS, 1), [NONE]);
    }
}

#[test]
fn the_size_of_a_request_is_bounded() {
    let mut rig = Rig::new(false);
    rig.put_header(IN, 0);
    let mut chain = vec![(DATA, MEMORY as u32 / 2, WRITE); 9];
    chain.insert(0, (HEADER, 16, 0));
    chain.push((STATUS, 1, WRITE));
    assert_eq!(rig.chain(&chain), 1);
    assert_eq!(rig.get(STATUS, 1), [IOERR], "more than 4 MiB");

    // An indirect table of more descriptors than the driver was told, each of which is fine.
    let table = 0x4_0000;
    let mut chain = vec![(DATA, 512, WRITE); 128];
    chain.insert(0, (HEADER, 16, 0));
    rig.put_descriptors(table, &chain);
    assert_eq!(rig.chain(&[(table, 16 * 129, 4)]), 0);
}

#[test]
fn a_turn_ends_and_the_rest_follows() {
    let mut rig = Rig::new(false);
    rig.put_header(FLUSH, 0);
    rig.put_descriptors(0, &[(HEADER, 16, 0), (STATUS, 1, WRITE)]);
    rig.offer(BUDGET as u16 + 1);
    rig.block.serve();
    assert_eq!(rig.get(USED + 2, 2), (BUDGET as u16).to_le_bytes());
    assert_eq!(rig.kick.read().ok(), Some(1), "the rest is for the next");
    rig.block.serve();
    assert_eq!(rig.get(USED + 2, 2), (BUDGET as u16 + 1).to_le_bytes());
}

#[test]
fn a_broken_ring_waits_for_a_reset() {
    let mut rig = Rig::new(false);
    rig.offer(QUEUE_SIZE + 1);
    rig.block.serve();
    rig.put(AVAIL + 2, &[1, 0]);
    rig.block.serve();
    assert_eq!(
        rig.get(USED + 2, 2),
        [0, 0],
        "a ring put right is not enough"
    );
    assert!(!rig.block.stop()[0].ready);
    rig.block.reset();
    rig.available = 0;
    rig.put(AVAIL, &[0; 4]);
    rig.put(USED, &[0; 4]);
    rig.activate(rig.block.features());
    assert_eq!(rig.request(FLUSH, 0, (HEADER, 0, 0)), OK);
}

#[test]
fn the_loop_follows_activation_kicks_and_reset() {
    use std::sync::Mutex;

    let mut rig = Rig::new(false);
    let spare = Disk::new(tempfile::tempfile().expect("a file"), "spare", true).expect("a disk");
    let spare = Block::new(spare).expect("another");
    let block = Arc::new(Mutex::new(std::mem::replace(&mut rig.block, spare)));
    let mut events = EventManager::new().expect("epoll");
    events.add_subscriber(Arc::clone(&block));
    rig.put_header(FLUSH, 0);
    rig.put_descriptors(0, &[(HEADER, 16, 0), (STATUS, 1, WRITE)]);

    rig.offer(1);
    events.run_with_timeout(0).expect("activation");
    assert_eq!(rig.get(USED + 2, 2), [1, 0]);
    rig.offer(1);
    rig.kick.write(1).expect("kicked");
    events.run_with_timeout(0).expect("the kick");
    assert_eq!(rig.get(USED + 2, 2), [2, 0]);
    block.lock().expect("free").reset();
    events.run_with_timeout(0).expect("the reset");
    rig.kick.write(1).expect("kicked");
    assert_eq!(events.run_with_timeout(0), Ok(0), "nobody listens any more");
}

#[test]
fn a_saved_disk_goes_on_where_it_was() {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(SECTORS * SECTOR).expect("sparse");
    let block = |serial| {
        let own = file.try_clone().expect("dup");
        Block::new(Disk::new(own, serial, false).expect("a disk")).expect("a device")
    };
    let mut bench = Bench::new(block("disk-7"));
    bench.start();
    let write = |bench: &mut Bench<Block>, sector: u8, byte: u8| {
        let data = bench.put(0x4000, &[byte; 512]);
        let header = bench.put(
            0x5000,
            &[1, 0, 0, 0, 0, 0, 0, 0, sector, 0, 0, 0, 0, 0, 0, 0],
        );
        let chain = [(header, 16, 0), (data, 512, 0), (0x6000, 1, WRITE)];
        assert_eq!(bench.request(0, &chain), 1);
        assert_eq!(bench.get(0x6000, 1), [OK]);
    };
    write(&mut bench, 0, 7);
    let state = bench.save();
    assert!(bench.restored(block("disk-8"), &state).is_err(), "another");

    let mut bench = bench.restored(block("disk-7"), &state).expect("the same");
    write(&mut bench, 1, 9);
    let mut found = [0; 1024];
    file.read_exact_at(&mut found, 0).expect("read");
    assert_eq!((found[511], found[512]), (7, 9));
    let state = bench.save();
    file.set_len(SECTOR).expect("shorter");
    assert!(bench.restored(block("disk-7"), &state).is_err(), "smaller");
}

#[test]
fn a_driver_that_cannot_flush_is_served_and_the_jail_allows_it_all() {
    if !is_root() {
        return;
    }
    let end = test_child::run(|| {
        let mut rig = Rig::new(false);
        rig.activate(1 << 32);
        let identity = Identity::unique_user().expect("a user");
        jail::confine(Role::Block, identity, &test_child::open_fds()).expect("the jail");
        assert_eq!(rig.request(OUT, 0, (DATA, 512, 0)), OK);
        assert_eq!(rig.request(IN, 0, (DATA, 512, WRITE)), OK);
        assert_eq!(rig.range(WRITE_ZEROES, 0, 1, 0), OK);
        assert_eq!(rig.range(DISCARD, 0, 8, 0), OK);
        assert_eq!(rig.request(GET_ID, 0, (DATA, 20, WRITE)), OK);
        // Debug builds look at a descriptor once more before they close it.
        std::mem::forget(rig);
    });
    assert_eq!(end, End::Returned);
}
