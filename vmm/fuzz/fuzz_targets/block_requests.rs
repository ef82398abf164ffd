//! A hostile guest against virtio-blk: any requests, chains, ring indices and bytes in its memory.
//!
//! It must not panic, wait, change the size of the disk's file or write a read-only one, and the event
//! loop must become idle after each step.

#![no_main]

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps};
use hull_vmm::virtio::VirtioDevice;
use hull_vmm::virtio::block::{Block, Disk};
use hull_vmm_fuzz::{Descriptor, Driver, Input, activation, memory, put, run_until_idle};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestMemoryMmap;

const MEMORY: usize = 1 << 20;
/// Where headers, data and the status lie.
const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x1_8000;
/// The size of the disk's file, in bytes: some sectors and a part of one.
const SIZE: u64 = 16 * 512 + 7;
/// Turns of the loop within which it must become idle after one step.
const TURNS: usize = 100;

/// A small number mostly, any rarely.
fn number(input: &mut Input) -> u64 {
    match input.byte() {
        small @ 0..240 => small.into(),
        _ => input.u64(),
    }
}

/// A guest's driver, the device with its disk, and the event loop that serves it.
struct Harness {
    memory: Arc<GuestMemoryMmap>,
    file: File,
    device: Arc<Mutex<Block>>,
    events: EventManager<Arc<Mutex<Block>>>,
    driver: Driver,
}

impl Harness {
    fn new(read_only: bool) -> Self {
        // SAFETY: the name is a string with its NUL, and the descriptor is nobody else's.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"disk".as_ptr(), 0)) };
        file.set_len(SIZE).expect("room");
        let own = file.try_clone().expect("dup");
        let disk = Disk::new(own, "fuzz", read_only).expect("a disk");
        let device = Arc::new(Mutex::new(Block::new(disk).expect("a device")));
        let mut events = EventManager::new().expect("epoll");
        events.add_subscriber(Arc::clone(&device));
        let mut harness = Self {
            memory: memory(MEMORY),
            file,
            device,
            events,
            driver: Driver::new(0),
        };
        harness.start(u64::MAX);
        harness
    }

    /// Activates the device with those of `features` that it offers.
    fn start(&mut self, features: u64) {
        self.put(0, &[0; 0x1_0000]);
        let mut device = self.device.lock().expect("the device");
        let queue = self.driver.start(device.queue_sizes()[0]);
        let features = device.features() & features;
        let activation = activation(&self.memory, features, vec![queue]);
        device.activate(activation).expect("activation");
        drop(device);
        self.rest();
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        put(&self.memory, address, bytes);
    }

    fn offer(&mut self, chain: &[Descriptor]) {
        self.driver.offer(&self.memory, chain);
    }

    fn header(&self, kind: u8, sector: u64) {
        self.put(HEADER, &u32::from(kind).to_le_bytes());
        self.put(HEADER + 8, &sector.to_le_bytes());
    }

    fn step(&mut self, input: &mut Input) {
        match input.byte() {
            // A request in the usual three buffers.
            0..128 => {
                self.header(input.byte() % 16, number(input));
                let length = (number(input) as u32).wrapping_mul(64);
                let flags = 1 | u16::from(input.byte() % 2) << 1;
                let chain = [
                    (HEADER, 16, 1, 1),
                    (DATA, length, flags, 2),
                    (STATUS, 1, 2, 0),
                ];
                self.offer(&chain);
            }
            // A range to discard.
            128..160 => {
                self.header(11 + input.byte() % 3, number(input));
                self.put(DATA, &number(input).to_le_bytes());
                self.put(DATA + 8, &(number(input) as u32).to_le_bytes());
                self.put(DATA + 12, &u32::from(input.byte() % 3).to_le_bytes());
                let length = 16 * u32::from(input.byte() % 3);
                self.offer(&[(HEADER, 16, 1, 1), (DATA, length, 1, 2), (STATUS, 1, 2, 0)]);
            }
            // Any chain, sometimes in an indirect table.
            160..224 => {
                let count = input.byte() % 6;
                let descriptor = |_| {
                    let address = input.u64() % (2 * MEMORY as u64);
                    let length = number(input) as u32;
                    let flags = u16::from(input.byte() % 8);
                    (address, length, flags, u16::from(input.byte()))
                };
                let chain: Vec<_> = (0..count).map(descriptor).collect();
                let table = if input.byte() % 2 == 0 { 0 } else { DATA };
                self.driver.offer_at(&self.memory, table, &chain);
            }
            224..240 => {
                let address = input.u64();
                let length = usize::from(input.byte());
                let bytes = input.bytes(length).to_vec();
                self.put(address, &bytes);
            }
            240..248 => self.driver.kick(&self.memory, input.u64() as u16),
            _ => {
                self.device.lock().expect("the device").reset();
                self.start(input.u64());
            }
        }
        self.rest();
    }

    fn rest(&mut self) {
        run_until_idle(&mut self.events, TURNS);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let read_only = input.byte() % 4 == 0;
    let mut harness = Harness::new(read_only);
    while !input.is_empty() {
        harness.step(&mut input);
    }
    assert_eq!(harness.file.metadata().expect("its size").len(), SIZE);
    let mut content = vec![0; SIZE as usize];
    harness
        .file
        .read_exact_at(&mut content, 0)
        .expect("readable");
    assert!(!read_only || content.iter().all(|byte| *byte == 0));
    assert_eq!(content[16 * 512..], [0; 7], "beyond the last whole sector");
});
