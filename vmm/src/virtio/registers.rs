//! The registers of a virtio-mmio device as a pure state machine (virtio 1.3, 2.1, 3.1 and 4.2.2):
//! which writes are allowed in which state, and what reads return. It knows no device, takes no
//! lock, and does no I/O.
//!
//! The registers have no way to report an error to a driver that breaks a rule: its write has no
//! effect, which it can find out by reading the register.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueState};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

use super::device::RestoreError;

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

/// The legal values of the status register during initialisation.
mod stage {
    use super::*;
    pub const RESET: u32 = 0;
    pub const ACKNOWLEDGED: u32 = ACKNOWLEDGE;
    pub const NEGOTIATING: u32 = ACKNOWLEDGED | DRIVER;
    pub const CONFIGURING: u32 = NEGOTIATING | FEATURES_OK;
    pub const RUNNING: u32 = CONFIGURING | DRIVER_OK;
}

/// "virt", the first register.
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// The version of the register layout: 2 is all since virtio 1.0.
const LAYOUT_VERSION: u32 = 2;
/// The device id of a placeholder: drivers ignore such a device without reporting an error
/// (4.2.2.2, 4.2.3.1.1).
const NO_DEVICE: u32 = 0;
/// Length and address of a shared memory region that does not exist are all ones (4.2.2).
const NO_REGION: u32 = u32::MAX;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// What the transport must do after a write to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// Reset the device: the registers have been reset.
    Reset,
    /// Activate the device: the driver has set DRIVER_OK.
    Activate,
}

/// A queue as the driver has configured it, and its positions in the rings when the device was last
/// stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct QueueSetup {
    max_size: u16,
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
            next_available: 0,
            next_used: 0,
        }
    }

    /// The queue, if it is ready and its rings are aligned and wholly in guest memory.
    ///
    /// Checked here and not by `Queue::is_valid`, which checks only the ends of the rings, and logs
    /// a line for each bad queue that a hostile driver sets up.
    fn build(&self, event_idx: bool, memory: &GuestMemoryMmap) -> Option<Queue> {
        // Sizes and alignments: virtio 1.3, 2.7. The last two bytes of a ring are for EVENT_IDX.
        let size = u64::from(self.size);
        let rings = [
            (self.descriptors, 16 * size, 16),
            (self.available, 6 + 2 * size, 2),
            (self.used, 6 + 8 * size, 4),
        ];
        let in_memory = |(address, size, alignment): &(u64, u64, u64)| {
            address.is_multiple_of(*alignment)
                && memory.check_range(GuestAddress(*address), *size as usize)
        };
        if !self.ready || !rings.iter().all(in_memory) {
            return None;
        }
        let state = QueueState {
            max_size: self.max_size,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: true,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        state.try_into().ok()
    }
}

/// All registers except the interrupt registers, and the configuration space with its generation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Registers {
    device_type: u32,
    offered: u64,
    status: u32,
    offered_half: u32,
    accepted: u64,
    accepted_half: u32,
    selected: u32,
    queues: Vec<QueueSetup>,
}

impl Registers {
    /// The registers after reset, of a device with these features and queues.
    pub(super) fn new(device_type: u32, offered: u64, queue_sizes: &[u16]) -> Self {
        Self {
            device_type,
            offered,
            status: stage::RESET,
            offered_half: 0,
            accepted: 0,
            accepted_half: 0,
            selected: 0,
            queues: queue_sizes.iter().copied().map(QueueSetup::new).collect(),
        }
    }

    /// The registers of an empty slot. Writes to them have no effect.
    pub(super) fn empty() -> Self {
        Self::new(NO_DEVICE, 0, &[])
    }

    /// The negotiated features; 0 before FEATURES_OK.
    pub(super) fn features(&self) -> u64 {
        if self.status & FEATURES_OK != 0 {
            self.accepted
        } else {
            0
        }
    }

    /// Sets DEVICE_NEEDS_RESET.
    pub(super) fn set_needs_reset(&mut self) {
        self.status |= NEEDS_RESET;
    }

