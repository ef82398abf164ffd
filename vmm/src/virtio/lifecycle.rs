//! The lifecycle of a device, which is the same for all, and the eventfds that its event loop
//! watches.
//!
//! ```text
//!            activate                        kicks
//! inactive ───────────▶ active, with queues ───────▶ the queues are served
//!     ▲                          │
//!     └──────────────────────────┘ stop, also as part of a reset: returns the queues' states
//! ```
//!
//! A device is activated and stopped by a vCPU thread, or by whoever saves it, and served by the
//! thread of its event loop. An eventfd notifies the loop, which then watches the kick eventfds of
//! the current queues.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{ActivateError, Activation, Interrupt};
use super::memory::MemoryView;
use super::queue::DeviceQueue;
use crate::rate_limit::RateLimit;
use crate::stop::StopFlag;

/// The event data from here up to 127 above are for the events of this module. Whatever else a
/// device watches must use other data.
pub(super) const FIRST_EVENT: u32 = u32::MAX - 0xff;

/// The event data of the activation eventfd.
const ACTIVATION_CHANGED: u32 = FIRST_EVENT;
/// The event data of the kick of queue 0; that of queue `n` is `n` higher.
const KICK: u32 = ACTIVATION_CHANGED + 1;
/// The most queues of a device.
const MAX_QUEUES: usize = 127;

/// What an event of the device's loop means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DeviceEvent {
    /// The device was activated or stopped. All queues must be served: a kick may have come before
    /// it was watched.
    ActivationChanged,
    /// The driver has kicked the queue with this index, if the device is active.
    QueueKick(usize),
    /// An event of something else that the device watches, by the event's data.
    Other(u32),
}

/// A device's queues between activation and stop: an array, or a vector if it is for the driver's features to
/// decide how many there are.
pub(super) trait Queues: AsRef<[DeviceQueue]> + AsMut<[DeviceQueue]> + Sized {
    /// These queues.
    ///
    /// # Errors
    /// They are not as many as the device has.
    fn new(queues: Vec<DeviceQueue>) -> Result<Self, ActivateError>;
}

impl<const COUNT: usize> Queues for [DeviceQueue; COUNT] {
    fn new(queues: Vec<DeviceQueue>) -> Result<Self, ActivateError> {
        let (expected, found) = (COUNT, queues.len());
        Self::try_from(queues).map_err(|_| ActivateError::QueueCount { expected, found })
    }
}

impl Queues for Vec<DeviceQueue> {
    fn new(queues: Vec<DeviceQueue>) -> Result<Self, ActivateError> {
        Ok(queues)
    }
}

/// What a device has between activation and stop.
#[derive(Debug)]
pub(super) struct Active<Q> {
    pub(super) memory: MemoryView,
    pub(super) queues: Q,
    /// The negotiated features.
    pub(super) features: u64,
    pub(super) interrupt: Interrupt,
    pub(super) stop: StopFlag,
}

/// The activation state of a device, and the eventfds that its event loop watches.
#[derive(Debug)]
pub(super) struct Lifecycle<Q> {
    /// The device's name, for messages.
    device: String,
    /// Notifies the loop that the device was activated or stopped.
    activation_changed: Arc<EventFd>,
    active: Option<Active<Q>>,
    /// The kick eventfds that the loop watches, which may still be those of an earlier activation.
    watched: Vec<Arc<EventFd>>,
    warnings: RateLimit,
}

