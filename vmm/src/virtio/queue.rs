//! A virtqueue as a device serves it: the loop, common to all devices, that takes available chains,
//! returns used ones, and decides whether to interrupt the driver. However the guest behaves, the
//! work is bounded.
//!
//! The devices interpret the requests.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;
use super::device::ActiveQueue;
use crate::stop::StopFlag;

/// The state of the queue when a turn ends.
enum Progress {
    /// The queue is empty; the driver will kick when it makes more available.
    QueueEmpty,
    /// There may be more chains, which are left for another turn.
    MoreToServe,
}

/// The bounds of one turn: how much of a queue a device serves before its event loop handles other
/// events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn<'a> {
    /// How often the queue is checked for a chain, at most.
    pub(super) budget: usize,
    /// Once the machine has been stopped, no more requests are taken.
    pub(super) stop: &'a StopFlag,
    /// Interrupts the driver after each request, for devices whose requests may take long. If
    /// `None`, the driver is interrupted once, by
    /// [`Lifecycle::end_turn`](super::lifecycle::Lifecycle::end_turn).
    pub(super) interrupt_each: Option<&'a Interrupt>,
}

/// A virtqueue, and whether chains were used since the driver was last interrupted.
#[derive(Debug)]
pub(super) struct DeviceQueue {
    /// Set to not ready if the driver has broken its rings: then it isn't served until a reset.
    queue: Queue,
    kick: Arc<EventFd>,
    /// Why the queue isn't served any more, until that has been logged.
    failure: Option<Error>,
    /// Buffers were used since the last [`Self::take_interrupt`].
    used: bool,
    /// The used index at the last [`Self::take_interrupt`] that had used buffers.
    signalled_used: u16,
}

impl DeviceQueue {
    pub(super) fn new(active: ActiveQueue, event_idx: bool) -> Self {
        let mut queue = active.queue;
        queue.set_event_idx(event_idx);
        Self {
            signalled_used: queue.next_used(),
            queue,
            kick: active.kick,
            failure: None,
            used: false,
        }
    }

    /// The queue's state with its positions in the rings. Not ready if the queue is broken.
    pub(super) fn state(&self) -> QueueState {
        self.queue.state()
    }

    pub(super) fn kick(&self) -> &Arc<EventFd> {
        &self.kick
    }

    /// Makes the event loop serve this queue again, as after a kick.
    pub(super) fn kick_self(&self) {
        let _ = self.kick.write(1); // a full eventfd is readable too
    }

    /// Takes chains within the bounds of the turn, and calls `request` for each, which serves it
    /// and returns the number of bytes written to it, or `None` to leave the chain for the next
    /// turn. If chains may be left, the queue is kicked so that there is a next turn.
    ///
    /// Checks that find no chain count as well: the guest can change the available index at any
    /// time, so that there always seems to be a chain until the device looks for it.
    pub(super) fn serve<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
        turn: Turn<'_>,
        request: impl FnMut(DescriptorChain<&'m M>) -> Option<u32>,
    ) {
        match self.try_serve(memory, turn, request) {
            Ok(Progress::QueueEmpty) => {}
            Ok(Progress::MoreToServe) => self.kick_self(),
            Err(error) => self.mark_broken(error),
        }
    }

    fn try_serve<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
        turn: Turn<'_>,
        mut request: impl FnMut(DescriptorChain<&'m M>) -> Option<u32>,
    ) -> Result<Progress, Error> {
        if !self.queue.ready() {
            return Ok(Progress::QueueEmpty);
        }
        self.queue.disable_notification(memory)?;
        for _ in 0..turn.budget {
            if turn.stop.is_set() {
                return Ok(Progress::QueueEmpty);
            }
            let Some(chain) = self.try_pop(memory)? else {
                if !self.queue.enable_notification(memory)? {
                    return Ok(Progress::QueueEmpty);
                }
                self.queue.disable_notification(memory)?;
                continue;
            };
            let head = chain.head_index();
            let Some(written) = request(chain) else {
                self.undo_pop(1);
                return Ok(Progress::MoreToServe);
            };
            self.queue.add_used(memory, head, written)?;
            self.used = true;
            if let Some(interrupt) = turn.interrupt_each
                && self.take_interrupt(memory)
            {
                interrupt.used_buffer();
            }
        }
        Ok(Progress::MoreToServe)
    }

