//! For tests: the guest's side of the device, well-behaved or not.
#![allow(unsafe_code)] // an eventfd lent to poll

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use virtiofsd::fuse::{InHeader, Opcode, OutHeader};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::{CACHE_TIMEOUT, Fs, FsThread, Options, QUEUE_SIZES, spawn};
use crate::stop::StopFlag;
use crate::virtio::{Activation, ActiveQueue, Interrupt, VirtioDevice};

/// Where the rings of a queue lie: each queue has 64 KiB, in it the descriptors, then the rings.
const QUEUE_SPAN: u64 = 0x1_0000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Where requests are put together, and where replies go.
pub(super) const REQUEST: u64 = 0x10_0000;
pub(super) const REPLY: u64 = 0x40_0000;
/// The size of guest memory, in bytes.
pub(super) const MEMORY: u64 = 0x80_0000;

/// The queue for requests.
pub(super) const REQUESTS: usize = 1;

/// A descriptor: address, length, whether the device writes.
pub(super) type Buffer = (u64, u32, bool);

/// A guest with a virtio-fs device.
pub(super) struct Guest {
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) device: Arc<Mutex<Fs>>,
    thread: FsThread,
    irq: Arc<EventFd>,
    kicks: [Arc<EventFd>; 2],
    available: [u16; 2],
    unique: u64,
}

/// What a thread of the device does before it serves, where it isn't to be confined.
pub(super) fn unconfined(_: Vec<RawFd>) -> io::Result<File> {
    File::open("/proc/thread-self/fd")
}

