//! A hostile guest against the entropy device: any descriptors, rings and indices in its memory.
//!
//! It must not panic, and give a bounded number of bytes for each turn of the loop.

#![no_main]

use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps};
use hull_vmm::virtio::rng::Rng;
use hull_vmm::virtio::{ActiveQueue, VirtioDevice};
use hull_vmm_fuzz::{activation, eventfd, memory};
use libfuzzer_sys::fuzz_target;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 64 << 10;

fuzz_target!(|data: &[u8]| {
    let memory = memory(MEMORY);
    let kick = eventfd();

    let mut queue = Queue::new(16).expect("a power of two");
    queue.set_desc_table_address(Some(0), Some(0));
    queue.set_avail_ring_address(Some(0x100), Some(0));
    queue.set_used_ring_address(Some(0x200), Some(0));
    queue.set_ready(true);

    let rng = Arc::new(Mutex::new(Rng::new().expect("a device")));
    let mut events = EventManager::<Arc<Mutex<Rng>>>::new().expect("epoll");
    events.add_subscriber(Arc::clone(&rng));
    let kicked = ActiveQueue {
        queue,
        kick: Arc::clone(&kick),
    };
    let activation = activation(&memory, 1 << 32, vec![kicked]);
    rng.lock()
        .expect("no panic")
        .activate(activation)
        .expect("one queue");

    // 0x300 bytes are the rings and descriptors; more input is a later state of them.
    for state in data.chunks(0x300) {
        memory
            .write_slice(state, GuestAddress(0))
            .expect("in memory");
        let _ = kick.write(1);
        for _ in 0..4 {
            let _ = events.run_with_timeout(0);
        }
    }
    rng.lock().expect("no panic").reset();
    let _ = events.run_with_timeout(0);
});
