//! What the targets have in common: an input that is taken piece by piece, and a driver of one queue.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use event_manager::{EventManager, MutEventSubscriber};
use hull_vmm::stop::StopFlag;
use hull_vmm::virtio::{Activation, ActiveQueue, Interrupt};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Where a queue's rings lie, from its base; the descriptors come first.
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;

/// The fuzzer's input, consumed piece by piece. Once it is used up, all values are zero.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    /// Whether it is used up.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `count` bytes, or as many as are left.
    pub fn bytes(&mut self, count: usize) -> &[u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = self.bytes(N);
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// An eventfd that nobody waits for.
pub fn eventfd() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"))
}

/// `size` bytes of memory.
pub fn memory(size: usize) -> Arc<GuestMemoryMmap> {
    let ranges = [(GuestAddress(0), size)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"))
}

/// Writes to guest memory; an address beyond its end wraps around.
pub fn put(memory: &GuestMemoryMmap, address: u64, bytes: &[u8]) {
    let size = memory.last_addr().raw_value() + 1;
    let _ = memory.write(bytes, GuestAddress(address % size));
}

/// What a driver tells a device at DRIVER_OK.
pub fn activation(
    memory: &Arc<GuestMemoryMmap>,
    features: u64,
    queues: Vec<ActiveQueue>,
) -> Activation {
    Activation {
        memory: Arc::clone(memory),
        features,
        queues,
        interrupt: Interrupt::new(Arc::new(AtomicU32::new(0)), eventfd()),
        stop: StopFlag::default(),
    }
}

/// Runs the event loop until no event is pending; panics if that takes more than `turns`
/// iterations.
pub fn run_until_idle<T: MutEventSubscriber>(events: &mut EventManager<T>, turns: usize) {
    for _ in 0..turns {
        if events.run_with_timeout(0).expect("epoll") == 0 {
            return;
        }
    }
    panic!("the event loop does not become idle");
}

/// A descriptor: address, length, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

/// The driver's side of a queue that has one chain at a time, from descriptor 0.
pub struct Driver {
    base: u64,
    available: u16,
    kick: Arc<EventFd>,
}

impl Driver {
    pub fn new(base: u64) -> Self {
        Self {
            base,
            available: 0,
            kick: eventfd(),
        }
    }

    /// The device's side of the queue, which starts over: the rings in guest memory must be all
    /// zeroes.
    pub fn start(&mut self, size: u16) -> ActiveQueue {
        self.available = 0;
        let base = self.base as u32;
        let mut queue = Queue::new(size).expect("a power of two");
        queue.set_desc_table_address(Some(base), None);
        queue.set_avail_ring_address(Some(base + AVAIL as u32), None);
        queue.set_used_ring_address(Some(base + USED as u32), None);
        queue.set_ready(true);
        ActiveQueue {
            queue,
            kick: Arc::clone(&self.kick),
        }
    }

    /// Makes the chain at descriptor 0 available.
    pub fn offer(&mut self, memory: &GuestMemoryMmap, chain: &[Descriptor]) {
        self.offer_at(memory, self.base, chain);
    }

    /// As [`Self::offer`], with the descriptors written to the table at `table`.
    pub fn offer_at(&mut self, memory: &GuestMemoryMmap, table: u64, chain: &[Descriptor]) {
        for (index, (address, length, flags, next)) in (0..).zip(chain) {
            let at = table + 16 * index;
            put(memory, at, &address.to_le_bytes());
            put(memory, at + 8, &length.to_le_bytes());
            put(memory, at + 12, &flags.to_le_bytes());
            put(memory, at + 14, &next.to_le_bytes());
        }
        // Slot by slot of a ring that is all zeroes: descriptor 0 is the head of each.
        self.available = self.available.wrapping_add(1);
        self.kick(memory, self.available);
    }

    /// Sets the index of the available ring to `available`, whatever is in the ring, and kicks.
    pub fn kick(&self, memory: &GuestMemoryMmap, available: u16) {
        put(memory, self.base + AVAIL + 2, &available.to_le_bytes());
        let _ = self.kick.write(1);
    }
}
