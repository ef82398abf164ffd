//! A simulated guest with its driver: queues, buffers, and the event loop that serves the device.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use tempfile::TempDir;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::stop::StopFlag;
use crate::virtio::vsock::packet::{HEADER_SIZE, Header, TYPE_STREAM, op};
use crate::virtio::vsock::{Giver, HOST_CID, Vsock, giver};
use crate::virtio::{Activation, ActiveQueue, Interrupt, VirtioDevice};

pub(crate) const GUEST_CID: u64 = 3;
pub(crate) const FIRST_PORT: u32 = 0x1_0000;
/// The credit that the simulated guest gives.
pub(crate) const GUEST_BUFFER: u32 = 256 * 1024;

const QUEUE_SIZE: u16 = 64;
const RX_BUFFER: u32 = HEADER_SIZE as u32 + 4096;
const DESC_F_WRITE: u16 = 2;
const DESC_F_NEXT: u16 = 1;

/// The driver's side of one queue. Each chain `n` has the descriptors from `n` on to itself.
pub(crate) struct DriverQueue {
    base: u64,
    buffers: u64,
    spacing: u64,
    free: VecDeque<u16>,
    avail: u16,
    used: u16,
    kick: Arc<EventFd>,
    /// VIRTIO_F_EVENT_IDX: kick, and be interrupted, only where the other side wants it.
    event_idx: bool,
    /// The available index that the device was last told of.
    told: u16,
}

impl DriverQueue {
    fn new(base: u64, buffers: u64, spacing: u64, event_idx: bool) -> Self {
        Self {
            base,
            buffers,
            spacing,
            // Every fourth descriptor starts a chain, so that a chain may have four.
            free: (0..QUEUE_SIZE).step_by(4).collect(),
            avail: 0,
            used: 0,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).expect("eventfd")),
            event_idx,
            told: 0,
        }
    }

    fn device_side(&self) -> Queue {
        let mut queue = Queue::new(QUEUE_SIZE).expect("a power of two");
        queue.set_desc_table_address(Some(self.base as u32), None);
        queue.set_avail_ring_address(Some(self.base as u32 + 0x1000), None);
        queue.set_used_ring_address(Some(self.base as u32 + 0x2000), None);
        queue.set_ready(true);
        queue
    }

    /// Where the chain's memory is.
    pub(crate) fn buffer(&self, head: u16) -> u64 {
        self.buffers + u64::from(head) * self.spacing
    }

    /// Makes a chain available, of descriptors of these addresses, lengths and flags.
    pub(crate) fn offer(&mut self, memory: &GuestMemoryMmap, head: u16, chain: &[(u64, u32, u16)]) {
        for (index, (address, len, flags)) in (head..).zip(chain) {
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&address.to_le_bytes());
            descriptor[8..12].copy_from_slice(&len.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&(index + 1).to_le_bytes());
            write(memory, self.base + u64::from(index) * 16, &descriptor);
        }
        let slot = u64::from(self.avail % QUEUE_SIZE);
        write(memory, self.base + 0x1004 + slot * 2, &head.to_le_bytes());
        self.set_avail(memory, self.avail.wrapping_add(1));
    }

    /// Tells the device of what was made available, if it wants to hear of it.
    pub(crate) fn notify(&mut self, memory: &GuestMemoryMmap) {
        let event = read_u16(memory, self.base + 0x2004 + u64::from(QUEUE_SIZE) * 8);
        let news = self.avail.wrapping_sub(self.told);
        let wanted = self.avail.wrapping_sub(event).wrapping_sub(1) < news;
        self.told = self.avail;
        if wanted || !self.event_idx {
            self.kick.write(1).expect("kick");
        }
    }

    pub(crate) fn set_avail(&mut self, memory: &GuestMemoryMmap, index: u16) {
        self.avail = index;
        write(memory, self.base + 0x1002, &index.to_le_bytes());
    }

    pub(crate) fn take_free(&mut self) -> Option<u16> {
        self.free.pop_front()
    }

    /// The head and the length of the next chain that the device has used.
    fn next_used(&mut self, memory: &GuestMemoryMmap) -> Option<(u16, u32)> {
        if read_u16(memory, self.base + 0x2002) == self.used {
            return None;
        }
        let slot = u64::from(self.used % QUEUE_SIZE);
        let mut element = [0; 8];
        read(memory, self.base + 0x2004 + slot * 8, &mut element);
        self.used = self.used.wrapping_add(1);
        // An interrupt is wanted for the next one (used_event).
        let event = self.base + 0x1004 + u64::from(QUEUE_SIZE) * 2;
        write(memory, event, &self.used.to_le_bytes());
        let [a, b, c, d, e, f, g, h] = element;
        let head = u32::from_le_bytes([a, b, c, d]) as u16;
        Some((head, u32::from_le_bytes([e, f, g, h])))
    }
}

fn write(memory: &GuestMemoryMmap, address: u64, bytes: &[u8]) {
    memory
        .write_slice(bytes, GuestAddress(address))
        .expect("in memory");
}

