//! virtio-net (virtio 1.3, chapter 5.1): a NIC, whose backend is a tap of the host.
//!
//! It has one pair of queues and no control queue: the driver can't change the MAC address, or
//! filter what it receives. The queues are served in one of two ways:
//! - [`Net`] moves frames between guest memory and the tap itself, by one readv(2) or writev(2) for
//!   each;
//! - [`VhostNet`] leaves the queues to vhost-net: a thread of the host's kernel moves the frames,
//!   and is kicked and interrupts without the VMM. That is faster, but makes the kernel parse what
//!   the guest writes to its rings.
//!
//! Neither blocks, so one thread can serve several NICs. A NIC that is plugged in while the guest
//! runs goes into a [`NetSlot`].
//!
//! Several pairs of queues (`VIRTIO_NET_F_MQ`) would take a control queue, whose command says how
//! many pairs are in use; a tap with `IFF_MULTI_QUEUE` for each pair, detached (`TUNSETQUEUE`)
//! while its pair isn't in use; and for vhost-net a descriptor for each pair. `Receiver` and
//! `Transmitter` serve one pair already; `QUEUE_SIZES` and the configuration space assume that
//! there is only one.

mod buffers;
mod config;
mod receive;
mod slot;
mod tap;
mod transmit;
mod vhost;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod slot_tests;
#[cfg(test)]
mod tap_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vhost_tests;

pub use config::{ConfigError, MacAddress, MacParseError, NicConfig};
pub use slot::{NetSlot, NetSlotHandle, Nic, NicError, TaplessNet};
pub use tap::{Tap, TapError};
pub use vhost::{Vhost, VhostError, VhostNet, VhostServer};

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::virtio_net_hdr_mrg_rxbuf;
use virtio_queue::QueueState;

use self::config::{CONFIG_SIZE, RING_FEATURES};
use self::receive::Receiver;
use self::transmit::Transmitter;
use super::device::{
    ActivateError, Activation, DeviceState, RestoreError, SaveError, VirtioDevice,
};
use super::lifecycle::{Active, DeviceEvent, Lifecycle};
use crate::chain::chain;
use crate::event_loop::Subscriber;

/// The size of each queue, which is also the most descriptors of one frame.
const QUEUE_SIZE: u16 = 256;
/// The receive queue and the transmit queue.
const QUEUE_SIZES: [u16; QUEUES] = [QUEUE_SIZE; QUEUES];
const QUEUES: usize = 2;
/// The index of the receive queue.
const RX: usize = 0;
/// The index of the transmit queue.
const TX: usize = 1;

/// Frames moved in each direction in one turn, before the event loop handles other devices.
const BUDGET: usize = 64;

/// The size of the header of each frame, which has `num_buffers` always since virtio 1.0.
const HEADER_SIZE: usize = size_of::<virtio_net_hdr_mrg_rxbuf>();

/// The size of the largest frame with its header: the Ethernet header, a VLAN tag, and the largest
/// IP packet.
const MAX_FRAME: usize = HEADER_SIZE + 14 + 4 + u16::MAX as usize;

/// The event data of the tap.
const TAP_EVENT: u32 = 1;

/// The device that moves frames itself.
pub struct Net {
    config: NicConfig,
    config_space: [u8; CONFIG_SIZE],
    tap: Tap,
    lifecycle: Lifecycle<QUEUES>,
    /// Moves the frames; `None` if the device is inactive.
    data_path: Option<DataPath>,
    /// The events of the tap that the loop watches; `None` if the tap isn't registered there.
    watched: Option<EventSet>,
    /// The tap's interface was deleted.
    interface_deleted: bool,
}

/// Both directions of an active device.
struct DataPath {
    receiver: Receiver,
    transmitter: Transmitter,
    /// The tap must still be prepared for the driver, by the thread that has it open.
    tap_unprepared: bool,
    /// The driver must kick before the next frame can be received: it has made too few buffers
    /// available.
    awaits_buffers: bool,
    /// The tap must become writable before the next frame can be sent.
    awaits_tap: bool,
}