    fn try_pop<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
    ) -> Result<Option<DescriptorChain<&'m M>>, Error> {
        let Some(chain) = self.queue.iter(memory)?.next() else {
            return Ok(None);
        };
        // A head index outside of the descriptor table must not be used.
        if chain.head_index() >= self.queue.size() {
            return Err(Error::InvalidDescriptorIndex);
        }
        Ok(Some(chain))
    }

    /// Takes the next chain, for a device that has data for the driver.
    pub(super) fn pop<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
    ) -> Option<DescriptorChain<&'m M>> {
        if !self.queue.ready() {
            return None;
        }
        self.try_pop(memory).unwrap_or_else(|error| {
            self.mark_broken(error);
            None
        })
    }

    /// Makes the last `count` chains that were taken available again.
    pub(super) fn undo_pop(&mut self, count: usize) {
        let next = self.queue.next_avail().wrapping_sub(count as u16);
        self.queue.set_next_avail(next);
    }

    /// Returns a chain to the driver, with `written` bytes written to it.
    pub(super) fn add_used<M: GuestMemory>(&mut self, memory: &M, head: u16, written: u32) {
        match self.queue.add_used(memory, head, written) {
            Ok(()) => self.used = true,
            Err(error) => self.mark_broken(error),
        }
    }

    /// Returns several chains to the driver at once: it sees either none or all of them as used. Each
    /// is given by its head index and the number of bytes written to it.
    ///
    /// The library publishes the used index with every chain, so this writes all but the last one to
    /// the ring itself.
    pub(super) fn add_used_batch<M: GuestMemory>(&mut self, memory: &M, chains: &[(u16, u32)]) {
        let Some(((head, written), earlier)) = chains.split_last() else {
            return;
        };
        let mut next = self.queue.next_used();
        for (head, written) in earlier {
            let index = u64::from(next % self.queue.size());
            // A header of 4 bytes, then elements of 8 (virtio 1.3, 2.7.8).
            let address = self.queue.used_ring().saturating_add(4 + 8 * index);
            let element = [u32::from(*head), *written].map(u32::to_le);
            if let Err(error) = memory.write_obj(element, GuestAddress(address)) {
                return self.mark_broken(Error::GuestMemory(error));
            }
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        self.add_used(memory, *head, *written);
    }

    /// Stops serving the queue until a reset.
    fn mark_broken(&mut self, error: Error) {
        self.queue.set_ready(false);
        self.failure = Some(error);
    }

    /// Why the queue isn't served any more; returned once, for the log.
    pub(super) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// The most chains that can be available at once.
    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Asks the driver to kick when it makes more available. Returns whether it has made more
    /// available already.
    pub(super) fn enable_kicks<M: GuestMemory>(&mut self, memory: &M) -> bool {
        self.queue.ready() && self.queue.enable_notification(memory).unwrap_or(false)
    }

    /// Asks the driver not to kick while the queue is being served.
    pub(super) fn disable_kicks<M: GuestMemory>(&mut self, memory: &M) {
        if self.queue.ready() {
            let _ = self.queue.disable_notification(memory);
        }
    }

    /// Whether the driver must be interrupted for the chains used since the last call.
    pub(super) fn take_interrupt<M: GuestMemory>(&mut self, memory: &M) -> bool {
        std::mem::take(&mut self.used) && self.needs_interrupt(memory).unwrap_or(true)
    }

    /// With EVENT_IDX, whether the used index has passed the driver's `used_event` since the last
    /// call (virtio 1.3, 2.7.7.2); always without it. `None` if `used_event` can't be read. The
    /// library's own function knows only of chains that the library has put into the ring.
    fn needs_interrupt<M: GuestMemory>(&mut self, memory: &M) -> Option<bool> {
        let used = self.queue.next_used();
        let signalled_used = std::mem::replace(&mut self.signalled_used, used);
        if !self.queue.event_idx_enabled() {
            return Some(true);
        }
        // The driver must see the used index before `used_event` is read.
        fence(Ordering::SeqCst);
        let used_event = 4 + 2 * u64::from(self.queue.size());
        let address = self.queue.avail_ring().checked_add(used_event)?;
        let bytes: [u8; 2] = memory.read_obj(GuestAddress(address)).ok()?;
        let used_event = u16::from_le_bytes(bytes);
        Some(used.wrapping_sub(used_event).wrapping_sub(1) < used.wrapping_sub(signalled_used))
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::super::testing;
    use super::*;

    /// A queue whose available index is at the address where the device enables and disables kicks:
    /// each such write makes one more request available.
    fn always_more() -> Queue {
        let mut queue = Queue::new(16).expect("a queue");
        queue.set_size(16);
        queue.set_desc_table_address(Some(0x1000), Some(0));
        queue.set_avail_ring_address(Some(0x2002), Some(0));
        queue.set_used_ring_address(Some(0x2004), Some(0));
        queue.set_ready(true);
        queue
    }

    /// Serves it for one turn. Returns how many requests there were, and whether it was kicked again.
    fn serve_it(stop: &StopFlag) -> (u32, bool) {
        let memory = testing::memory();
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        let active = ActiveQueue {
            queue: always_more(),
            kick: Arc::clone(&kick),
        };
        let turn = Turn {
            budget: 100,
            stop,
            interrupt_each: None,
        };
        let mut served = 0;
        let mut queue = DeviceQueue::new(active, false);
        queue.serve(&*memory, turn, |_| {
            served += 1;
            Some(0)
        });
        assert!(queue.take_failure().is_none());
        (served, kick.read().is_ok())
    }

    #[test]
    fn a_guest_that_always_has_more_to_show_gets_one_turn() {
        assert_eq!(serve_it(&StopFlag::default()), (1, true));
    }

    #[test]
    fn a_machine_that_was_stopped_has_no_more_requests() {
        let stop = StopFlag::default();
        stop.set();
        assert_eq!(serve_it(&stop), (0, false));
    }

    /// A queue of 16 descriptors with its rings at 0x1000, 0x2000 and 0x3000, and this used index.
    fn queue_with_used(count: u16, event_idx: bool) -> DeviceQueue {
        let mut queue = Queue::new(16).expect("a queue");
        queue.set_size(16);
        queue.set_desc_table_address(Some(0x1000), Some(0));
        queue.set_avail_ring_address(Some(0x2000), Some(0));
        queue.set_used_ring_address(Some(0x3000), Some(0));
        queue.set_next_used(count);
        queue.set_ready(true);
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        DeviceQueue::new(ActiveQueue { queue, kick }, event_idx)
    }

    #[test]
    fn chains_returned_at_once_are_in_the_ring_in_their_order() {
        let memory = testing::memory();
        let mut queue = queue_with_used(u16::MAX, false);
        queue.add_used_batch(&*memory, &[(3, 30), (1, 10), (2, 20)]);
        let element = |index: u64| -> [u32; 2] {
            let at = GuestAddress(0x3004 + 8 * index);
            memory.read_obj(at).expect("in memory")
        };
        assert_eq!(
            [element(15), element(0), element(1)],
            [[3, 30], [1, 10], [2, 20]]
        );
        let index: u16 = memory.read_obj(GuestAddress(0x3002)).expect("in memory");
        assert_eq!((index, queue.state().next_used), (2, 2));
        queue.add_used_batch(&*memory, &[]);
        assert_eq!(queue.state().next_used, 2);
        queue.add_used_batch(&*memory, &[(1, 1), (16, 1)]);
        assert!(queue.take_failure().is_some(), "no such head");
    }

    #[test]
    fn the_driver_is_interrupted_once_the_index_passes_its_used_event() {
        let memory = testing::memory();
        let set_used_event = |index: u16| {
            let at = GuestAddress(0x2000 + 4 + 32);
            memory.write_obj(index, at).expect("in memory");
        };
        let mut queue = queue_with_used(u16::MAX - 1, true);
        set_used_event(0); // the third chain from here
        assert!(!queue.take_interrupt(&*memory), "nothing was used");
        queue.add_used_batch(&*memory, &[(0, 0), (1, 0)]);
        assert!(!queue.take_interrupt(&*memory), "two");
        queue.add_used(&*memory, 2, 0);
        assert!(queue.take_interrupt(&*memory), "the third");
        queue.add_used(&*memory, 3, 0);
        assert!(!queue.take_interrupt(&*memory), "interrupted already");
        // In the middle of those that are returned at once.
        set_used_event(3);
        queue.add_used_batch(&*memory, &[(0, 0), (1, 0), (2, 0), (3, 0)]);
        assert!(queue.take_interrupt(&*memory));
        let mut queue = queue_with_used(0, false);
        queue.add_used(&*memory, 0, 0);
        assert!(queue.take_interrupt(&*memory), "without EVENT_IDX");
    }
}
