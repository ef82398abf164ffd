//! The entropy device (virtio 1.3, 5.4): fills the driver's buffers with random bytes from the
//! host's kernel.

use std::os::fd::RawFd;

use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::{DescriptorChain, QueueState};
use vm_memory::{Address, Bytes, GuestMemoryMmap};

use super::device::{
    ActivateError, Activation, DeviceState, RestoreError, SaveError, VirtioDevice,
};
use super::lifecycle::{Active, Lifecycle};
use super::queue::{DeviceQueue, Turn};
use crate::event_loop::Subscriber;

/// Linux uses one buffer at a time; a few more for other drivers.
const QUEUE_SIZES: [u16; 1] = [16];

/// The most bytes written for one request. A driver must accept fewer than it has room for.
const MAX_REQUEST: usize = 64 << 10;
/// The most bytes written in one turn, before the event loop handles other devices.
const MAX_KICK: usize = 4 * MAX_REQUEST;

/// Bytes read from the host at a time.
const CHUNK: usize = 1024;

/// The device. It has no state but its queue's.
#[derive(Debug)]
pub struct Rng {
    lifecycle: Lifecycle<[DeviceQueue; 1]>,
}

impl Rng {
    /// An inactive device.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            lifecycle: Lifecycle::new("virtio-rng".to_owned())?,
        })
    }

    /// Serves the available requests, as after a kick.
    fn serve(&mut self) {
        let Some(Active {
            memory,
            queues: [queue],
            stop,
            ..
        }) = self.lifecycle.active()
        else {
            return;
        };
        let turn = Turn {
            budget: queue.size().into(),
            stop,
            interrupt_each: None,
        };
        let memory = memory.guest();
        let mut left = MAX_KICK;
        queue.serve(memory, turn, |chain| {
            if left == 0 {
                return None;
            }
            let written = fill(memory, chain, left.min(MAX_REQUEST));
            left -= written;
            Some(written as u32)
        });
        self.lifecycle.end_turn();
    }
}

/// Fills the device-writable buffers of a chain, up to `limit` bytes, and returns how many were
/// written. Stops at a buffer outside of guest memory.
fn fill(memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>, limit: usize) -> usize {
    let mut random = [0; CHUNK];
    let mut written = 0;
    for buffer in chain.writable() {
        let size = (buffer.len() as usize).min(limit - written);
        for offset in (0..size).step_by(CHUNK) {
            let part = &mut random[..CHUNK.min(size - offset)];
            let Some(address) = buffer.addr().checked_add(offset as u64) else {
                return written;
            };
            // getrandom(2) returns up to 256 bytes at once; more may be cut short by a signal.
            let Ok(count) = getrandom(&mut *part, GetRandomFlags::empty()) else {
                return written;
            };
            if memory.write_slice(&part[..count], address).is_err() {
                return written;
            }
            written += count;
            if count < part.len() {
                return written;
            }
        }
    }
    written
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
    }

    fn activation_eventfd(&self) -> Option<RawFd> {
        Some(self.lifecycle.activation_eventfd())
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.lifecycle.activate(activation)
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.lifecycle.stop()
    }

    fn reset(&mut self) {
        self.lifecycle.stop();
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        Ok(DeviceState::Rng)
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Rng => Ok(()),
            _ => Err(RestoreError::Differs { what: "type" }),
        }
    }
}

impl Subscriber for Rng {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.lifecycle.activation_eventfd()]
    }
}