    /// Whether DRIVER_OK is set, and neither FAILED nor DEVICE_NEEDS_RESET.
    pub(super) fn is_running(&self) -> bool {
        self.status & (DRIVER_OK | FAILED | NEEDS_RESET) == DRIVER_OK
    }

    /// Records the ring positions of the queues of a device that was stopped; `stopped` is empty if
    /// it was not active. If a queue is broken, it becomes not ready, and the device can only be
    /// reset.
    pub(super) fn record_queue_positions(&mut self, stopped: &[QueueState]) {
        for (queue, state) in self.queues.iter_mut().zip(stopped) {
            queue.ready &= state.ready;
            (queue.next_available, queue.next_used) = (state.next_avail, state.next_used);
        }
    }

    /// Restores registers that were saved from an equal device. They are validated as if a driver
    /// had written them.
    pub(super) fn restore(&mut self, saved: Self) -> Result<(), RestoreError> {
        let sizes = |queues: &[QueueSetup]| queues.iter().map(|q| q.max_size).collect::<Vec<_>>();
        for (same, what) in [
            (saved.device_type == self.device_type, "type"),
            (saved.offered == self.offered, "set of features"),
            (sizes(&saved.queues) == sizes(&self.queues), "set of queues"),
        ] {
            if !same {
                return Err(RestoreError::Differs { what });
            }
        }
        if !saved.is_reachable() {
            return Err(RestoreError::Registers);
        }
        *self = saved;
        Ok(())
    }

    /// Whether a driver's writes can lead to this state.
    fn is_reachable(&self) -> bool {
        let known = |stage| {
            let stages = [stage::RESET, stage::ACKNOWLEDGED, stage::NEGOTIATING];
            stages.contains(&stage)
                || [stage::CONFIGURING, stage::RUNNING].contains(&stage)
                    && self.accepts_only_offered()
        };
        known(self.status & !(FAILED | NEEDS_RESET))
            && self
                .queues
                .iter()
                .all(|queue| queue.size.is_power_of_two() && queue.size <= queue.max_size)
    }

    /// The first `count` queues, if all of these are ready and valid.
    pub(super) fn queues(&self, count: usize, memory: &GuestMemoryMmap) -> Option<Vec<Queue>> {
        let event_idx = self.features() & EVENT_IDX != 0;
        let queues = self.queues.iter().take(count);
        queues.map(|queue| queue.build(event_idx, memory)).collect()
    }

