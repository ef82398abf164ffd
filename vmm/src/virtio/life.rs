//! The life of a device, the same for all, and what its loop waits for.
//!
//! ```text
//!            activate                        kicks
//! inactive ───────────▶ active, with queues ───────▶ turns at the queues
//!     ▲                          │
//!     └──────────────────────────┘ stop, also as a part of a reset: the queues' states are given back
//! ```
//!
//! A device is activated and stopped by a vCPU's thread, or by whoever saves it, and served by its loop:
//! the loop is told by an eventfd, and then watches the kicks of the queues that there are.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{ActivateError, Activation, ActiveQueue, Interrupt};
use super::memory::View;
use super::queue::DeviceQueue;
use crate::rate_limit::RateLimit;
use crate::stop::StopFlag;

/// The data of a device's own events: these and up to 127 above them. What else a device has its loop
/// watch has other data.
pub(super) const FIRST_EVENT: u32 = u32::MAX - 0xff;

/// The driver has come or gone; the kick of queue `n` is this and `n`.
const CHANGED: u32 = FIRST_EVENT;
const KICK: u32 = CHANGED + 1;

/// What an event tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The driver has come or gone. All queues are to be served: a kick may have come before it was
    /// watched.
    Changed,
    /// The driver has kicked the queue of this number, if there is one.
    Kick(usize),
    /// Something else that the device has its loop watch, by the event's data.
    Other(u32),
}

/// What there is between activation and stop.
#[derive(Debug)]
pub(super) struct Active<const QUEUES: usize> {
    pub(super) memory: View,
    pub(super) queues: [DeviceQueue; QUEUES],
    /// What both sides agreed on.
    pub(super) features: u64,
    pub(super) interrupt: Interrupt,
    pub(super) stop: StopFlag,
}

/// Whether a device is active, and the eventfds that it has its loop watch.
#[derive(Debug)]
pub(super) struct Life<const QUEUES: usize> {
    /// The device, for messages.
    device: String,
    /// Tells the loop that the driver has come or gone.
    changed: EventFd,
    active: Option<Active<QUEUES>>,
    /// The kicks that the loop watches, maybe those of an activation that is over.
    watched: Vec<Arc<EventFd>>,
    warnings: RateLimit,
}

impl<const QUEUES: usize> Life<QUEUES> {
    /// Of a device that no driver has found yet.
    pub(super) fn new(device: String) -> io::Result<Self> {
        Ok(Self {
            device,
            changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            active: None,
            watched: Vec::new(),
            warnings: RateLimit::default(),
        })
    }

    /// The same with another name for messages.
    pub(super) fn named(self, device: String) -> Self {
        Self { device, ..self }
    }

    /// See [`VirtioDevice::doorbell`](super::VirtioDevice::doorbell).
    pub(super) fn doorbell(&self) -> RawFd {
        self.changed.as_raw_fd()
    }

    /// See [`VirtioDevice::activate`](super::VirtioDevice::activate).
    pub(super) fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let found = activation.queues.len();
        let expected = QUEUES;
        let queues = <[ActiveQueue; QUEUES]>::try_from(activation.queues)
            .map_err(|_| ActivateError::QueueCount { expected, found })?;
        let features = activation.features;
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        self.active = Some(Active {
            memory: View::new(activation.memory).map_err(io::Error::other)?,
            queues: queues.map(|queue| DeviceQueue::new(queue, event_idx)),
            features,
            interrupt: activation.interrupt,
            stop: activation.stop,
        });
        Ok(self.changed.write(1)?)
    }

    /// See [`VirtioDevice::stop`](super::VirtioDevice::stop).
    pub(super) fn stop(&mut self) -> Vec<QueueState> {
        let _ = self.changed.write(1); // if full, the loop is told already
        let queues = self.active.take().map(|active| active.queues);
        let queues = queues.iter().flatten();
        queues.map(DeviceQueue::state).collect()
    }

    /// What there is if the device is active.
    pub(super) fn active(&mut self) -> Option<&mut Active<QUEUES>> {
        self.active.as_mut()
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// Has the loop wait for the driver.
    pub(super) fn init(&self, ops: &mut EventOps<'_>) {
        self.watch(&self.changed, CHANGED, ops);
    }

    /// Takes an event.
    pub(super) fn on_event(&mut self, events: &Events, ops: &mut EventOps<'_>) -> Told {
        match events.data() {
            CHANGED => {
                let _ = self.changed.read();
                self.follow(ops);
                Told::Changed
            }
            data => match data.checked_sub(KICK).map(|index| index as usize) {
                Some(index) if index < QUEUES => {
                    if let Some(kick) = self.watched.get(index) {
                        let _ = kick.read();
                    }
                    Told::Kick(index)
                }
                _ => Told::Other(data),
            },
        }
    }

    /// Watches the queues that there are now.
    fn follow(&mut self, ops: &mut EventOps<'_>) {
        for kick in self.watched.drain(..) {
            let _ = ops.remove(Events::empty(&*kick)); // fails for one that could not be watched
        }
        let queues = self.active.iter().flat_map(|active| &active.queues);
        self.watched = queues.map(|queue| Arc::clone(queue.kick())).collect();
        for (kick, data) in self.watched.iter().zip(KICK..) {
            self.watch(kick, data, ops);
        }
    }

    fn watch(&self, eventfd: &EventFd, data: u32, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::with_data(eventfd, data, EventSet::IN)) {
            let device = &self.device;
            log::error!("{device}: cannot watch for its driver or a queue: {error:?}");
        }
    }

    /// To be called after the queues were served: interrupts the driver if it wants that, and says which
    /// queues are out of order now.
    pub(super) fn end_turn(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        let mut wanted = false;
        for (index, queue) in active.queues.iter_mut().enumerate() {
            wanted |= queue.take_interrupt(active.memory.guest());
            if let Some(error) = queue.take_trouble() {
                self.warnings.warn(
                    &self.device,
                    format_args!("queue {index} is out of order until a reset: {error}"),
                );
            }
        }
        if wanted {
            active.interrupt.used_buffer();
        }
    }
}
