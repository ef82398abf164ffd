//! virtio-net (virtio 1.3, chapter 5.1): a NIC, whose backend is a tap of the host.
//!
//! It has a pair of queues for each vCPU, up to [`MAX_PAIRS`], each with a queue of the tap of its own; with several, also
//! a control queue, by which the driver says how many pairs it uses. It can't change the MAC address, or filter what it
//! receives. The pairs are served in one of two ways:
//! - [`Net`] moves frames between guest memory and the tap itself, by one readv(2) or writev(2) for
//!   each, those of all pairs in the same thread;
//! - [`VhostNet`] leaves them to vhost-net: threads of the host's kernel, one for each pair, move the frames,
//!   and are kicked and interrupt without the VMM. That is faster, but makes the kernel parse what
//!   the guest writes to its rings.
//!
//! Neither blocks, so one thread can serve several NICs. A NIC that is plugged in while the guest
//! runs goes into a [`NetSlot`].
//!
//! A driver that negotiates `VIRTIO_NET_F_MQ` sets up all pairs, as Linux's does, and uses the first one until it says
//! otherwise (virtio 1.3, 5.1.6.5.6). Pairs that aren't in use are detached from the tap: the kernel would give them
//! frames that nobody takes. All queues share the device's one interrupt.

mod buffers;
mod config;
mod control;
mod pair;
mod receive;
mod slot;
mod tap;
mod taps;
mod transmit;
mod vhost;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod multiqueue_tests;
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

pub use config::{ConfigError, MacAddress, MacParseError, NicConfig, NicState};
pub use slot::{NetSlot, NetSlotHandle, Nic, NicError, TaplessNet};
pub use tap::{Tap, TapError};
pub use taps::Taps;
pub use vhost::{Vhost, VhostError, VhostNet, VhostServer};

use std::num::NonZeroU8;
use std::os::fd::{AsRawFd, RawFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::virtio_net_hdr_mrg_rxbuf;
use virtio_queue::QueueState;

use self::config::{CONFIG_SIZE, RING_FEATURES};
use self::control::Layout;
use self::pair::{Pair, Problem};
use super::device::{
    ActivateError, Activation, DeviceState, RestoreError, SaveError, VirtioDevice,
};
use super::lifecycle::{DeviceEvent, Lifecycle};
use super::queue::DeviceQueue;
use crate::chain::chain;
use crate::event_loop::Subscriber;

/// The most pairs of queues of a NIC. Each may cost a thread of the host's kernel, and takes about 2 MiB of the guest's
/// memory for buffers; and the descriptors of all are sent in one message.
pub const MAX_PAIRS: usize = 4;

/// How many pairs of queues a NIC of a VM has: as many as the VM has vCPUs, up to [`MAX_PAIRS`].
pub fn pairs_for(vcpus: NonZeroU8) -> NonZeroU8 {
    const MOST: NonZeroU8 = NonZeroU8::new(MAX_PAIRS as u8).expect("more than 0");
    vcpus.min(MOST)
}

/// The size of each queue, which is also the most descriptors of one frame.
const QUEUE_SIZE: u16 = 256;
/// Those of a NIC with [`MAX_PAIRS`]: of each pair the receive queue and the transmit queue, then the control queue.
const QUEUE_SIZES: [u16; 2 * MAX_PAIRS + 1] = [QUEUE_SIZE; 2 * MAX_PAIRS + 1];
/// The index of the first pair's receive queue.
const RX: usize = 0;
/// The index of the first pair's transmit queue.
const TX: usize = 1;

/// The sizes of the queues of a NIC with this many pairs.
fn queue_sizes(pairs: usize) -> &'static [u16] {
    let count = match pairs {
        1 => 2,
        _ => 2 * pairs + 1,
    };
    QUEUE_SIZES.get(..count).unwrap_or(&QUEUE_SIZES)
}

/// Frames moved in each direction in one turn, before the event loop handles other devices.
const BUDGET: usize = 64;

