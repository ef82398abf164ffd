//! What tests of the transport and of devices share: a device that records its calls, and a
//! well-behaved driver.

use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::device::{
    ActivateError, Activation, DeviceState, Interrupt, RestoreError, SaveError, VirtioDevice,
};
use super::transport::{MmioTransport, QUEUE_NOTIFY};
use crate::stop::StopFlag;

/// 64 KiB of guest memory.
pub(crate) fn memory() -> Arc<GuestMemoryMmap> {
    let ranges = [(GuestAddress(0), 0x1_0000)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("64 KiB"))
}

/// A device with two queues that records what happens to it.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) device_type: u32,
    pub(crate) fails: bool,
    pub(crate) active: bool,
    /// Features and the number of queues of each activation.
    pub(crate) activations: Vec<(u64, usize)>,
    pub(crate) queues: Vec<Queue>,
    pub(crate) interrupt: Option<Interrupt>,
    /// How often it was told that the machine has ended.
    pub(crate) machine_ends: u32,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            device_type: 4,
            fails: false,
            active: false,
            activations: Vec::new(),
            queues: Vec::new(),
            interrupt: None,
            machine_ends: 0,
        }
    }
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        self.device_type
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }

    fn features(&self) -> u64 {
        1 << 32 | 1 << 29
    }

    fn activation_eventfd(&self) -> Option<std::os::fd::RawFd> {
        None
    }

    fn config(&self) -> &[u8] {
        &[1, 2, 3, 4, 5, 6]
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(!self.active, "activated twice without a reset");
        if self.fails {
            return Err(std::io::Error::other("as the test wants").into());
        }
        self.active = true;
        self.activations
            .push((activation.features, activation.queues.len()));
        self.queues = activation.queues.into_iter().map(|q| q.queue).collect();
        self.interrupt = Some(activation.interrupt);
        Ok(())
    }

    fn machine_ended(&mut self) {
        self.machine_ends += 1;
    }

    fn stop(&mut self) -> Vec<QueueState> {
        let states = self.queues.iter().map(Queue::state).collect();
        self.reset();
        states
    }

    fn reset(&mut self) {
        self.active = false;
        self.queues.clear();
        self.interrupt = None;
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        Ok(DeviceState::Rng)
    }

    fn restore(&mut self, _: DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}

/// The registers of a [`Probe`], and the probe.
pub(crate) fn transport() -> (MmioTransport, Arc<Mutex<Probe>>) {
    let probe = Arc::new(Mutex::new(Probe::default()));
    let transport =
        MmioTransport::new(memory(), probe.clone(), StopFlag::default()).expect("eventfds");
    (transport, probe)
}

/// The registers of a [`Probe`] that claims to be of a device type.
pub(crate) fn transport_of_type(device_type: u32) -> MmioTransport {
    let probe = Probe {
        device_type,
        ..Probe::default()
    };
    MmioTransport::new(memory(), Arc::new(Mutex::new(probe)), StopFlag::default())
        .expect("eventfds")
}

/// A driver that keeps the rules, for a device with two queues.
pub(crate) struct Driver<'a>(pub(crate) &'a MmioTransport);