fn read(memory: &GuestMemoryMmap, address: u64, bytes: &mut [u8]) {
    memory
        .read_slice(bytes, GuestAddress(address))
        .expect("in memory");
}

fn read_u16(memory: &GuestMemoryMmap, address: u64) -> u16 {
    let mut bytes = [0; 2];
    read(memory, address, &mut bytes);
    u16::from_le_bytes(bytes)
}

/// A guest with its driver, and the host around it.
pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestMemoryMmap>,
    pub(crate) rx: DriverQueue,
    pub(crate) tx: DriverQueue,
    device: Arc<Mutex<Vsock>>,
    /// Gives streams to the device, as another thread of the process.
    pub(crate) giver: Giver,
    events: EventManager<Arc<Mutex<Vsock>>>,
    folder: TempDir,
    /// Whether a received packet's buffer is made available again at once.
    pub(crate) refill: bool,
    irqfd: Arc<EventFd>,
    event_idx: bool,
}

impl Guest {
    /// A guest whose driver has set the device up and given it buffers.
    pub(crate) fn new() -> Self {
        let mut guest = Self::without_driver();
        guest.activate();
        guest
    }

    /// The same, with VIRTIO_F_EVENT_IDX.
    pub(crate) fn with_event_idx() -> Self {
        let mut guest = Self::without_driver();
        guest.event_idx = true;
        guest.set_up_queues();
        guest.activate();
        guest
    }

    fn set_up_queues(&mut self) {
        self.rx = DriverQueue::new(0x1_0000, 0x10_0000, 0x2000, self.event_idx);
        self.tx = DriverQueue::new(0x2_0000, 0x20_0000, 0x1_4000, self.event_idx);
        write(&self.memory, 0x1_0000, &[0; 0x2_0000]);
    }

    pub(crate) fn without_driver() -> Self {
        let ranges = [(GuestAddress(0), 8 << 20)];
        let folder = tempfile::tempdir().expect("folder");
        let listener = UnixListener::bind(folder.path().join("vsock")).expect("socket");
        let mut device = Vsock::new(GUEST_CID, FIRST_PORT, listener).expect("device");
        let (giver, taker) = giver().expect("a pair of sockets");
        device.take_from(taker);
        let device = Arc::new(Mutex::new(device));
        let mut events = EventManager::new().expect("epoll");
        events.add_subscriber(Arc::clone(&device));
        Self {
            memory: Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory")),
            rx: DriverQueue::new(0x1_0000, 0x10_0000, 0x2000, false),
            tx: DriverQueue::new(0x2_0000, 0x20_0000, 0x1_4000, false),
            device,
            giver,
            events,
            folder,
            refill: true,
            irqfd: Arc::new(EventFd::new(EFD_NONBLOCK).expect("eventfd")),
            event_idx: false,
        }
    }

    pub(crate) fn activate(&mut self) {
        let queue = |side: &DriverQueue| ActiveQueue {
            queue: side.device_side(),
            kick: Arc::clone(&side.kick),
        };
        let event = DriverQueue::new(0x3_0000, 0, 0, false);
        let activation = Activation {
            memory: Arc::clone(&self.memory),
            features: 1 << 32 | u64::from(self.event_idx) << 29,
            queues: vec![queue(&self.rx), queue(&self.tx), queue(&event)],
            interrupt: Interrupt::new(Arc::new(AtomicU32::new(0)), Arc::clone(&self.irqfd)),
            stop: StopFlag::default(),
        };
        self.device().activate(activation).expect("activation");
        while let Some(head) = self.rx.take_free() {
            self.give_buffer(head);
        }
        self.turn();
    }

    /// The driver starts over, as after a reboot.
    pub(crate) fn reset(&mut self) {
        self.device().reset();
        self.turn();
        self.set_up_queues();
        self.activate();
    }

    /// Interrupts since the last time that this was asked.
    pub(crate) fn interrupts(&self) -> u64 {
        self.irqfd.read().unwrap_or(0)
    }