impl Net {
    /// An inactive device.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new(config: NicConfig, tap: Tap) -> std::io::Result<Self> {
        let name = name(&config);
        Ok(Self::with_lifecycle(config, tap, Lifecycle::new(name)?))
    }

    fn with_lifecycle(config: NicConfig, tap: Tap, lifecycle: Lifecycle<QUEUES>) -> Self {
        Self {
            config,
            config_space: config.config_space(),
            tap,
            lifecycle,
            data_path: None,
            watched: None,
            interface_deleted: false,
        }
    }

    /// Prepares the tap for a driver that has activated the device.
    fn prepare_tap(&mut self) {
        let (Some(path), Some(active)) = (&mut self.data_path, self.lifecycle.active()) else {
            return;
        };
        if !std::mem::take(&mut path.tap_unprepared) {
            return;
        }
        if let Err(error) = self.tap.set_offloads(active.features) {
            // The device works without them: a driver always has to accept complete frames.
            self.lifecycle
                .warn(format_args!("cannot set the tap's offloads: {error}"));
        }
        self.tap.drop_queued_frames();
    }

    fn on_tap_event(&mut self, events: EventSet, ops: &mut EventOps<'_>) {
        if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            return self.on_interface_deleted(ops);
        }
        if events.contains(EventSet::OUT) {
            if let Some(path) = &mut self.data_path {
                path.awaits_tap = false;
            }
            self.transmit();
        }
        if events.contains(EventSet::IN) {
            self.receive();
        }
    }

    /// From now on, frames of the guest are dropped, as with an unplugged cable.
    fn on_interface_deleted(&mut self, ops: &mut EventOps<'_>) {
        self.interface_deleted = true;
        if self.watched.take().is_some() {
            let _ = ops.remove(Events::empty(&self.tap));
        }
        if let Some(path) = &mut self.data_path {
            path.awaits_tap = false;
        }
        self.lifecycle
            .warn(format_args!("the tap's interface was deleted"));
        self.transmit();
    }

    fn receive(&mut self) {
        let (Some(path), Some(active)) = (&mut self.data_path, self.lifecycle.active()) else {
            return;
        };
        if path.tap_unprepared || path.awaits_buffers || self.interface_deleted {
            return;
        }
        let Active {
            memory,
            queues,
            stop,
            ..
        } = active;
        let rx = &mut queues[RX];
        let progress = path.receiver.serve(rx, memory.guest(), &self.tap, stop);
        path.awaits_buffers = match progress {
            Ok(receive::Progress::TapEmpty) => false,
            Ok(receive::Progress::NoBuffers) => true,
            Ok(receive::Progress::MoreToServe) => {
                rx.kick_self();
                false
            }
            // The tap isn't read again before the driver kicks: the error may be permanent.
            Err(_) => {
                rx.enable_kicks(memory.guest());
                true
            }
        };
        let chain_error = path.receiver.take_chain_error();
        if let Err(error) = progress {
            self.lifecycle
                .warn(format_args!("cannot read the tap: {error}"));
        }
        if let Some(error) = chain_error {
            self.lifecycle
                .warn(format_args!("a receive buffer isn't used: {error}"));
        }
    }

    fn transmit(&mut self) {
        let (Some(path), Some(active)) = (&mut self.data_path, self.lifecycle.active()) else {
            return;
        };
        if path.awaits_tap {
            return;
        }
        let Active {
            memory,
            queues,
            stop,
            ..
        } = active;
        let tx = &mut queues[TX];
        let progress = path.transmitter.serve(tx, memory.guest(), &self.tap, stop);
        path.awaits_tap = match progress {
            transmit::Progress::QueueEmpty => false,
            transmit::Progress::TapFull => true,
            transmit::Progress::MoreToServe => {
                tx.kick_self();
                false
            }
        };
        if let Some(error) = path.transmitter.take_send_error() {
            let error = chain(&error);
            self.lifecycle
                .warn(format_args!("a frame of the guest is dropped: {error}"));
        }
    }

    /// Watches the tap for events that can be handled now. Others would wake the loop again and
    /// again, since they are level-triggered.
    fn watch_tap(&mut self, ops: &mut EventOps<'_>) {
        if self.interface_deleted {
            return;
        }
        let mut wanted = EventSet::empty();
        if let Some(path) = &self.data_path {
            wanted.set(EventSet::IN, !path.awaits_buffers);
            wanted.set(EventSet::OUT, path.awaits_tap);
        }
        if self.watched == Some(wanted) {
            return;
        }
        let events = Events::with_data(&self.tap, TAP_EVENT, wanted);
        let result = match self.watched {
            None if wanted.is_empty() => return,
            None => ops.add(events),
            Some(_) => ops.modify(events),
        };
        match result {
            Ok(()) => self.watched = Some(wanted),
            Err(error) => self
                .lifecycle
                .warn(format_args!("cannot watch the tap: {error:?}")),
        }
    }

    /// Makes the receive buffers available again that were popped and not used, and ends the data
    /// path.
    fn end_data_path(&mut self) {
        if let (Some(path), Some(active)) = (self.data_path.take(), self.lifecycle.active()) {
            active.queues[RX].undo_pop(path.receiver.popped_chains());
        }
    }
}