    /// Reads the register at `offset`; write-only registers read as 0.
    pub(super) fn read(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => LAYOUT_VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device_type,
            VIRTIO_MMIO_DEVICE_FEATURES => match self.offered_half {
                0 => self.offered as u32,
                1 => (self.offered >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.queue().map_or(0, |queue| queue.max_size.into()),
            VIRTIO_MMIO_QUEUE_READY => self.queue().map_or(0, |queue| queue.ready.into()),
            VIRTIO_MMIO_STATUS => self.status,
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => NO_REGION,
            _ => 0,
        }
    }

    /// Writes the register at `offset`, if that is allowed in the current state.
    pub(super) fn write(&mut self, offset: u32, value: u32) -> Effect {
        match offset {
            _ if self.device_type == NO_DEVICE => {}
            VIRTIO_MMIO_STATUS => return self.write_status(value),
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.offered_half = value,
            VIRTIO_MMIO_QUEUE_SEL => self.selected = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL if self.status == stage::NEGOTIATING => {
                self.accepted_half = value;
            }
            VIRTIO_MMIO_DRIVER_FEATURES if self.status == stage::NEGOTIATING => {
                match self.accepted_half {
                    0 => set_low(&mut self.accepted, value),
                    1 => set_high(&mut self.accepted, value),
                    _ => {}
                }
            }
            _ if self.status == stage::CONFIGURING => self.write_queue(offset, value),
            _ => {}
        }
        Effect::None
    }

    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.selected).ok()?)
    }

    /// Writes a register of the selected queue; its addresses and size can't be changed while it is
    /// ready.
    fn write_queue(&mut self, offset: u32, value: u32) {
        let selected = usize::try_from(self.selected).ok();
        let Some(queue) = selected.and_then(|index| self.queues.get_mut(index)) else {
            return;
        };
        match offset {
            VIRTIO_MMIO_QUEUE_READY => match value {
                0 => queue.ready = false,
                1 => queue.ready = true,
                _ => {}
            },
            _ if queue.ready => {}
            VIRTIO_MMIO_QUEUE_NUM => match u16::try_from(value) {
                Ok(size) if size.is_power_of_two() && size <= queue.max_size => queue.size = size,
                _ => {}
            },
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.available, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.available, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }

    /// Accepts the next step of initialisation, FAILED, or a reset (virtio 1.3, 2.1 and 3.1.1).
    fn write_status(&mut self, value: u32) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Reset;
        }
        let dead = self.status & (FAILED | NEEDS_RESET) != 0;
        if dead || value & self.status != self.status {
            return Effect::None;
        }
        match (self.status, value & !self.status) {
            (stage::RESET, ACKNOWLEDGE) | (stage::ACKNOWLEDGED, DRIVER) | (_, FAILED) => {
                self.status = value
            }
            (stage::NEGOTIATING, FEATURES_OK) if self.accepts_only_offered() => {
                self.status = value;
            }
            (stage::CONFIGURING, DRIVER_OK) => {
                self.status = value;
                return Effect::Activate;
            }
            _ => {}
        }
        Effect::None
    }

    fn accepts_only_offered(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0
    }

    fn reset(&mut self) {
        self.status = stage::RESET;
        (self.offered_half, self.accepted_half, self.selected) = (0, 0, 0);
        self.accepted = 0;
        for queue in &mut self.queues {
            *queue = QueueSetup::new(queue.max_size);
        }
    }
}

fn set_low(register: &mut u64, value: u32) {
    *register = *register & !0xffff_ffff | u64::from(value);
}