impl MutEventSubscriber for Rng {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.lifecycle.init(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        self.lifecycle.on_event(&events, ops);
        self.serve();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::device::{ActiveQueue, Interrupt};
    use super::super::testing;
    use super::*;
    use crate::stop::StopFlag;
    use virtio_queue::Queue;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::GuestAddress;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    const WRITE: u16 = 2;

    /// A device with a queue of 16 in guest memory at 0, and buffers from 0x4000 on.
    struct Rig {
        memory: Arc<GuestMemoryMmap>,
        available: GuestAddress,
        used: GuestAddress,
        rng: Rng,
        irqfd: Arc<EventFd>,
        kick: Arc<EventFd>,
    }

    impl Rig {
        fn new(buffers: &[(u64, u32, u16)]) -> Self {
            let memory = testing::memory();
            let mock = MockSplitQueue::new(&*memory, 16);
            let chains: Vec<_> = buffers
                .iter()
                .map(|(addr, len, flags)| {
                    RawDescriptor::from(Descriptor::new(*addr, *len, *flags, 0))
                })
                .collect();
            mock.add_desc_chains(&chains, 0).expect("room");
            let queue: Queue = mock.create_queue().expect("a valid queue");
            let (available, used) = (mock.avail_addr(), mock.used_addr());
            let eventfd = || Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
            let (irqfd, kick) = (eventfd(), eventfd());
            let mut rng = Rng::new().expect("a device");
            let status = Arc::default();
            rng.activate(Activation {
                memory: Arc::clone(&memory),
                features: 1 << 32,
                queues: vec![ActiveQueue {
                    queue,
                    kick: Arc::clone(&kick),
                }],
                interrupt: Interrupt::new(status, Arc::clone(&irqfd)),
                stop: StopFlag::default(),
            })
            .expect("active");
            Self {
                memory,
                available,
                used,
                rng,
                irqfd,
                kick,
            }
        }

        /// The lengths in the used ring: a header of 4 bytes, then an id and a length each.
        fn used(&self) -> Vec<u32> {
            let count: u16 = self
                .memory
                .read_obj(self.used.unchecked_add(2))
                .expect("idx");
            let length = |index| {
                let entry = self.used.unchecked_add(8 + 8 * u64::from(index));
                self.memory.read_obj(entry).expect("an entry")
            };
            (0..count).map(length).collect()
        }

        /// Makes as many entries of the available ring valid.
        fn make_available(&self, index: u16) {
            let address = self.available.unchecked_add(2);
            self.memory.write_obj(index, address).expect("idx");
        }

        fn bytes(&self, address: u64, size: usize) -> Vec<u8> {
            let mut bytes = vec![0; size];
            self.memory
                .read_slice(&mut bytes, GuestAddress(address))
                .expect("in memory");
            bytes
        }
    }

    #[test]
    fn buffers_are_filled_and_the_guest_is_told() {
        let mut rig = Rig::new(&[(0x4000, 64, WRITE), (0x5000, 3000, WRITE)]);
        rig.rng.serve();
        assert_eq!(rig.used(), [64, 3000]);
        assert_eq!(rig.irqfd.read().ok(), Some(1));
        assert_ne!(rig.bytes(0x4000, 64), [0; 64]);
        assert_ne!(rig.bytes(0x5000 + 2900, 100), [0; 100]);
        assert_eq!(rig.bytes(0x4040, 8), [0; 8]);
        assert_eq!(rig.bytes(0x5000 + 3000, 8), [0; 8]);
    }

    #[test]
    fn buffers_that_are_not_ours_to_write_stay_untouched() {
        let mut rig = Rig::new(&[(0x4000, 64, 0), (0xfff0, 64, WRITE), (u64::MAX, 64, WRITE)]);
        rig.rng.serve();
        assert_eq!(rig.used(), [0, 0, 0]);
        assert_eq!(rig.bytes(0x4000, 64), [0; 64]);
    }

    #[test]
    fn a_huge_request_and_many_of_them_are_bounded() {
        let mut rig = Rig::new(&[(0x4000, u32::MAX, WRITE)]);
        rig.rng.serve();
        assert!(rig.used()[0] as usize <= MAX_REQUEST);

        let large = (0x4000, 0xc000, WRITE);
        let mut rig = Rig::new(&[large; 8]);
        rig.rng.serve();
        let total: u32 = rig.used().iter().sum();
        assert_eq!(total as usize, MAX_KICK);
        let read = rig.kick.read().ok();
        assert_eq!(read, Some(1), "the rest is for the next turn");
        rig.rng.serve();
        assert_eq!(rig.used().len(), 8);
    }

    #[test]
    fn a_broken_queue_is_served_no_more() {
        let mut rig = Rig::new(&[(0x4000, 64, WRITE)]);
        rig.make_available(1000);
        rig.rng.serve();
        assert!(rig.used().is_empty());
        rig.make_available(1);
        rig.rng.serve();
        assert!(rig.used().is_empty(), "it waits for a reset");
        assert!(!rig.rng.stop()[0].ready);
    }

    #[test]
    fn a_saved_device_goes_on_where_it_was() {
        let rng = || Rng::new().expect("a device");
        let mut bench = testing::Bench::new(rng());
        let idle = bench.save();
        let idle = bench.restored(rng(), &idle).expect("the same");
        assert_eq!(idle.driver().status(), 0, "no driver had come");

        bench.start();
        assert_eq!(bench.request(0, &[(0x4000, 64, WRITE)]), 64);
        let state = bench.save();
        bench.offer(0, &[(0x5000, 32, WRITE)]);
        bench.turn();
        assert_eq!(bench.used(0), 1, "nobody serves what was saved");

        let mut bench = bench.restored(rng(), &state).expect("the same");
        assert_eq!(bench.driver().status(), 15);
        bench.turn();
        assert_eq!(bench.used(0), 2, "a kick that nobody saw is not lost");
        assert_eq!([bench.written(0, 0), bench.written(0, 1)], [64, 32]);
        assert_eq!(bench.request(0, &[(0x6000, 16, WRITE)]), 16);
        assert_ne!(bench.get(0x6000, 16), [0; 16]);
    }

    #[test]
    fn another_devices_state_is_refused() {
        let mut rng = Rng::new().expect("a device");
        let refused = rng.restore(DeviceState::Fs);
        assert!(matches!(refused, Err(RestoreError::Differs { .. })));
    }

    #[test]
    fn a_broken_queue_needs_a_reset_after_it_was_restored() {
        let rng = || Rng::new().expect("a device");
        let mut bench = testing::Bench::new(rng());
        bench.start();
        bench.put(testing::available(0) + 2, &[0xff, 0x7f]);
        bench.kick(0);
        bench.turn();
        let state = bench.save();
        let bench = bench.restored(rng(), &state).expect("the same");
        assert_eq!(bench.driver().status(), 15 | 64);
    }

    #[test]
    fn the_loop_follows_activation_kicks_and_reset() {
        use event_manager::{EventManager, SubscriberOps};
        use std::sync::Mutex;

        let mut rig = Rig::new(&[(0x4000, 64, WRITE)]);
        let rng = std::mem::replace(&mut rig.rng, Rng::new().expect("another"));
        let rng = Arc::new(Mutex::new(rng));
        let mut events = EventManager::new().expect("epoll");
        events.add_subscriber(Arc::clone(&rng));

        events.run_with_timeout(0).expect("activation");
        assert_eq!(rig.used().len(), 1);
        rig.make_available(2);
        rig.kick.write(1).expect("kicked");
        events.run_with_timeout(0).expect("the kick");
        assert_eq!(rig.used().len(), 2);
        rng.lock().expect("free").reset();
        events.run_with_timeout(0).expect("the reset");
        rig.kick.write(1).expect("kicked");
        assert_eq!(events.run_with_timeout(0), Ok(0), "nobody listens any more");
    }
}
