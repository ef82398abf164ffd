//! The control queue of a NIC whose other queues the host's kernel serves.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::super::control::{self, Layout};
use crate::stop::StopFlag;
use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::memory::MemoryView;
use crate::virtio::queue::DeviceQueue;

/// The control queue of an active device.
pub(super) struct ControlQueue {
    queue: DeviceQueue,
    memory: MemoryView,
    layout: Layout,
    interrupt: Interrupt,
    stop: StopFlag,
}

impl ControlQueue {
    pub(super) fn new(
        queue: ActiveQueue,
        memory: &Arc<GuestMemoryMmap>,
        features: u64,
        layout: Layout,
        interrupt: &Interrupt,
        stop: &StopFlag,
    ) -> io::Result<Self> {
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        Ok(Self {
            queue: DeviceQueue::new(queue, event_idx),
            memory: MemoryView::new(Arc::clone(memory)).map_err(io::Error::other)?,
            layout,
            interrupt: interrupt.clone(),
            stop: stop.clone(),
        })
    }

    /// Takes the commands of one turn; see [`control::serve`].
    pub(super) fn serve(&mut self, use_pairs: impl FnMut(usize) -> bool) {
        let memory = self.memory.memory();
        control::serve(&mut self.queue, memory, &self.stop, self.layout, use_pairs);
        if self.queue.take_interrupt(self.memory.guest()) {
            self.interrupt.used_buffer();
        }
    }

    /// Readable when there are commands.
    pub(super) fn kick(&self) -> &Arc<EventFd> {
        self.queue.kick()
    }

    /// See [`DeviceQueue::state`].
    pub(super) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// See [`DeviceQueue::take_failure`].
    pub(super) fn take_failure(&mut self) -> Option<virtio_queue::Error> {
        self.queue.take_failure()
    }
}
