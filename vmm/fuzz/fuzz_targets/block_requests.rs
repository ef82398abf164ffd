//! A hostile guest against virtio-blk: any requests, chains, ring indices and bytes in its memory.
//!
//! It must not panic, wait, change the size of the disk's file or write a read-only one, and the event
//! loop must come to rest after each step.

#![no_main]

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps};
use hull_vmm::virtio::block::{Block, Disk};
use hull_vmm::virtio::{Activation, ActiveQueue, Interrupt, VirtioDevice};
use libfuzzer_sys::fuzz_target;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: usize = 1 << 20;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Where headers, data and the status lie.
const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x1_8000;
/// The disk's size, in bytes: some sectors and a rest.
const SIZE: u64 = 16 * 512 + 7;
/// Turns of the loop within which it must come to rest after one step.
const TURNS: usize = 100;

/// The input, taken piece by piece; zeroes when it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes(&mut self, count: usize) -> &[u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        let taken = self.bytes(8);
        bytes[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(bytes)
    }

    /// A small number mostly, any rarely.
    fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..240 => small.into(),
            _ => self.u64(),
        }
    }
}

/// A guest with a device.
struct World {
    memory: Arc<GuestMemoryMmap>,
    file: File,
    device: Arc<Mutex<Block>>,
    events: EventManager<Arc<Mutex<Block>>>,
    available: u16,
    kick: Arc<EventFd>,
}

impl World {
    fn new(read_only: bool) -> Self {
        // SAFETY: the name is a string with its NUL, and the descriptor is nobody else's.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"disk".as_ptr(), 0)) };
        file.set_len(SIZE).expect("room");
        let own = file.try_clone().expect("dup");
        let disk = Disk::new(own, "fuzz", read_only).expect("a disk");
        let device = Arc::new(Mutex::new(Block::new(disk).expect("a device")));
        let mut events = EventManager::new().expect("epoll");
        events.add_subscriber(Arc::clone(&device));
        let ranges = [(GuestAddress(0), MEMORY)];
        let mut world = Self {
            memory: Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory")),
            file,
            device,
            events,
            available: 0,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd")),
        };
        world.start(u64::MAX);
        world
    }

    /// Activates the device, with those of its features.
    fn start(&mut self, features: u64) {
        self.available = 0;
        self.put(0, &[0; 0x1_0000]);
        let mut device = self.device.lock().expect("the device");
        let mut queue = Queue::new(device.queue_sizes()[0]).expect("a power of two");
        queue.set_desc_table_address(Some(0), None);
        queue.set_avail_ring_address(Some(AVAIL as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_ready(true);
        let irq = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        let activation = Activation {
            memory: Arc::clone(&self.memory),
            features: device.features() & features,
            queues: vec![ActiveQueue {
                queue,
                kick: Arc::clone(&self.kick),
            }],
            interrupt: Interrupt::new(Arc::new(AtomicU32::new(0)), irq),
        };
        device.activate(activation).expect("activation");
        drop(device);
        self.rest();
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        let _ = self
            .memory
            .write(bytes, GuestAddress(address % MEMORY as u64));
    }

    /// Makes the chain at descriptor 0 available.
    fn offer(&mut self, table: u64, chain: &[(u64, u32, u16, u16)]) {
        for (index, (address, length, flags, next)) in (0..).zip(chain) {
            let at = table + 16 * index;
            self.put(at, &address.to_le_bytes());
            self.put(at + 8, &length.to_le_bytes());
            self.put(at + 12, &flags.to_le_bytes());
            self.put(at + 14, &next.to_le_bytes());
        }
        // Slot by slot of a ring that is all zeroes: descriptor 0 is the head of each.
        self.available = self.available.wrapping_add(1);
        self.kick(self.available);
    }

    fn kick(&self, available: u16) {
        self.put(AVAIL + 2, &available.to_le_bytes());
        let _ = self.kick.write(1);
    }

    fn header(&self, kind: u8, sector: u64) {
        self.put(HEADER, &u32::from(kind).to_le_bytes());
        self.put(HEADER + 8, &sector.to_le_bytes());
    }

    fn step(&mut self, input: &mut Input) {
        match input.byte() {
            // A request in the usual three buffers.
            0..128 => {
                self.header(input.byte() % 16, input.number());
                let length = (input.number() as u32).wrapping_mul(64);
                let flags = 1 | u16::from(input.byte() % 2) << 1;
                let chain = [
                    (HEADER, 16, 1, 1),
                    (DATA, length, flags, 2),
                    (STATUS, 1, 2, 0),
                ];
                self.offer(0, &chain);
            }
            // A range to discard.
            128..160 => {
                self.header(11 + input.byte() % 3, input.number());
                self.put(DATA, &input.number().to_le_bytes());
                self.put(DATA + 8, &(input.number() as u32).to_le_bytes());
                self.put(DATA + 12, &u32::from(input.byte() % 3).to_le_bytes());
                let length = 16 * u32::from(input.byte() % 3);
                self.offer(0, &[(HEADER, 16, 1, 1), (DATA, length, 1, 2), (STATUS, 1, 2, 0)]);
            }
            // Any chain, sometimes in an indirect table.
            160..224 => {
                let count = input.byte() % 6;
                let descriptor = |_| {
                    let address = input.u64() % (2 * MEMORY as u64);
                    let length = input.number() as u32;
                    let flags = u16::from(input.byte() % 8);
                    (address, length, flags, u16::from(input.byte()))
                };
                let chain: Vec<_> = (0..count).map(descriptor).collect();
                let table = if input.byte() % 2 == 0 { 0 } else { DATA };
                self.offer(table, &chain);
            }
            224..240 => {
                let address = input.u64();
                let length = usize::from(input.byte());
                let bytes = input.bytes(length).to_vec();
                self.put(address, &bytes);
            }
            240..248 => self.kick(input.u64() as u16),
            _ => {
                self.device.lock().expect("the device").reset();
                self.start(input.u64());
            }
        }
        self.rest();
    }

    fn rest(&mut self) {
        for _ in 0..TURNS {
            if self.events.run_with_timeout(0).expect("events") == 0 {
                return;
            }
        }
        panic!("the event loop does not come to rest");
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let read_only = input.byte() % 4 == 0;
    let mut world = World::new(read_only);
    while !input.0.is_empty() {
        world.step(&mut input);
    }
    assert_eq!(world.file.metadata().expect("its size").len(), SIZE);
    let mut content = vec![0; SIZE as usize];
    world.file.read_exact_at(&mut content, 0).expect("readable");
    assert!(!read_only || content.iter().all(|byte| *byte == 0));
    assert_eq!(content[16 * 512..], [0; 7], "beyond the last whole sector");
});
