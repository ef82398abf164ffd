//! A hostile guest against virtio-net: any chains, ring indices, commands and bytes in its memory, on the queues of two
//! pairs and the control queue, while frames come from the host and the tap is full now and then.
//!
//! It must not panic or wait, what it sends must be of a frame's size, and the event loop must become idle after each
//! step. Pairs of sockets are the substitute for the queues of a tap.

#![no_main]

use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps};
use hull_vmm::virtio::VirtioDevice;
use hull_vmm::virtio::net::{MacAddress, Net, NicConfig, Taps};
use hull_vmm_fuzz::{Descriptor, Driver, Input, activation, memory, put, run_until_idle};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestMemoryMmap;

const MEMORY: usize = 1 << 20;
/// Where the rings of each queue are, and the buffers.
const RINGS: [u64; 5] = [0, 0x1_0000, 0x2_0000, 0x3_0000, 0x4_0000];
const DATA: u64 = 0x5_0000;
/// The index of the control queue.
const CONTROL: usize = 4;
/// A header and Ethernet's, and the most that may follow.
const SIZES: std::ops::RangeInclusive<usize> = 26..=65565;
/// Turns of the loop within which it must become idle after one step.
const TURNS: usize = 200;

/// A pair of SOCK_SEQPACKET sockets, both non-blocking. The first is for the device.
fn pair() -> (OwnedFd, UnixStream) {
    let mut pair = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK;
    // SAFETY: the array has room for two descriptors, which nobody else owns.
    unsafe {
        assert_eq!(
            libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()),
            0
        );
        (
            OwnedFd::from_raw_fd(pair[0]),
            UnixStream::from_raw_fd(pair[1]),
        )
    }
}

/// A guest's driver, the device with the queues of its tap, and the event loop that serves it.
struct Harness {
    memory: Arc<GuestMemoryMmap>,
    hosts: [UnixStream; 2],
    device: Arc<Mutex<Net>>,
    events: EventManager<Arc<Mutex<Net>>>,
    drivers: [Driver; 5],
}

impl Harness {
    fn new() -> Self {
        let [(first, host), (second, other)] = [pair(), pair()];
        let taps = Taps::from_test_sockets(vec![first, second]).expect("non-blocking");
        let config = NicConfig::new(MacAddress([2, 0, 0, 0, 0, 1]), 1500).expect("a NIC");
        let device = Arc::new(Mutex::new(Net::new(config, taps).expect("a device")));
        let mut events = EventManager::new().expect("epoll");
        events.add_subscriber(Arc::clone(&device));
        let mut harness = Self {
            memory: memory(MEMORY),
            hosts: [host, other],
            device,
            events,
            drivers: RINGS.map(Driver::new),
        };
        harness.start(u64::MAX);
        harness
    }

    /// Activates the device, with the features that it offers of these.
    fn start(&mut self, features: u64) {
        put(&self.memory, 0, &[0; DATA as usize]);
        let mut device = self.device.lock().expect("the device");
        let features = device.features() & features;
        let sizes = device
            .queue_sizes()
            .iter()
            .take(device.queue_count(features));
        let queues = self.drivers.iter_mut().zip(sizes);
        let queues = queues.map(|(driver, size)| driver.start(*size)).collect();
        let activation = activation(&self.memory, features, queues);
        device.activate(activation).expect("activation");
        drop(device);
        self.run_until_idle();
    }

    fn step(&mut self, input: &mut Input) {
        let queue = usize::from(input.byte()) % RINGS.len();
        match input.byte() {
            // A command, whole or cut off.
            0..80 if queue == CONTROL => {
                let length = usize::from(input.byte() % 6);
                let command = input.bytes(length).to_vec();
                put(&self.memory, DATA, &command);
                let answer = (DATA + 0x400, u32::from(input.byte() % 2), 2, 0);
                let command = (DATA, length as u32, 1, 1);
                self.drivers[queue].offer(&self.memory, &[command, answer]);
            }
            // Buffers as a driver gives them.
            0..80 => {
                let writable = if queue % 2 == 0 { 2 } else { 0 };
                let count = 1 + input.byte() % 4;
                let mut chain: Vec<Descriptor> = (0..count)
                    .map(|number| {
                        let address = DATA + u64::from(input.byte()) * 0x400;
                        let length = u32::from(input.byte()) * 8;
                        (address, length, writable | 1, u16::from(number) + 1)
                    })
                    .collect();
                if let Some((_, _, flags, _)) = chain.last_mut() {
                    *flags &= !1;
                }
                self.drivers[queue].offer(&self.memory, &chain);
            }
            // Any chain, sometimes in an indirect table.
            80..150 => {
                let count = input.byte() % 6;
                let descriptor = |_| {
                    let address = input.u64() % (2 * MEMORY as u64);
                    let length = input.u32() >> (input.byte() % 32);
                    let flags = u16::from(input.byte() % 8);
                    (address, length, flags, u16::from(input.byte()))
                };
                let chain: Vec<_> = (0..count).map(descriptor).collect();
                let table = if input.byte() % 2 == 0 {
                    RINGS[queue]
                } else {
                    DATA
                };
                self.drivers[queue].offer_at(&self.memory, table, &chain);
            }
            // A frame from the host.
            150..200 => {
                let length = usize::from(input.u16()) + 2 * usize::from(input.byte());
                let mut frame = input.bytes(64).to_vec();
                frame.resize(length.max(1), 0x5a);
                let _ = self.hosts[queue / 2 % 2].write(&frame); // nobody has read the last ones
            }
            200..215 => {
                let address = input.u64();
                let length = usize::from(input.byte());
                let bytes = input.bytes(length).to_vec();
                put(&self.memory, address, &bytes);
            }
            // The same chain many times: the tap gets full.
            215..230 => self.drivers[queue].kick(&self.memory, input.u16() % 300),
            230..240 => self.drivers[queue].kick(&self.memory, input.u16()),
            240..250 => self.read_all(),
            _ => {
                self.device.lock().expect("the device").reset();
                self.start(input.u64());
            }
        }
        self.run_until_idle();
    }

    /// Reads the frames that the guest has sent.
    fn read_all(&mut self) {
        let mut frame = vec![0; 0x2_0000];
        for host in &mut self.hosts {
            while let Ok(size @ 1..) = host.read(&mut frame) {
                assert!(SIZES.contains(&size), "{size} bytes");
            }
        }
    }

    fn run_until_idle(&mut self) {
        run_until_idle(&mut self.events, TURNS);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut harness = Harness::new();
    while !input.is_empty() {
        harness.step(&mut input);
    }
    harness.read_all();
    harness.run_until_idle();
});