impl<Q: Queues> Lifecycle<Q> {
    /// The lifecycle of an inactive device.
    pub(super) fn new(device: String) -> io::Result<Self> {
        let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self::with_eventfd(device, Arc::new(eventfd)))
    }

    /// With an activation eventfd that was there before the device.
    pub(super) fn with_eventfd(device: String, activation_changed: Arc<EventFd>) -> Self {
        Self {
            device,
            activation_changed,
            active: None,
            watched: Vec::new(),
            warnings: RateLimit::default(),
        }
    }

    /// Changes the name for messages.
    pub(super) fn with_name(self, device: String) -> Self {
        Self { device, ..self }
    }

    /// See [`VirtioDevice::activation_eventfd`](super::VirtioDevice::activation_eventfd).
    pub(super) fn activation_eventfd(&self) -> RawFd {
        self.activation_changed.as_raw_fd()
    }

    /// See [`VirtioDevice::activate`](super::VirtioDevice::activate).
    pub(super) fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let queues = activation.queues.into_iter();
        let queues = queues.map(|queue| DeviceQueue::new(queue, event_idx));
        self.active = Some(Active {
            memory: MemoryView::new(activation.memory).map_err(io::Error::other)?,
            queues: Q::new(queues.collect())?,
            features,
            interrupt: activation.interrupt,
            stop: activation.stop,
        });
        Ok(self.activation_changed.write(1)?)
    }

    /// See [`VirtioDevice::stop`](super::VirtioDevice::stop).
    pub(super) fn stop(&mut self) -> Vec<QueueState> {
        let _ = self.activation_changed.write(1); // a full eventfd is readable too
        let active = self.active.take();
        let queues = active.iter().flat_map(|active| active.queues.as_ref());
        queues.map(DeviceQueue::state).collect()
    }

    /// Memory, queues and so on if the device is active.
    pub(super) fn active(&mut self) -> Option<&mut Active<Q>> {
        self.active.as_mut()
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// Makes the loop watch for activation.
    pub(super) fn init(&self, ops: &mut EventOps<'_>) {
        self.watch(&self.activation_changed, ACTIVATION_CHANGED, ops);
    }

    /// Stops the device, and makes the loop watch none of its eventfds.
    pub(super) fn unwatch(&mut self, ops: &mut EventOps<'_>) {
        self.stop();
        self.rewatch_queues(ops);
        let _ = ops.remove(Events::empty(&*self.activation_changed)); // fails if it never was added
    }

    /// Acknowledges an event, and returns what it means.
    pub(super) fn on_event(&mut self, events: &Events, ops: &mut EventOps<'_>) -> DeviceEvent {
        match events.data() {
            ACTIVATION_CHANGED => {
                let _ = self.activation_changed.read();
                self.rewatch_queues(ops);
                DeviceEvent::ActivationChanged
            }
            data => match data.checked_sub(KICK).map(|index| index as usize) {
                Some(index) if index < MAX_QUEUES => {
                    if let Some(kick) = self.watched.get(index) {
                        let _ = kick.read();
                    }
                    DeviceEvent::QueueKick(index)
                }
                _ => DeviceEvent::Other(data),
            },
        }
    }

    /// Makes the loop watch the kicks of the current queues instead of the former ones.
    fn rewatch_queues(&mut self, ops: &mut EventOps<'_>) {
        for kick in self.watched.drain(..) {
            let _ = ops.remove(Events::empty(&*kick)); // fails for one that could not be added
        }
        let queues = self.active.iter();
        let queues = queues.flat_map(|active| active.queues.as_ref());
        self.watched = queues.map(|queue| Arc::clone(queue.kick())).collect();
        for (kick, data) in self.watched.iter().zip(KICK..) {
            self.watch(kick, data, ops);
        }
    }

    fn watch(&self, eventfd: &EventFd, data: u32, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::with_data(eventfd, data, EventSet::IN)) {
            let device = &self.device;
            log::error!(
                "{device}: cannot watch for its activation or for a queue's kicks: {error:?}"
            );
        }
    }

    /// Logs a warning about something that the guest can cause, within a limit.
    pub(super) fn warn(&mut self, message: std::fmt::Arguments<'_>) {
        self.warnings.warn(&self.device, message);
    }

    /// To be called after the queues were served: interrupts the driver if it wants that, and logs
    /// which queues are broken now.
    pub(super) fn end_turn(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        let mut wanted = false;
        for (index, queue) in active.queues.as_mut().iter_mut().enumerate() {
            wanted |= queue.take_interrupt(active.memory.guest());
            if let Some(error) = queue.take_failure() {
                self.warnings.warn(
                    &self.device,
                    format_args!("queue {index} is not served until a reset: {error}"),
                );
            }
        }
        if wanted {
            active.interrupt.used_buffer();
        }
    }
}