/// The size of the header of each frame, which has `num_buffers` always since virtio 1.0.
const HEADER_SIZE: usize = size_of::<virtio_net_hdr_mrg_rxbuf>();

/// The size of the largest frame with its header: the Ethernet header, a VLAN tag, and the largest
/// IP packet.
const MAX_FRAME: usize = HEADER_SIZE + 14 + 4 + u16::MAX as usize;

/// The event data of the first pair's queue of the tap; that of pair `n` is `n` higher.
const TAP_EVENT: u32 = 1;

/// The device that moves frames itself.
pub struct Net {
    config: NicConfig,
    config_space: [u8; CONFIG_SIZE],
    taps: Taps,
    lifecycle: Lifecycle<Vec<DeviceQueue>>,
    /// Moves the frames; `None` if the device is inactive.
    data_path: Option<DataPath>,
    /// How many pairs are in use when the device is activated: as many as when it was stopped, or saved; 1 after a reset.
    first_pairs: usize,
    /// The events that the loop watches of each queue of the tap; `None` if that isn't registered there.
    watched: Vec<Option<EventSet>>,
    /// The tap's interface was deleted.
    interface_deleted: bool,
}

/// What an active device has.
struct DataPath {
    layout: Layout,
    /// Those that the driver has set up.
    pairs: Vec<Pair>,
    /// How many it uses: the first ones.
    in_use: usize,
    /// The tap must still be prepared for the driver, by the thread that has it open.
    tap_unprepared: bool,
}