impl Driver<'_> {
    pub(crate) fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.0.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&self, register: u64, value: u32) {
        self.0.write(register, &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u32 {
        self.read(0x70)
    }

    /// Up to FEATURES_OK, with VIRTIO_F_VERSION_1 alone.
    pub(crate) fn negotiate(&self) {
        self.negotiate_with(0);
    }

    /// With these features of the first 32 as well.
    pub(crate) fn negotiate_with(&self, features: u32) {
        let (status, selected, accepted) = (0x70, 0x24, 0x20);
        for (register, value) in [
            (status, 1),
            (status, 3),
            (selected, 0),
            (accepted, features),
        ] {
            self.write(register, value);
        }
        for (register, value) in [(selected, 1), (accepted, 1), (status, 11)] {
            self.write(register, value);
        }
    }

    /// A queue of 8 descriptors, its rings 0x100 apart.
    pub(crate) fn set_up_queue(&self, index: u32, base: u32) {
        for (register, value) in [
            (0x30, index),
            (0x38, 8),
            (0x80, base),
            (0x90, base.wrapping_add(0x100)),
            (0xa0, base.wrapping_add(0x200)),
            (0x44, 1),
        ] {
            self.write(register, value);
        }
    }

    /// All of it, with queues at 0x1000 and 0x2000.
    pub(crate) fn start(&self) {
        self.negotiate();
        self.set_up_queue(0, 0x1000);
        self.set_up_queue(1, 0x2000);
        self.write(0x70, 15);
    }
}

/// Descriptors in a queue of [`Driver::set_up_queue`].
const QUEUE_SIZE: u16 = 8;

/// Where the descriptors of a queue of a [`Bench`] are,
fn descriptors(queue: u32) -> u64 {
    0x1000 * (u64::from(queue) + 1)
}

/// its available ring,
pub(crate) fn available(queue: u32) -> u64 {
    descriptors(queue) + 0x100
}

/// and its used ring.
fn used(queue: u32) -> u64 {
    descriptors(queue) + 0x200
}

/// A descriptor's address, length, and flags without VRING_DESC_F_NEXT.
pub(crate) type Buffer = (u64, u32, u16);

/// A device with its registers, an event loop that the test runs, and a driver in 64 KiB of guest
/// memory: the rings are below 0x4000, or below 0x8000 if there are more than three queues, the rest is for the test.
pub(crate) struct Bench<D> {
    memory: Arc<GuestMemoryMmap>,
    transport: MmioTransport,
    pub(crate) device: Arc<Mutex<D>>,
    events: EventManager<Arc<Mutex<D>>>,
}

impl<D: VirtioDevice + MutEventSubscriber + 'static> Bench<D> {
    pub(crate) fn new(device: D) -> Self {
        Self::with_memory(memory(), device)
    }

    /// With a guest memory of which the first 64 KiB are as in [`Self::new`].
    pub(crate) fn with_memory(memory: Arc<GuestMemoryMmap>, device: D) -> Self {
        let device = Arc::new(Mutex::new(device));
        let stop = StopFlag::default();
        let transport = MmioTransport::new(Arc::clone(&memory), device.clone(), stop);
        let mut events = EventManager::new().expect("epoll");
        events.add_subscriber(Arc::clone(&device));
        Self {
            memory,
            transport: transport.expect("eventfds"),
            device,
            events,
        }
    }

    pub(crate) fn driver(&self) -> Driver<'_> {
        Driver(&self.transport)
    }

    /// Activates the device with all of its queues.
    pub(crate) fn start(&mut self) {
        self.start_with(0);
    }

    /// With these features of the first 32, and the queues that go with them.
    pub(crate) fn start_with(&mut self, features: u64) {
        let queues = self.device.lock().expect("free").queue_count(features);
        self.driver().negotiate_with(features as u32);
        for queue in 0..queues as u32 {
            let base = descriptors(queue) as u32;
            self.driver().set_up_queue(queue, base);
        }
        self.driver().write(0x70, 15);
        assert_eq!(self.driver().status(), 15);
    }

    /// Writes to guest memory, and returns where.
    pub(crate) fn put(&self, address: u64, bytes: &[u8]) -> u64 {
        let written = self.memory.write_slice(bytes, GuestAddress(address));
        written.expect("in memory");
        address
    }

    pub(crate) fn get(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        let read = self.memory.read_slice(&mut bytes, GuestAddress(address));
        read.expect("in memory");
        bytes
    }

    fn index(&self, ring: u64) -> u16 {
        u16::from_le_bytes(self.get(ring + 2, 2).try_into().expect("2 bytes"))
    }

    /// Chains that the device has used.
    pub(crate) fn used(&self, queue: u32) -> u16 {
        self.index(used(queue))
    }

    /// Makes a chain of at most 4 descriptors available, and kicks.
    pub(crate) fn offer(&self, queue: u32, chain: &[Buffer]) {
        let index = self.index(available(queue));
        let head = index % 2 * 4;
        for ((address, length, flags), number) in chain.iter().zip(head..) {
            let at = descriptors(queue) + 16 * u64::from(number);
            let next = u16::from(usize::from(number - head) + 1 < chain.len());
            self.put(at, &address.to_le_bytes());
            self.put(at + 8, &length.to_le_bytes());
            self.put(at + 12, &(flags | next).to_le_bytes());
            self.put(at + 14, &(number + 1).to_le_bytes());
        }
        let slot = u64::from(index % QUEUE_SIZE);
        self.put(available(queue) + 4 + 2 * slot, &head.to_le_bytes());
        self.put(available(queue) + 2, &index.wrapping_add(1).to_le_bytes());
        self.kick(queue);
    }

    pub(crate) fn kick(&self, queue: u32) {
        self.transport.write(QUEUE_NOTIFY, &queue.to_le_bytes());
    }

    /// Makes a chain available, has it served, and returns how many bytes of it were written.
    /// Checks that earlier chains are not served again.
    pub(crate) fn request(&mut self, queue: u32, chain: &[Buffer]) -> u32 {
        let before = self.used(queue);
        let elements = 8 * usize::from(before);
        let old = self.get(used(queue) + 4, elements);
        self.offer(queue, chain);
        self.turn();
        assert_eq!(self.used(queue), before + 1, "used");
        assert_eq!(self.get(used(queue) + 4, elements), old, "used once");
        self.put(descriptors(queue), &[0; 16 * QUEUE_SIZE as usize]);
        self.written(queue, before)
    }

    /// How many bytes of the chain that was used as this one, counted from 0, were written.
    pub(crate) fn written(&self, queue: u32, used_as: u16) -> u32 {
        let length = self.get(used(queue) + 8 + 8 * u64::from(used_as), 4);
        u32::from_le_bytes(length.try_into().expect("4 bytes"))
    }

    /// Runs the loop until it has nothing to do.
    pub(crate) fn turn(&mut self) {
        while self.events.run_with_timeout(0).expect("epoll") > 0 {}
    }

    /// Stops the device and returns its state as JSON.
    pub(crate) fn save(&self) -> String {
        let state = self.transport.save().expect("a state");
        serde_json::to_string(&state).expect("JSON")
    }

    /// Restores a state into the inactive device `fresh`, with the same guest memory.
    pub(crate) fn restored(&self, fresh: D, state: &str) -> Result<Self, RestoreError> {
        let bench = Self::with_memory(Arc::clone(&self.memory), fresh);
        let state = serde_json::from_str(state).expect("a state");
        bench.transport.restore(state)?;
        Ok(bench)
    }

    pub(crate) fn try_save(&self) -> Result<(), SaveError> {
        self.transport.save().map(drop)
    }
}
