//! A hostile guest against virtio-vsock: any packets, chains, ring indices and bytes in its memory,
//! between clients of the control socket and descriptors that come and go.
//!
//! It must not panic, and the event loop must become idle after each step.

#![no_main]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps};
use hull_vmm::virtio::vsock::{Direction, Offered, Vsock};
use hull_vmm::virtio::{ActiveQueue, VirtioDevice};
use hull_vmm_fuzz::{Input, activation, eventfd, memory, put, run_until_idle};
use libfuzzer_sys::fuzz_target;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

const MEMORY: usize = 1 << 20;
const QUEUE_SIZE: u16 = 16;
const FIRST_PORT: u32 = 0x1_0000;
/// Operations of packets.
const REQUEST: u8 = 1;
const RW: u8 = 5;
/// Turns of the loop within which it must become idle after one step.
const TURNS: usize = 2000;

/// A small number mostly, any number sometimes.
fn number(input: &mut Input<'_>) -> u32 {
    match input.byte() {
        small @ 0..200 => small.into(),
        200..240 => input.u16().into(),
        _ => input.u32(),
    }
}

/// The guest's side of a queue. Chain `n` starts at descriptor `2 n`.
struct DriverQueue {
    base: u64,
    avail: u16,
    chain: u16,
    kick: Arc<EventFd>,
}

impl DriverQueue {
    fn new(base: u64) -> Self {
        Self {
            base,
            avail: 0,
            chain: 0,
            kick: eventfd(),
        }
    }

    fn device_side(&self) -> ActiveQueue {
        let mut queue = Queue::new(QUEUE_SIZE).expect("a power of two");
        queue.set_desc_table_address(Some(self.base as u32), None);
        queue.set_avail_ring_address(Some(self.base as u32 + 0x400), None);
        queue.set_used_ring_address(Some(self.base as u32 + 0x800), None);
        queue.set_ready(true);
        ActiveQueue {
            queue,
            kick: Arc::clone(&self.kick),
        }
    }

    fn offer(&mut self, memory: &GuestMemoryMmap, chain: &[(u64, u32, u16, u16)]) {
        let head = self.chain * 2 % QUEUE_SIZE;
        self.chain = self.chain.wrapping_add(1);
        for (index, (address, len, flags, next)) in (0..).zip(chain) {
            let at = self.base + (u64::from(head) + index) % u64::from(QUEUE_SIZE) * 16;
            put(memory, at, &address.to_le_bytes());
            put(memory, at + 8, &len.to_le_bytes());
            put(memory, at + 12, &flags.to_le_bytes());
            put(memory, at + 14, &(head + next).to_le_bytes());
        }
        let slot = u64::from(self.avail % QUEUE_SIZE);
        put(memory, self.base + 0x404 + slot * 2, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        put(memory, self.base + 0x402, &self.avail.to_le_bytes());
        let _ = self.kick.write(1);
    }
}

/// The guest, and the host around it.
struct Harness {
    memory: Arc<GuestMemoryMmap>,
    device: Arc<Mutex<Vsock>>,
    events: EventManager<Arc<Mutex<Vsock>>>,
    address: SocketAddr,
    rx: DriverQueue,
    tx: DriverQueue,
    clients: Vec<UnixStream>,
    sockets: Vec<UnixStream>,
    /// The offered ports with their tokens.
    offered: Vec<Offered>,
}

impl Harness {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("hull-fuzz-vsock-{}-{number}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let listener = UnixListener::bind_addr(&address).expect("socket");
        let device = Vsock::new(3, FIRST_PORT, listener).expect("device");
        let device = Arc::new(Mutex::new(device));
        let mut events = EventManager::new().expect("epoll");
        events.add_subscriber(Arc::clone(&device));
        let mut harness = Self {
            memory: memory(MEMORY),
            device,
            events,
            address,
            rx: DriverQueue::new(0x1000),
            tx: DriverQueue::new(0x2000),
            clients: Vec::new(),
            sockets: Vec::new(),
            offered: Vec::new(),
        };
        harness.attach();
        harness
    }

    /// One stream of each direction, on ports 0x10001 to 0x10003 the first time.
    fn attach(&mut self) {
        let directions = [Direction::ToGuest, Direction::FromGuest, Direction::Duplex];
        let mut streams: Vec<(Direction, OwnedFd)> = Vec::new();
        for direction in directions {
            let (near, far) = UnixStream::pair().expect("sockets");
            far.set_nonblocking(true).expect("non-blocking");
            self.sockets.push(far);
            streams.push((direction, near.into()));
        }
        let attached = self.device.lock().expect("no panic").attach(streams);
        self.offered
            .extend(attached.into_iter().flat_map(|a| a.streams));
    }