impl Net {
    /// An inactive device, with a pair of queues for each queue of the tap.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new(config: NicConfig, taps: Taps) -> std::io::Result<Self> {
        let name = name(&config);
        Ok(Self::with_lifecycle(config, taps, Lifecycle::new(name)?))
    }

    fn with_lifecycle(
        config: NicConfig,
        taps: Taps,
        lifecycle: Lifecycle<Vec<DeviceQueue>>,
    ) -> Self {
        let pairs = taps.pairs();
        Self {
            config,
            config_space: config.config_space(pairs),
            taps,
            lifecycle,
            data_path: None,
            first_pairs: 1,
            watched: vec![None; pairs],
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
        let (offloads, attached) = (
            self.taps.set_offloads(active.features),
            self.taps.use_first(path.in_use),
        );
        self.taps.drop_queued_frames();
        if let Err(error) = offloads {
            // The device works without them: a driver always has to accept complete frames.
            self.lifecycle
                .warn(format_args!("cannot set the tap's offloads: {error}"));
        }
        self.warn_of_queues(attached);
    }

    fn warn_of_queues(&mut self, attached: std::io::Result<()>) {
        if let Err(error) = attached {
            self.lifecycle.warn(format_args!(
                "cannot attach or detach a queue of the tap: {error}"
            ));
        }
    }

    /// Takes the driver's commands.
    fn on_command(&mut self) {
        let (Some(path), Some(active)) = (&mut self.data_path, self.lifecycle.active()) else {
            return;
        };
        let layout = path.layout;
        let Some(queue) = layout.control().and_then(|n| active.queues.get_mut(n)) else {
            return;
        };
        let mut attached = Ok(());
        let memory = active.memory.memory();
        control::serve(queue, memory, &active.stop, layout, |pairs| {
            let changed = self.taps.use_first_by_command(pairs);
            let is_done = changed.is_ok();
            match changed {
                Ok(()) => path.in_use = pairs,
                Err(error) => attached = Err(error),
            }
            is_done
        });
        self.warn_of_queues(attached);
    }

    fn on_tap_event(&mut self, pair: usize, events: EventSet, ops: &mut EventOps<'_>) {
        if self
            .data_path
            .as_ref()
            .is_some_and(|path| pair >= path.in_use)
        {
            return; // it was detached since
        }
        if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            return self.on_interface_deleted(ops);
        }
        if events.contains(EventSet::OUT) {
            self.with_pair(pair, Pair::on_tap_writable);
            self.transmit(pair);
        }
        if events.contains(EventSet::IN) {
            self.receive(pair);
        }
    }

    /// From now on, frames of the guest are dropped, as with an unplugged cable.
    fn on_interface_deleted(&mut self, ops: &mut EventOps<'_>) {
        self.interface_deleted = true;
        for (tap, watched) in self.taps.iter().zip(&mut self.watched) {
            if watched.take().is_some() {
                let _ = ops.remove(Events::empty(tap));
            }
        }
        self.lifecycle
            .warn(format_args!("the tap's interface was deleted"));
        for pair in 0..self.taps.pairs() {
            self.with_pair(pair, Pair::on_tap_writable);
            self.transmit(pair);
        }
    }

    fn with_pair(&mut self, pair: usize, tell: impl FnOnce(&mut Pair)) {
        let path = self.data_path.as_mut();
        if let Some(pair) = path.and_then(|path| path.pairs.get_mut(pair)) {
            tell(pair);
        }
    }

    /// Serves all queues of the pairs in use.
    fn serve_all(&mut self) {
        let in_use = self.data_path.as_ref().map_or(0, |path| path.in_use);
        for pair in 0..in_use {
            self.transmit(pair);
            self.receive(pair);
        }
    }

    fn receive(&mut self, pair: usize) {
        let (Some(path), Some(active)) = (&mut self.data_path, self.lifecycle.active()) else {
            return;
        };
        if path.tap_unprepared || self.interface_deleted || pair >= path.in_use {
            return;
        }
        let rx = active.queues.get_mut(RX + 2 * pair);
        let (Some(own), Some(tap), Some(rx)) = (path.pairs.get_mut(pair), self.taps.get(pair), rx)
        else {
            return;
        };
        let problems = own.receive(rx, active.memory.guest(), tap, &active.stop);
        for problem in problems.into_iter().flatten() {
            self.warn(&problem);
        }
    }

    fn transmit(&mut self, pair: usize) {
        let (Some(path), Some(active)) = (&mut self.data_path, self.lifecycle.active()) else {
            return;
        };
        if pair >= path.in_use {
            return;
        }
        let tx = active.queues.get_mut(TX + 2 * pair);
        let (Some(own), Some(tap), Some(tx)) = (path.pairs.get_mut(pair), self.taps.get(pair), tx)
        else {
            return;
        };
        if let Some(problem) = own.transmit(tx, active.memory.guest(), tap, &active.stop) {
            self.warn(&problem);
        }
    }

    fn warn(&mut self, problem: &Problem) {
        let problem = chain(problem);
        self.lifecycle.warn(format_args!("{problem}"));
    }

    /// Watches the queues of the tap that are attached.
    fn watch_taps(&mut self, ops: &mut EventOps<'_>) {
        if self.interface_deleted {
            return;
        }
        for (pair, (tap, watched)) in self.taps.iter().zip(&mut self.watched).enumerate() {
            let wanted = match &self.data_path {
                // That the interface is deleted is seen without a driver, too.
                None => watched.map(|_| EventSet::empty()),
                Some(path) if pair < path.in_use => path.pairs.get(pair).map(Pair::wanted_events),
                Some(_) => None,
            };
            if *watched == wanted {
                continue;
            }
            let events = |wanted| Events::with_data(tap, TAP_EVENT + pair as u32, wanted);
            let result = match (*watched, wanted) {
                (None, Some(wanted)) => ops.add(events(wanted)),
                (Some(_), Some(wanted)) => ops.modify(events(wanted)),
                (_, None) => ops.remove(Events::empty(tap)),
            };
            match result {
                Ok(()) => *watched = wanted,
                Err(error) => self
                    .lifecycle
                    .warn(format_args!("cannot watch the tap: {error:?}")),
            }
        }
    }

    /// Makes the receive buffers available again that were popped and not used, and ends the data
    /// path.
    fn end_data_path(&mut self) {
        if let (Some(path), Some(active)) = (self.data_path.take(), self.lifecycle.active()) {
            for (pair, rx) in path.pairs.iter().zip(active.queues.iter_mut().step_by(2)) {
                pair.undo_pops(rx);
            }
            self.first_pairs = path.in_use;
        }
    }
}