fn set_high(register: &mut u64, value: u32) {
    *register = *register & 0xffff_ffff | u64::from(value) << 32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use virtio_queue::QueueT;

    const OFFERED: u64 = VERSION_1 | EVENT_IDX | 1;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("64 KiB")
    }

    fn registers() -> Registers {
        Registers::new(4, OFFERED, &[8, 16])
    }

    /// Brings a driver up to the given status by single legal steps.
    fn drive(registers: &mut Registers, features: u64) {
        for status in [1, 3] {
            registers.write(VIRTIO_MMIO_STATUS, status);
        }
        for half in [0, 1] {
            registers.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            registers.write(
                VIRTIO_MMIO_DRIVER_FEATURES,
                (features >> (32 * half)) as u32,
            );
        }
        registers.write(VIRTIO_MMIO_STATUS, 11);
    }

    fn set_up_queue(registers: &mut Registers, index: u32, base: u32) {
        for (register, value) in [
            (VIRTIO_MMIO_QUEUE_SEL, index),
            (VIRTIO_MMIO_QUEUE_NUM, 8),
            (VIRTIO_MMIO_QUEUE_DESC_LOW, base),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, base + 0x100),
            (VIRTIO_MMIO_QUEUE_USED_LOW, base + 0x200),
            (VIRTIO_MMIO_QUEUE_READY, 1),
        ] {
            registers.write(register, value);
        }
    }

    #[test]
    fn a_driver_that_keeps_the_rules_gets_its_queues() {
        let mut registers = registers();
        drive(&mut registers, VERSION_1 | EVENT_IDX);
        assert_eq!(registers.read(VIRTIO_MMIO_STATUS), 11);
        set_up_queue(&mut registers, 0, 0x1000);
        set_up_queue(&mut registers, 1, 0x2000);
        assert_eq!(registers.write(VIRTIO_MMIO_STATUS, 15), Effect::Activate);
        let queues = registers.queues(2, &memory()).expect("both valid");
        assert_eq!(queues.len(), 2);
        assert_eq!((queues[1].size(), queues[1].desc_table()), (8, 0x2000));
        assert!(queues[1].event_idx_enabled());
    }

    #[test]
    fn features_not_offered_or_without_version_1_are_refused() {
        for features in [VERSION_1 | 2, EVENT_IDX, 0, u64::MAX] {
            let mut registers = registers();
            drive(&mut registers, features);
            assert_eq!(registers.read(VIRTIO_MMIO_STATUS), 3, "{features:#x}");
            assert_eq!(registers.features(), 0);
        }
    }

    #[test]
    fn steps_cannot_be_skipped_or_taken_back() {
        let mut registers = registers();
        for skipping in [2, 3, 4, 8, 15, 64, 0x100, u32::MAX] {
            registers.write(VIRTIO_MMIO_STATUS, skipping);
            assert_eq!(registers.read(VIRTIO_MMIO_STATUS), 0, "{skipping}");
        }
        drive(&mut registers, VERSION_1);
        for back in [1, 3, 9, 8] {
            registers.write(VIRTIO_MMIO_STATUS, back);
            assert_eq!(registers.read(VIRTIO_MMIO_STATUS), 11, "{back}");
        }
        assert_eq!(registers.write(VIRTIO_MMIO_STATUS, 0), Effect::Reset);
        assert_eq!(registers.read(VIRTIO_MMIO_STATUS), 0);
    }

    #[test]
    fn a_driver_that_gave_up_can_only_reset() {
        let mut registers = registers();
        registers.write(VIRTIO_MMIO_STATUS, 1);
        registers.write(VIRTIO_MMIO_STATUS, 0x81);
        registers.write(VIRTIO_MMIO_STATUS, 0x83);
        assert_eq!(registers.read(VIRTIO_MMIO_STATUS), 0x81);
        registers.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(registers.read(VIRTIO_MMIO_STATUS), 0);
    }

    #[test]
    fn queues_outside_memory_misaligned_or_not_ready_are_refused() {
        let bad: &[(u32, u32)] = &[
            (VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1001),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x1101),
            (VIRTIO_MMIO_QUEUE_USED_LOW, 0x1202),
            (VIRTIO_MMIO_QUEUE_DESC_LOW, 0xfff0),
            (VIRTIO_MMIO_QUEUE_USED_LOW, 0xffff_fffc),
            (VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 1),
            (VIRTIO_MMIO_QUEUE_USED_HIGH, u32::MAX),
            (VIRTIO_MMIO_QUEUE_READY, 0),
        ];
        for (register, value) in bad {
            let mut registers = registers();
            drive(&mut registers, VERSION_1);
            set_up_queue(&mut registers, 1, 0x2000);
            set_up_queue(&mut registers, 0, 0x1000);
            registers.write(VIRTIO_MMIO_QUEUE_READY, 0);
            registers.write(*register, *value);
            if *register != VIRTIO_MMIO_QUEUE_READY {
                registers.write(VIRTIO_MMIO_QUEUE_READY, 1);
            }
            registers.write(VIRTIO_MMIO_STATUS, 15);
            assert!(
                registers.queues(2, &memory()).is_none(),
                "{register:#x} {value:#x}"
            );
        }
    }

    #[test]
    fn a_ring_that_ends_with_memory_is_good_and_one_byte_more_is_not() {
        let mut queue = QueueSetup::new(8);
        (queue.ready, queue.available, queue.used) = (true, 0x1000, 0x2000);
        queue.descriptors = 0x1_0000 - 128;
        assert!(queue.build(false, &memory()).is_some());
        queue.descriptors += 16;
        assert!(queue.build(false, &memory()).is_none());
    }

    #[test]
    fn a_ready_queue_and_a_running_device_do_not_change() {
        let mut registers = registers();
        drive(&mut registers, VERSION_1);
        set_up_queue(&mut registers, 0, 0x1000);
        registers.write(VIRTIO_MMIO_QUEUE_NUM, 4);
        registers.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x5000);
        assert_eq!(registers.queues[0].size, 8);
        assert_eq!(registers.queues[0].descriptors, 0x1000);
        set_up_queue(&mut registers, 1, 0x2000);
        registers.write(VIRTIO_MMIO_STATUS, 15);
        let before = (registers.accepted, registers.queues.clone());
        for register in (0..0x100).step_by(4).filter(|r| *r != VIRTIO_MMIO_STATUS) {
            for value in [0, 1, 8, u32::MAX] {
                assert_eq!(registers.write(register, value), Effect::None);
            }
        }
        assert_eq!((registers.accepted, registers.queues.clone()), before);
    }

    #[test]
    fn odd_queue_sizes_are_ignored() {
        let mut registers = registers();
        drive(&mut registers, VERSION_1);
        for size in [0, 3, 16, 0x1_0008, u32::MAX] {
            registers.write(VIRTIO_MMIO_QUEUE_NUM, size);
            assert_eq!(registers.queues[0].size, 8, "{size}");
        }
        registers.write(VIRTIO_MMIO_QUEUE_SEL, 7);
        assert_eq!(registers.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        registers.write(VIRTIO_MMIO_QUEUE_NUM, 4);
        registers.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert!(registers.queues.iter().all(|queue| !queue.ready));
    }

    #[test]
    fn only_possible_registers_of_an_equal_device_are_restored() {
        let mut saved = registers();
        drive(&mut saved, VERSION_1);
        set_up_queue(&mut saved, 0, 0x1000);
        let restore = |change: &dyn Fn(&mut Registers)| {
            let mut saved = saved.clone();
            change(&mut saved);
            registers()
                .restore(saved)
                .map_err(|error| error.to_string())
        };
        assert_eq!(restore(&|_| ()), Ok(()));
        assert_eq!(restore(&|saved| saved.status |= FAILED), Ok(()));
        type Change<'a> = &'a dyn Fn(&mut Registers);
        let other: [(Change<'_>, &str); 4] = [
            (&|saved| saved.device_type = 5, "type"),
            (&|saved| saved.offered |= 2, "features"),
            (&|saved| saved.queues[1].max_size = 8, "queues"),
            (&|saved| saved.queues.truncate(1), "queues"),
        ];
        for (change, what) in other {
            assert!(restore(change).is_err_and(|error| error.contains(what)));
        }
        let impossible: [Change<'_>; 5] = [
            &|saved| saved.status = DRIVER_OK,
            &|saved| saved.status |= 0x100,
            &|saved| saved.accepted |= 2,
            &|saved| saved.queues[0].size = 3,
            &|saved| saved.queues[0].size = 16,
        ];
        for change in impossible {
            assert!(restore(change).is_err_and(|error| error.contains("no driver")));
        }
    }

    proptest! {
        #[test]
        fn a_hostile_driver_never_breaks_an_invariant(
            writes in proptest::collection::vec(
                (0u32..0x44, prop_oneof![0u32..32, any::<u32>(), (0u32..16).prop_map(|n| n << 12)]),
                0..200,
            )
        ) {
            let memory = memory();
            let mut registers = registers();
            let mut running = false;
            for (register, value) in writes {
                match registers.write(register * 4, value) {
                    Effect::Activate => {
                        prop_assert!(!running, "activated twice without a reset");
                        running = true;
                        if registers.queues(2, &memory).is_none() {
                            registers.set_needs_reset();
                        }
                    }
                    Effect::Reset => running = false,
                    Effect::None => {}
                }
                let status = registers.read(VIRTIO_MMIO_STATUS);
                prop_assert_eq!(running, status & DRIVER_OK != 0);
                prop_assert_eq!(registers.features() & !OFFERED, 0);
                for queue in &registers.queues {
                    prop_assert!(queue.size.is_power_of_two() && queue.size <= queue.max_size);
                    prop_assert!(!queue.ready || status & FEATURES_OK != 0);
                }
            }
        }
    }
}