/// The name of a NIC in messages.
fn name(config: &NicConfig) -> String {
    format!("virtio-net: {}", config.mac())
}

/// Compares the state of a saved NIC with the one into which it is to be restored.
fn check_saved(own: &NicConfig, state: DeviceState) -> Result<(), RestoreError> {
    let what = match &state {
        DeviceState::Net(saved) => own.difference(saved),
        _ => Some("type"),
    };
    what.map_or(Ok(()), |what| Err(RestoreError::Differs { what }))
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        RING_FEATURES | config::features(self.tap.has_uso())
    }

    fn activation_eventfd(&self) -> Option<RawFd> {
        Some(self.lifecycle.activation_eventfd())
    }

    fn config(&self) -> &[u8] {
        &self.config_space
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let memory = Arc::clone(&activation.memory);
        let features = activation.features;
        self.lifecycle.activate(activation)?;
        self.data_path = Some(DataPath {
            receiver: Receiver::new(Arc::clone(&memory), features),
            transmitter: Transmitter::new(memory),
            tap_unprepared: true,
            awaits_buffers: false,
            awaits_tap: false,
        });
        Ok(())
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.end_data_path();
        self.lifecycle.stop()
    }

    fn reset(&mut self) {
        self.stop();
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        Ok(DeviceState::Net(self.config))
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        check_saved(&self.config, state)
    }
}

impl Subscriber for Net {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.lifecycle.activation_eventfd(), self.tap.as_raw_fd()]
    }

    fn unwatch(&mut self, ops: &mut EventOps<'_>) {
        self.stop();
        self.lifecycle.unwatch(ops);
        if self.watched.take().is_some() {
            let _ = ops.remove(Events::empty(&self.tap)); // fails if its interface was deleted
        }
    }
}

impl MutEventSubscriber for Net {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.lifecycle.init(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self.lifecycle.on_event(&events, ops) {
            DeviceEvent::ActivationChanged => {
                self.prepare_tap();
                self.transmit();
                self.receive();
            }
            DeviceEvent::QueueKick(TX) => self.transmit(),
            DeviceEvent::QueueKick(_) => {
                if let Some(path) = &mut self.data_path {
                    path.awaits_buffers = false;
                }
                self.receive();
            }
            DeviceEvent::Other(_) => self.on_tap_event(events.event_set(), ops),
        }
        self.watch_tap(ops);
        self.lifecycle.end_turn();
    }
}