/// The name of a NIC in messages.
fn name(config: &NicConfig) -> String {
    format!("virtio-net: {}", config.mac())
}

/// Compares the state of a saved NIC with the one into which it is to be restored, which has this many pairs of queues.
/// Returns how many of them are in use.
fn check_saved(own: &NicConfig, pairs: usize, state: DeviceState) -> Result<usize, RestoreError> {
    let differs = |what| Err(RestoreError::Differs { what });
    let DeviceState::Net(saved) = state else {
        return differs("type");
    };
    if let Some(what) = own.difference(&saved.config) {
        return differs(what);
    }
    match usize::from(saved.pairs_in_use) {
        in_use if (1..=pairs).contains(&in_use) => Ok(in_use),
        _ => differs("number of pairs of queues"),
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        queue_sizes(self.taps.pairs())
    }

    fn queue_count(&self, features: u64) -> usize {
        Layout::of(features, self.taps.pairs()).queues()
    }

    fn features(&self) -> u64 {
        RING_FEATURES | config::features(&self.taps)
    }

    fn activation_eventfd(&self) -> Option<RawFd> {
        Some(self.lifecycle.activation_eventfd())
    }

    fn config(&self) -> &[u8] {
        &self.config_space
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let layout = Layout::of(features, self.taps.pairs());
        layout.check(&activation.queues)?;
        let pairs = (0..layout.pairs).map(|_| Pair::new(&activation.memory, features));
        let path = DataPath {
            layout,
            pairs: pairs.collect(),
            in_use: std::mem::replace(&mut self.first_pairs, 1).min(layout.pairs),
            tap_unprepared: true,
        };
        self.lifecycle.activate(activation)?;
        self.data_path = Some(path);
        Ok(())
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.end_data_path();
        self.lifecycle.stop()
    }

    fn reset(&mut self) {
        self.stop();
        self.first_pairs = 1;
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        let in_use = self.data_path.as_ref().map(|path| path.in_use);
        let in_use = in_use.unwrap_or(self.first_pairs);
        Ok(DeviceState::Net(NicState::new(self.config, in_use)))
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        self.first_pairs = check_saved(&self.config, self.taps.pairs(), state)?;
        Ok(())
    }
}

impl Subscriber for Net {
    fn descriptors(&self) -> Vec<RawFd> {
        let taps = self.taps.iter().map(AsRawFd::as_raw_fd);
        taps.chain([self.lifecycle.activation_eventfd()]).collect()
    }

    fn unwatch(&mut self, ops: &mut EventOps<'_>) {
        self.stop();
        self.lifecycle.unwatch(ops);
        for (tap, watched) in self.taps.iter().zip(&mut self.watched) {
            if watched.take().is_some() {
                let _ = ops.remove(Events::empty(tap)); // fails if its interface was deleted
            }
        }
    }
}

impl MutEventSubscriber for Net {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.lifecycle.init(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let layout = self.data_path.as_ref().map(|path| path.layout);
        let control = layout.and_then(Layout::control);
        match self.lifecycle.on_event(&events, ops) {
            DeviceEvent::ActivationChanged => {
                self.prepare_tap();
                self.on_command();
                self.serve_all();
            }
            DeviceEvent::QueueKick(index) if Some(index) == control => {
                self.on_command();
                self.serve_all();
            }
            DeviceEvent::QueueKick(index) if index % 2 == TX => self.transmit(index / 2),
            DeviceEvent::QueueKick(index) => {
                self.with_pair(index / 2, Pair::on_buffers);
                self.receive(index / 2);
            }
            DeviceEvent::Other(data) => {
                let pair = data.saturating_sub(TAP_EVENT) as usize;
                self.on_tap_event(pair, events.event_set(), ops);
            }
        }
        self.watch_taps(ops);
        self.lifecycle.end_turn();
    }
}