    /// Sends the token that belongs to the port of a `REQUEST`, except where the input plays a
    /// guest that doesn't know it.
    fn token(&mut self, request: &[u8; 44]) {
        let honest = request[30] == REQUEST && request[32] != 3;
        let port = u32::from_le_bytes([request[20], request[21], request[22], request[23]]);
        let offered = self.offered.iter().find(|offered| offered.port == port);
        let (true, Some(offered)) = (honest, offered) else {
            return;
        };
        let mut header = *request;
        header[24..28].copy_from_slice(&16_u32.to_le_bytes());
        header[30] = RW;
        put(&self.memory, 0x2_0100, &header);
        put(&self.memory, 0x2_0200, &offered.token);
        let memory = Arc::clone(&self.memory);
        self.tx
            .offer(&memory, &[(0x2_0100, 44, 1, 1), (0x2_0200, 16, 0, 0)]);
    }

    fn activate(&mut self, features: u64) {
        let queues = vec![
            self.rx.device_side(),
            self.tx.device_side(),
            DriverQueue::new(0x3000).device_side(),
        ];
        let activation = activation(&self.memory, features, queues);
        let _ = self.device.lock().expect("no panic").activate(activation);
    }

    fn reset(&mut self, features: u64) {
        self.device.lock().expect("no panic").reset();
        for queue in [&mut self.rx, &mut self.tx] {
            (queue.avail, queue.chain) = (0, 0);
            for ring in [0x402, 0x802] {
                put(&self.memory, queue.base + ring, &[0; 2]);
            }
        }
        self.activate(features);
    }

    /// A packet whose header is likely to mean something.
    fn packet(&mut self, input: &mut Input<'_>) {
        let mut header = [0; 44];
        let src_cid = if input.byte() == 255 {
            number(input)
        } else {
            3
        };
        header[0] = src_cid as u8;
        header[8] = 2;
        header[16..20].copy_from_slice(&number(input).to_le_bytes());
        let host_port = match input.byte() {
            near @ 0..240 => FIRST_PORT + u32::from(near) % 16,
            _ => number(input),
        };
        header[20..24].copy_from_slice(&host_port.to_le_bytes());
        let len = number(input);
        header[24..28].copy_from_slice(&len.to_le_bytes());
        header[28] = if input.byte() == 255 { input.byte() } else { 1 };
        header[30] = input.byte() % 9;
        header[32] = input.byte() % 4;
        header[36..40].copy_from_slice(&number(input).to_le_bytes());
        header[40..44].copy_from_slice(&number(input).to_le_bytes());
        put(&self.memory, 0x2_0000, &header);
        let memory = Arc::clone(&self.memory);
        self.tx
            .offer(&memory, &[(0x2_0000, 44, 1, 1), (0x3_0000, len, 0, 0)]);
        self.token(&header);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 10 {
            0..=2 => self.packet(input),
            3 => {
                let memory = Arc::clone(&self.memory);
                let address = 0x5_0000 + u64::from(input.byte()) * 0x400;
                let len = 44 + number(input) % 70_000;
                self.rx.offer(&memory, &[(address, len, 2, 0)]);
            }
            4 => {
                let memory = Arc::clone(&self.memory);
                let mut descriptor = || {
                    let address = u64::from(number(input)) << (input.byte() % 33);
                    (address, number(input), input.u16() % 8, input.u16() % 4)
                };
                let chain = [descriptor(), descriptor()];
                let queue = if input.byte() % 2 == 0 {
                    &mut self.rx
                } else {
                    &mut self.tx
                };
                queue.offer(&memory, &chain);
            }
            5 => {
                let address = 0x1000 + u64::from(input.u16() % 0x2000);
                put(&self.memory, address, &input.take::<4>());
                let _ = self.rx.kick.write(1);
                let _ = self.tx.kick.write(1);
            }
            6 => {
                if let Ok(mut client) = UnixStream::connect_addr(&self.address) {
                    let _ = client.set_nonblocking(true);
                    let _ = match input.byte() % 3 {
                        0 => client.write_all(b"CONNECT 1024\n"),
                        1 => client.write_all(b"ATTACH rww\n"),
                        _ => client.write_all(&input.take::<16>()),
                    };
                    self.clients.push(client);
                }
            }
            7 => {
                let all = self.clients.len() + self.sockets.len();
                let index = usize::from(input.byte()) % all.max(1);
                let socket = self.clients.iter_mut().chain(&mut self.sockets).nth(index);
                if let Some(socket) = socket {
                    let _ = socket.read(&mut [0; 65536]);
                    let _ = socket.write(&[0; 65536][..usize::from(input.u16())]);
                }
            }
            8 => match input.byte() % 4 {
                0 => drop(self.clients.pop()),
                1 => drop(self.sockets.pop()),
                2 => self.attach(),
                _ => self.device.lock().expect("no panic").guest_stopped(),
            },
            _ => {
                let event_idx = u64::from(input.byte() % 2) << 29;
                self.reset(1 << 32 | event_idx);
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut harness = Harness::new();
    harness.activate(1 << 32);
    let mut input = Input(data);
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        harness.step(&mut input);
        run_until_idle(&mut harness.events, TURNS);
    }
});
