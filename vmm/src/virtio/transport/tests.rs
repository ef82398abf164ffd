//! The registers as a driver uses them, by the rules and against them.

use super::super::testing::{Driver, Probe, memory, transport};
use super::*;
use proptest::prelude::*;

fn read(transport: &MmioTransport, offset: u64, size: usize) -> u64 {
    let mut data = [0xaa; 8];
    transport.read(offset, &mut data[..size]);
    data[size..].fill(0);
    u64::from_le_bytes(data)
}

#[test]
fn a_driver_brings_the_device_up_and_resets_it() {
    let (transport, probe) = transport();
    let driver = Driver(&transport);
    driver.start();
    assert_eq!(driver.status(), 15);
    assert_eq!(lock(&probe).activations, [(1 << 32, 2)]);
    driver.write(0x70, 0);
    assert_eq!(driver.status(), 0);
    assert!(!lock(&probe).active);
    driver.start();
    assert_eq!(lock(&probe).activations.len(), 2);
}

#[test]
fn a_device_that_fails_tells_the_driver_to_reset() {
    let (transport, probe) = transport();
    lock(&probe).fails = true;
    let driver = Driver(&transport);
    driver.start();
    assert_eq!(driver.status(), 15 | 64);
    assert_eq!(driver.read(0x60), 2, "a configuration change");
    assert_eq!(transport.irqfd().read().ok(), Some(1));
    driver.write(0x64, 2);
    assert_eq!(driver.read(0x60), 0);
}

#[test]
fn no_driver_brings_up_a_device_of_a_machine_that_was_stopped() {
    let (transport, probe) = transport();
    transport.stop.set();
    let driver = Driver(&transport);
    driver.start();
    assert_eq!(driver.status(), 15 | 64);
    assert!(lock(&probe).activations.is_empty());
}

#[test]
fn invalid_queues_never_reach_the_device() {
    let (transport, probe) = transport();
    let driver = Driver(&transport);
    driver.negotiate();
    driver.set_up_queue(0, 0x1000);
    driver.set_up_queue(1, 0xffff_f000);
    driver.write(0x70, 15);
    assert_eq!(driver.status(), 15 | 64);
    assert!(lock(&probe).activations.is_empty());
}

#[test]
fn interrupts_are_seen_and_acknowledged_while_the_device_is_busy() {
    let (transport, probe) = transport();
    let driver = Driver(&transport);
    driver.start();
    let busy = lock(&probe);
    busy.interrupt.as_ref().expect("active").used_buffer();
    assert_eq!(driver.read(0x60), 1);
    driver.write(0x64, 1);
    assert_eq!(driver.read(0x60), 0);
    assert_eq!(
        read(&transport, 0x100, 4),
        0x0403_0201,
        "the configuration, too"
    );
}

#[test]
fn while_the_kernel_interrupts_a_used_buffer_is_notified_until_a_reset() {
    let (transport, probe) = transport();
    let driver = Driver(&transport);
    driver.start();
    let interrupt = lock(&probe).interrupt.clone().expect("active");
    let _ = interrupt.irqfd_for_kernel();
    interrupt.config_changed();
    assert_eq!(driver.read(0x60), 3);
    driver.write(0x64, u32::MAX);
    assert_eq!(driver.read(0x60), 1, "there may be another");
    let irqfd = transport.irqfd();
    let _ = irqfd.read();
    transport.repeat_interrupt();
    assert_eq!(irqfd.read().ok(), Some(1), "it may have been lost");
    let state = transport.save().expect("a state");
    assert_eq!(state.interrupt_status, 1);
    driver.write(0x70, 0);
    assert_eq!(driver.read(0x60), 0);
}

#[test]
fn a_locked_device_is_not_waited_for_when_the_machine_ends() {
    let (transport, probe) = transport();
    let locked = lock(&probe);
    transport.machine_ended();
    drop(locked);
    assert_eq!(lock(&probe).machine_ends, 0);
    transport.machine_ended();
    assert_eq!(lock(&probe).machine_ends, 1);
}

#[test]
fn odd_accesses_read_zero_and_write_nothing() {
    let (transport, _) = transport();
    for (offset, size) in [
        (0, 1),
        (0, 2),
        (0, 8),
        (2, 4),
        (1, 1),
        (0xfc, 8),
        (0x101, 4),
    ] {
        assert_eq!(read(&transport, offset, size), 0, "{offset:#x} {size}");
    }
    assert_eq!(read(&transport, 0, 4), 0x7472_6976);
    for data in [&[1][..], &[1, 0], &[1, 0, 0, 0, 0, 0, 0, 0], &[]] {
        transport.write(0x70, data);
    }
    transport.write(0x72, &[1, 0, 0, 0]);
    transport.write(u64::MAX, &[1, 0, 0, 0]);
    assert_eq!(Driver(&transport).status(), 0);
}

#[test]
fn the_configuration_is_read_in_every_size_and_ends_in_zeros() {
    let (transport, _) = transport();
    assert_eq!(read(&transport, 0x101, 1), 2);
    assert_eq!(read(&transport, 0x102, 2), 0x0403);
    assert_eq!(read(&transport, 0x100, 8), 0x0605_0403_0201);
    assert_eq!(read(&transport, 0x108, 4), 0);
    assert_eq!(read(&transport, 0xff8, 8), 0);
    transport.write(0x100, &[9, 9, 9, 9]);
    assert_eq!(read(&transport, 0x100, 4), 0x0403_0201);
}

#[test]
fn the_port_for_kicks_is_shown_and_can_only_be_read() {
    let (mut transport, _) = transport();
    assert_eq!(read(&transport, 0xe0, 4), 0);
    transport.show_kick_port(Some(0x1004));
    Driver(&transport).write(0xe0, 1);
    assert_eq!(read(&transport, 0xe0, 4), 0x1004);
}

#[test]
fn there_is_no_shared_memory_region() {
    let (transport, _) = transport();
    for register in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(read(&transport, register, 4), 0xffff_ffff);
    }
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_breaks_it(
        accesses in proptest::collection::vec(
            (any::<bool>(), 0u64..0x110, 0usize..9, prop_oneof![0u64..16, any::<u64>()]),
            0..300,
        )
    ) {
        let (transport, probe) = transport();
        for (write, offset, size, value) in accesses {
            let mut data = value.to_le_bytes();
            if write {
                transport.write(offset, &data[..size]);
            } else {
                transport.read(offset, &mut data[..size]);
            }
        }
        let memory = memory();
        for queue in &lock(&probe).queues {
            prop_assert!(virtio_queue::QueueT::is_valid(queue, &*memory));
        }
    }
}

#[test]
fn probes_are_of_one_type() {
    let transport = super::super::testing::transport_of_type(42);
    assert_eq!(read(&transport, 8, 4), 42);
    assert_eq!(Probe::default().queue_sizes().len(), 2);
}