impl Guest {
    /// A guest whose device serves `root`, with at most `fd_limit` files, on a thread confined by
    /// `confine`. The device is activated and FUSE is initialised.
    pub(super) fn new(
        options: Options,
        confine: impl FnOnce(Vec<RawFd>) -> io::Result<File> + Send + 'static,
    ) -> Self {
        let ranges = [(GuestAddress(0), MEMORY as usize)];
        let device = Arc::new(Mutex::new(Fs::new(options).expect("a device")));
        // The machine's: from before there is a thread.
        let eventfd = || Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        let (irq, kicks) = (eventfd(), [eventfd(), eventfd()]);
        let eventfds = kicks.iter().chain([&irq]).map(|fd| fd.as_raw_fd());
        let eventfds = eventfds.collect();
        let mut guest = Self {
            memory: Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("guest memory")),
            thread: spawn(Arc::clone(&device), eventfds, confine).expect("the thread"),
            device,
            irq,
            kicks,
            available: [0; 2],
            unique: 0,
        };
        guest.activate();
        guest.init();
        guest
    }

    /// A guest whose device serves `root` on a thread that isn't confined.
    pub(super) fn with_root(root: &Path) -> Self {
        Self::new(options(root), unconfined)
    }

    /// What the driver does up to DRIVER_OK, with empty queues.
    pub(super) fn activate(&mut self) {
        self.available = [0; 2];
        let zeroes = vec![0; (QUEUE_SPAN * 2) as usize];
        self.memory
            .write_slice(&zeroes, GuestAddress(0))
            .expect("rings");
        let queues = (0..2).map(|index| self.queue(index)).collect();
        let mut device = self.device.lock().expect("the device");
        let features = device.features();
        device
            .activate(Activation {
                memory: Arc::clone(&self.memory),
                features,
                queues,
                interrupt: Interrupt::new(Arc::new(AtomicU32::new(0)), Arc::clone(&self.irq)),
                stop: StopFlag::default(),
            })
            .expect("activation");
    }

    fn queue(&mut self, index: usize) -> ActiveQueue {
        let base = QUEUE_SPAN * index as u64;
        let mut queue = Queue::new(QUEUE_SIZES[index]).expect("a queue");
        queue.set_size(QUEUE_SIZES[index]);
        queue.set_desc_table_address(Some(base as u32), None);
        queue.set_avail_ring_address(Some((base + AVAIL) as u32), None);
        queue.set_used_ring_address(Some((base + USED) as u32), None);
        queue.set_ready(true);
        let kick = Arc::clone(&self.kicks[index]);
        ActiveQueue { queue, kick }
    }

    /// Resets the device as a driver does.
    pub(super) fn reset(&self) {
        self.device.lock().expect("the device").reset();
    }

    fn init(&mut self) {
        let body = [7_u32, 38, 0x1000, 0x7fff_ffff, 0xffff_ffff];
        let mut bytes: Vec<u8> = body.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(64, 0);
        self.request(26, 0, &bytes).expect("FUSE_INIT");
    }

    /// Makes a chain of `buffers` available and returns how many bytes the device says it wrote.
    pub(super) fn chain(&mut self, queue: usize, buffers: &[Buffer]) -> u32 {
        let base = QUEUE_SPAN * queue as u64;
        for (index, (address, length, is_write)) in buffers.iter().enumerate() {
            let is_last = index + 1 == buffers.len();
            let next = if is_last { 0 } else { VRING_DESC_F_NEXT };
            let write = if *is_write { VRING_DESC_F_WRITE } else { 0 };
            let flags = (next | write) as u16;
            self.descriptor(
                base,
                index as u16,
                *address,
                *length,
                flags,
                index as u16 + 1,
            );
        }
        self.offer(queue);
        self.wait(queue)
    }

    /// Writes one descriptor of a table.
    pub(super) fn descriptor(
        &self,
        table: u64,
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let at = GuestAddress(table + 16 * u64::from(index));
        self.memory.write_slice(&bytes, at).expect("a descriptor");
    }

    /// Makes the chain that starts at descriptor 0 available, and kicks.
    pub(super) fn offer(&mut self, queue: usize) {
        let avail = QUEUE_SPAN * queue as u64 + AVAIL;
        let slot = u64::from(self.available[queue] % QUEUE_SIZES[queue]);
        let ring = GuestAddress(avail + 4 + 2 * slot);
        self.memory.write_obj(0_u16, ring).expect("the ring");
        // used_event: an interrupt is wanted for the next used chain.
        let used_event = GuestAddress(avail + 4 + 2 * u64::from(QUEUE_SIZES[queue]));
        self.memory
            .write_obj(self.available[queue], used_event)
            .expect("the ring");
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.set_available(queue, self.available[queue]);
    }

    /// Writes any index to the available ring, and kicks.
    pub(super) fn set_available(&self, queue: usize, index: u16) {
        let at = GuestAddress(QUEUE_SPAN * queue as u64 + AVAIL + 2);
        self.memory.write_obj(index, at).expect("the index");
        self.kicks[queue].write(1).expect("a kick");
    }

    /// Waits until the device has used everything, and returns the length of the last used element.
    pub(super) fn wait(&self, queue: usize) -> u32 {
        let used = QUEUE_SPAN * queue as u64 + USED;
        loop {
            let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).expect("used");
            if index == self.available[queue] {
                let slot = u64::from(index.wrapping_sub(1) % QUEUE_SIZES[queue]);
                let at = GuestAddress(used + 4 + 8 * slot + 4);
                return self.memory.read_obj(at).expect("a length");
            }
            self.wait_for_interrupt();
        }
    }

    fn wait_for_interrupt(&self) {
        let limit = Timespec::try_from(Duration::from_secs(20)).expect("a time");
        // SAFETY: the eventfd lives as long as `self`.
        let irq = unsafe { BorrowedFd::borrow_raw(self.irq.as_raw_fd()) };
        let mut fds = [PollFd::new(&irq, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&limit)).expect("poll");
        assert_eq!(
            ready, 1,
            "no interrupt from the virtio-fs device within 20 s"
        );
        let _ = self.irq.read();
    }

    /// Sends a FUSE request and returns the body of the reply, or the error number.
    pub(super) fn request(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.request_as(0, opcode, node, body)
    }

    /// The same for a process of the guest with this uid and gid.
    pub(super) fn request_as(
        &mut self,
        id: u32,
        opcode: u32,
        node: u64,
        body: &[u8],
    ) -> Result<Vec<u8>, i32> {
        self.unique += 2;
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: self.unique,
            nodeid: node,
            uid: id.into(),
            gid: id.into(),
            ..InHeader::default()
        };
        let mut bytes = header.as_slice().to_vec();
        bytes.extend_from_slice(body);
        self.memory
            .write_slice(&bytes, GuestAddress(REQUEST))
            .expect("a request");
        let room = 0x2000;
        let length = bytes.len() as u32;
        let written = self.chain(REQUESTS, &[(REQUEST, length, false), (REPLY, room, true)]);
        self.reply(written)
    }

    fn reply(&self, written: u32) -> Result<Vec<u8>, i32> {
        let header: OutHeader = self.memory.read_obj(GuestAddress(REPLY)).expect("a reply");
        assert_eq!(header.len, written, "a reply's length");
        assert_eq!(header.unique, self.unique, "a reply to another request");
        if header.error != 0 {
            return Err(-header.error);
        }
        let head = size_of::<OutHeader>();
        let mut body = vec![0; written as usize - head];
        self.memory
            .read_slice(&mut body, GuestAddress(REPLY + head as u64))
            .expect("a reply's body");
        Ok(body)
    }

    /// Forgets a node that was looked up `count` times.
    pub(super) fn forget(&mut self, node: u64, count: u64) {
        let header = InHeader {
            len: 48,
            opcode: Opcode::Forget as u32,
            nodeid: node,
            ..InHeader::default()
        };
        let mut bytes = header.as_slice().to_vec();
        bytes.extend(count.to_le_bytes());
        self.memory
            .write_slice(&bytes, GuestAddress(REQUEST))
            .expect("a request");
        assert_eq!(self.chain(0, &[(REQUEST, 48, false)]), 0);
    }

    /// Looks `name` up and returns its node id.
    pub(super) fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let reply = self.request(1, parent, &c_string(name))?;
        Ok(word(&reply, 0))
    }

    /// Opens a node and returns the handle.
    pub(super) fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let body = (flags as u64).to_le_bytes();
        Ok(word(&self.request(14, node, &body)?, 0))
    }

    /// Stops the device's thread.
    pub(super) fn stop(self) {
        self.thread.stop();
    }
}

/// The options that tests use to serve `root`.
pub(super) fn options(root: &Path) -> Options {
    Options {
        tag: "hull".into(),
        root: root.into(),
        fd_limit: 1000,
        cache_timeout: CACHE_TIMEOUT,
        connections: None,
    }
}

/// `name` as FUSE sends names.
pub(super) fn c_string(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// The 64-bit word at `offset` of a reply.
pub(super) fn word(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("8 bytes"))
}
