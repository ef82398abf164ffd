//! A hostile guest against virtio-mem: any requests, chains, ring indices and bytes in its memory, while the host asks
//! for other sizes.
//!
//! It must not panic, never have more plugged than was ever requested, and the event loop must become idle after each
//! step.

#![no_main]

use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps};
use hull_vmm::virtio::VirtioDevice;
use hull_vmm::virtio::mem::{BLOCK_SIZE, Mem, Region};
use hull_vmm_fuzz::{Descriptor, Driver, Input, activation, put, run_until_idle};
use libfuzzer_sys::fuzz_target;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 1 << 20;
/// The device's region: more blocks than a word has bits.
const START: u64 = 4 << 30;
const BLOCKS: u64 = 70;
/// Where requests and responses lie.
const REQUEST: u64 = 0x1_0000;
const RESPONSE: u64 = 0x1_8000;
/// Turns of the loop within which it must become idle after one step.
const TURNS: usize = 100;

/// A guest's driver, the device with its region, and the event loop that serves it.
struct Harness {
    memory: Arc<GuestMemoryMmap>,
    device: Arc<Mutex<Mem>>,
    events: EventManager<Arc<Mutex<Mem>>>,
    driver: Driver,
    /// The most that the host has asked for.
    most: u64,
}

impl Harness {
    fn new() -> Self {
        let size = BLOCKS * BLOCK_SIZE;
        let ranges = [
            (GuestAddress(0), MEMORY),
            (GuestAddress(START), size as usize),
        ];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"));
        let region = Region { start: START, size };
        let device = Mem::new(Arc::clone(&memory), region).expect("a device");
        let device = Arc::new(Mutex::new(device));
        let mut events = EventManager::new().expect("epoll");
        events.add_subscriber(Arc::clone(&device));
        let mut harness = Self {
            memory,
            device,
            events,
            driver: Driver::new(0),
            most: 0,
        };
        harness.start(u64::MAX);
        harness
    }

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

    fn step(&mut self, input: &mut Input) {
        match input.byte() {
            // A request in the usual two buffers, mostly about blocks of the region.
            0..160 => {
                let mut request = [0; 24];
                request[0] = input.byte() % 5;
                let address = match input.byte() {
                    block @ 0..250 => START + u64::from(block % 72) * BLOCK_SIZE,
                    _ => input.u64(),
                };
                request[8..16].copy_from_slice(&address.to_le_bytes());
                let blocks = match input.byte() {
                    few @ 0..250 => u16::from(few % 16),
                    _ => input.u16(),
                };
                request[16..18].copy_from_slice(&blocks.to_le_bytes());
                self.put(REQUEST, &request);
                let chain = [(REQUEST, 24, 1, 1), (RESPONSE, 10, 2, 0)];
                self.driver.offer(&self.memory, &chain);
            }
            // What the host asks for.
            160..192 => {
                let size = match input.byte() {
                    blocks @ 0..250 => u64::from(blocks) * BLOCK_SIZE / 2,
                    _ => input.u64(),
                };
                let mut device = self.device.lock().expect("the device");
                device.request_size(size);
                self.most = self.most.max(device.requested_size());
            }
            // Any chain.
            192..224 => {
                let count = input.byte() % 10;
                let descriptor = |_| -> Descriptor {
                    let base = if input.byte() % 2 == 0 { 0 } else { START };
                    let address = base + input.u64() % (2 * MEMORY as u64);
                    let length = input.u32() % 64;
                    let flags = u16::from(input.byte() % 4);
                    (address, length, flags, u16::from(input.byte() % 16))
                };
                let chain: Vec<_> = (0..count).map(descriptor).collect();
                self.driver.offer(&self.memory, &chain);
            }
            224..240 => {
                let address = input.u64() % MEMORY as u64;
                let length = usize::from(input.byte());
                let bytes = input.bytes(length).to_vec();
                self.put(address, &bytes);
            }
            240..248 => self.driver.kick(&self.memory, input.u16()),
            _ => {
                self.device.lock().expect("the device").reset();
                self.start(input.u64());
            }
        }
        self.rest();
    }

    fn rest(&mut self) {
        run_until_idle(&mut self.events, TURNS);
        let device = self.device.lock().expect("the device");
        assert!(device.plugged_size() <= self.most);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut harness = Harness::new();
    while !input.is_empty() {
        harness.step(&mut input);
    }
});
