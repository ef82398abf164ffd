//! A virtqueue as the device uses it, with nothing left to the guest's goodwill.

use std::sync::Arc;

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::packet::{PacketError, RxBuffer};
use crate::virtio::ActiveQueue;

/// A queue, and what has happened to it since the guest was last interrupted.
#[derive(Debug)]
pub(super) struct Ring {
    queue: Queue,
    pub kick: Arc<EventFd>,
    /// The rings make no sense, so the queue isn't served until the device is reset.
    broken: bool,
    /// Why, until that is logged.
    trouble: Option<Error>,
    /// Buffers were used since the last [`Self::take_interrupt`].
    used: bool,
}

impl Ring {
    pub fn new(active: ActiveQueue, event_idx: bool) -> Self {
        let mut queue = active.queue;
        queue.set_event_idx(event_idx);
        Self {
            queue,
            kick: active.kick,
            broken: false,
            trouble: None,
            used: false,
        }
    }

    /// Takes the next chain that the guest has made available.
    pub fn pop<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Option<DescriptorChain<&'m GuestMemoryMmap>> {
        if self.broken {
            return None;
        }
        let chain = match self.queue.iter(memory) {
            Ok(mut chains) => chains.next()?,
            Err(error) => {
                self.give_up(error);
                return None;
            }
        };
        // A head outside the table has no chain, and no place in the used ring.
        if chain.head_index() >= self.queue.size() {
            self.give_up(Error::InvalidDescriptorIndex);
            return None;
        }
        Some(chain)
    }

    /// Puts the last `count` chains that were taken back.
    pub fn put_back(&mut self, count: usize) {
        let next = self.queue.next_avail().wrapping_sub(count as u16);
        self.queue.set_next_avail(next);
    }

    /// Gives a chain back to the guest, with `len` bytes written to it.
    pub fn publish(&mut self, memory: &GuestMemoryMmap, head: u16, len: u32) {
        match self.queue.add_used(memory, head, len) {
            Ok(()) => self.used = true,
            Err(error) => self.give_up(error),
        }
    }

    fn give_up(&mut self, error: Error) {
        self.broken = true;
        self.trouble = Some(error);
    }

    /// Why the queue isn't served any more, once.
    pub fn take_trouble(&mut self) -> Option<Error> {
        self.trouble.take()
    }

    /// Asks the guest for a kick when it makes more available. Returns whether it has already.
    pub fn wait_for_more(&mut self, memory: &GuestMemoryMmap) -> bool {
        !self.broken && self.queue.enable_notification(memory).unwrap_or(false)
    }

    /// Asks the guest not to kick, because the queue is being looked at.
    pub fn hush(&mut self, memory: &GuestMemoryMmap) {
        if !self.broken {
            let _ = self.queue.disable_notification(memory);
        }
    }

    /// Whether the guest wants to be interrupted for what was used.
    pub fn take_interrupt(&mut self, memory: &GuestMemoryMmap) -> bool {
        std::mem::take(&mut self.used) && self.queue.needs_notification(memory).unwrap_or(true)
    }

    /// Takes the next buffer for a packet to the guest; `None` if there is none, in which case a kick
    /// will tell of more. Chains that are no buffers go back unused, and are told to `warn`.
    pub fn next_buffer<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        mut warn: impl FnMut(PacketError),
    ) -> Option<RxBuffer<'m>> {
        for _ in 0..self.queue.size() {
            let Some(chain) = self.pop(memory) else {
                if self.wait_for_more(memory) {
                    continue;
                }
                return None;
            };
            let head = chain.head_index();
            match RxBuffer::parse(memory, chain) {
                Ok(buffer) => return Some(buffer),
                Err(error) => {
                    warn(error);
                    self.publish(memory, head, 0);
                }
            }
        }
        None
    }

    /// Takes buffers with room for at least `wanted` bytes of payload, or as many as there are, but
    /// at most `most`.
    pub fn more_buffers<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        wanted: usize,
        most: usize,
    ) -> Vec<RxBuffer<'m>> {
        let mut buffers = Vec::new();
        let mut room = 0;
        while room < wanted && buffers.len() < most {
            let Some(chain) = self.pop(memory) else { break };
            match RxBuffer::parse(memory, chain) {
                Ok(buffer) => {
                    room += buffer.room();
                    buffers.push(buffer);
                }
                Err(_) => {
                    // Its turn comes when it is the next one.
                    self.put_back(1);
                    break;
                }
            }
        }
        buffers
    }
}