    pub(crate) fn device(&self) -> MutexGuard<'_, Vsock> {
        self.device.lock().expect("no panic")
    }

    /// A client of the control socket.
    pub(crate) fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.folder.path().join("vsock")).expect("connect");
        let limit = Some(Duration::from_secs(10));
        client.set_read_timeout(limit).expect("timeout");
        client
    }

    pub(crate) fn give_buffer(&mut self, head: u16) {
        let chain = [(self.rx.buffer(head), RX_BUFFER, DESC_F_WRITE)];
        self.rx.offer(&self.memory, head, &chain);
        self.rx.notify(&self.memory);
    }

    /// Runs the loop until it has nothing to do.
    pub(crate) fn turn(&mut self) {
        for _ in 0..10_000 {
            if self.events.run_with_timeout(0).expect("loop") == 0 {
                return;
            }
        }
        panic!("the loop spins");
    }

    /// Runs the loop until `done`, which the test says in words.
    pub(crate) fn turn_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let limit = Instant::now() + Duration::from_secs(10);
        while !done(self) {
            assert!(Instant::now() < limit, "timed out waiting for {what}");
            self.events.run_with_timeout(10).expect("loop");
        }
    }

    /// Sends a packet, and lets the device handle it.
    pub(crate) fn send(&mut self, header: Header, payload: &[u8]) {
        self.post(header, payload);
        self.turn();
    }

    /// Sends a packet as Linux does: the header in one descriptor, the payload in another.
    pub(crate) fn post(&mut self, header: Header, payload: &[u8]) {
        self.reclaim();
        let head = self.tx.take_free().expect("a free descriptor");
        let buffer = self.tx.buffer(head);
        let header_len = HEADER_SIZE as u32;
        write(&self.memory, buffer, &header.encode());
        if payload.is_empty() {
            let chain = [(buffer, header_len, 0)];
            self.tx.offer(&self.memory, head, &chain);
        } else {
            let data = buffer + u64::from(header_len);
            write(&self.memory, data, payload);
            let chain = [
                (buffer, header_len, DESC_F_NEXT),
                (data, payload.len() as u32, 0),
            ];
            self.tx.offer(&self.memory, head, &chain);
        }
        self.tx.notify(&self.memory);
    }

    /// The next packet that the guest has got.
    pub(crate) fn received(&mut self) -> Option<(Header, Vec<u8>)> {
        self.turn();
        let (head, len) = self.rx.next_used(&self.memory)?;
        let buffer = self.rx.buffer(head);
        let mut bytes = [0; HEADER_SIZE];
        read(&self.memory, buffer, &mut bytes);
        let header = Header::decode(&bytes);
        assert_eq!(len as usize, HEADER_SIZE + header.len as usize);
        let mut payload = vec![0; header.len as usize];
        read(&self.memory, buffer + HEADER_SIZE as u64, &mut payload);
        if self.refill {
            self.give_buffer(head);
        } else {
            self.rx.free.push_back(head);
        }
        Some((header, payload))
    }

    /// The next packet, which must be of this operation.
    pub(crate) fn expect(&mut self, op: u16) -> (Header, Vec<u8>) {
        let mut packet = None;
        self.turn_until(&format!("operation {op}"), |guest| {
            packet = guest.received();
            packet.is_some()
        });
        let (header, payload) = packet.expect("there is one");
        assert_eq!(header.op, op, "{header:?}");
        (header, payload)
    }

    /// The length of the next receive buffer that came back.
    pub(crate) fn rx_used_len(&mut self) -> Option<u32> {
        self.turn();
        self.rx.next_used(&self.memory).map(|(_, len)| len)
    }

    /// Whether the transmit queue has a descriptor left.
    pub(crate) fn can_send(&mut self) -> bool {
        self.reclaim();
        !self.tx.free.is_empty()
    }

    fn reclaim(&mut self) {
        while let Some((head, _)) = self.tx.next_used(&self.memory) {
            self.tx.free.push_back(head);
        }
    }

    pub(crate) fn expect_nothing(&mut self) {
        assert_eq!(self.received(), None);
    }

    /// A header from a port of the guest to one of the host.
    pub(crate) fn header(from: u32, to: u32, op: u16) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: from,
            dst_port: to,
            type_: TYPE_STREAM,
            op,
            buf_alloc: GUEST_BUFFER,
            ..Header::default()
        }
    }

    pub(crate) fn send_op(&mut self, from: u32, to: u32, op: u16) {
        self.send(Self::header(from, to, op), &[]);
    }

    pub(crate) fn send_data(&mut self, from: u32, to: u32, payload: &[u8]) {
        let header = Header {
            len: payload.len() as u32,
            ..Self::header(from, to, op::RW)
        };
        self.send(header, payload);
    }

    pub(crate) fn send_shutdown(&mut self, from: u32, to: u32, flags: u32) {
        let header = Header {
            flags,
            ..Self::header(from, to, op::SHUTDOWN)
        };
        self.send(header, &[]);
    }

    /// Says that `read` bytes were read from a stream.
    pub(crate) fn send_credit(&mut self, from: u32, to: u32, read: u32) {
        let header = Header {
            fwd_cnt: read,
            ..Self::header(from, to, op::CREDIT_UPDATE)
        };
        self.send(header, &[]);
    }

    /// Dials a port of the host that is on offer, and shows its token.
    pub(crate) fn dial(&mut self, from: u32, to: u32) {
        let token = self.device().token(to);
        self.claim(from, to);
        self.send_data(from, to, &token.expect("it is on offer"));
    }

    /// Dials a port of the host that is on offer, and nothing more.
    pub(crate) fn claim(&mut self, from: u32, to: u32) {
        self.send_op(from, to, op::REQUEST);
        let (header, _) = self.expect(op::RESPONSE);
        assert_eq!((header.src_port, header.dst_port), (to, from));
    }
}

/// A pipe: what to read from, what to write to.
pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe")
}

/// Everything there is to read, until the end.
pub(crate) fn read_to_end(fd: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(fd), &mut bytes).expect("read");
    bytes
}

/// Whether reading would not block.
pub(crate) fn is_readable(fd: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).expect("poll") == 1
}
