//! A hostile guest against the virtio-mmio registers: any accesses, in any order, of any size, to the
//! entropy device and to one that checks what it is given, with any bytes in guest memory, while the devices
//! are saved and restored.
//!
//! Nothing must panic; no device may be activated twice, with features that it did not offer, or with
//! queues outside guest memory.

#![no_main]

use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps};
use hull_vmm::stop::StopFlag;
use hull_vmm::virtio::rng::Rng;
use hull_vmm::virtio::transport::MmioTransport;
use hull_vmm::virtio::{
    ActivateError, Activation, DeviceState, RestoreError, SaveError, VirtioDevice,
};
use hull_vmm_fuzz::{Input, memory};
use libfuzzer_sys::fuzz_target;
use virtio_queue::{QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 64 << 10;
const OFFERED: u64 = 1 << 32 | 1 << 29 | 1;

/// A device with two queues that checks everything and reads every chain.
#[derive(Default)]
struct Checker {
    active: Option<Activation>,
}

impl Checker {
    fn walk(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        let memory = &*active.memory;
        for queue in &mut active.queues {
            let Ok(chains) = queue.queue.iter(memory) else {
                continue;
            };
            let heads: Vec<u16> = chains
                .take(64)
                .map(|chain| {
                    let head = chain.head_index();
                    assert!(chain.count() <= 2 * 1024);
                    head
                })
                .collect();
            for head in heads {
                let _ = queue.queue.add_used(memory, head, 0);
            }
        }
    }
}

impl VirtioDevice for Checker {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 1024]
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn activation_eventfd(&self) -> Option<std::os::fd::RawFd> {
        None
    }

    fn config(&self) -> &[u8] {
        &[1, 2, 3, 4, 5]
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(self.active.is_none(), "activated twice");
        assert_eq!(activation.features & !OFFERED, 0);
        assert_ne!(activation.features & 1 << 32, 0);
        assert_eq!(activation.queues.len(), 2);
        for (queue, max) in activation.queues.iter().zip([8, 1024]) {
            let queue = &queue.queue;
            assert!(queue.ready() && queue.size() <= max && queue.size().is_power_of_two());
            let end = queue.desc_table() + 16 * u64::from(queue.size());
            assert!(end <= MEMORY as u64);
            assert!(queue.avail_ring() + 6 + 2 * u64::from(queue.size()) <= MEMORY as u64);
            assert!(queue.used_ring() + 6 + 8 * u64::from(queue.size()) <= MEMORY as u64);
        }
        self.active = Some(activation);
        Ok(())
    }

    fn stop(&mut self) -> Vec<QueueState> {
        let active = self.active.take();
        let queues = active.iter().flat_map(|active| &active.queues);
        queues.map(|queue| queue.queue.state()).collect()
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        Ok(DeviceState::Rng)
    }

    fn restore(&mut self, _: DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}

/// A small number, a page's address, or anything.
fn value(input: &mut Input<'_>) -> u64 {
    let [kind, small] = input.take();
    match kind % 4 {
        0 => small.into(),
        1 => u64::from(small) << 8,
        2 => input.u32().into(),
        _ => input.u64(),
    }
}

/// Goes the legal way up to DRIVER_OK, with queues at the given page: what a fuzzer finds too rarely.
fn set_up(transport: &MmioTransport, queues: u32, page: u8) {
    let write = |register, value: u32| transport.write(register, &value.to_le_bytes());
    for (register, value) in [
        (0x70, 0),
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
    ] {
        write(register, value);
    }
    for queue in 0..queues {
        let base = u32::from(page) << 8;
        for (register, value) in [
            (0x30, queue),
            (0x38, 8),
            (0x80, base),
            (0x90, base + 0x80),
            (0xa0, base + 0x100),
            (0x44, 1),
        ] {
            write(register, value);
        }
    }
    write(0x70, 15);
}

fuzz_target!(|data: &[u8]| {
    let memory = memory(MEMORY);
    let rng = Arc::new(Mutex::new(Rng::new().expect("a device")));
    let checker = Arc::new(Mutex::new(Checker::default()));
    let transports = [
        MmioTransport::new(Arc::clone(&memory), rng.clone(), StopFlag::default())
            .expect("eventfds"),
        MmioTransport::new(Arc::clone(&memory), checker.clone(), StopFlag::default())
            .expect("eventfds"),
    ];
    let mut events = EventManager::<Arc<Mutex<Rng>>>::new().expect("epoll");
    events.add_subscriber(rng);

    let mut input = Input(data);
    while !input.is_empty() {
        let [operation, offset] = input.take();
        let transport = &transports[usize::from(operation & 1)];
        // Registers at their places mostly, anything near them else.
        let register = u64::from(offset) * 4 % 0x110;
        match operation >> 1 & 7 {
            0..=2 => {
                let value = value(&mut input);
                transport.write(register, &(value as u32).to_le_bytes());
            }
            3 => {
                let mut data = value(&mut input).to_le_bytes();
                let size = usize::from(operation >> 4) % 9;
                transport.write(register + u64::from(offset & 3), &data[..size]);
                transport.read(register + u64::from(offset & 3), &mut data[..size]);
            }
            4 => {
                let address = GuestAddress(value(&mut input));
                let _ = memory.write_slice(&input.take::<16>(), address);
            }
            5 => {
                let queues = 1 + u32::from(operation & 1);
                set_up(transport, queues, offset);
            }
            6 if operation & 0x40 == 0 => {
                let mut data = [0; 4];
                transport.read(register, &mut data);
            }
            // Saved and restored.
            6 => {
                let state = transport.save().expect("both can be saved");
                transport.restore(state).expect("the same device");
            }
            _ => {
                for _ in 0..4 {
                    let _ = events.run_with_timeout(0);
                }
                checker.lock().expect("no panic").walk();
            }
        }
    }
});
